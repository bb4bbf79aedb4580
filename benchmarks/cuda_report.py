"""What `cuda_check` makes of its measurements: targets, a table, plots and JSON, in one folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .cuda_bench import COMPILED, CUDNN, OURS, STEP, Case, Roof, Row

RIVALS = [OURS, CUDNN, STEP, COMPILED]


def cudnn_is_persistent(case: Case) -> bool:
    """Where cuDNN keeps the weights on chip, by the selection code in PyTorch."""
    limit = 256 if case.train else 384
    if case.dtype == "float16" and not case.bidirectional:
        limit = 1024
    aligned = case.H % 128 == 0 and case.B % 8 == 0
    return not case.packed and aligned and limit >= case.H


@dataclasses.dataclass
class Verdict:
    """One target: what was asked, what was measured (the worst case of `count`), and whether."""

    target: str
    measured: str
    held: bool


def verdicts(rows: Sequence[Row], roof: Roof) -> list[Verdict]:
    """The targets of the CUDA half, each over the cases that it speaks of."""
    found = []

    def worst(target: str, values: dict[str, float], bound: float, above: bool, form: str) -> None:
        if not values:
            found.append(Verdict(target, "no case was measured", False))
            return
        name = (min if above else max)(values, key=lambda key: values[key])
        held = values[name] >= bound if above else values[name] <= bound
        ok = sum(v >= bound if above else v <= bound for v in values.values())
        measured = f"{form.format(values[name])} at {name}; {ok} of {len(values)} hold"
        found.append(Verdict(target, measured, held))

    def speedups(wanted: Callable[[Case], bool]) -> dict[str, float]:
        chosen = {row.case.name: row.speedup(CUDNN) for row in rows if wanted(row.case)}
        return {name: value for name, value in chosen.items() if value is not None}

    steps = {
        row.case.name: row.seconds[OURS] / row.case.T * 1e6
        for row in rows
        if row.case.kind == "rnn"
        and not (row.case.train or row.case.packed or row.case.bidirectional)
        and row.case.dtype in ("bfloat16", "float16")
        and row.case.H <= 1024
        and row.case.B <= 16
        and OURS in row.seconds
    }
    worst("under 1 us/step, 16-bit, H <= 1024, B <= 16", steps, 1.0, False, "{:.2f} us")
    weak = speedups(lambda c: c.kind == "rnn" and not cudnn_is_persistent(c))
    worst(">= 2x cuDNN where it has no persistent kernel", weak, 2.0, True, "{:.2f}x")
    strong = speedups(lambda c: c.kind == "rnn" and cudnn_is_persistent(c))
    worst(">= 1x cuDNN where it has one", strong, 1.0, True, "{:.2f}x")
    backward = speedups(lambda c: c.kind == "embedding" and c.train)
    worst("embedding backward >= 1.5x torch", backward, 1.5, True, "{:.2f}x")
    shares = {
        row.case.name: share
        for row in rows
        if row.case.kind == "embedding" and not row.case.train and row.case.N > 100_000
        if not row.case.repeated and (share := roof.share(row)) is not None
    }
    worst("embedding forward >= 85% of the copy bandwidth", shares, 0.85, True, "{:.0%}")
    return found


def table(rows: Sequence[Row], roof: Roof) -> str:
    """One line a case: microseconds, and for sequences microseconds a step, by rival."""
    width = max(len(row.case.name) for row in rows)
    lines = [
        f"{'us (us/step)':{width}}"
        + "".join(f"{rival:>20}" for rival in RIVALS)
        + f"{'x ' + CUDNN:>11}{'of roof':>9}{'spread':>8}"
    ]
    for row in rows:
        line = f"{row.case.name:{width}}"
        for rival in RIVALS:
            cell = "-"
            if rival in row.seconds:
                us = row.seconds[rival] * 1e6
                cell = f"{us:.1f}" + (f" ({us / row.case.T:.2f})" if row.case.T else "")
            line += f"{cell:>20}"
        speedup, share = row.speedup(CUDNN), roof.share(row)
        line += f"{speedup:11.2f}" if speedup is not None else f"{'-':>11}"
        line += f"{share:9.1%}" if share is not None else f"{'-':>9}"
        lines.append(line + f"{row.spread.get(OURS, 0):8.0%}")
    failed = [
        f"{row.case.name}: {name}: {why}" for row in rows for name, why in row.missing.items()
    ]
    return "\n".join([*lines, *failed])


def write_json(
    path: Path,
    machine: dict[str, Any],
    rows: Sequence[Row],
    roof: Roof | None,
    found: Sequence[Verdict],
    steps: dict[str, str],
) -> None:
    """Everything that was measured, with the machine it was measured on."""
    document = {
        "machine": machine,
        "steps": steps,
        "roof": dataclasses.asdict(roof) if roof else None,
        "rows": [dataclasses.asdict(row) | {"name": row.case.name} for row in rows],
        "targets": [dataclasses.asdict(verdict) for verdict in found],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def draw(rows: Sequence[Row], folder: Path, title: str) -> list[Path]:
    """Microseconds a step over H, one figure a dtype: forward left, training right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    made = []
    plain = [
        r for r in rows if r.case.kind == "rnn" and not (r.case.bidirectional or r.case.packed)
    ]
    for dtype in sorted({row.case.dtype for row in plain}):
        figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), sharey=True)
        for axis, train in zip(axes, (False, True), strict=True):
            chosen = [r for r in plain if r.case.dtype == dtype and r.case.train == train]
            for color, B in enumerate(sorted({row.case.B for row in chosen})):
                for rival, style in [(OURS, "-"), (CUDNN, "--"), (STEP, ":")]:
                    points = sorted(
                        (row.case.H, row.seconds[rival] / row.case.T * 1e6)
                        for row in chosen
                        if row.case.B == B and rival in row.seconds
                    )
                    if points:
                        axis.plot(
                            *zip(*points, strict=True),
                            style,
                            color=f"C{color}",
                            marker=".",
                            label=f"{rival}, B={B}",
                        )
            axis.set(yscale="log", xlabel="H", title="train" if train else "forward")
            axis.set_xscale("log", base=2)
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("us per step")
        axes[0].legend(fontsize=7)
        figure.suptitle(f"{dtype}, {title}")
        path = folder / f"steps-{dtype}.png"
        figure.savefig(path, dpi=120, bbox_inches="tight")
        pyplot.close(figure)
        made.append(path)
    return made
