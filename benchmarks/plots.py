"""Figures of a stored run: speed-ups, and times along H, B and T under the machine's limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .cases import MODES
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
    figures = {"speedup": speedup(result), "sweeps": sweeps(result)}
    return [_write(f, result.stamp, folder / f"{name}.png") for name, f in figures.items() if f]


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
