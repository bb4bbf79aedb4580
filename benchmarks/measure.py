"""Timing: contenders take turns in random order, in one process, on a pinned number of threads."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

# libgomp's threads spin for about 10 ms after a parallel region and take a core from whoever runs
# next, and a core that slept is slow at first. Warming up for this long lets both pass
# (docs/benchmarks.md has the numbers).
WARM_SECONDS = 0.02
# A call this long is not worth a second one to warm up: the process sleeps instead.
LONG_SECONDS = 0.1
# Other processes that use this much of a core spoil a timing. /proc/stat counts in steps of
# 10 ms, so a lower limit would raise false alarms in a short round.
DISTURBED_CORES = 0.2
PACKAGES = (
    *("torch", "onnxruntime", "openvino", "jax", "numpy", "rnnext"),
    *("sb3-contrib", "torchrl", "darts", "gluonts", "python-doctr"),  # of `make clients`
)


@dataclass(frozen=True)
class Effort:
    """How long to measure: seconds for each contender of a case, and the rounds it may take.

    sample_seconds is the least time between two clock reads: faster calls are repeated to fill it.
    warm_seconds is how long a contender runs before each sample.
    """

    seconds: float
    min_rounds: int
    max_rounds: int
    sample_seconds: float = 0.004
    warm_seconds: float = WARM_SECONDS


FULL = Effort(seconds=0.35, min_rounds=4, max_rounds=15)
QUICK = Effort(seconds=0.25, min_rounds=3, max_rounds=9)
# A GPU's clock and caches are its own: little to wait for.
CUDA = Effort(seconds=0.04, min_rounds=5, max_rounds=9, sample_seconds=0.003, warm_seconds=0.001)


@dataclass
class Contender:
    """call() does the work once; context is entered around a sample, outside the clock."""

    call: Callable[[], Any]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass
class Timing:
    """Seconds a call: one sample for each round, and how many calls a sample averages over."""

    calls: int
    samples: list[float] = field(default_factory=list)

    @property
    def quartiles(self) -> tuple[float, float, float]:
        if len(self.samples) == 1:
            return (self.samples[0],) * 3
        q1, q2, q3 = statistics.quantiles(self.samples, n=4, method="inclusive")
        return q1, q2, q3

    @property
    def median(self) -> float:
        return self.quartiles[1]


def nothing() -> None:
    """Wait for the work of the CPU: it is done when a call returns."""


def interleave(
    contenders: Mapping[str, Contender], effort: Effort, synchronize: Callable[[], None] = nothing
) -> dict[str, Timing]:
    """Time every contender once a round, in a new random order each round.

    Each contender warms up outside the clock before its sample, and synchronize() is called before
    each clock read. A round in which other processes kept the cores busy is thrown away and done
    again, at most as often as there are rounds.
    """
    timings, once, per_round = {}, {}, 0.0
    for name, contender in contenders.items():
        once[name] = min(sample(contender, 1, 0.0, synchronize) for _ in range(2))
        timings[name] = Timing(calls=max(1, round(effort.sample_seconds / once[name])))
        per_round += once[name] * timings[name].calls + effort.warm_seconds
    # All have the same number of samples.
    fit = int(effort.seconds * len(contenders) / per_round)
    rounds = spare = min(max(fit, effort.min_rounds), effort.max_rounds)
    order, shuffle = list(contenders), random.Random(0).shuffle
    gc.collect()
    gc.disable()
    try:
        while rounds:
            shuffle(order)
            start, others, samples = time.perf_counter(), Bystanders(), {}
            for name in order:
                warm = effort.warm_seconds
                if once[name] > LONG_SECONDS:
                    time.sleep(warm)
                    warm = 0.0
                samples[name] = sample(contenders[name], timings[name].calls, warm, synchronize)
            if others.cores(time.perf_counter() - start) > DISTURBED_CORES and spare:
                spare -= 1
                continue
            rounds -= 1
            for name, seconds in samples.items():
                timings[name].samples.append(seconds)
    finally:
        gc.enable()
    return timings


def sample(
    contender: Contender, calls: int, warm_seconds: float, synchronize: Callable[[], None] = nothing
) -> float:
    """Seconds a call, averaged over `calls`, after warming up outside the clock."""
    call = contender.call
    with contender.context():
        deadline = time.perf_counter() + warm_seconds
        while time.perf_counter() < deadline:
            call()
            synchronize()  # or a GPU would be given more than 20 ms of work
        start = time.perf_counter()
        for _ in range(calls):
            call()
        synchronize()
        return (time.perf_counter() - start) / calls


class Bystanders:
    """How much of the machine other processes used: a reason to distrust a timing."""

    def __init__(self) -> None:
        self.start = self._read()

    @staticmethod
    def _read() -> tuple[float, float]:
        """CPU seconds of the whole machine (stolen time included) and of this process; Linux."""
        own, path = time.process_time(), Path("/proc/stat")
        if not path.exists():
            return own, own
        ticks = [int(word) for word in path.read_text().split("\n", 1)[0].split()[1:9]]
        return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK"), own

    def cores(self, seconds: float, ours: float = 0.0) -> float:
        """Cores kept busy by others, on average over the `seconds` since construction.

        ours: CPU seconds that other processes of our own used.
        """
        everyone, own = (now - then for now, then in zip(self._read(), self.start, strict=True))
        return max(0.0, (everyone - own - ours) / seconds)


def pin_threads(threads: int) -> int:
    """Limit this process, before any runtime is imported, to `threads` cores (0: all it may use).

    Runtimes count the cores of the affinity mask; the variables are for those that do not.
    Returns the number of threads to give to each runtime explicitly.
    """
    cores = sorted(os.sched_getaffinity(0))
    if threads:
        cores = cores[:threads]
        os.sched_setaffinity(0, cores)
    count = str(len(cores))
    os.environ.update(OMP_NUM_THREADS=count, MKL_NUM_THREADS=count, NPROC=count)
    os.environ["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={str(len(cores) > 1).lower()}"
    return len(cores)


def stamp(threads: int) -> dict[str, Any]:
    """The facts that a reader needs to judge a result: when, on which CPU, with which versions."""
    versions = {}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    flags = set(_cpuinfo("flags").split())
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "core": core_name(),
        "cpu_flags": sorted(flags & {"avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16"}),
        "threads": threads,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


# By family and model, as /proc/cpuinfo counts them.
_CORES = {
    (25, (*range(0x10), *range(0x20, 0x60))): "Zen 3",
    (25, (*range(0x10, 0x20), *range(0x60, 0x80), *range(0xA0, 0xB0))): "Zen 4",
    (26, tuple(range(0x100))): "Zen 5",
}


def core_name() -> str:
    """The makers' name of the core, Xeon if it has AMX, or the CPU's name."""
    family, model = _cpuinfo("cpu family"), _cpuinfo("model")
    for (of_family, models), name in _CORES.items():
        if family == str(of_family) and model in map(str, models):
            return name
    return "Xeon" if "amx_bf16" in _cpuinfo("flags") else cpu_name()
