"""`python -m tools.cuda_check.geometries`: forced geometries beside what the model says of them.

A step is measured as a slope: a launch over 1024 steps less one over 128. The model is linear in
its constants; the fit says by which factor each is off, and the regret how much slower its choices
are than the best geometry that was measured.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import measure

from . import records
from .records import Record

if TYPE_CHECKING:
    from cuda_host.structs import Geometry, StepCost

NAMES = ("step", "block", "cluster", "grid")
SIZES = tuple(itertools.product((1024, 256, 512), (1, 8, 32)))  # H, B
COMPUTES = ("bf16", "f32")
STEPS = (128, 1024)
FEW = 8  # group sizes of the grid that are tried
ENOUGH = 1.5  # seconds of measuring before it is the next problem's turn


def terms(path: int, cost: StepCost) -> dict[str, float]:
    """The estimate of a step in cycles, by the constant that each part depends on."""
    name, product = NAMES[path], "gemm" if path == 0 else "product"
    parts = {f"fixed {name}": cost.fixed, product: cost.product, "cell": cost.cell}
    parts[f"exchange {name}"] = cost.exchange
    return {part: cost.waves * cycles for part, cycles in parts.items() if cycles}


def some(
    candidates: Sequence[tuple[Geometry, StepCost]],
) -> list[tuple[Geometry, StepCost]]:
    """Of each path and group size the two geometries that the model likes best; of the grid a few
    group sizes. The model's choice is among them."""
    best = sorted(candidates, key=lambda pair: pair[0].cycles)
    grids = sorted({g.blocks for g, _ in best if NAMES[g.path] == "grid"})
    kept = set(grids[:: max(1, len(grids) // FEW)])
    seen: dict[tuple[int, int], int] = {}
    chosen = []
    for g, cost in best:
        key = (g.path, g.blocks)
        seen[key] = seen.get(key, 0) + 1
        wanted = NAMES[g.path] != "grid" or g.blocks in kept
        if g is best[0][0] or (wanted and seen[key] <= 2):
            chosen.append((g, cost))
    return chosen


def fit(rows: Sequence[Record]) -> dict[str, float]:
    """The factor of each term under which the model comes nearest to the measured cycles.

    Least squares of relative errors; no factor is negative: a term that wants to be is left out.
    """
    names = sorted({name for row in rows for name in row["terms"]})
    while names:
        scaled = [[row["terms"].get(n, 0.0) / row["cycles"] for n in names] for row in rows]
        factors, *_ = np.linalg.lstsq(np.array(scaled), np.ones(len(rows)), rcond=None)
        if (factors >= 0).all():
            return {name: float(f) for name, f in zip(names, factors, strict=True)}
        names.pop(int(factors.argmin()))
    return {}


def regret(rows: Sequence[Record], factors: dict[str, float] | None = None) -> dict[str, float]:
    """Of each problem: the time of the model's choice over that of the best measured one."""

    def estimate(row: Record) -> float:
        known: dict[str, float] = row["terms"]
        return sum(c if factors is None else factors.get(n, 0.0) * c for n, c in known.items())

    problems: dict[str, list[Record]] = {}
    for row in rows:
        problems.setdefault(f"{row['compute']} H={row['H']} B={row['B']}", []).append(row)
    return {
        problem: min(of, key=estimate)["cycles"] / min(row["cycles"] for row in of)
        for problem, of in problems.items()
    }


def report(out: Path) -> str:
    rows = records.read(out, "geometries")
    if not rows:
        return ""
    lines = [
        records.table(
            rows,
            {
                "path": lambda r: r["path"],
                "type": lambda r: r["compute"],
                "H": lambda r: r["H"],
                "B": lambda r: r["B"],
                "blocks": lambda r: r["blocks"],
                "groups": lambda r: r["groups"],
                "rows": lambda r: r["rows"],
                "us a step": lambda r: r["us"],
                "cycles": lambda r: round(r["cycles"]),
                "model": lambda r: round(sum(r["terms"].values())),
                "model/measured": lambda r: sum(r["terms"].values()) / r["cycles"],
            },
        )
    ]
    factors = fit(rows)
    lines += ["", "factors that bring the model nearest (1: as it is)"]
    lines += [f"  {name}: {factor:.2f}" for name, factor in factors.items()]
    before, after = regret(rows), regret(rows, factors)
    lines += ["", "regret: time of the choice / of the best measured; after: by the fitted model"]
    lines += [f"  {name}: {before[name]:.2f}, after {after[name]:.2f}" for name in before]
    return "\n".join(lines)


def step_path_slope(device: str, compute: str, H: int, B: int, steps: tuple[int, int]) -> float:
    """Seconds a step of the step path, which only torch can run."""
    import torch

    import rnnext  # noqa: F401

    dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[compute]
    weight = torch.randn(H, H, device=device, dtype=dtype) * H**-0.5
    rows = [torch.randn(T, B, H, device=device, dtype=dtype) for T in steps]
    wait = measure.synchronizer(device)

    def call(input: torch.Tensor) -> None:
        torch.ops.rnnext.recurrence(
            input, None, [], [weight], [], [], None, None, None, None, None, [], "rate", "tanh",
            [False], False,
        )  # fmt: skip

    def seconds(input: torch.Tensor) -> float:
        contender = measure.Contender(lambda: call(input))
        return min(measure.sample(contender, 1, 0.0, wait) for _ in range(4))

    os.environ["RNNEXT_CUDA_PATH"] = "step"
    try:
        short, long = map(seconds, rows)
    finally:
        del os.environ["RNNEXT_CUDA_PATH"]
    return (long - short) / (steps[1] - steps[0])


def problem_rows(
    device: str, compute: str, H: int, B: int, steps: tuple[int, int], clock: float
) -> Iterator[Record]:
    """One problem's geometries: the estimate of a step of each, and its slope."""
    from cuda_host import recurrence

    from . import kernels

    case = recurrence.Case(compute, steps[1], B, H)
    limits, spent = recurrence.DEVICES[kernels.describe(device)], 0.0
    runs: dict[str, recurrence.Run] = {}
    for g, cost in some(recurrence.candidates(limits, steps[1], B, H, compute)):
        path = NAMES[g.path]
        if spent > ENOUGH and device == "cuda":
            break
        if path not in runs and path != "step":
            runs[path] = kernels.prepare(device, case, path)
        begin = time.monotonic()
        if path == "step":
            slope = step_path_slope(device, compute, H, B, steps)
        else:
            short, long = (kernels.seconds(device, runs[path], g, T, 3) for T in steps)
            slope = (long - short) / (steps[1] - steps[0])
        spent += time.monotonic() - begin
        if slope <= 0:  # a rehearsal's clock, or a disturbed one
            continue
        yield {
            "compute": compute, "H": H, "B": B, "path": path, "blocks": g.blocks,
            "groups": g.groups, "rows": g.rows, "us": slope * 1e6,
            "cycles": slope * clock * 1e9, "terms": terms(g.path, cost),
        }  # fmt: skip
    kernels.library(device).free_all()


def main() -> None:
    options = records.options(__doc__, 80)
    end = time.monotonic() + options.budget
    clock = records.sm_clock(options.out)
    cuda = options.device == "cuda"
    sizes, steps = (SIZES, STEPS) if cuda else (((40, 2),), (2, 6))
    left: list[Any] = []
    for (H, B), compute in itertools.product(sizes, COMPUTES):
        if time.monotonic() > end:
            left.append((compute, H, B))
            continue
        for row in problem_rows(options.device, compute, H, B, steps, clock):
            print(records.append(options.out, "geometries", **row), flush=True)
    if left:
        print(f"no time for {left}")
    print(report(options.out))


if __name__ == "__main__":
    main()
