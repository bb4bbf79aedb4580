"""What rnnext has and nn.RNN has not, against what people write instead: times, equality, bars."""

from __future__ import annotations

import functools
import importlib.util
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import rnnext

from . import measure
from .bars.verdict import Verdict, worst

EFFORT = measure.Effort(seconds=0.5, min_rounds=5, max_rounds=25, warm_seconds=0.01)
# A part of the largest value: the others sum in other orders.
TOLERANCE = 2e-4

Call = Callable[[], list[Tensor]]


@dataclass(frozen=True)
class Row:
    """Ours beside another way to the same results.

    group: the bar it belongs to. scale: how much of the work of the other ours has to do (padding
    left out). same: whether the results must be equal; two things of different worth are only
    timed.
    """

    group: str
    what: str
    ours: Call
    other: Call
    scale: float = 1.0
    same: bool = True


@dataclass(frozen=True)
class Timed:
    row: Row
    ours: float
    other: float

    @property
    def faster(self) -> float:
        """How many times as long the other takes, for the same work."""
        return self.other * self.row.scale / self.ours

    @property
    def longer(self) -> float:
        return 1 / self.faster


def results(
    forward: Callable[[], tuple[Tensor, Tensor]], leaves: list[Tensor], train: bool
) -> list[Tensor]:
    """Output and h_n, and in training the gradients of the leaves."""
    if not train:
        with torch.no_grad():
            return list(forward())
    output, h_n = forward()
    gradients = torch.autograd.grad(output, leaves, torch.ones_like(output))
    return [output.detach(), h_n.detach(), *gradients]


def module_call(module: nn.Module, x: Tensor, train: bool, **options: Any) -> Call:
    leaves: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
    if x.is_floating_point():
        x = x.detach().requires_grad_(train)
        leaves.insert(0, x)
    return lambda: results(lambda: module(x, **options), leaves, train)


def python_loop(leaky: rnnext.LeakyRNN, x: Tensor) -> tuple[Tensor, Tensor]:
    """The rate form as it is written today: one input projection, then a step at a time."""
    w_ih, w_hh, b_ih, b_hh = leaky.parameters()
    drive = nn.functional.linear(x, w_ih, b_ih + b_hh)
    a, weight = leaky.alphas()[0], w_hh.t()
    state = x.new_zeros(x.shape[1], leaky.hidden_size)
    outputs = []
    for step in drive:
        state = (1 - a) * state + a * torch.tanh(torch.addmm(step, state, weight))
        outputs.append(state)
    return torch.stack(outputs), state.unsqueeze(0)


