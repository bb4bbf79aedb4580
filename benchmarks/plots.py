"""Figures of a stored run: speed-ups, times along H, B and T, the roofline, sizes one apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from . import costs, edges
from .bars import GROWTH
from .cases import MODES
from .compared import Comparison, Numbers
from .names import COMPILED, OURS, RIVALS, TORCH
from .store import Result, Row

STYLES = {
    OURS: ("#d62728", "o"),
    TORCH: ("#1f77b4", "s"),
    COMPILED: ("#17a2b8", "v"),
    "onnxruntime": ("#8c564b", "D"),
    "openvino": ("#9467bd", "^"),
    "jax": ("#2ca02c", "P"),
}
MODE_TITLES = {"infer": "inference", "train": "training: forward and all gradients"}
LETTERS = {"H": "hidden size H", "B": "batch size B", "T": "time steps T"}
GRAY = "#666666"


def draw(result: Result, folder: Path) -> list[Path]:
    """Write every figure that the run has rows for; the paths written."""
    figures = {"speedup": speedup(result), "sweeps": sweeps(result), "roofline": roofline(result)}
    return [_write(f, result.stamp, folder / f"{name}.png") for name, f in figures.items() if f]


def draw_edges(run: Comparison, folder: Path) -> list[Path]:
    return [_write(neighbours(run), run.stamp, folder / "edges.png")]


def _write(figure: Any, stamp: dict[str, Any], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = f"{stamp['cpu']}, {stamp['threads']} threads, torch {stamp['versions']['torch']}"
    text += f", {stamp['time'][:10]}"
    figure.text(0.995, 0.008, text, ha="right", fontsize=7, color=GRAY)
    figure.get_layout_engine().set(rect=(0, 0.025, 1, 0.975))
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def _one_two_five(axis: Any, values: Sequence[float], most: int) -> None:
    """Make an x or y axis logarithmic, just past the values, with numbers at 1, 2, 5, 10, ...

    Where these are more than `most`, at powers of ten alone.
    """
    low, high = min(values) / 1.15, max(values) * 1.15
    for steps in ((1, 2, 5), (1,)):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**power for power in powers for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            break
    name = axis.axis_name
    axis.axes.set(**{f"{name}scale": "log", f"{name}lim": (low, high)})
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_tick_params(labelsize=8)
    axis.axes.grid(alpha=0.3, axis=name)


def _legend(figure: Any, *axes: Any, columns: int = 6) -> None:
    """One legend for all, above them, where it covers nothing."""
    entries: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    place: dict[str, Any] = {
        "loc": "outside upper center",
        "ncols": min(columns, len(entries)),
        "fontsize": 9,
    }
    figure.legend(entries.values(), entries.keys(), **place)


def _tagged(result: Result, tag: str, mode: str) -> list[Row]:
    return [r for r in result.rows.values() if tag in r.case.tags and r.case.mode == mode]


def speedup(result: Result) -> Any:
    """Headline cases: how many times as long each rival takes, as points on a log axis."""
    panels = {mode: rows for mode in MODES if (rows := _tagged(result, "headline", mode))}
    if not panels:
        return None
    figure, axes = plt.subplots(
        1, len(panels), figsize=(10, 4.8), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (mode, rows) in zip(axes[0], panels.items(), strict=True):
        axis.axvline(1, color=STYLES[OURS][0], linewidth=2, label=OURS)
        every = [1.0]
        for rival in RIVALS:
            found = [(ratio, i) for i, row in enumerate(rows) if (ratio := row.ratio(rival, OURS))]
            if not found:
                continue
            color, marker = STYLES[rival]
            x, y = zip(*found, strict=True)
            axis.plot(x, y, marker, color=color, markersize=7, alpha=0.8, label=rival)
            every += x
        cases = [row.case for row in rows]
        axis.set_yticks(range(len(rows)), [f"T={c.T} B={c.B} I={c.I} H={c.H}" for c in cases])
        axis.grid(alpha=0.3, axis="y")
        _one_two_five(axis.xaxis, every, most=8)
        axis.set_title(MODE_TITLES[mode], fontsize=10)
        axis.set_xlabel(f"time, as a multiple of {OURS}'s")
    axes[0][0].invert_yaxis()
    _legend(figure, *axes[0])
    return figure


def sweeps(result: Result) -> Any:
    """Time against H, B and T, both axes logarithmic, with the roof as a dashed line."""
    if not any(_tagged(result, f"sweep-{letter}", "infer") for letter in "HBT"):
        return None
    figure, axes = plt.subplots(2, 3, figsize=(13, 8), layout="constrained")
    for row_axes, mode in zip(axes, MODES, strict=True):
        for axis, letter in zip(row_axes, "HBT", strict=True):
            if rows := _tagged(result, f"sweep-{letter}", mode):
                _lines(axis, result, rows, letter)
            axis.set_xlabel(LETTERS[letter])
        row_axes[0].set_ylabel(f"{mode}: milliseconds a call")
    _legend(figure, *axes.flat, columns=7)
    return figure


def _lines(axis: Any, result: Result, rows: list[Row], letter: str) -> None:
    rows.sort(key=lambda row: getattr(row.case, letter))
    every: list[float] = []
    for rival in (OURS, *RIVALS):
        timed = [row for row in rows if rival in row.seconds]
        if not timed:
            continue
        x = [getattr(row.case, letter) for row in timed]
        q1, median, q3 = (
            [1e3 * row.seconds[rival][k] for row in timed] for k in ("q1", "median", "q3")
        )
        color, marker = STYLES[rival]
        axis.plot(x, median, marker=marker, markersize=4, label=rival, color=color)
        axis.fill_between(x, q1, q3, alpha=0.2, color=color)
        every += median
    bounds = [(getattr(row.case, letter), result.bound(row)) for row in rows]
    if least := [(size, 1e3 * bound.seconds) for size, bound in bounds if bound]:
        sizes, seconds = zip(*least, strict=True)
        axis.plot(sizes, seconds, "--", color="black", linewidth=1, label="the machine's limit")
        every += seconds
    fixed = {k: {getattr(row.case, k) for row in rows} for k in "TBIH" if k != letter}
    text = " ".join(f"{k}={v.pop()}" for k, v in fixed.items() if len(v) == 1)
    axis.set_title(f"{rows[0].case.mode}, {text}", fontsize=10)
    _one_two_five(axis.xaxis, [getattr(row.case, letter) for row in rows], most=11)
    _one_two_five(axis.yaxis, every, most=18)


def _reached(row: Row, who: str) -> tuple[float, float]:
    """Operations for each byte that must move, and GFLOP/s."""
    # A single row streams the weights each step; a batch reuses them.
    streamed = costs.streamed_bytes(row.case) if row.case.B == 1 else 0.0
    operations = costs.operations(row.case)
    moved = max(costs.moved_bytes(row.case), streamed)
    return operations / moved, operations / row.seconds[who]["median"] / 1e9


def roofline(result: Result) -> Any:
    """GFLOP/s of float32 sequences on all cores against operations a byte that must move, under the
    measured limits."""
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in result.rows.values():
        case = row.case
        if (case.kind, case.dtype, case.precision, case.threads) != (
            "rnn",
            "float32",
            "highest",
            0,
        ):
            continue
        for who in (OURS, TORCH) if case.T > 1 else ():
            if who in row.seconds:
                points.setdefault((who, case.mode), []).append(_reached(row, who))
    limits = result.roofs.get(0)
    if limits is None or not points:
        return None
    figure, axis = plt.subplots(figsize=(9, 6), layout="constrained")
    for (who, mode), found in sorted(points.items()):
        color, marker = STYLES[who]
        fill = color if mode == "infer" else "none"
        style: dict[str, Any] = {"facecolor": fill, "edgecolor": color, "marker": marker}
        x, y = zip(*found, strict=True)
        axis.scatter(x, y, 28, label=f"{who}, {mode}", **style)
    peak = limits.flops["float32"] / 1e9
    intensities, rates = zip(*(point for found in points.values() for point in found), strict=True)
    low, high = min(intensities) / 3, max(intensities) * 1.5
    note: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "color": GRAY}
    slope: dict[str, Any] = {
        "rotation": 45,
        "rotation_mode": "anchor",
        "transform_rotates_text": True,
    }
    for level, speed in limits.read.items():
        speed /= 1e9
        axis.plot([low, peak / speed, high], [low * speed, peak, peak], color=GRAY, linewidth=1)
        # Along the slope, where it enters the figure; lines are a factor of two apart or more.
        at = low * 1.1, low * 1.1 * speed
        axis.annotate(f"{level}, {speed:.0f} GB/s", at, xytext=(-3, 4), **slope, **note)
    text = f"multiply-adds, {peak:.0f} GFLOP/s"
    axis.annotate(text, (high / 1.2, peak), xytext=(0, 3), ha="right", **note)
    _one_two_five(axis.xaxis, [low * 1.15, high / 1.15], most=14)
    _one_two_five(axis.yaxis, [*rates, peak * 1.2], most=14)
    axis.set_ylabel("GFLOP/s reached")
    axis.set_xlabel("floating-point operations for each byte that must move")
    axis.set_title(
        "Each point is a float32 sequence. The lines are what this machine can do: what moves "
        "through\na memory level, and what the multiply-adds make of it; a point at its line "
        "could not be faster.",
        fontsize=10,
        loc="left",
    )
    _legend(figure, axis)
    return figure


def neighbours(run: Comparison) -> Any:
    """Cost of a unit of work at sizes one apart: a jump at a tile's edge would show as a step."""
    figure, axes = plt.subplots(3, 1, figsize=(10, 9), layout="constrained")
    for axis, letter in zip(axes, "HBT", strict=True):
        _groups(axis, run.rows, letter)
    axes[0].set_title(
        "What one more hidden unit, sequence or step costs: each group of points is a run of sizes "
        "one apart.\nA level line is good: one more costs its share. A step up of a line would be "
        "a size that fills\nonly part of the kernel's last tile, but pays for all of it; the "
        f"black bar is a step of {GROWTH - 1:.0%}.",
        fontsize=10,
        loc="left",
    )
    _legend(figure, axes[0])
    return figure


