"""The figures of a check as one page of text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.names import OURS, TORCH
from benchmarks.report import Table

from . import records


def outcomes(out: Path) -> str:
    rows = records.read(out, "outcome").values()
    body = [[r["name"], f"{r['seconds']:.0f}", r["outcome"]] for r in rows]
    return Table(["stage", "seconds", "outcome"], body).text()


def bench(out: Path) -> str:
    found = {n: r["us"] for n, r in records.read(out, "bench").items() if "us" in r}
    body = []
    for name, us in found.items():
        step = ""
        if short := found.get(name.replace("-T1024-", "-T128-") if "-T1024-" in name else ""):
            step = f"{(us[OURS] - short[OURS]) / (1024 - 128):.2f}"
        ratio = us[TORCH] / us[OURS]
        body.append([name, f"{us[OURS]:.4g}", f"{us[TORCH]:.4g}", f"{ratio:.2f}", step])
    return Table(["case", f"{OURS}, us", "cuDNN, us", "times as fast", "us a step"], body).text()


def paths(out: Path) -> str:
    """A line a problem; its regret is the time of the choice over that of the best path."""
    problems: dict[str, dict[str, Any]] = {}
    for name, record in records.read(out, "paths").items():
        problem, _, path = name.partition(": ")
        problems.setdefault(problem, {})[path] = record
    columns = list(dict.fromkeys(path for found in problems.values() for path in found))
    body = []
    for problem, found in problems.items():
        us = {path: r["us"] for path, r in found.items() if r.get("us", 0) > 0}
        regret = f"{us['chosen'] / min(us.values()):.2f}" if "chosen" in us else ""
        body.append([problem, *(f"{us[p]:.2f}" if p in us else "-" for p in columns), regret])
    return Table(["us a step", *columns, "regret"], body).text()


def others(out: Path) -> str:
    """The failures, by stage, which have no table."""
    lines = []
    for stage in ("smoke", "bench", "paths", "stress"):
        found = records.read(out, stage)
        failed = {name: r["error"] for name, r in found.items() if "error" in r}
        lines.append(f"{stage}: {len(found) - len(failed)} of {len(found)} cases passed")
        lines += [f"  {name}: {error}" for name, error in failed.items()]
    return "\n".join(lines)


def write(out: Path) -> str:
    """Make the page, keep it, and return it."""
    parts = {"Stages": outcomes, "Cases": others, "Beside cuDNN": bench, "Paths": paths}
    text = "\n\n".join(f"{title}\n\n{part(out)}" for title, part in parts.items()) + "\n"
    (out / records.REPORT).write_text(text)
    return text
