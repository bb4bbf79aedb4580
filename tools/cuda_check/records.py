"""The check's folder: which files are in it, and the figures that stages append to one of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FIGURES, LOG, REPORT = "figures.jsonl", "log.txt", "report.txt"
Record = dict[str, Any]


def append(out: Path, stage: str, name: str, **figures: Any) -> None:
    """Add one line at once, so that a stage that is stopped leaves what it had."""
    with (out / FIGURES).open("a") as file:
        file.write(json.dumps({"stage": stage, "name": name, **figures}) + "\n")


def read(out: Path, stage: str) -> dict[str, Record]:
    """The last record of each name; a line that was cut off is left out."""
    path = out / FIGURES
    lines = path.read_text().splitlines() if path.exists() else []
    return {r["name"]: r for r in _records(lines) if r["stage"] == stage}


def _records(lines: list[str]) -> Iterator[Record]:
    for line in lines:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue
