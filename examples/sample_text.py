"""Trains a small language model, then samples text from it with `Stepper.generate`.

The model is an EmbeddingRNN and a score layer, trained on the English prose of Python's own
documentation. Sampling goes one token at a time, each read before the next is drawn: where nn.RNN
spends its time on overhead.

    python examples/sample_text.py
    python examples/sample_text.py --text book.txt --temperature 0.5 --tokens 1000

Exit status: 0; 1 when greedy text differs from that of the loop; 2 for a text that does not do.
"""

from __future__ import annotations

import argparse
import math
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from side_by_side import difference, draw_times, in_turns, positive, positive_rate, show
from text_data import Subwords, read_text, streams
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import rnnext

matplotlib.use("Agg")  # a PNG needs no display
import matplotlib.pyplot as plt


class Model(nn.Module):
    """Scores of the next token."""

    def __init__(self, pieces: int, hidden: int) -> None:
        super().__init__()
        self.rnn = rnnext.EmbeddingRNN(pieces, hidden, hidden)
        self.score = nn.Linear(hidden, pieces)

    def forward(self, tokens: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores [T, B, pieces] and the last state [1, B, H] of tokens [T, B]."""
        output, state = self.rnn(tokens, state)
        return self.score(output), state


def train(model: Model, text: Tensor, config: argparse.Namespace) -> list[float]:
    """The losses, one a step; text [L, B] is read downwards, over and over."""
    optimizer = torch.optim.Adam(model.parameters(), lr=config.rate)
    windows = (len(text) - 1) // config.length
    losses, state = [], None
    for step in range(config.steps):
        begin = step % windows * config.length
        window = text[begin : begin + config.length + 1]
        for group in optimizer.param_groups:
            group["lr"] = config.rate * (1 - step / config.steps)
        scores, state = model(window[:-1], None if begin == 0 else state)
        state = state.detach()
        loss = cross_entropy(scores.flatten(0, 1), window[1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % max(1, config.steps // 10) == 0:
            print(f"step {step + 1:4}: loss {np.mean(losses[-50:]):.3f}")
    return losses


def prompted(model: Model, prompt: Tensor, batch: int) -> rnnext.Stepper:
    """A Stepper that has read the prompt [N]."""
    stepper = rnnext.Stepper(model.rnn, batch)
    with torch.no_grad():
        state = model.rnn(prompt[:, None])[1]
    stepper.set_state(state.expand(-1, batch, -1))
    return stepper


@torch.no_grad()
def looped(
    reference: tuple[nn.Embedding, nn.RNN, nn.Linear],
    prompt: Tensor,
    n: int,
    temperature: float,
    batch: int,
) -> tuple[Tensor, Tensor]:
    """n tokens [n, B] by torch.nn's modules, one call a step, and the scores of the last."""
    embedding, rnn, score = reference
    output, state = rnn(embedding(prompt[:, None].expand(-1, batch)))
    scores, tokens = score(output[-1]), []
    for _ in range(n):
        if temperature == 0:
            token = scores.argmax(-1)
        else:
            token = torch.multinomial((scores / temperature).softmax(-1), 1)[:, 0]
        tokens.append(token)
        output, state = rnn(embedding(token[None]), state)
        scores = score(output[-1])
    return torch.stack(tokens), scores


def reference_of(model: Model) -> tuple[nn.Embedding, nn.RNN, nn.Linear]:
    """torch.nn's modules with the model's weights."""
    table, rnn = model.rnn.embedding.weight, model.rnn.rnn
    theirs = nn.RNN(rnn.input_size, rnn.hidden_size)
    theirs.load_state_dict(rnn.state_dict())
    return nn.Embedding.from_pretrained(table.detach()), theirs, model.score


def compare(
    model: Model, prompt: Tensor, config: argparse.Namespace
) -> tuple[dict[str, float], bool]:
    """Milliseconds a token, and whether greedy text is the same."""
    reference, batch, n = reference_of(model), config.samples, config.timed
    stepper = prompted(model, prompt, batch)
    start = stepper.get_state()

    def loop() -> Tensor:
        return looped(reference, prompt[-1:], n, config.temperature, batch)[0]

    def ours() -> Tensor:
        stepper.set_state(start)
        return stepper.generate(model.score, n, config.temperature)

    tokens = stepper.generate(model.score, n, temperature=0)
    expected, scores = looped(reference, prompt, n, 0, batch)
    error = difference([model.score(stepper.get_state()[-1]).detach()], [scores])
    times = in_turns(config.seconds, {"torch.nn in a loop": loop, "rnnext": ours})
    times = {name: seconds / n for name, seconds in times.items()}
    agree = show(f"A token of {batch} samples", times, error)
    same = torch.equal(tokens, expected)
    print(f"  Greedy text of {n} tokens is {'the same' if same else 'NOT the same'}.")
    return times, agree and same


def draw(losses: list[float], times: dict[str, float], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    width = max(1, len(losses) // 25)
    smooth = np.convolve(losses, np.ones(width) / width, "valid")
    left.plot(np.arange(width, len(losses) + 1), smooth, color="tab:red")
    left.set(xlabel="step", ylabel="cross-entropy per token (nats)", title="training")
    left.grid(alpha=0.3)
    draw_times(right, times, "a sampled token")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--text", type=Path, help="a UTF-8 file; Python's own docs if not given")
    parser.add_argument("--steps", type=positive, default=1000, help="of training")
    parser.add_argument("--hidden", type=positive, default=256, help="units of the RNN")
    parser.add_argument("--vocab", type=positive, default=384, help="subword pieces")
    parser.add_argument("--length", type=positive, default=100, help="steps of a training window")
    parser.add_argument("--batch", type=positive, default=20, help="windows side by side")
    parser.add_argument("--rate", type=positive_rate, default=4e-3, help="learning rate, down to 0")
    parser.add_argument("--tokens", type=positive, default=200, help="of each sample")
    parser.add_argument("--samples", type=positive, default=2, help="side by side")
    parser.add_argument("--temperature", type=float, default=0.7, help="0: the likeliest token")
    parser.add_argument("--prompt", default="The ", help="what samples begin with")
    parser.add_argument("--timed", type=positive, default=100, help="tokens of a measured call")
    parser.add_argument(
        "--threads", type=positive, default=torch.get_num_threads(), help="of the CPU"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="to measure times for")
    parser.add_argument("--seed", type=int, default=0, help="of weights and samples")
    parser.add_argument("--out", type=Path, default=Path("out/sample_text"), help="folder")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    config = options().parse_args(argv)
    try:
        text = read_text(config.text)
        subwords = Subwords(text, set(text) | set(config.prompt), config.vocab)
        rows = streams(subwords.encode(text), config.batch)
        if not config.prompt:
            raise ValueError("the prompt is empty")
        if not 0 <= config.temperature < math.inf:
            raise ValueError("the temperature must be finite and not negative")
        if len(rows) <= config.length:
            raise ValueError("the text is too short: lower --batch or --length")
    except ValueError as error:
        print(f"sample_text: error: {error}", file=sys.stderr)
        return 2
    config.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    model = Model(len(subwords.pieces), config.hidden)
    losses = train(model, rows, config)
    prompt = subwords.encode(config.prompt)

    stepper = prompted(model, prompt, config.samples)
    tokens = stepper.generate(model.score, config.tokens, config.temperature)
    samples = [subwords.decode([*prompt.tolist(), *row]) for row in tokens.t().tolist()]
    shown = "\n\n".join(textwrap.fill(each.replace("\n", " / "), 100) for each in samples)
    print(f"\n{shown}")
    (config.out / "sample.txt").write_text(shown + "\n", encoding="utf-8")

    times, agree = compare(model, prompt, config)
    draw(losses, times, config.out / "sample_text.png")
    print(f"\nIn {config.out}: sample_text.png, sample.txt")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
