"""The check's folder: which files are in it, and the figures that stages append to one of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.report import Table

FIGURES, LOG, REPORT = "figures.jsonl", "log.txt", "report.txt"
Record = dict[str, Any]


def options(doc: str | None, budget: float | None = None) -> argparse.Namespace:
    """What a stage's program is told: the folder, the device and, where it has any, its seconds."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    if budget is not None:
        text = f"seconds (default {budget:.0f})"
        parser.add_argument("--budget", type=float, default=budget, help=text)
    return parser.parse_args()


def append(out: Path, stage: str, **figures: Any) -> Record:
    """Add one line of figures at once, so that a stage that is stopped leaves what it had."""
    record = {"stage": stage, **figures}
    with (out / FIGURES).open("a") as file:
        file.write(json.dumps(record) + "\n")
    return record


def read(out: Path, stage: str | None = None) -> list[Record]:
    """All records, or those of one stage; a line that was cut off is left out."""
    path = out / FIGURES
    return [
        r for r in _lines(path.read_text() if path.exists() else "") if stage in (None, r["stage"])
    ]


def _lines(text: str) -> Iterator[Record]:
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def sm_clock(out: Path) -> float:
    """GHz, as the microbenchmarks found it; an H100's boost clock where they did not run."""
    found = [r["value"] for r in read(out, "micro") if r["name"] == "sm_clock" and "value" in r]
    return float(found[-1]) if found else 1.755


def table(records: list[Record], columns: dict[str, Callable[[Record], Any]]) -> str:
    """Records under each other."""

    def word(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    body = [[word(column(record)) for column in columns.values()] for record in records]
    return Table(list(columns), body).text()
