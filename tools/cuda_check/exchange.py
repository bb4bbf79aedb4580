"""`python -m tools.cuda_check.exchange`: the two exchanges of clusters and the grid side by side.

Both run the same geometry: their outputs must be the same bits, and a step, measured as in
geometries.py, says which is faster. The report says which to keep.
"""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from . import records
from .records import Record

if TYPE_CHECKING:
    from cuda_host.structs import Geometry

SIZES = ((1024, 1), (512, 8), (1024, 8), (2048, 1))  # H, B
COMPUTES = ("bf16", "f32", "tf32", "f64")
STEPS = (128, 1024)


def compare(device: str, compute: str, H: int, B: int, path: str, steps: tuple[int, int]) -> Record:
    """Seconds a step by exchange, and whether both gave the same bits."""
    from cuda_host import recurrence
    from helpers.common import same

    from . import kernels

    case = recurrence.Case(compute, steps[1], B, H)
    limits = recurrence.DEVICES[kernels.describe(device)]
    g: Geometry = recurrence.choose(limits, steps[1], B, H, compute=compute, path=path)
    outputs, times = [], {}
    for exchange in recurrence.EXCHANGES:
        run = kernels.new(device, case, f"{path} {exchange}")
        outputs.append([t.cpu() for t in run.forward()])
        short, long = (kernels.seconds(device, run, g, T, 3) for T in steps)
        times[exchange] = (long - short) / (steps[1] - steps[0])
    row = {"compute": compute, "H": H, "B": B, "path": path, "blocks": g.blocks, **times}
    row["same"] = same(*outputs)
    kernels.library(device).free_all()
    return row


def verdict(rows: list[Record], path: str) -> str:
    """Which exchange to keep on a path."""
    rows = [row for row in rows if row["path"] == path]
    wrong = sum(not row["same"] for row in rows)
    if wrong:
        return f"{path}: keep fenced: other bits in {wrong} of {len(rows)} cases"
    ratios = [
        row["tagged"] / row["fenced"] for row in rows if min(row["tagged"], row["fenced"]) > 0
    ]
    if not ratios:
        return f"{path}: no case was measured"
    ratio = math.exp(sum(map(math.log, ratios)) / len(ratios))
    keep = "tagged" if ratio < 1 else "fenced"
    return f"{path}: keep {keep}: the same bits, a step takes {ratio:.2f} times that with fences"


def report(out: Path) -> str:
    rows = records.read(out, "exchange")
    if not rows:
        return ""
    columns = {
        "path": lambda r: r["path"],
        "type": lambda r: r["compute"],
        "H": lambda r: r["H"],
        "B": lambda r: r["B"],
        "blocks": lambda r: r["blocks"],
        "same bits": lambda r: "yes" if r["same"] else "NO",
        "fenced, us a step": lambda r: r["fenced"] * 1e6,
        "tagged, us a step": lambda r: r["tagged"] * 1e6,
    }
    paths = dict.fromkeys(row["path"] for row in rows)
    return "\n".join([records.table(rows, columns), "", *(verdict(rows, path) for path in paths)])


def main() -> None:
    options = records.options(__doc__, 10)
    import torch

    end, cuda = time.monotonic() + options.budget, options.device == "cuda"
    sizes, steps = (SIZES, STEPS) if cuda else (((40, 2),), (2, 6))
    paths = ["grid"]
    if not cuda or torch.cuda.get_device_capability() >= (9, 0):
        paths.insert(0, "cluster")
    for (H, B), compute, path in itertools.product(sizes, COMPUTES, paths):
        if time.monotonic() > end:
            print("no time for the rest")
            break
        try:
            row = compare(options.device, compute, H, B, path, steps)
        except ValueError as error:  # too large for the path
            print(f"{path} {compute} H={H} B={B}: {error}")
            continue
        print(records.append(options.out, "exchange", **row), flush=True)
    print(report(options.out))


if __name__ == "__main__":
    main()
