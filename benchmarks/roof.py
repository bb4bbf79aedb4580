"""The roof: what this machine can do at most, and the least time that a case takes by it."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .cases import Case
from .costs import ITEMSIZE, moved_bytes, operations, step_operations, streamed_bytes
from .measure import matmul_precision

SOURCE = Path(__file__).with_name("roof.cpp")
DTYPES = ("float32", "float64", "bfloat16")
REPEATS = 5
# Of one sample within a row's rounds.
PROBE_SECONDS = 0.008


@dataclass(frozen=True)
class Roof:
    """Limits with `threads` threads at once, or of a GPU, measured.

    flops: operations a second for each dtype (bfloat16 only where the CPU has a dot product of it),
        on a GPU of torch's matrix product, TF32's under "tf32".
    read: bytes a second of each cache level and of DRAM, all threads together; on a GPU those that
        a copy in DRAM reads and writes.
    size: bytes of each cache level; L1 and L2 of one core, L3 of all. Empty for a GPU, whose
        registers and shared memory may hold what a CPU streams from its caches.
    """

    threads: int
    flops: dict[str, float]
    read: dict[str, float]
    size: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def best(self, other: Roof | None) -> Roof:
        """The higher of two measurements of the same machine, limit by limit."""
        if other is None:
            return self
        flops = {dtype: max(value, other.flops[dtype]) for dtype, value in self.flops.items()}
        read = {level: max(value, other.read[level]) for level, value in self.read.items()}
        return Roof(self.threads, flops, read, self.size)

    def level(self, bytes_per_thread: float) -> str:
        """The nearest level in which every thread's share fits."""
        if not self.size:
            return "DRAM"
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
        best = max(library.roof_flops(number, threads, 3_000_000) for _ in range(REPEATS))
        if best:
            flops[dtype] = best
    read = {}
    for level in ("L1", "L2", "L3", "DRAM"):
        span = _span(level, size, threads)
        passes = max(1, (1 << 30) // span)
        read[level] = max(library.roof_read(span, threads, passes) for _ in range(REPEATS))
    return Roof(threads, flops, read, size)


def measure_cuda() -> Roof:
    """Rates of a large copy and of a large product of each type, with random data."""
    import torch

    def best(call: Callable[[], object]) -> float:
        found = []
        for _ in range(2 * REPEATS):
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            torch.cuda.synchronize()
            found.append(time.perf_counter() - start)
        return min(found)

    source = torch.empty(2**28, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    copied = 2 * source.numel() / best(lambda: target.copy_(source))
    flops, n = {}, 8192
    for name in ("float32", "tf32", "bfloat16", "float16"):
        dtype = torch.float32 if name == "tf32" else getattr(torch, name)
        factors = [torch.randn(n, n, device="cuda").to(dtype) for _ in range(2)]
        with matmul_precision("high" if name == "tf32" else "highest"):
            flops[name] = 2 * n**3 / best(functools.partial(torch.mm, *factors))
    return Roof(0, flops, {"DRAM": copied}, {})


def _span(level: str, size: dict[str, int], threads: int) -> int:
    """Bytes for each thread to read: half of a level, so that what else lives there stays too."""
    if level == "DRAM":
        return 4 * size["L3"] // threads
    return size[level] // 2 // (threads if level == "L3" else 1)


class Probe:
    """What bounds a case, measured again in the rounds of its row.

    A shared machine's limits change by the minute: a row should meet those of its own minute.
    rates: the samples of the rounds that count, operations or bytes a second.
    """

    def __init__(self, case: Case, roof: Roof) -> None:
        self.rates: list[float] = []
        self._run: Callable[[], float]
        library, limit, threads = _build(), bound(case, roof).limit, roof.threads
        if limit == "FMA":
            dtype = peak_dtype(case, roof)
            # As many steps as in measure() take about 10 ms.
            steps = round(3_000_000 * PROBE_SECONDS / 0.01)
            self._run = lambda: library.roof_flops(DTYPES.index(dtype), threads, steps)
        else:
            span = _span(limit, roof.size, threads)
            passes = max(1, round(PROBE_SECONDS * roof.read[limit] / (span * threads)))
            self._run = lambda: library.roof_read(span, threads, passes)

    def sample(self, warm_seconds: float) -> float:
        """The rate, after warming up."""
        deadline = time.perf_counter() + warm_seconds
        while time.perf_counter() < deadline:
            self._run()
        return self._run()


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
    dtype = {"medium": "bfloat16", "high": "tf32"}.get(case.precision, case.dtype)
    return dtype if dtype in roof.flops else "float32"


def bound(case: Case, roof: Roof) -> Bound:
    """The highest of: the multiply-adds; the weights streamed each step, and then the products that
    are not of a step; the bytes moved once."""
    bounds = []
    if case.kind != "embedding":
        peak = roof.flops[peak_dtype(case, roof)]
        bounds.append(Bound("FMA", operations(case) / peak, operations(case)))
    if case.kind != "embedding" and roof.size:
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
