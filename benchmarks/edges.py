"""Sizes one apart around the places where kernels change tile: what does one more cost?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

from . import measure
from .bars import GROWTH, Verdict
from .cases import MODES, Case
from .compared import Comparison, Numbers, Row, Suite
from .costs import operations

# One size is swept while the others stay at these.
BASE = {"T": 64, "B": 32, "H": 128}
INPUTS = 32
SIZES: dict[str, tuple[range, ...]] = {
    "H": tuple(range(edge - 2, edge + 4) for edge in (16, 32, 64, 96, 128, 256, 512)),
    "B": (range(1, 15), range(22, 28), range(46, 52), range(94, 100)),
    "T": (range(1, 10), range(14, 20), range(30, 36), range(62, 68)),
}
# One package's threads only: nothing else can spin, so a short warm-up does.
EFFORT = measure.Effort(0.1, min_rounds=5, max_rounds=15, sample_seconds=0.002, warm_seconds=0.002)


def edge_case(mode: str, letter: str, size: int) -> Case:
    size_of = {**BASE, letter: size}
    return Case("rnn", mode, size_of["T"], size_of["B"], INPUTS, size_of["H"])


def rows() -> Iterator[Row]:
    for mode in MODES:
        for letter, runs in SIZES.items():
            for sizes in runs:
                name = f"{mode} {letter}={sizes[0]}..{sizes[-1]}"
                yield Row(name, partial(_seconds, mode, letter, sizes))


def _seconds(mode: str, letter: str, sizes: range) -> Numbers:
    """By size."""
    from .rivals import ours
    from .rivals.contract import Data

    cases = {str(size): edge_case(mode, letter, size) for size in sizes}
    ready = {size: ours().prepare(case, Data(case), 0) for size, case in cases.items()}
    return {size: t.median for size, t in measure.interleave(ready, EFFORT).items()}


def unit_costs(name: str, seconds: Numbers) -> list[tuple[int, float]]:
    """(size, seconds per operation); H counts in whole vectors of 16, so tails weigh nothing."""
    mode, run = name.split(" ")
    costs = []
    for size in map(int, seconds):
        work = operations(edge_case(mode, run[0], size))
        if run[0] == "H":
            work *= -(-size // 16) * 16 / size
        costs.append((size, seconds[str(size)] / work))
    return costs


def worst_jump(run: Comparison) -> tuple[float, str]:
    """The largest growth of the cost per operation from one size to the next, and where."""
    jumps = [(0.0, "")]
    for name, seconds in run.rows.items():
        for (_, before), (size, after) in itertools.pairwise(unit_costs(name, seconds)):
            jumps.append((after / before, f"{name.partition('=')[0]}={size - 1} to {size}"))
    return max(jumps)


def verdicts(run: Comparison) -> list[Verdict]:
    jump, where = worst_jump(run)
    what = "cost per unit, one size to the next: worst rise"
    return [Verdict(what, GROWTH, jump, where, at_most=True)]


SUITE = Suite("edges", rows, {}, verdicts=verdicts)