def split_and_pad(rnn: nn.Module, x: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
    """nn.RNN over every episode as a row of its own, padded, and the rows put back."""
    T, B = reset.shape
    begins = reset.t().clone()
    begins[:, 0] = True
    starts = begins.flatten().nonzero().flatten()
    longest = int(torch.diff(starts, append=torch.tensor([T * B])).max())
    steps = torch.arange(longest).unsqueeze(1)
    rows = x.transpose(0, 1).flatten(0, 1)
    picked = (starts + steps).clamp(max=T * B - 1).flatten()
    padded = rows.index_select(0, picked).view(longest, len(starts), -1)
    output, h_n = rnn(padded)
    episode = begins.flatten().cumsum(0) - 1
    back = (torch.arange(T * B) - starts[episode]) * len(starts) + episode
    rows = output.flatten(0, 1).index_select(0, back)
    return rows.view(B, T, -1).transpose(0, 1), h_n


def zipf(V: int, shape: tuple[int, int]) -> Tensor:
    weights = 1 / torch.arange(1, V + 1, dtype=torch.float64)
    return torch.multinomial(weights, shape[0] * shape[1], replacement=True).view(shape)


def rows() -> Iterator[Row]:
    """All comparisons; each builds its modules when its turn comes."""
    for train in (False, True):
        mode = "train" if train else "infer"
        for H in (32, 64, 128, 256, 512):
            x = torch.randn(100, 32, 64)
            rnn, leaky = rnnext.RNN(64, H), rnnext.LeakyRNN(64, H, alpha=0.2)
            bar = "leak, H >= 256" if H >= 256 else "leak, H < 256"
            what = f"LeakyRNN against RNN, T=100 B=32 I=64 H={H}, {mode}"
            ours = module_call(leaky, x, train)
            yield Row(bar, what, ours, module_call(rnn, x, train), same=False)
        for H in (64, 256):
            x, reset = torch.randn(100, 32, 64), torch.rand(100, 32) < 0.03
            rnn = rnnext.RNN(64, H)
            what = f"RNN with resets against without, T=100 B=32 I=64 H={H}, {mode}"
            ours = module_call(rnn, x, train, reset=reset)
            yield Row("reset", what, ours, module_call(rnn, x, train), same=False)
    T, B, H = 128, 128, 256
    x, reset = torch.randn(T, B, H), torch.rand(T, B) < 0.03
    rnn = rnnext.RNN(H, H)
    theirs = nn.RNN(H, H)
    theirs.load_state_dict(rnn.state_dict())
    leaf = x.requires_grad_()
    yield Row(
        "reset, episodes split",
        f"RNN with resets against nn.RNN over split and padded episodes, T={T} B={B} H={H}, train",
        lambda: _without_h_n(module_call(rnn, x, True, reset=reset)()),
        lambda: _without_h_n(
            results(lambda: split_and_pad(theirs, leaf, reset), [leaf, *theirs.parameters()], True)
        ),
    )
    lengths = (200 * torch.rand(64) ** 3).long() + 1
    x = torch.randn(200, 64, 64)
    for H in (64, 256):
        for train in (False, True):
            rnn = rnnext.RNN(64, H)
            yield Row(
                "lengths",
                f"RNN with lengths (mean {lengths.double().mean():.0f} of 200) against padding, "
                f"B=64 H={H}, {'train' if train else 'infer'}",
                module_call(rnn, x, train, lengths=lengths),
                module_call(rnn, x, train),
                scale=lengths.sum().item() / (200 * 64),
                same=False,
            )
    x = torch.randn(300, 32, 3)
    leaky = rnnext.LeakyRNN(3, 100, alpha=0.2)
    leaf = x.requires_grad_()
    loop_leaves = [leaf, *leaky.parameters()]
    yield Row(
        "leak, Python loop",
        "LeakyRNN against the Python loop, T=300 B=32 I=3 H=100, train",
        module_call(leaky, x, True),
        lambda: results(lambda: python_loop(leaky, leaf), loop_leaves, True),
    )
    yield from peers()
    for train in (False, True):
        mode = "train" if train else "infer"
        for V in (64, 384, 2000, 10_000, 50_000):
            tokens = zipf(V, (100, 32))
            module = rnnext.EmbeddingRNN(V, 128, 128)
            two = nn.ModuleList([nn.Embedding(V, 128), nn.RNN(128, 128)])
            own = nn.ModuleList([rnnext.Embedding(V, 128), rnnext.RNN(128, 128)])
            for pair in (two, own):
                pair[0].load_state_dict(module.embedding.state_dict())
                pair[1].load_state_dict(module.rnn.state_dict())
            size = f"T=100 B=32 E=H=128 V={V}, {mode}"
            for group, pair, whose in (
                ("", two, "nn.RNN(nn.Embedding)"),
                (", own", own, "RNN(Embedding)"),
            ):
                yield Row(
                    f"tokens{group}, {mode}",
                    f"EmbeddingRNN against {whose}, {size}",
                    module_call(module, tokens, train),
                    module_call(_Sequential(pair), tokens, train),
                )
    leaky, rnn = rnnext.LeakyRNN(64, 64, alpha=0.2), rnnext.RNN(64, 64)
    x = torch.randn(1, 64)
    steppers = [rnnext.Stepper(module) for module in (leaky, rnn)]
    yield Row(
        "Stepper",
        "Stepper of a LeakyRNN against one of an RNN, H=64 B=1",
        lambda: [steppers[0](x)],
        lambda: [steppers[1](x)],
        same=False,
    )


class _Sequential(nn.Module):
    def __init__(self, pair: nn.ModuleList) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, tokens: Tensor) -> Any:
        return self.pair[1](self.pair[0](tokens))


def _without_h_n(values: list[Tensor]) -> list[Tensor]:
    """(Of episodes that are rows of their own there are more.)"""
    return [values[0], *values[2:]]


def peers() -> Iterator[Row]:
    """Other libraries' own layers, where they are installed; ours takes over their weights."""
    T, B, I, H = 300, 32, 3, 100  # noqa: E741
    for train in (False, True):
        x = torch.randn(T, B, I).requires_grad_(train)
        size = f"T={T} B={B} I={I} H={H}, {'train' if train else 'infer'}"
        if importlib.util.find_spec("neuralrnn"):
            from neuralrnn.models.ctrnn.configuration_ctrnn import CTRNNConfig
            from neuralrnn.models.ctrnn.modeling_ctrnn import CTRNNModel

            modes = {"rate": "pre_activation", "voltage": "rate", "blend": "post_blend"}
            for form, mode in modes.items():
                config = CTRNNConfig(I, H, 1, alpha=0.2, activation="tanh", nonlinearity_mode=mode)
                model = CTRNNModel(config)
                layers = (model.input2h, model.h2h)
                yield _peer(
                    f"neuralrnn's CTRNNModel ({mode}), {size}",
                    form, x, train, layers,
                    functools.partial(_ctrnn, model, voltage=form == "voltage"),
                )  # fmt: skip
        if importlib.util.find_spec("nn4n"):
            from nn4n.layer import RecurrentLayer

            every = {"weights": "uniform", "biases": "uniform", "ei_mask": None}
            structs = {}
            for name, size_in in (("in_struct", I), ("hid_struct", H)):
                masks = {k: torch.ones(size_in, H) for k in ("sparsity_mask", "plasticity_mask")}
                structs[name] = {"input_dim": size_in, "output_dim": H, **every, **masks}
            spec = {"activation": "tanh", "dt": 20, "tau": 100, "init_state": "zero", **structs}
            layer = RecurrentLayer(spec)
            yield _peer(
                f"nn4n's RecurrentLayer, {size}",
                "voltage", x, train, (layer.input_layer, layer.hidden_layer),
                functools.partial(_recurrent_layer, layer),
            )  # fmt: skip


