"""Tables: one run, or two beside each other; as plain text or as markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .measure import DISTURBED_CORES
from .names import OURS, RIVALS
from .store import Result, Row


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    body: Sequence[Sequence[str]]

    def text(self) -> str:
        """Columns under each other: the first to the left, the others to the right."""
        lines = [self.header, *self.body]
        first, *rest = (max(map(len, column)) for column in zip(*lines, strict=True))
        form = "  ".join([f"{{:<{first}}}", *(f"{{:>{width}}}" for width in rest)])
        return "\n".join(form.format(*line).rstrip() for line in lines)

    def markdown(self) -> str:
        head, *body = (f"|{'|'.join(line)}|" for line in (self.header, *self.body))
        return "\n".join([head, "|---|" + "---:|" * (len(self.header) - 1), *body])


def duration(seconds: float) -> str:
    """Three figures in us, ms or s."""
    for unit, size in (("us", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def table(result: Result, rows: Sequence[Row]) -> Table:
    """Our time, half the distance between its quartiles as a share of it, its share of the roof
    (of what bounds the row, "88% FMA"), how many times as long the others take."""
    others = [n for n in RIVALS if any(n in row.seconds for row in rows)]
    body = []
    for row in rows:
        name = row.case.name + (" *" if row.bystanders > DISTURBED_CORES else "")
        line = [name, "failed", "", ""]
        if times := row.seconds.get(OURS):
            spread = 50 * (times["q3"] - times["q1"]) / times["median"]
            line[1:3] = duration(times["median"]), f"±{spread:.0f}%"
            if bound := result.bound(row):
                line[3] = f"{100 * bound.seconds / times['median']:.0f}% {bound.limit}"
        for other in others:
            ratio = row.ratio(other, OURS)
            line.append("FAILED" if other in row.failed else f"{ratio:.2f}" if ratio else "")
        body.append(line)
    return Table(["case", OURS, "spread", "roof", *(f"{name} x" for name in others)], body)


def text(result: Result, rows: Sequence[Row]) -> str:
    """Machine, table, and what is wrong with rows."""
    lines = [describe(result), table(result, rows).text()]
    if any(row.bystanders > DISTURBED_CORES for row in rows):
        lines.append("* other processes kept the cores busy meanwhile: measure this row again")
    for row in rows:
        lines += [f"{row.case.name}: {rival}: {why}" for rival, why in row.failed.items()]
    return "\n".join(lines)


def describe(result: Result) -> str:
    """The machine, the versions and the roofs of a run, in a few lines."""
    stamp = result.stamp
    versions = ", ".join(f"{name} {version}" for name, version in stamp["versions"].items())
    runs = f" and on, the fastest of {stamp['runs']} runs" if "runs" in stamp else ""
    flags = " ".join(stamp["cpu_flags"])
    machine = f"{stamp['cpu']} ({stamp['core']}; {flags}), {stamp['threads']} threads"
    lines = [
        f"{result.label}: {stamp['time']}{runs}, {machine}, {stamp['system']}",
        f"Python {stamp['python']}, {versions}",
    ]
    for limits in result.roofs.values():
        flops = ", ".join(f"{k} {v / 1e9:.0f} GFLOP/s" for k, v in limits.flops.items())
        read = ", ".join(f"{k} {v / 1e9:.0f} GB/s" for k, v in limits.read.items())
        lines.append(f"roof, {limits.threads} thread(s): {flops}; read {read}")
    return "\n".join(lines)


def comparison(a: Result, b: Result, rival: str) -> str:
    """Rows that both runs have: times, and a/b with the range that the quartiles allow."""
    body, ratios = [], []
    for name in a.rows.keys() & b.rows.keys():
        x, y = (run.rows[name].seconds.get(rival) for run in (a, b))
        if x and y:
            ratios.append(x["median"] / y["median"])
            span = f"{x['q1'] / y['q3']:.2f} to {x['q3'] / y['q1']:.2f}"
            times = [duration(times["median"]) for times in (x, y)]
            body.append([name, *times, f"{ratios[-1]:.2f}", span])
    if not ratios:
        raise ValueError(f"{a.label} and {b.label} have no row of {rival} in common")
    table = Table(["case", a.label, b.label, f"{a.label}/{b.label}", "range"], sorted(body))
    mean = f"geometric mean of {len(ratios)} rows: {statistics.geometric_mean(ratios):.3f}"
    return "\n".join([describe(a), describe(b), table.text(), mean])
