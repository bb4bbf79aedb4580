"""The resident kernels called directly, past torch: on the GPU, or rehearsed on the host layer."""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cuda_host import host, recurrence
from cuda_host.structs import Geometry

from . import programs

TRACE = programs.HERE / "trace.cu"


class GpuLibrary(host.Library):
    """The kernels of programs.KERNELS, with torch's memory in the place of guarded memory."""

    def __init__(self) -> None:
        self._handle = ctypes.CDLL(str(programs.KERNELS))
        self._alive: list[Tensor] = []

    def free_all(self) -> None:
        self._alive.clear()

    def set_device(self, *limits: int, granted: int | None = None) -> None:
        pass

    def asynchronous_only(self, address: int, size: int) -> None:
        pass

    def empty(
        self, *shape: int, dtype: torch.dtype = torch.float32, align: int = 256, name: str = ""
    ) -> Tensor:
        self._alive.append(torch.empty(shape, dtype=dtype, device="cuda"))
        return self._alive[-1]

    def tensor(
        self, values: Tensor, writable: bool = False, align: int = 256, name: str = ""
    ) -> Tensor:
        self._alive.append(values.cuda())
        return self._alive[-1]

    def run(self, function: str, *arguments: Any, seed: int = 0) -> None:
        entry: Callable[..., int] = getattr(self._handle, function)
        if code := entry(*map(host._pass, arguments)):
            raise host.KernelError(f"{function}: CUDA error {code}")


@functools.cache
def library(device: str) -> host.Library:
    """The kernels, their trace included, on "cuda" or "cpu"."""
    if device == "cuda":
        return GpuLibrary()
    lib = host.library(*recurrence.KERNELS, TRACE, host.HERE / "rnn_entries.cpp")
    lib.set_device(*recurrence.DEVICES["small"][:3])
    return lib


def describe(device: str) -> str:
    """The name in recurrence.DEVICES of the device that the kernels run on."""
    limits = torch.zeros(7, dtype=torch.int64)
    library(device).run("rnn_describe", limits)
    recurrence.DEVICES["here"] = tuple(limits.tolist())
    return "here"


def new(device: str, case: recurrence.Case, path: str) -> recurrence.Run:
    """A pass of this path, still to be run."""
    return recurrence.Run(case, path, describe(device), lib=library(device))


def prepare(device: str, case: recurrence.Case, path: str) -> recurrence.Run:
    """A forward pass that has run once on this path: launch() runs it again."""
    run = new(device, case, path)
    run.forward()
    return run


def seconds(device: str, run: recurrence.Run, g: Geometry, steps: int, repeats: int) -> float:
    """The least time of a launch over the first `steps` steps."""
    zeros, least = run.exchange(g), float("inf")
    run.call.T = steps
    for _ in range(repeats):
        if zeros is not None:
            zeros.zero_()
        least = min(least, _timed(device, lambda: run.launch(g, False)))
    return least


def _timed(device: str, call: Callable[[], None]) -> float:
    if device == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3
