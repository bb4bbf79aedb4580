"""`python -m tools.cuda_check.micro`: runs micro.cu's program and keeps what it prints."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from . import programs, records

# What a figure says about a constant of csrc/cuda/recurrence/choice.cpp.
CONSTANTS = {
    "launch": "step path: two a step, and cuBLAS's",
    "cluster_barrier_release_store": "cluster: fixed, by blocks",
    "cluster_barrier_relaxed": "cluster: what the fence in the barrier costs",
    "st_async": "cluster: fixed, by asynchronous stores",
    "peer_stores": "cluster: bytes a cycle to peers",
    "l2_flag": "grid: fixed, a part of it",
    "l2_tagged_word": "grid: fixed, by tagged words",
    "fence_1_store": "grid: what the fence costs",
    "l2_read": "grid: bytes a cycle from L2",
    "mma_bf16": "rate of an SM, 16-bit types",
    "mma_tf32": "rate of an SM, TF32",
    "wgmma_bf16": "whether wgmma is worth it",
}
# As the program prints them: a rehearsal takes these in its place.
STAND_IN = [
    '{"name": "sm_clock", "n": 1, "value": 1.0, "unit": "GHz"}',
    *(f'{{"name": "{name}", "n": 1, "value": 1.0, "unit": "stand-in"}}' for name in CONSTANTS),
    '{"name": "mma_bf16_latency", "n": 1, "error": "stand-in of an error"}',
]


def take(out: Path, lines: Iterable[str]) -> int:
    """Keep each line as it comes; how many were figures."""
    count = 0
    for line in lines:
        found = json.loads(line)
        records.append(out, "micro", **found)
        shown = found.get("error") or f"{found['value']:.4g} {found['unit']}"
        print(f"{found['name']} ({found['n']}): {shown}", flush=True)
        count += "value" in found
    return count


def report(out: Path) -> str:
    return records.table(
        records.read(out, "micro"),
        {
            "what": lambda r: r["name"],
            "n": lambda r: r["n"],
            "value": lambda r: r.get("value", "-"),
            "unit": lambda r: r.get("unit", r.get("error")),
            "says": lambda r: CONSTANTS.get(r["name"], ""),
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--stand-in", action="store_true")
    options = parser.parse_args()
    if options.stand_in:
        count, code = take(options.out, STAND_IN), 0
    else:
        program = subprocess.Popen([str(programs.MICRO)], stdout=subprocess.PIPE, text=True)
        assert program.stdout is not None
        count = take(options.out, program.stdout)
        code = program.wait()
    if code or not count:
        sys.exit(f"the program ended with {code} after {count} figures")


if __name__ == "__main__":
    main()
