"""Whether an installed rnnext works: ``python tools/smoke.py``, needing nothing but torch.

What a wheel must pass beside no sources but this file: values and gradients against torch.nn, every
module, the compiler's view of the ops, and the command.
"""

import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import torch

import rnnext


def check(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda m: f"{name}: {m}")
    print("agrees:", name)


def main() -> None:
    sources = Path(__file__).resolve().parents[1] / "rnnext"
    installed = Path(rnnext.__file__).resolve().parent
    if installed == sources:
        raise SystemExit(f"{sources} was imported, not an installed rnnext")
    release = ".".join(torch.__version__.split(".")[:2])
    assert f"+torch{release}" in rnnext.__version__, rnnext.__version__
    assert f"torch=={release}.*" in (requires("rnnext") or []), requires("rnnext")

    torch.manual_seed(0)
    x = torch.randn(12, 4, 10)
    theirs = torch.nn.RNN(10, 16, num_layers=2, bidirectional=True)
    ours = rnnext.RNN(10, 16, num_layers=2, bidirectional=True)
    ours.load_state_dict(theirs.state_dict())
    for module in (ours, theirs):
        module(x)[0].square().sum().backward()
    check("RNN", ours(x)[0], theirs(x)[0])
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        check(f"gradient of {name}", one.grad, other.grad)

    tokens, model = torch.randint(30, (12, 4)), rnnext.EmbeddingRNN(30, 10, 16)
    check("EmbeddingRNN", model(tokens)[0], model.rnn(model.embedding.weight[tokens])[0])
    leaky = rnnext.LeakyRNN(10, 16, alpha=0.2)
    stepper = rnnext.Stepper(leaky, batch_size=4)
    check("Stepper of a LeakyRNN", torch.stack([stepper(step) for step in x]), leaky(x)[0])
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    check("torch.compile", compiled(x)[0], theirs(x)[0])

    subprocess.run([sys.executable, "-m", "rnnext"], check=True)
    print(f"rnnext {rnnext.__version__} works, from {installed}")


if __name__ == "__main__":
    main()
