"""The one harness of tables that are not of cases: rows are timed, kept by name, held to bars.

A suite is a module of this package whose SUITE says how to measure each row, which tables a
document may have, and what is promised.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from . import bars, measure, store
from .bars import Bar
from .report import Table, duration

NAMES = ("features", "transforms", "compiled", "sharing", "models", "edges", "clients")
EFFORT = measure.Effort(seconds=0.5, min_rounds=5, max_rounds=25, warm_seconds=0.01)
TOLERANCE = 2e-4  # of the largest value: the two sides sum in different orders
Call = Callable[[], list[Any]]  # tensors: a worker imports no torch before it is pinned to cores
Numbers = dict[str, float]
Value = Callable[[Numbers], float]
# A table: heads, and how to make a row's cell under each. Rows without the numbers are left out.
Columns = Mapping[str, Callable[[Numbers], str]]


@dataclass(frozen=True)
class Row:
    """measure() returns numbers by name; of `turns`, "ours" and "other" are seconds of the two
    sides, and "scale" is how much of the other's work ours had to do."""

    what: str
    measure: Callable[[], Numbers]


def ratio(row: Numbers, of: str = "") -> float:
    """How many times as long the other takes, for the same work."""
    return row[f"{of}other"] * row.get(f"{of}scale", 1.0) / row[f"{of}ours"]


def seconds(name: str) -> Callable[[Numbers], str]:
    return lambda row: duration(row[name])


# Of two sides, as they were called, whatever the work of each.
TWO_SIDES: Columns = {
    "rnnext": seconds("ours"),
    "the other": seconds("other"),
    "times as fast": lambda row: f"{row['other'] / row['ours']:.2f}",
}


def bar(what: str, rows: str, needed: float, value: Value = ratio, **options: Any) -> Bar:
    """A bar on the values of the rows whose names match."""

    def values(run: Any) -> dict[str, float]:
        return {n: value(row) for n, row in run.rows.items() if fnmatchcase(n, rows)}

    return Bar(what, needed, values, **options)


def at_most(what: str, rows: str, needed: float, value: Value = lambda r: 1 / ratio(r)) -> Bar:
    """A bar that the values, or how many times as long ours takes, must not pass."""
    return bar(what, rows, needed, value, at_most=True)


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

    def table(self, columns: Columns) -> Table:
        body = []
        for what, row in self.rows.items():
            try:
                body.append([what, *(cell(row) for cell in columns.values())])
            except KeyError:  # a row of another table
                continue
        return Table(["", *columns], body)


@dataclass(frozen=True)
class Suite:
    name: str
    rows: Callable[[], Iterator[Row]]
    tables: Mapping[str, Columns]
    bars: tuple[Bar, ...] = ()

    def run(self, patterns: Sequence[str] = ()) -> int:
        """Time, print and keep the rows, or those that match beside the kept; 1: a bar missed."""
        run = Comparison(self.name, measure.stamp(measure.pin_threads(0)))
        if patterns and (store.FOLDER / f"{self.name}.json").exists():
            last = load(self.name)  # of the same machine and versions, or its rows do not count
            run.rows = last.rows if {**last.stamp, "time": run.stamp["time"]} == run.stamp else {}
        rows = [r for r in self.rows() if any(fnmatchcase(r.what, p) for p in patterns or "*")]
        if not rows:
            raise ValueError(f"no row of {self.name} matches {' '.join(patterns)!r}")
        for row in rows:
            numbers = run.rows[row.what] = row.measure()
            print(row.what, {k: float(f"{v:.3g}") for k, v in numbers.items()}, file=sys.stderr)
        print(f"{run.stamp['cpu']}, {run.stamp['threads']} threads")
        for columns in self.tables.values() if not patterns else ():
            print(run.table(columns).markdown())
        print(f"kept in {run.save()}; into the documents: benchmarks publish --label {self.name}")
        verdicts, none_missed = bars.text(run, self.bars)
        print(verdicts)
        return int(not none_missed)


def suite(name: str) -> Suite:
    found: Suite = importlib.import_module(f"{__package__}.{name}").SUITE
    return found


def load(name: str, folder: Path | None = None) -> Comparison:
    path = (folder or store.FOLDER) / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"no result {name!r}: run `python -m benchmarks {name}` first")
    return Comparison(**json.loads(path.read_text()))


def refuse_difference(ours: Sequence[Any], other: Sequence[Any], what: str = "the ") -> None:
    """RuntimeError where results differ, or are not numbers."""
    for a, b in zip(ours, other, strict=True):
        if not (a - b).abs().max() <= TOLERANCE * max(1.0, b.abs().max().item()):
            raise RuntimeError(f"{what}results differ by {(a - b).abs().max():.2g}")


def turns(ours: Call, other: Call, scale: float = 1.0, same: bool = True) -> Callable[[], Numbers]:
    """Measures two calls that take turns. RuntimeError where results differ, unless `same` is
    false: then they are only timed."""

    def measure_both() -> Numbers:
        if same:
            refuse_difference(ours(), other())
        contenders = {"ours": measure.Contender(ours), "other": measure.Contender(other)}
        timings = measure.interleave(contenders, EFFORT)
        return {who: timing.median for who, timing in timings.items()} | {"scale": scale}

    return measure_both


def call_of(
    forward: Callable[..., Any], given: Sequence[Any], leaves: Sequence[Any], train: bool,
    h_n: bool = True, **options: Any,
) -> Call:  # fmt: skip
    """The output and h_n of a call, and in training the gradients of the leaves."""
    import torch

    ones: list[Any] = []  # made once: torch's fill waits for its threads where cores are shared

    def call() -> list[Any]:
        with torch.set_grad_enabled(train):
            output, last = forward(*given, **options)
        results = [output.detach(), *([last.detach()] if h_n else [])]
        if not train:
            return results
        if not ones:
            ones.append(torch.ones_like(output))
        return [*results, *torch.autograd.grad(output, leaves, ones)]

    return call
