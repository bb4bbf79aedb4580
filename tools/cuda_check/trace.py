"""`python -m tools.cuda_check.trace`: where a step's cycles go, by a clock inside the kernels."""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from . import records

# What lies between the places of trace.cu, in order; the last one is to the next step's first.
PARTS = ("wait", "prefetch", "product", "sums and cell", "publish", "hand over", "rest")
STEPS, PLACES = 64, len(PARTS)
CYCLE = 1 << 32  # the clock has 32 bits


def split(notes: Sequence[Sequence[int]]) -> dict[str, float]:
    """The median cycles of each part of a step, and of a whole step under "step".

    ``notes``: [steps, places] as the kernel keeps them, a ring that begins anywhere.
    """
    first = min(
        range(len(notes)), key=lambda i: (notes[i][0] - notes[i - 1][0]) % CYCLE < CYCLE / 2
    )
    steps = [*notes[first:], *notes[:first]]
    parts: dict[str, list[int]] = {name: [] for name in (*PARTS, "step")}
    for this, following in itertools.pairwise(steps):
        places = itertools.pairwise([*this, following[0]])
        for name, (a, b) in zip(PARTS, places, strict=True):
            parts[name].append((b - a) % CYCLE)
        parts["step"].append((following[0] - this[0]) % CYCLE)
    return {name: float(statistics.median(values)) for name, values in parts.items()}


def _part(name: str, record: records.Record) -> Any:
    return record["parts"][name]


def report(out: Path) -> str:
    return records.table(
        records.read(out, "trace"),
        {
            "path": lambda r: r["path"],
            "type": lambda r: r["compute"],
            "H": lambda r: r["H"],
            "B": lambda r: r["B"],
            "blocks": lambda r: r["blocks"],
            **{name: partial(_part, name) for name in (*PARTS, "step")},
        },
    )


def main() -> None:
    options = records.options(__doc__)
    import torch

    from cuda_host import host, recurrence
    from cuda_host.structs import address_of

    from . import kernels

    cuda = options.device == "cuda"
    lib = kernels.library(options.device)
    T = 2 * STEPS + 5 if cuda else STEPS + 2
    sizes = (
        {"block": 256, "cluster": 1024, "grid": 1024}
        if cuda
        else dict.fromkeys(recurrence.PATHS, 32)
    )
    sizes.pop("step", None)
    failed = 0
    sizes |= {f"{path} tagged": H for path, H in sizes.items() if path != "block"}
    for compute, way, B in itertools.product(("bf16", "f32"), sizes, (1, 8) if cuda else (2,)):
        path, H = way.partition(" ")[0], sizes[way]
        if path == "cluster" and cuda and torch.cuda.get_device_capability() < (9, 0):
            continue
        run = kernels.prepare(options.device, recurrence.Case(compute, T, B, H), way)
        g = recurrence.choose(run.device, T, B, H, compute=compute, path=path)
        run.exchange(g)
        notes = lib.empty(STEPS, PLACES, dtype=torch.int32)
        number = recurrence.COMPUTES[compute]
        try:
            lib.run("trace_run", address_of(run.call), address_of(g), number, notes)
        except host.KernelError as error:
            print(f"{way} {compute} H={H} B={B}: {error}", flush=True)
            failed += 1
            continue
        found = split([[x % CYCLE for x in row] for row in notes.cpu().tolist()])
        record = records.append(
            options.out, "trace", compute=compute, path=way, H=H, B=B, blocks=g.blocks, parts=found
        )
        print(record, flush=True)
        lib.free_all()
    if failed:
        sys.exit(f"{failed} traces failed")


if __name__ == "__main__":
    main()
