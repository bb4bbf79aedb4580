"""Sizes one apart around the places where kernels change tile: what does one more cost?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

from . import measure
from .cases import MODES, Case
from .compared import Columns, Numbers, Row, Suite, at_most
from .roof import operations

# One size is swept while the others stay at these.
BASE: dict[str, Any] = {"T": 64, "B": 32, "I": 32, "H": 128}
SIZES: dict[str, tuple[range, ...]] = {
    "H": tuple(range(edge - 2, edge + 4) for edge in (16, 32, 64, 96, 128, 256, 512)),
    "B": (range(1, 15), range(22, 28), range(46, 52), range(94, 100)),
    "T": (range(1, 10), range(14, 20), range(30, 36), range(62, 68)),
}
# One package's threads only: nothing else can spin, so a short warm-up does.
EFFORT = measure.Effort(0.1, min_rounds=5, max_rounds=15, sample_seconds=0.002, warm_seconds=0.002)


def edge_case(mode: str, letter: str, size: int) -> Case:
    return Case("rnn", mode, **BASE | {letter: size})


def rows() -> Iterator[Row]:
    for mode in MODES:
        for letter, runs in SIZES.items():
            for sizes in runs:
                name = f"{mode} {letter}={sizes[0]}..{sizes[-1]}"
                yield Row(name, partial(_costs, mode, letter, sizes))


def _costs(mode: str, letter: str, sizes: range) -> Numbers:
    """Seconds for each operation, by size; H counts in whole vectors of 16."""
    from .rivals import ours
    from .rivals.contract import Data

    cases = {str(size): edge_case(mode, letter, size) for size in sizes}
    ready = {size: ours().prepare(case, Data(case), 0) for size, case in cases.items()}
    timings = measure.interleave(ready, EFFORT)
    return {size: timings[size].median / work(case, letter) for size, case in cases.items()}


def work(case: Case, letter: str) -> float:
    vectors = -(-case.H // 16) * 16 / case.H if letter == "H" else 1.0
    return operations(case) * vectors


def worst_rise(costs: Numbers) -> tuple[float, str]:
    """The largest growth of the cost from one size to the next, and the larger size."""
    pairs = itertools.pairwise(costs.items())
    return max((after / before, size) for (_, before), (size, after) in pairs)


COLUMNS: Columns = {
    "largest rise of the cost of a unit": lambda row: f"{worst_rise(row)[0]:.2f}",
    "to": lambda row: worst_rise(row)[1],
}
RISE = at_most("cost per unit, one size to the next", "*", 1.25, lambda row: worst_rise(row)[0])
SUITE = Suite("edges", rows, {"edges": COLUMNS}, (RISE,))
