"""Results on disk: one JSON file a label, written after every case."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .cases import Case
from .roof import Bound, Roof, bound

FOLDER = Path("results")
# Runs that the repository keeps: the documents' tables and figures are made from them.
KEPT = Path(__file__).with_name("results")


@dataclass
class Row:
    """One case's outcome. Keys of the dicts are rivals' names.

    seconds: {"q1", "median", "q3"} a call, and "samples" and "calls" (a sample averages).
    failed: why a rival was not timed: a crash, or a wrong result.
    bystanders: cores that other processes kept busy meanwhile.
    """

    case: Case
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    bystanders: float = 0.0

    def ratio(self, slower: str, faster: str) -> float | None:
        """How many times `faster` is as fast as `slower`; None where one was not timed."""
        if slower not in self.seconds or faster not in self.seconds:
            return None
        return self.seconds[slower]["median"] / self.seconds[faster]["median"]

    def best_rival(self, ours: str) -> str | None:
        rivals = [name for name in self.seconds if not name.startswith(ours)]
        return min(rivals, key=lambda name: self.seconds[name]["median"], default=None)


@dataclass
class Result:
    """A run: what machine, what roofs (by thread setting: 0 for all cores), what rows."""

    label: str
    stamp: dict[str, Any] = field(default_factory=dict)
    roofs: dict[int, Roof] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)

    def take(self, kind: str, content: Any) -> None:
        """Take in what a worker sent (see runner.Event), and save."""
        if kind == "stamp":
            if not self.stamp or content["threads"] > self.stamp["threads"]:
                self.stamp = content
        elif kind == "roof":
            threads, limits = content
            self.roofs[threads] = limits.best(self.roofs.get(threads))
        else:
            self.rows[content.case.name] = content
        self.save()

    def save(self, path: Path | None = None) -> Path:
        """Write the file, by default the label's, whole or not at all."""
        path = path or path_of(self.label)
        head = {"label": self.label, "stamp": self.stamp, "roofs": self.roofs}
        # A line each: small enough to be committed, and a changed row is a changed line.
        lines = [f'"{key}": {json.dumps(value, default=asdict)}' for key, value in head.items()]
        rows = [json.dumps(asdict(row), default=sorted) for row in self.rows.values()]  # of tags
        lines.append('"rows": [\n' + ",\n".join(rows) + "\n]")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        os.replace(partial, path)
        return path

    def bound(self, row: Row) -> Bound | None:
        """The least time of a row."""
        limits = self.roofs.get(row.case.threads)
        return bound(row.case, limits) if limits else None


def path_of(label: str) -> Path:
    """results/<label>.json; a label that ends in .json is a path itself."""
    return Path(label) if label.endswith(".json") else FOLDER / f"{label}.json"


def load(label: str) -> Result:
    """The result stored under a label, or kept under it. FileNotFoundError if there is none."""
    path = path_of(label)
    if not path.exists() and (KEPT / path.name).exists():
        path = KEPT / path.name
    if not path.exists():
        stored = sorted({p.stem for folder in (FOLDER, KEPT) for p in folder.glob("*.json")})
        raise FileNotFoundError(f"no result {label!r}; stored: {', '.join(stored) or 'none'}")
    content = json.loads(path.read_text())
    if "label" not in content:
        raise ValueError(f"{label!r} is a suite's result: python -m benchmarks {path.stem}")
    result = Result(content["label"], content["stamp"])
    result.roofs = {int(threads): Roof(**roof) for threads, roof in content["roofs"].items()}
    for row in content["rows"]:
        case = Case(**{**row["case"], "tags": frozenset(row["case"]["tags"])})
        result.rows[case.name] = Row(**{**row, "case": case})
    return result


def kept() -> list[Result]:
    """The runs on a CPU that the repository keeps.

    The last is the one that tables of a single machine show: of most runs, and of several such the
    newest.
    """
    runs = [load(str(path)) for path in KEPT.glob("cpu-*.json")]
    return sorted(runs, key=lambda run: (run.stamp.get("runs", 1), run.stamp["time"]))


def combine(label: str, results: Sequence[Result]) -> Result:
    """Several runs of one machine as one: minutes differ more than rounds.

    Of each row, the run in which all contenders together took the least time: what else a machine
    does makes calls slower, none faster. Contenders that are not in every run do not count; rows
    that are not are left out. Roofs are the best.
    """
    first = results[0]
    combined = Result(label, {**first.stamp, "runs": len(results)})
    for result in results:
        for threads, roof in result.roofs.items():
            combined.roofs[threads] = roof.best(combined.roofs.get(threads))
    for name in first.rows:
        rows = [result.rows[name] for result in results if name in result.rows]
        if len(rows) == len(results):
            everywhere = set.intersection(*(set(row.seconds) for row in rows))
            combined.rows[name] = min(
                rows, key=lambda row: sum(row.seconds[who]["median"] for who in everywhere)
            )
    return combined
