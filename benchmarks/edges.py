"""The tile-edge sweep: sizes one apart around the places where kernels change tile."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

from . import measure
from .cases import MODES, Case
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
LIMIT = 1.25


def edge_case(mode: str, letter: str, size: int) -> Case:
    size_of = {**BASE, letter: size}
    return Case("rnn", mode, size_of["T"], size_of["B"], INPUTS, size_of["H"])


def sweep(send: Callable[[str, Any], None], threads: int) -> None:
    """Send ("edge", (key, [[size, seconds], ...], cores that others kept busy)) for each run."""
    from .rivals import ours
    from .rivals.contract import Data

    rival = ours()
    for mode in MODES:
        for letter, runs in SIZES.items():
            for sizes in runs:
                key = f"{mode} {letter}={sizes[0]}..{sizes[-1]}"
                send("start", f"edges {key}")
                ready: dict[str, measure.Contender] = {}
                for size in sizes:
                    case = edge_case(mode, letter, size)
                    ready[str(size)] = rival.prepare(case, Data(case), threads)
                start, others = time.perf_counter(), measure.Bystanders()
                timings = measure.interleave(ready, EFFORT)
                busy = others.cores(time.perf_counter() - start)
                send("edge", (key, [[int(n), t.median] for n, t in timings.items()], busy))


def unit_costs(key: str, times: list[list[float]]) -> list[tuple[int, float]]:
    """(size, seconds per operation); H counts in whole vectors of 16, so tails weigh nothing."""
    mode, run = key.split(" ")
    letter = run[0]
    costs = []
    for size, seconds in times:
        work = operations(edge_case(mode, letter, int(size)))
        if letter == "H":
            work *= -(-size // 16) * 16 / size
        costs.append((int(size), seconds / work))
    return costs


def worst_jump(edges: dict[str, list[list[float]]]) -> tuple[float, str]:
    """The largest growth of the cost per operation from one size to the next, and where."""
    jumps = [(0.0, "")]
    for key, times in edges.items():
        costs = unit_costs(key, times)
        for (_, before), (size, after) in itertools.pairwise(costs):
            mode, run = key.split(" ")
            jumps.append((after / before, f"{mode} {run[0]}={size - 1} to {size}"))
    return max(jumps)
