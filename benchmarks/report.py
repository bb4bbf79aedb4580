"""Tables: one run, or two beside each other; as plain text or as markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .measure import DISTURBED_CORES
from .names import OTHER_WAYS, OURS, RIVALS, TORCH
from .store import Result, Row


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    body: Sequence[Sequence[str]]

    def text(self) -> str:
        """Columns under each other: the first to the left, the others to the right."""
        lines = [self.header, *self.body]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                word.rjust(width) if n else word.ljust(width)
                for n, (word, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )

    def markdown(self) -> str:
        rule = ["---", *["---:"] * (len(self.header) - 1)]
        return "\n".join(f"| {' | '.join(line)} |" for line in (self.header, rule, *self.body))


def duration(seconds: float) -> str:
    """Three figures in us, ms or s."""
    for unit, size in (("us", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def spread(times: dict[str, float]) -> str:
    """Half the distance between the quartiles, as a share of the median."""
    return f"±{50 * (times['q3'] - times['q1']) / times['median']:.0f}%"


def rate_and_share(result: Result, row: Row, rival: str = OURS) -> tuple[str, str]:
    """("123 GFLOP/s", "88% FMA") of what bounds the row; empty where it was not timed."""
    bound = result.bound(row)
    if rival not in row.seconds or bound is None:
        return "", ""
    seconds = row.seconds[rival]["median"]
    unit = "GFLOP/s" if bound.limit == "FMA" else "GB/s"
    rate = f"{bound.amount / seconds / 1e9:.3g} {unit}"
    return rate, f"{100 * bound.seconds / seconds:.0f}% {bound.limit}"


def subject(result: Result) -> str:
    """Whose time leads the table: ours, or torch's where ours was not run."""
    return OURS if any(OURS in row.seconds for row in result.rows.values()) else TORCH


def table(result: Result, rows: Sequence[Row]) -> Table:
    """Our time, its rate and share of the roof, how many times as long the others take.

    On a GPU a step's time too, as a slope between two lengths.
    """
    ours = subject(result)
    others = [name for name in (*RIVALS, *OTHER_WAYS) if name != ours]
    others = [name for name in others if any(name in row.seconds for row in rows)]
    steps = any("cuda" in row.case.tags and row.case.kind == "rnn" for row in rows)
    header = ["case", ours, *(["a step"] if steps else []), "spread", "rate", "roof"]
    body = []
    for row in rows:
        times = row.seconds.get(ours)
        line = [row.case.name + (" *" if row.bystanders > DISTURBED_CORES else "")]
        line.append(duration(times["median"]) if times else "failed")
        if steps:
            slope = result.step_seconds(row, ours)
            line.append(duration(slope) if slope else "")
        line += [spread(times) if times else "", *rate_and_share(result, row, ours)]
        for other in others:
            ratio = row.ratio(other, ours)
            line.append("FAILED" if other in row.failed else f"{ratio:.2f}" if ratio else "")
        body.append(line)
    return Table([*header, *(f"{name} x" for name in others)], body)


def text(result: Result, rows: Sequence[Row]) -> str:
    """Machine, table, and what is wrong with rows."""
    lines = [describe(result), table(result, rows).text()]
    if any(row.bystanders > DISTURBED_CORES for row in rows):
        lines.append("* other processes kept the cores busy meanwhile: measure this row again")
    for row in rows:
        lines += [f"{row.case.name}: {rival}: {why}" for rival, why in row.failed.items()]
    return "\n".join(lines)


def machine(stamp: dict[str, Any]) -> str:
    if gpu := stamp.get("gpu"):
        return f"{gpu['name']}, CUDA {gpu['cuda']}, cuDNN {gpu['cudnn']}"
    flags = " ".join(stamp["cpu_flags"])
    return f"{stamp['cpu']} ({stamp['core']}; {flags}), {stamp['threads']} threads"


def describe(result: Result) -> str:
    """The machine, the versions and the roofs of a run, in a few lines."""
    stamp = result.stamp
    versions = ", ".join(f"{name} {version}" for name, version in stamp["versions"].items())
    lines = [
        f"{result.label}: {stamp['time']}"
        + (f" and on, median of {stamp['runs']} runs" if "runs" in stamp else "")
        + f", {machine(stamp)}, {stamp['system']}",
        f"Python {stamp['python']}, {versions}",
    ]
    for limits in result.roofs.values():
        flops = ", ".join(f"{k} {v / 1e9:.0f} GFLOP/s" for k, v in limits.flops.items())
        read = ", ".join(f"{k} {v / 1e9:.0f} GB/s" for k, v in limits.read.items())
        who = f"{limits.threads} thread(s)" if limits.size else "GPU"
        lines.append(f"roof, {who}: {flops}; read {read}")
    return "\n".join(lines)


def comparison(a: Result, b: Result, rival: str) -> str:
    """Rows that both runs have: times, and a/b with the range that the quartiles allow."""
    header = ["case", a.label, b.label, f"{a.label}/{b.label}", "from", "to"]
    body, ratios = [], []
    for name, row in a.rows.items():
        other = b.rows.get(name)
        if other is None or rival not in row.seconds or rival not in other.seconds:
            continue
        x, y = row.seconds[rival], other.seconds[rival]
        ratios.append(x["median"] / y["median"])
        low, high = x["q1"] / y["q3"], x["q3"] / y["q1"]
        times = [duration(x["median"]), duration(y["median"])]
        body.append([name, *times, *(f"{value:.2f}" for value in (ratios[-1], low, high))])
    if not ratios:
        raise ValueError(f"{a.label} and {b.label} have no row of {rival} in common")
    return "\n".join(
        [
            describe(a),
            describe(b),
            f"{rival}: over 1 means that {b.label} is faster",
            Table(header, body).text(),
            f"geometric mean of {len(ratios)} rows: {statistics.geometric_mean(ratios):.3f}",
        ]
    )
