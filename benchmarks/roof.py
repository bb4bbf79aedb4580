"""The roof: what this machine can do at most, and the least time that a case takes by it."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from .cases import Case
from .costs import ITEMSIZE, moved_bytes, operations, step_operations, streamed_bytes
from .measure import Probe

SOURCE = Path(__file__).with_name("roof.cpp")
DTYPES = ("float32", "float64", "bfloat16")
REPEATS = 5
STEPS = 3_000_000  # of multiply-adds: about 10 ms
# Of one sample within a row's rounds.
PROBE_SECONDS = 0.008


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
    """The least time a case can take: `seconds`, set by `limit` ("FMA" or a memory level).

    amount: operations if the limit is FMA, else bytes that must cross it.
    beside: seconds of `seconds` that the amount does not explain: multiply-adds beside a stream.
    """

    limit: str
    seconds: float
    amount: float
    beside: float = 0.0

    def at(self, rate: float) -> Bound:
        """The same where the limit is another: operations or bytes a second."""
        return replace(self, seconds=self.amount / rate + self.beside)


def measure(threads: int) -> Roof:
    """Best of a few runs of each loop in roof.cpp; about 3 s. RuntimeError without a compiler."""
    size = cache_sizes()
    library = _build()
    flops = {}
    for number, dtype in enumerate(DTYPES):
        best = max(library.roof_flops(number, threads, STEPS) for _ in range(REPEATS))
        if best:
            flops[dtype] = best
    read = {}
    for level in ("L1", "L2", "L3", "DRAM"):
        span = _span(level, size, threads)
        passes = max(1, (1 << 30) // span)
        read[level] = max(library.roof_read(span, threads, passes) for _ in range(REPEATS))
    return Roof(threads, flops, read, size)


def _span(level: str, size: dict[str, int], threads: int) -> int:
    """Bytes for each thread to read: half of a level, so that what else lives there stays too."""
    if level == "DRAM":
        return 4 * size["L3"] // threads
    return size[level] // 2 // (threads if level == "L3" else 1)


def probe(case: Case, roof: Roof) -> Probe:
    """Of what bounds a case: a shared machine's limits change by the minute, and a row should meet
    those of its own."""
    library, limit, threads = _build(), bound(case, roof).limit, roof.threads
    if limit == "FMA":
        dtype = DTYPES.index(peak_dtype(case, roof))
        # As many steps as in measure() take about 10 ms.
        return Probe(functools.partial(library.roof_flops, dtype, threads, STEPS * 8 // 10))
    span = _span(limit, roof.size, threads)
    passes = max(1, round(PROBE_SECONDS * roof.read[limit] / (span * threads)))
    return Probe(functools.partial(library.roof_read, span, threads, passes))


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
        if (index / "type").read_text().strip() == "Instruction":
            continue
        match = re.fullmatch(r"(\d+)K", (index / "size").read_text().strip())
        if match:
            size["L" + (index / "level").read_text().strip()] = int(match[1]) << 10
    return size


def peak_dtype(case: Case, roof: Roof) -> str:
    """Whose multiply-adds bound the case."""
    dtype = "bfloat16" if case.precision == "medium" else case.dtype
    return dtype if dtype in roof.flops else "float32"


def bound(case: Case, roof: Roof) -> Bound:
    """The highest of: the multiply-adds; the weights streamed each step, and then the products that
    are not of a step; the bytes moved once."""
    bounds = []
    if case.kind != "embedding":
        peak = roof.flops[peak_dtype(case, roof)]
        bounds.append(Bound("FMA", operations(case) / peak, operations(case)))
        streamed = streamed_bytes(case)
        share = case.H * case.H * ITEMSIZE[case.dtype] / roof.threads
        level = roof.level(share)
        beside = (operations(case) - step_operations(case)) / peak
        bounds.append(Bound(level, streamed / roof.read[level] + beside, streamed, beside))
    moved = moved_bytes(case)
    # Every call of an embedding reads other rows: what must fit is the whole table.
    table = case.V * case.D * ITEMSIZE[case.dtype]
    level = roof.level(max(moved, table) / max(1, roof.threads))
    bounds.append(Bound(level, moved / roof.read[level], moved))
    return max(bounds, key=lambda b: b.seconds)