def _peer(
    what: str,
    form: str,
    x: Tensor,
    train: bool,
    layers: tuple[Any, Any],
    forward: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> Row:
    """layers: what multiplies the input and the state, each with its weight and bias."""
    inputs, hidden = layers
    leaky = rnnext.LeakyRNN(x.shape[2], hidden.weight.shape[0], alpha=0.2, form=form)
    parameters = [inputs.weight, hidden.weight, inputs.bias, hidden.bias]
    with torch.no_grad():
        for ours, theirs in zip(leaky.parameters(), parameters, strict=True):
            ours.copy_(theirs)
    return Row(
        "peers",
        f"LeakyRNN ({form}) against {what}",
        lambda: _without_h_n(results(lambda: leaky(x), [x, *leaky.parameters()], train)),
        lambda: _without_h_n(results(lambda: forward(x), [x, *parameters], train)),
    )


def _recurrent_layer(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return layer(x), x.new_zeros(0)


def _ctrnn(model: Any, x: Tensor, *, voltage: bool) -> tuple[Tensor, Tensor]:
    state = model.init_state(x.shape[1])
    states = []
    for step in x:
        state = model.recurrence(step, state)
        states.append(torch.tanh(state) if voltage else state)
    return torch.stack(states), state.unsqueeze(0)


def equal(ours: list[Tensor], others: list[Tensor]) -> bool:
    """Whether all results agree within the tolerance."""
    for a, b in zip(ours, others, strict=True):
        scale = max(1.0, b.abs().max().item())
        if (a - b).abs().max().item() > TOLERANCE * scale:
            return False
    return True


def run(rows: Iterable[Row]) -> Iterator[Timed]:
    """Time every row. RuntimeError where the results differ."""
    torch.manual_seed(0)
    for row in rows:
        if row.same and not equal(row.ours(), row.other()):
            raise RuntimeError(f"{row.what}: the results differ")
        contenders = {
            "ours": measure.Contender(row.ours),
            "other": measure.Contender(row.other),
        }
        timings = measure.interleave(contenders, EFFORT)
        yield Timed(row, timings["ours"].median, timings["other"].median)


def verdicts(timed: list[Timed]) -> list[Verdict]:
    """The bars of docs/features.md."""

    def of(group: str, value: str) -> dict[str, float]:
        return {t.row.what: getattr(t, value) for t in timed if t.row.group == group}

    def mean(what: str, group: str, needed: float) -> Verdict:
        values = of(group, "faster")
        got = statistics.geometric_mean(values.values()) if values else None
        return Verdict(what, needed, got)

    found = [
        worst("leak over none, H < 256", 1.15, of("leak, H < 256", "longer"), at_most=True),
        worst("leak over none, H >= 256", 1.05, of("leak, H >= 256", "longer"), at_most=True),
        worst("resets over none", 1.05, of("reset", "longer"), at_most=True),
        worst("resets, against split episodes", 3, of("reset, episodes split", "faster")),
        worst("lengths, time over valid steps", 1.15, of("lengths", "longer"), at_most=True),
        worst("leak, against the Python loop", 20, of("leak, Python loop", "faster")),
        worst("Stepper with a leak over without", 1.3, of("Stepper", "longer"), at_most=True),
    ]
    for mode, needed in (("infer", 4), ("train", 3.5)):
        found += [
            mean(f"tokens, against torch.nn, {mode}, mean", f"tokens, {mode}", needed),
            worst(f"tokens, against torch.nn, {mode}, worst", 1.5, of(f"tokens, {mode}", "faster")),
            mean(f"tokens, against two modules, {mode}, mean", f"tokens, own, {mode}", 1.2),
            worst(
                f"tokens, against two modules, {mode}, worst",
                1.0,
                of(f"tokens, own, {mode}", "faster"),
            ),
        ]
    return found
