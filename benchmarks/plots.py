"""Figures of a stored run: speed-up bars, time against H, B and T, the roofline, the tile edges."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from . import costs, edges
from .cases import MODES
from .names import OURS, RIVALS, STEP_PATH, TORCH
from .report import subject
from .store import Result, Row

COLORS = {
    OURS: "#d62728",
    TORCH: "#1f77b4",
    "torch.compile": "#17becf",
    "onnxruntime": "#8c564b",
    "openvino": "#9467bd",
    "jax": "#2ca02c",
}


def draw(result: Result, folder: Path) -> list[Path]:
    """Write every figure that the run has rows for; the paths written."""
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Callable[[Result], Any]] = {
        "speedup": speedup,
        "sweeps": sweeps,
        "roofline": roofline,
        "edges": tile_edges,
    }
    for dtype in sorted(
        {row.case.dtype for row in result.rows.values() if "grid" in row.case.tags}
    ):
        figures[f"steps-{dtype}"] = partial(cuda_steps, dtype=dtype)
    written = []
    for name, make in figures.items():
        figure = make(result)
        if figure is None:
            continue
        stamp = result.stamp
        figure.text(
            0.99,
            0.005,
            f"{stamp['cpu']}, {stamp['threads']} threads, torch {stamp['versions']['torch']}, "
            f"{stamp['time'][:10]}",
            ha="right",
            fontsize=7,
            color="gray",
        )
        figure.get_layout_engine().set(rect=(0, 0.02, 1, 0.98))
        written.append(folder / f"{name}.png")
        figure.savefig(written[-1], dpi=150)
        plt.close(figure)
    return written


def _tagged(result: Result, tag: str, mode: str) -> list[Row]:
    return [r for r in result.rows.values() if tag in r.case.tags and r.case.mode == mode]


def speedup(result: Result) -> Any:
    """Headline cases: how many times as long each rival takes, as bars on a log axis."""
    ours = subject(result)
    if not any(_tagged(result, "headline", mode) for mode in MODES):
        return None
    figure, axes = plt.subplots(2, 1, figsize=(11, 7.5), layout="constrained")
    for axis, mode in zip(axes, MODES, strict=True):
        rows = _tagged(result, "headline", mode)
        rivals = [r for r in RIVALS if r != ours and any(r in row.seconds for row in rows)]
        width = 0.8 / max(1, len(rivals))
        for n, rival in enumerate(rivals):
            found = [(i, row.ratio(rival, ours)) for i, row in enumerate(rows)]
            bars = [(i + (n + 0.5) * width - 0.4, ratio) for i, ratio in found if ratio]
            patches = axis.bar(
                *zip(*bars, strict=True), width * 0.92, label=rival, color=COLORS[rival]
            )
            axis.bar_label(patches, fmt="%.1f", fontsize=6.5)
        labels = [f"T={c.T} B={c.B}\nI={c.I} H={c.H}" for c in (row.case for row in rows)]
        axis.set_xticks(range(len(rows)), labels, fontsize=8)
        axis.set_yscale("log")
        axis.axhline(1, color=COLORS[ours], linewidth=1.5)
        axis.set_ylabel(f"time / {ours}'s time")
        axis.set_title(f"{mode}: bars above the line are slower than {ours}", fontsize=10)
        axis.legend(fontsize=8, ncols=len(rivals))
        axis.margins(y=0.3)  # room for the legend
    return figure


def sweeps(result: Result) -> Any:
    """Time against H, B and T, both axes logarithmic, with the roof as a dashed line."""
    if not any(_tagged(result, f"sweep-{letter}", "infer") for letter in "HBT"):
        return None
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
    for row_axes, mode in zip(axes, MODES, strict=True):
        for axis, letter in zip(row_axes, "HBT", strict=True):
            rows = _tagged(result, f"sweep-{letter}", mode)
            rows.sort(key=lambda row: getattr(row.case, letter))
            _lines(axis, result, rows, letter)
            fixed = {k: {getattr(row.case, k) for row in rows} for k in "TBIH" if k != letter}
            text = " ".join(f"{k}={v.pop()}" for k, v in fixed.items() if len(v) == 1)
            axis.set(xscale="log", yscale="log", xlabel=letter, title=f"{mode}, {text}")
            _plain_ticks(axis, [getattr(row.case, letter) for row in rows])
            axis.grid(alpha=0.3, which="both")
        row_axes[0].set_ylabel("ms a call")
    axes[0][0].legend(fontsize=8)
    return figure


def _plain_ticks(axis: Any, values: list[int]) -> None:
    """Label a log axis with these numbers, not with powers of ten."""
    axis.set_xticks(values, [str(value) for value in values])
    axis.minorticks_off()


def _lines(axis: Any, result: Result, rows: list[Row], letter: str) -> None:
    for rival in (OURS, *RIVALS):
        points = [
            (getattr(row.case, letter), row.seconds[rival]) for row in rows if rival in row.seconds
        ]
        if not points:
            continue
        x = [size for size, _ in points]
        median, q1, q3 = ([1e3 * t[k] for _, t in points] for k in ("median", "q1", "q3"))
        axis.plot(x, median, marker="o", markersize=3, label=rival, color=COLORS[rival])
        axis.fill_between(x, q1, q3, alpha=0.2, color=COLORS[rival])
    least = [
        (getattr(row.case, letter), 1e3 * bound.seconds)
        for row in rows
        if (bound := result.bound(row))
    ]
    if least:
        axis.plot(*zip(*least, strict=True), "--", color="black", linewidth=1, label="roof")


def roofline(result: Result) -> Any:
    """GFLOP/s against operations a byte that must move, under the measured limits."""
    limits = result.roofs.get(0)
    if limits is None:
        return None
    figure, axis = plt.subplots(figsize=(8, 5.5), layout="constrained")
    intensities = [2.0 ** (n / 8) for n in range(-24, 97)]
    peak = limits.flops["float32"] / 1e9
    for level, speed in limits.read.items():
        line = [min(peak, speed / 1e9 * i) for i in intensities]
        axis.plot(intensities, line, color="gray", linewidth=1)
        axis.annotate(level, (intensities[0], line[0]), fontsize=8, color="gray")
    for rival in (TORCH, OURS):
        for mode, marker in zip(MODES, "o^", strict=True):
            points = []
            for row in result.rows.values():
                case = row.case
                full = case.dtype == "float32" and case.precision == "highest"
                if case.kind == "rnn" and full and not case.threads and case.T > 1:
                    if case.mode != mode or rival not in row.seconds:
                        continue
                    # A single row streams the weights each step; a batch reuses them.
                    streamed = costs.streamed_bytes(case) if case.B == 1 else 0.0
                    operations = costs.operations(case)
                    moved = max(costs.moved_bytes(case), streamed)
                    rate = operations / row.seconds[rival]["median"] / 1e9
                    points.append((operations / moved, rate))
            if points:
                x, y = zip(*points, strict=True)
                axis.scatter(
                    x,
                    y,
                    marker=marker,
                    s=18,
                    color=COLORS[rival],
                    label=f"{rival} {mode}",
                )
    axis.set(xscale="log", yscale="log", ylabel="GFLOP/s", ylim=(peak / 300, peak * 1.5))
    axis.set_xlabel("floating-point operations a byte that must move")
    axis.set_title(f"float32 rows under the roof ({peak:.0f} GFLOP/s)", fontsize=10)
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
    return figure


def tile_edges(result: Result) -> Any:
    """Cost per operation at sizes one apart: a jump at a tile edge would show as a step."""
    if not result.edges:
        return None
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    for row_axes, mode in zip(axes, MODES, strict=True):
        for axis, letter in zip(row_axes, "HBT", strict=True):
            for key, times in result.edges.items():
                if key.startswith(f"{mode} {letter}="):
                    costs = edges.unit_costs(key, times)
                    x, y = zip(*((size, 1e12 * cost) for size, cost in costs), strict=True)
                    axis.plot(x, y, marker="o", markersize=3, color=COLORS[OURS])
            axis.set(xscale="log", yscale="log", xlabel=letter, title=f"{mode}, sizes one apart")
            _plain_ticks(axis, [sizes[len(sizes) // 2] for sizes in edges.SIZES[letter]])
            axis.grid(alpha=0.3, which="both")
        row_axes[0].set_ylabel("ps per operation")
    return figure


def cuda_steps(result: Result, dtype: str) -> Any:
    """A GPU's microseconds a step over H, a colour for each batch size."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    for axis, mode in zip(axes, MODES, strict=True):
        rows = [row for row in _tagged(result, "grid", mode) if row.case.dtype == dtype]
        for color, B in enumerate(sorted({row.case.B for row in rows})):
            for name, style in ((OURS, "-"), (TORCH, "--"), (STEP_PATH, ":")):
                points = sorted(
                    (row.case.H, row.seconds[name]["median"] / row.case.T * 1e6)
                    for row in rows
                    if row.case.B == B and row.case.precision == "highest" and name in row.seconds
                )
                if points:
                    line = axis.plot(*zip(*points, strict=True), style, color=f"C{color}")
                    line[0].set(marker=".", label=f"{name}, B={B}")
        axis.set(xscale="log", yscale="log", xlabel="H", title=f"{mode}, {dtype}")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("us a step")
    axes[0].legend(fontsize=7)
    return figure
