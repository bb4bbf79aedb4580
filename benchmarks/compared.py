"""Results of `transforms` and `compiled` on disk: seconds by row, without cases or roofs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import store

NAMES = ("transforms", "compiled")


@dataclass
class Comparison:
    """rows: what was timed, and the seconds of each side by its name; one that is not there was
    stopped at a limit."""

    name: str
    stamp: dict[str, Any]
    rows: dict[str, dict[str, float]] = field(default_factory=dict)

    def save(self, folder: Path | None = None) -> Path:
        path = (folder or store.FOLDER) / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path

    def faster(self, what: str) -> str:
        """How many times as fast ours is."""
        row = self.rows[what]
        return f"{row['other'] / row['ours']:.2f}"


def load(name: str, folder: Path | None = None) -> Comparison:
    path = (folder or store.FOLDER) / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"no result {name!r}: run `python -m benchmarks {name}` first")
    return Comparison(**json.loads(path.read_text()))
