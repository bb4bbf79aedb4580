"""The bars: what this project promises about speed and memory, each held or missed."""

from __future__ import annotations

from collections.abc import Sequence

from ..report import Table, describe
from ..store import Result
from . import cpu, cuda
from .verdict import Verdict


def evaluate(result: Result) -> list[Verdict]:
    """Every bar of the device that the run is of."""
    on_gpu = any("cuda" in row.case.tags for row in result.rows.values())
    return cuda.evaluate(result) if on_gpu else cpu.evaluate(result)


def table(verdicts: Sequence[Verdict]) -> Table:
    body = []
    for verdict in verdicts:
        unit, sign = verdict.unit, "<=" if verdict.at_most else ">="
        got, top = (
            "" if number is None else f"{number:.2f}{unit}"
            for number in (verdict.got, verdict.at_roof)
        )
        needed = f"{sign} {verdict.needed:g}{unit}"
        body.append([verdict.what, needed, got, verdict.word, top, verdict.detail])
    return Table(["bar", "needed", "measured", "verdict", "at the roof", "where"], body)


def text(result: Result, verdicts: Sequence[Verdict]) -> str:
    words = [verdict.word for verdict in verdicts]
    lines = [describe(result), table(verdicts).text()]
    lines.append("at the roof: what a kernel would get that ran every row at its roof")
    if not any("bfloat16" in limits.flops for limits in result.roofs.values()):
        lines.append("bfloat16 counts only where the CPU has a dot product of it")
    counts = (f"{words.count(word)} {word}" for word in ("held", "missed", "not measured"))
    return "\n".join([*lines, ", ".join(counts)])