def _groups(axis: Any, runs: dict[str, Numbers], letter: str) -> None:
    """The runs of one letter side by side, evenly spaced: on a log axis large sizes would merge."""
    every: list[float] = []
    ticks: dict[float, int] = {}
    color, _ = STYLES[OURS]
    for mode in MODES:
        chosen = {k: v for k, v in runs.items() if k.startswith(f"{mode} {letter}=")}
        costs_of_runs = [edges.unit_costs(key, times) for key, times in chosen.items()]
        cheapest = min((cost for found in costs_of_runs for _, cost in found), default=1.0)
        place, line, fill = 0.0, *(("-", color) if mode == "infer" else ("--", "white"))
        for found in costs_of_runs:
            x = [place + n for n in range(len(found))]
            y = [cost / cheapest for _, cost in found]
            style: dict[str, Any] = {
                "marker": "o",
                "markersize": 5,
                "color": color,
                "markerfacecolor": fill,
            }
            axis.plot(x, y, line, label=f"rnnext, {MODE_TITLES[mode]}", **style)
            ticks |= {at: size for at, (size, _) in zip(x, found, strict=True)}
            every += y
            place = x[-1] + 2.5
    if not every:
        return
    shown = list(ticks.items())[:: 2 if len(ticks) > 35 else 1]
    last = max(ticks)
    axis.plot([last + 2] * 2, [1, GROWTH], color="black", linewidth=3, solid_capstyle="butt")
    axis.set_xticks([at for at, _ in shown], [str(size) for _, size in shown], fontsize=8)
    axis.set_xlim(-1, last + 3)
    _one_two_five(axis.yaxis, [*every, 2.0], most=8)
    axis.set_ylabel("time / work\n(cheapest = 1)")
    held = ", ".join(f"{k}={v}" for k, v in edges.BASE.items() if k != letter)
    note = "; work counted in whole vectors of 16" if letter == "H" else ""
    axis.set_xlabel(f"{LETTERS[letter]} ({held}, I={edges.INPUTS}{note})")
