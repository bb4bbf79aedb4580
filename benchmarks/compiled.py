"""A compiled model with rnnext.RNN beside torch.compile of a loop over nn.RNNCell: the time of the
first call, which compiles, and of those that follow."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch._inductor.config
from torch import Tensor, nn

import rnnext

B, I, H = 20, 200, 200  # noqa: E741
ROUNDS = 15


class Loop(nn.Module):
    """What is written without an RNN module: a cell, called step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(I, H)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[1], H)
        outputs = []
        for step in x.unbind(0):
            h = self.cell(step, h)
            outputs.append(h)
        return torch.stack(outputs)


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = rnnext.RNN(I, H)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(x)[0]
        return output


@dataclass(frozen=True)
class Timed:
    """Seconds of the first call and, later, of one call, of the compiled Fused and the Loop."""

    what: str
    first: tuple[float, float]
    later: tuple[float, float]


def _step(model: Callable[[Tensor], Tensor], x: Tensor, train: bool) -> Callable[[], Tensor]:
    def inference() -> Tensor:
        with torch.no_grad():
            return model(x)

    def training() -> Tensor:
        output = model(x)
        torch.autograd.backward(output.square().mean())
        return output.detach()

    return training if train else inference


def _seconds(call: Callable[[], Tensor]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def run(lengths: tuple[int, ...] = (32, 512)) -> Iterator[Timed]:
    """Each length in inference and in training; no cache of compiled code is used."""
    with torch._inductor.config.patch(force_disable_caches=True):
        for T in lengths:
            for train in (False, True):
                yield _timed(T, train)


def _timed(T: int, train: bool) -> Timed:
    torch.compiler.reset()
    models = Fused(), Loop()
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        ours.data.copy_(theirs.data)
    x = torch.randn(T, B, I)
    calls = [_step(torch.compile(model, fullgraph=True), x, train) for model in models]
    first = [_seconds(call) for call in calls]
    torch.testing.assert_close(calls[0](), calls[1](), rtol=1e-4, atol=1e-5)
    later: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for seconds, call in zip(later, calls, strict=True):
            seconds.append(_seconds(call))
    medians = [statistics.median(seconds) for seconds in later]
    what = f"T={T}, {'training' if train else 'inference'}"
    return Timed(what, (first[0], first[1]), (medians[0], medians[1]))
