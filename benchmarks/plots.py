"""The figure of a stored run: how many times as long the others take."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from .cases import MODES
from .names import COMPILED, OURS, TORCH
from .store import Result

STYLES = {
    TORCH: ("#1f77b4", "s"),
    COMPILED: ("#17a2b8", "v"),
    "onnxruntime": ("#8c564b", "D"),
    "openvino": ("#9467bd", "^"),
    "jax": ("#2ca02c", "P"),
}
MODE_TITLES = {"infer": "inference", "train": "training: forward and all gradients"}


def draw(result: Result, folder: Path) -> list[Path]:
    """Headline cases: how many times as long each rival takes, as points on a log axis.

    Returns the paths written, none where the run has no rows for it.
    """
    found = [r for r in result.rows.values() if "headline" in r.case.tags and r.case.cell == "rnn"]
    panels = {m: rows for m in MODES if (rows := [r for r in found if r.case.mode == m])}
    if not panels:
        return []
    layout = ConstrainedLayoutEngine(rect=(0, 0.025, 1, 0.975))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(10, 4.8), sharey=True, squeeze=False, layout=layout
    )
    for axis, (mode, rows) in zip(axes[0], panels.items(), strict=True):
        axis.axvline(1, color="#d62728", linewidth=2, label=OURS)
        for rival, (color, marker) in STYLES.items():
            points = [(ratio, i) for i, row in enumerate(rows) if (ratio := row.ratio(rival, OURS))]
            x, y = zip(*points, strict=True) if points else ((), ())
            axis.plot(x, y, marker, color=color, markersize=7, alpha=0.8, label=rival)
        cases = [row.case for row in rows]
        axis.set_yticks(range(len(rows)), [f"T={c.T} B={c.B} I={c.I} H={c.H}" for c in cases])
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        axis.set_title(MODE_TITLES[mode], fontsize=10)
        axis.set_xlabel(f"time, as a multiple of {OURS}'s")
    axes[0][0].invert_yaxis()
    entries = axes[0][0].get_legend_handles_labels()
    figure.legend(*entries, loc="outside upper center", ncols=6, fontsize=9)
    stamp = result.stamp
    text = f"{stamp['cpu']}, {stamp['threads']} threads, torch {stamp['versions']['torch']}"
    text += f", {stamp['time'][:10]}"
    figure.text(0.995, 0.008, text, ha="right", fontsize=7, color="#666666")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "speedup.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return [path]
