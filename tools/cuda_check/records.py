"""The check's folder: which files are in it, and the figures that stages append to one of them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

FIGURES, LOG, REPORT = "figures.jsonl", "log.txt", "report.txt"


def append(out: Path, stage: str, name: str, **figures: Any) -> None:
    """Add one line at once, so that a stage that is stopped leaves what it had."""
    with (out / FIGURES).open("a") as file:
        file.write(json.dumps({"stage": stage, "name": name, **figures}) + "\n")


def read(out: Path, stage: str) -> dict[str, dict[str, Any]]:
    """The last record of each name; a line that was cut off is left out."""
    path, records = out / FIGURES, []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return {r["name"]: r for r in records if r["stage"] == stage}
