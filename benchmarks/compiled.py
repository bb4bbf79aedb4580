"""A compiled model with rnnext.RNN beside torch.compile of a loop over nn.RNNCell: the time of the
first call, which compiles, and of those that follow."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch._dynamo
import torch._inductor.config
from torch import Tensor, nn

import rnnext

from .compared import Columns, Numbers, Row, Suite, call_of, seconds, turns
from .measure import Contender, sample

B, I, H = 20, 200, 200  # noqa: E741


class Loop(nn.Module):
    """A model without an RNN module: a cell, called step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(I, H)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = x.new_zeros(x.shape[1], H)
        outputs = []
        for step in x.unbind(0):
            h = self.cell(step, h)
            outputs.append(h)
        return torch.stack(outputs), h


def rows() -> Iterator[Row]:
    for T in (32, 512):
        for mode in ("inference", "training"):
            yield Row(f"T={T}, {mode}", partial(_measure, T, mode == "training"))


def _measure(T: int, train: bool) -> Numbers:
    """Seconds of the first call and of later ones, of both. No cache of compiled code."""
    torch._dynamo.reset()
    models = rnnext.RNN(I, H), Loop()
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        ours.data.copy_(theirs.data)
    x = torch.randn(T, B, I)
    one, other = (
        call_of(torch.compile(m, fullgraph=True), (x,), [*m.parameters()], train, h_n=False)
        for m in models
    )
    with torch._inductor.config.patch(force_disable_caches=True):
        # The compiler's own start takes seconds, once in a process, whatever is compiled.
        torch.compile(nn.Linear(I, H), fullgraph=True)(x).sum().backward()
        first, of_loop = (sample(Contender(call), 1, 0.0) for call in (one, other))
    later = turns(one, other)()
    found = {"first": first, "loop first": of_loop}
    return found | {"later": later["ours"], "loop later": later["other"]}


COLUMNS: Columns = {
    "first call": seconds("first"),
    "of the loop": seconds("loop first"),
    "later": seconds("later"),
    "later, of the loop": seconds("loop later"),
    "times as fast": lambda row: f"{row['loop later'] / row['later']:.1f}",
}
SUITE = Suite("compiled", rows, {"compiled": COLUMNS})
