"""`python -m tools.cuda_check.counters`: Nsight Compute's counters of six kernels."""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from . import records
from .records import Record

SECTIONS = ("SpeedOfLight", "WarpStateStats", "MemoryWorkloadAnalysis", "LaunchStats")
KERNELS = "regex:recurrence_kernel|gather|reduce_chunks"
# Columns that are kept, by how their names begin, and what the report calls them.
KEPT = {
    "gpu__time_duration.sum": "time",
    "sm__cycles_elapsed.max": "cycles",
    "sm__throughput": "SM %",
    "lts__throughput": "L2 %",
    "dram__throughput": "DRAM %",
    "lts__t_sector_hit_rate": "L2 hits %",
    "smsp__average_warps_issue_stalled": "stalls",
    "launch__registers_per_thread": "registers",
}
# As ncu prints it, shortened: a rehearsal takes it in ncu's place.
STAND_IN = """\
==PROF== Connected to process 1
"ID","Process ID","Kernel Name","gpu__time_duration.sum","sm__cycles_elapsed.max",\
"smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",\
"smsp__average_warps_issue_stalled_membar_per_issue_active.ratio"
"","","","us","cycle","inst","inst"
"0","1","void rnnext::cuda::recurrence_kernel<stand-in>","100.5","1,000","1.5","2.5"
"""


def workload(device: str) -> None:
    """Six kernels, each once: three paths forward, one backward, the gather, the reduction."""
    import torch

    import rnnext

    T, wide = (256, 1024) if device == "cuda" else (3, 32)

    def once(path: str, H: int, backward: bool) -> None:
        os.environ["RNNEXT_CUDA_PATH"] = path
        dtype = torch.bfloat16
        rnn = rnnext.RNN(H, H, device=device, dtype=dtype)
        x = torch.randn(T, 8, H, device=device, dtype=dtype)
        call: Callable[[], object] = torch.no_grad()(lambda: rnn(x))
        if backward:
            output = rnn(x)[0].sum()
            call = partial(output.backward, retain_graph=True)
        profiled(call)

    def profiled(call: Callable[[], object]) -> None:
        call()
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()

    cluster = device == "cpu" or torch.cuda.get_device_capability() >= (9, 0)
    once("block", min(256, wide), False)
    once("grid", wide, False)
    once("cluster" if cluster else "grid", wide, False)
    once("cluster" if cluster else "grid", wide, True)
    del os.environ["RNNEXT_CUDA_PATH"]
    rows, count = (250_000, 262_144) if device == "cuda" else (50, 100)
    table = torch.randn(rows, 512, device=device)
    index = torch.randint(0, rows, (count,), device=device)
    grad = torch.randn(count, 512, device=device)
    profiled(lambda: torch.ops.rnnext.embedding(table, index))
    profiled(lambda: torch.ops.rnnext.embedding_backward(grad, index, rows, -1, False))


def parse(text: str) -> Iterator[Record]:
    """What `ncu --csv --page raw` printed: a row of names, one of units, one a kernel."""
    lines = text.splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith('"ID"')]
    if not heads:
        return
    rows = csv.reader(line for line in lines[heads[0] :] if line.startswith('"'))
    names, units = next(rows), next(rows)
    for row in rows:
        cells = dict(zip(names, zip(row, units, strict=True), strict=False))
        kept = {n: v for n, v in cells.items() if n.startswith(tuple(KEPT)) and v[0]}
        yield {"kernel": cells["Kernel Name"][0], "counters": kept}


def report(out: Path) -> str:
    lines = []
    for r in records.read(out, "counters"):
        lines.append(r["kernel"][:90])
        stalls = []
        for name, (value, unit) in r["counters"].items():
            if name.startswith("smsp__average_warps_issue_stalled"):
                reason = name.split("stalled_")[1].split("_per_")[0].split(".")[0]
                stalls.append((float(value.replace(",", "")), reason))
            else:
                label = next(text for start, text in KEPT.items() if name.startswith(start))
                lines.append(f"  {label}: {value} {unit}  ({name})")
        worst = ", ".join(f"{reason} {value:.2f}" for value, reason in sorted(stalls)[::-1][:5])
        lines.append(f"  waits for: {worst or 'not counted'}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--workload", action="store_true", help="run the kernels, count nothing")
    parser.add_argument("--ncu", default="ncu", help='the profiler, or "stand-in"')
    options = parser.parse_args()
    if options.workload:
        workload(options.device)
        return
    if options.ncu == "stand-in":
        workload(options.device)
        for record in parse(STAND_IN):
            records.append(options.out, "counters", **record)
        print(report(options.out))
        return
    command = [options.ncu, "--csv", "--page", "raw", "--profile-from-start", "off"]
    for section in SECTIONS:
        command += ["--section", section]
    command += ["--kernel-name", KERNELS, sys.executable, "-m", "tools.cuda_check.counters"]
    command += [str(options.out), "--device", options.device, "--workload"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    found = list(parse(done.stdout))
    for record in found:
        records.append(options.out, "counters", **record)
    print(report(options.out))
    if done.returncode or not found:
        print(done.stdout[-4000:])
        sys.exit(f"ncu ended with {done.returncode} after {len(found)} kernels")


if __name__ == "__main__":
    main()
