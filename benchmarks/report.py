"""Tables: one run, or two beside each other; on the terminal or as markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from .measure import DISTURBED_CORES
from .store import Result, Row

OURS, TORCH = "rnnext", "torch.nn"
# Beside rnnext in bfloat16 or at "medium" precision, in the same rounds: no rival.
FLOAT32 = "rnnext float32"
RIVALS = (TORCH, "torch.compile", "onnxruntime", "openvino", "jax")


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


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


def cells(result: Result, rows: Iterable[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: our time, its rate and share of the roof, how much longer rivals take."""
    ours = subject(result)
    rivals = [r for r in (*RIVALS, FLOAT32) if r != ours]
    rivals = [r for r in rivals if any(r in row.seconds for row in result.rows.values())]
    header = ["case", ours, "spread", "rate", "roof", *(f"{r} x" for r in rivals)]
    body = []
    for row in rows:
        times = row.seconds.get(ours)
        line = [row.case.name + (" *" if row.bystanders > DISTURBED_CORES else "")]
        line += [duration(times["median"]), spread(times)] if times else ["failed", ""]
        line += rate_and_share(result, row, ours)
        for rival in rivals:
            ratio = row.ratio(rival, ours)
            line.append("FAILED" if rival in row.failed else f"{ratio:.2f}" if ratio else "")
        body.append(line)
    return header, body


def print_result(result: Result, rows: Sequence[Row], console: Console) -> None:
    header, body = cells(result, rows)
    console.print(describe(result))
    console.print(_table(header, body))
    if any(row.bystanders > DISTURBED_CORES for row in rows):
        console.print("* other processes kept the cores busy meanwhile: measure this row again")
    for row in rows:
        for rival, reason in row.failed.items():
            console.print(f"[red]{row.case.name}: {rival}: {reason}[/red]")


def describe(result: Result) -> str:
    """The machine, the versions and the roofs of a run, in a few lines."""
    stamp = result.stamp
    versions = ", ".join(f"{name} {version}" for name, version in stamp["versions"].items())
    lines = [
        f"{result.label}: {stamp['time']}"
        + (f" and on, median of {stamp['runs']} runs" if "runs" in stamp else "")
        + f", {stamp['cpu']} ({' '.join(stamp['cpu_flags'])}), "
        f"{stamp['threads']} threads, {stamp['system']}",
        f"Python {stamp['python']}, {versions}",
    ]
    for limits in result.roofs.values():
        flops = ", ".join(f"{k} {v / 1e9:.0f} GFLOP/s" for k, v in limits.flops.items())
        read = ", ".join(f"{k} {v / 1e9:.0f} GB/s" for k, v in limits.read.items())
        lines.append(f"roof, {limits.threads} thread(s): {flops}; read {read}")
    return "\n".join(lines)


def markdown(result: Result, rows: Sequence[Row]) -> str:
    """The same table for README and docs."""
    header, body = cells(result, rows)
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(line) + " |" for line in body)])


def print_comparison(a: Result, b: Result, rival: str, console: Console) -> None:
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
    console.print(describe(a))
    console.print(describe(b))
    console.print(f"{rival}: over 1 means that {b.label} is faster")
    console.print(_table(header, body))
    console.print(f"geometric mean of {len(ratios)} rows: {geometric_mean(ratios):.3f}")


def _table(header: Sequence[str], body: Iterable[Sequence[str]]) -> Table:
    table = Table(*header, header_style="bold", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for column in table.columns:
        column.no_wrap = True
    for line in body:
        table.add_row(*line)
    return table
