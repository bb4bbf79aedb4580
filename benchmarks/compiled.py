"""A compiled model with rnnext.RNN beside torch.compile of a loop over nn.RNNCell: the time of the
first call, which compiles, and of those that follow."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor, nn

import rnnext

from . import runner
from .compared import Columns, Numbers, Row, Suite, seconds

B, I, H = 20, 200, 200  # noqa: E741
ROUNDS = 15


class Loop(nn.Module):
    """What is written without an RNN module: a cell, called step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(I, H)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        h = x.new_zeros(x.shape[1], H)
        outputs = []
        for step in x.unbind(0):
            h = self.cell(step, h)
            outputs.append(h)
        return (torch.stack(outputs),)


def rows() -> Iterator[Row]:
    for T in (32, 512):
        for mode in ("inference", "training"):
            yield Row(f"T={T}, {mode}", partial(_in_worker, T, mode))


def _in_worker(T: int, mode: str) -> Numbers:
    [(_, found)] = runner.in_workers(1, _time, 0, T, mode == "training")
    return dict(found)


def _seconds(call: Callable[[], Tensor]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _time(send: Callable[[str, Any], None], threads: int, T: int, train: bool) -> None:
    """Send seconds of the first call and of later ones, of both. No cache of compiled code."""
    x = torch.randn(T, B, I)

    def step(model: Callable[[Tensor], tuple[Tensor, ...]]) -> Tensor:
        with torch.set_grad_enabled(train):
            output = model(x)[0]
        if train:
            torch.autograd.backward(output.square().mean())
        return output.detach()

    models = rnnext.RNN(I, H), Loop()
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        ours.data.copy_(theirs.data)
    with torch._inductor.config.patch(force_disable_caches=True):
        # The compiler's own start takes seconds, once in a process, whatever is compiled.
        step(torch.compile(nn.Linear(I, H), fullgraph=True))
        compiled = (torch.compile(model, fullgraph=True) for model in models)
        calls = [partial(step, model) for model in compiled]
        found = {"first": _seconds(calls[0])}
        found["loop first"] = _seconds(calls[1])
    torch.testing.assert_close(calls[0](), calls[1](), rtol=1e-4, atol=1e-5)
    turns = [[_seconds(call) for call in calls] for _ in range(ROUNDS)]
    found["later"], found["loop later"] = map(statistics.median, zip(*turns, strict=True))
    send("compiled", found)


COLUMNS: Columns = {
    "first call": seconds("first"),
    "of the loop": seconds("loop first"),
    "later": seconds("later"),
    "later, of the loop": seconds("loop later"),
    "times as fast": lambda row: f"{row['loop later'] / row['later']:.1f}",
}
SUITE = Suite("compiled", rows, {"compiled": COLUMNS})
