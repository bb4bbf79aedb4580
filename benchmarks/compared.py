"""The one harness of the tables that are not of cases: rows are timed, kept by name, and held
against bars.

A suite is a module of this package whose SUITE says how to measure each row, which tables a
document may have, and what is promised.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from . import measure, store
from .bars import Verdict, worst
from .report import Table, duration

NAMES = ("features", "transforms", "compiled", "sharing", "models", "edges")
EFFORT = measure.Effort(seconds=0.5, min_rounds=5, max_rounds=25, warm_seconds=0.01)
TOLERANCE = 2e-4  # of the largest value: the two sides sum in different orders
Call = Callable[[], list[Any]]  # tensors: a worker imports no torch before it is pinned to cores
Numbers = dict[str, float]


@dataclass(frozen=True)
class Row:
    """measure() returns numbers by name, of which "ours" and "other" are seconds of the two sides,
    and "scale" how much of the other's work ours had to do. group: what a bar is held against."""

    what: str
    measure: Callable[[], Numbers]
    group: str = ""


@dataclass(frozen=True)
class Bar:
    """How many times as fast the rows of a group must be (or, of at_most, how many times as long
    ours may take): each of them, or their geometric mean."""

    what: str
    group: str
    needed: float
    at_most: bool = False
    mean: bool = False


@dataclass
class Comparison:
    """A suite's results on disk."""

    name: str
    stamp: dict[str, Any]
    rows: dict[str, Numbers] = field(default_factory=dict)

    def save(self, folder: Path | None = None) -> Path:
        path = (folder or store.FOLDER) / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path

    def ratio(self, what: str) -> float:
        """How many times as long the other takes, for the same work."""
        row = self.rows[what]
        return row["other"] * row.get("scale", 1.0) / row["ours"]

    def faster(self, what: str) -> str:
        return f"{self.ratio(what):.2f}"

    def table(self) -> Table:
        """Every row of two sides, as they were called, whatever the work of each."""
        body = [
            [what, *map(duration, (row["ours"], row["other"])), f"{row['other'] / row['ours']:.2f}"]
            for what, row in self.rows.items()
        ]
        return Table(["what", "rnnext", "the other", "times as fast"], body)


@dataclass(frozen=True)
class Suite:
    name: str
    rows: Callable[[], Iterator[Row]]
    tables: Mapping[str, Callable[[Comparison], Table]]
    bars: tuple[Bar, ...] = ()
    verdicts: Callable[[Comparison], list[Verdict]] = lambda run: []

    def run(self, patterns: Sequence[str] = ()) -> int:
        """Time, print and keep the rows, or those whose names match beside the ones kept before;
        1 where a bar was missed, else 0."""
        run = Comparison(self.name, measure.stamp(measure.pin_threads(0)))
        if patterns and (store.FOLDER / f"{self.name}.json").exists():
            run.rows = load(self.name).rows
        groups: dict[str, dict[str, float]] = {}
        for row in self.rows():
            if patterns and not any(fnmatchcase(row.what, pattern) for pattern in patterns):
                continue
            numbers = run.rows[row.what] = row.measure()
            print(row.what, {k: float(f"{v:.3g}") for k, v in numbers.items()}, file=sys.stderr)
            if row.group:
                groups.setdefault(row.group, {})[row.what] = run.ratio(row.what)
        print(f"{run.stamp['cpu']}, {run.stamp['threads']} threads")
        for table in self.tables.values() if not patterns else ():
            print(table(run).markdown())
        print(f"kept in {run.save()}; into the documents: benchmarks publish --label {self.name}")
        verdicts = [_verdict(bar, groups.get(bar.group, {})) for bar in self.bars]
        for found in (verdicts := [*verdicts, *self.verdicts(run)]):
            got = "-" if found.got is None else f"{found.got:.2f}"
            sign = "at most" if found.at_most else "at least"
            print(f"{found.word:12} {found.what}: {got}, {sign} {found.needed:g} {found.detail}")
        return int(any(found.held is False for found in verdicts))


def _verdict(bar: Bar, ratios: dict[str, float]) -> Verdict:
    if bar.mean:
        got = statistics.geometric_mean(ratios.values()) if ratios else None
        return Verdict(bar.what, bar.needed, got)
    values = {what: 1 / ratio if bar.at_most else ratio for what, ratio in ratios.items()}
    return worst(bar.what, bar.needed, values, at_most=bar.at_most)


def suite(name: str) -> Suite:
    found: Suite = importlib.import_module(f"{__package__}.{name}").SUITE
    return found


def load(name: str, folder: Path | None = None) -> Comparison:
    path = (folder or store.FOLDER) / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"no result {name!r}: run `python -m benchmarks {name}` first")
    return Comparison(**json.loads(path.read_text()))


def turns(ours: Call, other: Call, scale: float = 1.0, same: bool = True) -> Callable[[], Numbers]:
    """Measures two calls that take turns. RuntimeError where results that must be `same` differ;
    two things of different worth are only timed."""

    def measure_both() -> Numbers:
        for a, b in zip(ours(), other(), strict=True) if same else ():
            if (a - b).abs().max() > TOLERANCE * max(1.0, b.abs().max().item()):
                raise RuntimeError("the results differ")
        contenders = {"ours": measure.Contender(ours), "other": measure.Contender(other)}
        timings = measure.interleave(contenders, EFFORT)
        return {who: timing.median for who, timing in timings.items()} | {"scale": scale}

    return measure_both
