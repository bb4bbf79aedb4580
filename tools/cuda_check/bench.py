"""`python -m tools.cuda_check.bench`: rnnext beside torch.nn, which runs on cuDNN there."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import measure, rivals
from benchmarks.cases import MODES, Case
from benchmarks.names import OURS, TORCH
from benchmarks.report import Table, duration
from benchmarks.rivals.contract import Data, compare

from . import records

LENGTHS = 128, 1024  # what a step takes is the slope between them


def cases(device: str) -> Iterator[Case]:
    """What matters most first; a rehearsal has one of every kind, small."""
    small = device == "cpu"
    lengths = (4, 12) if small else LENGTHS
    hidden, batches = ((32,), (2,)) if small else ((256, 1024, 512, 2048, 64), (1, 8, 64))
    for dtype, mode in itertools.product(("bfloat16", "float32"), MODES):
        for H, B, T in itertools.product(hidden, batches, lengths):
            yield Case("rnn", mode, T, B, H, H, dtype=dtype, device=device)
        options: tuple[dict[str, Any], ...] = ({"bidirectional": True}, {"packed": True})
        for option in options:
            yield Case(
                "rnn", mode, lengths[0], 16, hidden[-1], hidden[-1], dtype=dtype, device=device,
                **option,
            )  # fmt: skip
    for V, D, N in ((100, 8, 50),) if small else ((50_000, 256, 8192), (250_000, 512, 262_144)):
        for mode, indices in itertools.product(("infer", "backward"), ("uniform", "repeated")):
            yield Case("embedding", mode, V=V, D=D, N=N, indices=indices, device=device)


def text(out: Path) -> str:
    found = {record["name"]: record for record in records.read(out, "bench")}
    body = []
    for name, row in found.items():
        step, short = "", found.get(name.replace(f"T{LENGTHS[1]}-", f"T{LENGTHS[0]}-"), row)
        if row["T"] > short["T"]:
            step = duration((row[OURS] - short[OURS]) / (row["T"] - short["T"]))
        times = [duration(row[who]) for who in (OURS, TORCH)]
        body.append([name, *times, f"{row[TORCH] / row[OURS]:.2f}", step])
    return Table(["case", OURS, TORCH, "times as fast", "a step"], body).text()


def main() -> None:
    options = records.options(__doc__, 110)
    end, wrong = time.monotonic() + options.budget, 0
    for case in cases(options.device):
        if time.monotonic() > end:
            print(f"left out from {case.name} on")
            break
        print(case.name, flush=True)
        data = Data(case)
        try:
            ready = {r.name: r.prepare(case, data, 1) for r in (rivals.ours(), rivals.theirs())}
            compare(case, ready[TORCH].result(), ready[OURS].result())
        except (ValueError, RuntimeError) as error:
            wrong += 1
            print(f"{case.name}: {error}")
            continue
        synchronize = measure.synchronizer(case.device)
        timings = measure.interleave(ready, measure.CUDA, synchronize)
        medians = {name: timing.median for name, timing in timings.items()}
        records.append(options.out, "bench", name=case.name, T=case.T, **medians)
    print(text(options.out))
    if wrong:
        sys.exit(f"{wrong} cases failed")


if __name__ == "__main__":
    main()
