"""Training steps of whole models, each in a process of its own: time, page faults, memory.

What the allocator of one module does to the tensors of the others shows here alone: lone layers
that take turns in one process share its heap.
"""

from __future__ import annotations

import functools
import itertools
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnext

from . import cases, runner
from .compared import TWO_SIDES, Columns, Numbers, Row, Suite, at_most, bar, seconds
from .names import OURS, TORCH
from .rivals.contract import Data
from .rivals.torch_modules import TorchModules

SIDES = {"ours": OURS, "other": TORCH}
PROCESSES = 2  # of each library, one after the other's
WARM_STEPS, SECONDS = 5, 2.0
T, FEATURES, WORDS, VOCABULARY = 98, 40, 35, 10_000
NAMES = (
    *(f"spotter-B{B}-{form}" for form in ("packed", "lengths", "plain") for B in (32, 64, 128)),
    *(f"{cell}-spotter-B64-{form}" for cell in cases.GATED for form in ("packed", "plain")),
    "language-B20-V10000",
    "demo-B20-V384",
)


class Spotter(nn.Module):
    """Names the spoken word of each recording: two layers of 128 in both directions.

    form: "lengths" hands the lengths to the RNN, if it is rnnext's; "plain" takes all recordings
    for full; otherwise, recordings are packed.
    """

    def __init__(self, form: str, layers: Callable[..., Any] = nn.RNN) -> None:
        super().__init__()
        self.form = form
        self.norm = nn.LayerNorm(FEATURES)
        self.rnn = layers(FEATURES, 128, num_layers=2, bidirectional=True, dropout=0.2)
        self.dropout = nn.Dropout(0.2)
        self.score = nn.Linear(256, WORDS)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = self.norm(x)
        if self.form == "plain":
            output, _ = self.rnn(x)
        elif self.form == "lengths" and isinstance(self.rnn, rnnext.rnn.Layers):
            output, _ = self.rnn(x, lengths=lengths)
        else:
            packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
            output, _ = pad_packed_sequence(self.rnn(packed)[0], total_length=T)
        scores: Tensor = self.score(self.dropout(output).sum(0) / lengths.unsqueeze(1))
        return scores


class LanguageModel(nn.Module):
    """The next word of V=10,000, from windows of 35."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 200)
        self.rnn = nn.RNN(200, 200, num_layers=2, dropout=0.2)
        self.dropout = nn.Dropout(0.2)
        self.score = nn.Linear(200, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        output, _ = self.rnn(self.dropout(self.embedding(tokens)))
        scores: Tensor = self.score(self.dropout(output)).flatten(0, 1)
        return scores


def training_step(name: str, library: str) -> Callable[[], None]:
    """One step of the model of that name with the library's modules, on data of its own."""
    torch.manual_seed(0)
    *cell, kind, batch, form = name.split("-")
    B = int(batch[1:])
    if kind == "demo":
        (case,) = cases.select(cases.CASES, ["demo"])
        return TorchModules(library).prepare(case, Data(case), 0).call
    if kind == "language":
        model: nn.Module = LanguageModel()
        inputs: tuple[Tensor, ...] = (torch.randint(0, VOCABULARY, (35, B)),)
        target = torch.randint(0, VOCABULARY, (35 * B,))
    else:
        model = Spotter(form, getattr(nn, "".join(cell or ["rnn"]).upper()))
        lengths = torch.randint(T // 3, T + 1, (B,))
        lengths[0] = T
        inputs = (torch.randn(T, B, FEATURES), torch.full((B,), T) if form == "plain" else lengths)
        target = torch.randint(0, WORDS, (B,))
    if library == OURS:
        rnnext.convert(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        loss = nn.functional.cross_entropy(model(*inputs), target)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def measure_steps(send: Callable[[str, Any], None], threads: int, name: str, library: str) -> None:
    """In a worker. Sends seconds of each step, faults a step, and the process's peak in MiB."""
    step = training_step(name, library)
    for _ in range(WARM_STEPS):
        step()
    times: list[float] = []
    faults = -resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    end = time.perf_counter() + SECONDS
    while (start := time.perf_counter()) < end:
        step()
        times.append(time.perf_counter() - start)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    send("steps", (times, (faults + usage.ru_minflt) / len(times), usage.ru_maxrss / 1024))


def _row(name: str) -> Numbers:
    """Of both libraries, the medians over all processes."""
    found: dict[str, list[Any]] = {side: [] for side in SIDES}
    for _ in range(PROCESSES):
        for side, library in SIDES.items():
            found[side] += runner.in_workers(1, measure_steps, 0, name, library)
    row: Numbers = {}
    for side, results in found.items():
        times, faults, peaks = zip(*(result for _, result in results), strict=True)
        row[side] = statistics.median(itertools.chain(*times))
        row[f"{side} faults"] = statistics.median(faults)
        row[f"{side} MiB"] = max(peaks)
    return row


def rows() -> Iterator[Row]:
    for name in NAMES:
        yield Row(name, functools.partial(_row, name))


def count(name: str) -> Callable[[Numbers], str]:
    return lambda row: f"{row[name]:.0f}"


COLUMNS: Columns = {
    **{library: seconds(side) for side, library in SIDES.items()},
    "times as fast": TWO_SIDES["times as fast"],
    **{f"page faults, {library}": count(f"{side} faults") for side, library in SIDES.items()},
    **{f"MiB, {library}": count(f"{side} MiB") for side, library in SIDES.items()},
}
SUITE = Suite("models", rows, {"models": COLUMNS}, (
    bar("spotters with GRU or LSTM, over torch.nn's", "*-spotter-*", 2),
    at_most("their page faults over torch.nn's", "*-spotter-*", 1,
            lambda row: row["ours faults"] / row["other faults"]),
))  # fmt: skip
