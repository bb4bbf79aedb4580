"""The benchmark's cases on two builds in turn: how long B takes, as a multiple of A's time.

Each build has a process of its own, on the cores that the benchmark would use; one works at a time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from benchmarks import cases, measure
from benchmarks.cases import Case

from .worker import Worker

if TYPE_CHECKING:
    from benchmarks.rivals.contract import Prepared

# Seconds of timed calls a build and case, and the rounds A B B A that they may take.
EFFORT = measure.Effort(seconds=0.5, min_rounds=5, max_rounds=20)
SLOWER = 1.03  # a row: beyond its own spread
MEAN_SLOWER = 1.01  # of all rows


@dataclass(frozen=True)
class Comparison:
    """One case: B's time over A's, one ratio a round, and A's seconds."""

    case: Case
    ratios: list[float]
    seconds: float

    @property
    def quartiles(self) -> tuple[float, float, float]:
        return measure.quartiles(self.ratios)

    @property
    def slower(self) -> bool:
        return self.quartiles[0] > SLOWER


def compare(a: Path, b: Path, patterns: Sequence[str], console: Console) -> bool:
    """Print each case's ratio and their mean; True if neither a row nor the mean is slower.

    A row that seems slower is timed again in new processes, and the quieter result counts: where
    memory happens to lie differs from process to process, and may cost more than the change.
    """
    chosen = cases.select(cases.CASES, patterns)
    found = _time(a, b, chosen, console)
    doubtful = [row.case for row in found.values() if row.slower]
    if doubtful:
        console.print(f"{len(doubtful)} rows once more, in new processes")
        for name, again in _time(a, b, doubtful, console).items():
            found[name] = min(found[name], again, key=lambda row: row.quartiles[1])
    rows = list(found.values())
    mean = statistics.geometric_mean(row.quartiles[1] for row in rows)
    slow = [row for row in rows if row.slower]
    for row in slow:
        console.print(f"[red]slower: {_line(row)}[/red]")
    console.print(
        f"geometric mean of {len(rows)} rows, B over A: {mean:.4f} (at most {MEAN_SLOWER}); "
        f"{len(slow)} rows slower by more than {SLOWER - 1:.0%} beyond their spread"
    )
    return not slow and mean <= MEAN_SLOWER


def _time(a: Path, b: Path, chosen: Sequence[Case], console: Console) -> dict[str, Comparison]:
    found = {}
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("cases", total=len(chosen))
        # One pair of processes a thread setting, since a runtime fixes its pool when it starts.
        for threads in sorted({case.threads for case in chosen}):
            with ExitStack() as stack:
                pair = [stack.enter_context(closing(Worker(tree, threads))) for tree in (a, b)]
                for case in chosen:
                    if case.threads == threads:
                        found[case.name] = _take_turns(case, *pair)
                        bar.console.print(_line(found[case.name]), highlight=False)
                        bar.advance(task)
    return found


def _line(row: Comparison) -> str:
    low, middle, high = row.quartiles
    return (
        f"{row.case.name:55} {row.seconds * 1e6:11.1f} us  "
        f"B/A {middle:.3f} ({low:.3f} to {high:.3f} in {len(row.ratios)} rounds)"
    )


def _take_turns(case: Case, a: Worker, b: Worker) -> Comparison:
    """Rounds of A B B A, in which a steady drift of the machine cancels out."""
    once = min(worker.call(prepare, case) for worker in (a, b))
    calls = max(1, round(EFFORT.sample_seconds / once))
    fit = int(EFFORT.seconds / (2 * once * calls))
    rounds = spare = min(max(fit, EFFORT.min_rounds), EFFORT.max_rounds)
    ratios: list[float] = []
    seconds: list[float] = []
    while len(ratios) < rounds:
        start, others = time.perf_counter(), measure.Bystanders()
        turns = [worker.call(sample, calls) for worker in (a, b, b, a)]
        ours = sum(cpu_seconds for _, cpu_seconds in turns)
        if others.cores(time.perf_counter() - start, ours) > measure.DISTURBED_CORES and spare:
            spare -= 1
            continue
        (a1, _), (b1, _), (b2, _), (a2, _) = turns
        ratios.append((b1 + b2) / (a1 + a2))
        seconds.append((a1 + a2) / 2)
    return Comparison(case, ratios, statistics.median(seconds))


# The rest runs in a worker: rnnext is its tree's, benchmarks this one's.
_prepared: Prepared


def prepare(case: Case) -> float:
    """Make the case ready in this worker; seconds of a call."""
    global _prepared
    import torch

    from benchmarks.rivals import ours
    from benchmarks.rivals.contract import Data

    torch.set_float32_matmul_precision(case.precision)
    _prepared = ours().prepare(case, Data(case), torch.get_num_threads())
    return min(sample(1)[0] for _ in range(3))


def sample(calls: int) -> tuple[float, float]:
    """Seconds a call of the case made ready, and the CPU seconds that this took altogether."""
    cpu = time.process_time()
    seconds = measure.sample(_prepared, calls, EFFORT.warm_seconds)
    return seconds, time.process_time() - cpu
