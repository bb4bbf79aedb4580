"""The roof: what this machine can do at most, and the least time that a case takes by it."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .cases import REPEATED_ROWS, Case

SOURCE = Path(__file__).with_name("roof.cpp")
ITEMSIZE = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
DTYPES = ("float32", "float64", "bfloat16")
REPEATS = 5
STEPS = 3_000_000  # of multiply-adds: about 10 ms


@dataclass(frozen=True)
class Roof:
    """Limits with `threads` threads at once, measured.

    flops: operations a second for each dtype (bfloat16 only where the CPU has a dot product of it).
    read: bytes a second of each cache level and of DRAM, all threads together.
    size: bytes of each cache level; L1 and L2 of one core, L3 of all.
    """

    threads: int
    flops: dict[str, float]
    read: dict[str, float]
    size: dict[str, int]

    def best(self, other: Roof | None) -> Roof:
        """The higher of two measurements of the same machine, limit by limit."""
        if other is None:
            return self
        flops = {dtype: max(value, other.flops[dtype]) for dtype, value in self.flops.items()}
        read = {level: max(value, other.read[level]) for level, value in self.read.items()}
        return Roof(self.threads, flops, read, self.size)

    def level(self, bytes_per_thread: float) -> str:
        """The nearest level in which every thread's share fits."""
        for level in ("L1", "L2"):
            if bytes_per_thread <= self.size[level]:
                return level
        return "L3" if bytes_per_thread * self.threads <= self.size["L3"] else "DRAM"


@dataclass(frozen=True)
class Bound:
    """The least time a case can take: `seconds`, set by `limit` ("FMA" or a memory level)."""

    limit: str
    seconds: float


def measure(threads: int) -> Roof:
    """Best of a few runs of each loop in roof.cpp; about 3 s. RuntimeError without a compiler."""
    size, library, flops = cache_sizes(), _build(), {}
    for number, dtype in enumerate(DTYPES):
        best = max(library.roof_flops(number, threads, STEPS) for _ in range(REPEATS))
        if best:
            flops[dtype] = best
    # Bytes for each thread to read: half of a level, so that what else lives there stays too.
    spans = {"L1": size["L1"] // 2, "L2": size["L2"] // 2}
    spans |= {"L3": size["L3"] // 2 // threads, "DRAM": 4 * size["L3"] // threads}
    read = {}
    for level, span in spans.items():
        passes = max(1, (1 << 30) // span)
        read[level] = max(library.roof_read(span, threads, passes) for _ in range(REPEATS))
    return Roof(threads, flops, read, size)


@functools.cache
def _build() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "roof.so"
        flags = ["-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-pthread"]
        command = [os.environ.get("CXX", "g++"), *flags, str(SOURCE), "-o", str(target)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            detail = getattr(error, "stderr", None) or error
            raise RuntimeError(f"cannot build {SOURCE.name}: {detail}") from error
        library = ctypes.CDLL(str(target))
    library.roof_flops.restype = library.roof_read.restype = ctypes.c_double
    library.roof_flops.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64]
    library.roof_read.argtypes = [ctypes.c_int64, ctypes.c_int, ctypes.c_int64]
    return library


def cache_sizes() -> dict[str, int]:
    """Data cache sizes in bytes as Linux reports them; common ones where it does not."""
    size = {"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        kind, level, told = ((index / n).read_text().strip() for n in ("type", "level", "size"))
        if kind != "Instruction" and (match := re.fullmatch(r"(\d+)K", told)):
            size[f"L{level}"] = int(match[1]) << 10
    return size


def bound(case: Case, roof: Roof) -> Bound:
    """The longest of: all multiply-adds; the weights streamed at each step plus the products that
    no step waits for; the bytes moved once."""
    bounds = []
    if case.kind != "embedding":
        dtype = "bfloat16" if case.precision == "medium" else case.dtype
        peak = roof.flops.get(dtype, roof.flops["float32"])
        bounds.append(Bound("FMA", operations(case) / peak))
        level = roof.level(case.gates * case.H**2 * ITEMSIZE[case.dtype] / roof.threads)
        # W_hh is read at each step, in training twice: W_hh h, and W_hh^T times the gradient, wait
        # for the step before.
        recurrent = case.layers * case.directions * case.gates * case.H**2
        recurrent *= 2 if case.mode == "train" else 1
        streamed = case.T * recurrent * ITEMSIZE[case.dtype] / roof.read[level]
        beside = (operations(case) - 2.0 * sum(case.lengths) * recurrent) / peak
        bounds.append(Bound(level, streamed + beside))
    moved = moved_bytes(case)
    # Every call of an embedding reads other rows: what must fit is the whole table.
    table = case.V * case.D * ITEMSIZE[case.dtype]
    level = roof.level(max(moved, table) / max(1, roof.threads))
    bounds.append(Bound(level, moved / roof.read[level]))
    return max(bounds, key=lambda b: b.seconds)


def operations(case: Case) -> float:
    """Multiplications and additions of the layers' products; training takes three forwards."""
    scores = case.directions * case.H * case.V  # of the demo
    total = 2.0 * sum(case.lengths) * (scores + parameters(case, biases=0))
    return total * (3 if case.mode == "train" else 1)


def parameters(case: Case, biases: int) -> int:
    """How many the layers have, with so many biases of each gate and unit."""
    inputs = case.I + (case.layers - 1) * case.directions * case.H
    return case.directions * case.gates * case.H * (inputs + case.layers * (case.H + biases))


def moved_bytes(case: Case) -> float:
    """The bytes to read or write at least once: inputs, outputs, weights and their gradients.

    A table row that occurs twice is read once, and has one row in a sparse gradient; a write costs
    as much as a read.
    """
    item = ITEMSIZE[case.dtype]
    if case.kind == "embedding":
        output, row = case.N * case.D * item, case.D * item
        distinct = expected_distinct(case)
        gather = distinct * row + output + 8 * case.N
        gradient = distinct * (row + 8) if case.sparse else case.V * row
        backward = output + gradient + 8 * case.N
        return {"infer": gather, "train": gather + backward, "backward": backward}[case.mode]
    rows, weights = sum(case.lengths), parameters(case, biases=2)
    features, output = rows * case.I, rows * case.directions * case.H
    if case.mode == "infer":
        return float(item * (features + output + weights))
    # Each layer's output is written forward and read backward; the last one's gradient is read.
    return float(item * (2 * features + (2 * case.layers + 1) * output + 2 * weights))


def expected_distinct(case: Case) -> float:
    """How many of the N indices are different, on average."""
    if case.indices != "zipf":
        rows = case.V if case.indices == "uniform" else REPEATED_ROWS
        return rows * (1 - (1 - 1 / rows) ** case.N)
    total = sum(1 / rank for rank in range(1, case.V + 1))
    return sum(1 - (1 - 1 / (rank * total)) ** case.N for rank in range(1, case.V + 1))
