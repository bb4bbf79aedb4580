"""Results of `features`, `transforms`, `compiled` and `sharing` on disk: seconds by row, without
cases or roofs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import store
from .report import Table, duration

NAMES = ("features", "transforms", "compiled", "sharing")


@dataclass
class Comparison:
    """rows: what was timed, and the seconds of each side by its name; one that is not there was
    stopped at a limit. "scale", if there, is how much of the other's work ours had to do."""

    name: str
    stamp: dict[str, Any]
    rows: dict[str, dict[str, float]] = field(default_factory=dict)

    def save(self, folder: Path | None = None) -> Path:
        path = (folder or store.FOLDER) / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path

    def faster(self, what: str) -> str:
        """How many times as long the other takes, for the same work."""
        row = self.rows[what]
        return f"{row['other'] * row.get('scale', 1.0) / row['ours']:.2f}"

    def table(self) -> Table:
        """Every row of two sides."""
        body = [
            [what, duration(row["ours"]), duration(row["other"]), self.faster(what)]
            for what, row in self.rows.items()
        ]
        return Table(["what", "rnnext", "the other", "times as fast"], body)


def load(name: str, folder: Path | None = None) -> Comparison:
    path = (folder or store.FOLDER) / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"no result {name!r}: run `python -m benchmarks {name}` first")
    return Comparison(**json.loads(path.read_text()))
