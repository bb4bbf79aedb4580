"""Kernels and their launchers in this process: launches run in the interpreter."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from cuda_ptx import build, machine
from cuda_ptx.memory import ASYNCHRONOUS, Anything, Arena, Fault
from cuda_ptx.parse import Kernel, entries, kernel_of


class KernelError(RuntimeError):
    """A launch failed: what a kernel did wrong, or why a device would refuse it."""


class Launch(ctypes.Structure):
    """As runtime.cpp has it."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("cluster", ctypes.c_uint),
        ("cooperative", ctypes.c_uint),
        ("shared_bytes", ctypes.c_size_t),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
    ]


CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Launch))


class Entries:
    """Functions of a shared library: extern "C", of int64_t, double and pointers; 0: no error."""

    def __init__(self, path: Path) -> None:
        self._handle = ctypes.CDLL(str(path))
        self._fault = ""

    def run(self, function: str, *arguments: Any) -> None:
        """Calls one; KernelError says what a kernel did wrong.

        Tensors are passed by address, None as a null pointer, int as int64_t, float as double.
        """
        self._fault = ""
        if code := getattr(self._handle, function)(*map(_pass, arguments)):
            raise KernelError(self._fault or f"error {code}")


class Library(Entries):
    """The launchers of a shared library, the PTX of its kernels, and device memory."""

    def __init__(self, path: Path, objects: Sequence[Path], checked: bool = True) -> None:
        super().__init__(path)
        self.texts: dict[str, str] = {}
        for one in objects:
            if (ptx := one.with_suffix(".ptx")).exists() and one.parent != build.CACHE:
                self.texts.update(entries(ptx.read_text()))
        self.arena: Any = Arena() if checked else Anything()
        self._kernels: dict[str, Kernel] = {}
        self.seed, self.scattered, self.watch = 0, False, False
        self.ran: dict[str, int] = {}  # launches of each kernel
        self.seconds = 0.0
        self._callback = CALLBACK(self._launch)
        self._handle.stand_in_callback(self._callback)
        self._handle.stand_in_calls.restype = ctypes.c_int64

    def _launch(self, pointer: Any) -> int:
        launch = pointer.contents
        name = launch.name.decode()
        started = time.perf_counter()
        try:
            if name not in self._kernels:
                self._kernels[name] = kernel_of(self.texts[name])
            kernel = self._kernels[name]
            params = bytearray(max((at + size for _, at, size in kernel.params), default=0))
            for number, (_, at, size) in enumerate(kernel.params):
                params[at : at + size] = ctypes.string_at(launch.arguments[number], size)
            self.ran[name] = self.ran.get(name, 0) + 1
            machine.launch(
                kernel, tuple(launch.grid), tuple(launch.block), launch.cluster,
                bool(launch.cooperative), launch.shared_bytes, bytes(params), self.arena, self.seed,
                self.scattered, self.watch,
            )  # fmt: skip
        except Exception as error:  # nothing may pass through C++
            self._fault = str(error) if isinstance(error, Fault) else f"{type(error)}: {error}"
            self.error = error
            self._handle.stand_in_message(self._fault.encode())
            return 1
        finally:
            self.seconds += time.perf_counter() - started
        return 0

    @contextlib.contextmanager
    def planted(self, name: str, text: str) -> Iterator[None]:
        """A kernel with other PTX, for a while."""
        before = self.texts[name], self._kernels.pop(name, None)
        self.texts[name] = text
        try:
            yield
        finally:
            self.texts[name] = before[0]
            self._kernels.pop(name, None)
            if before[1]:
                self._kernels[name] = before[1]

    def reset(self) -> None:
        """Takes back all device memory, and makes the device an H100 whose lanes run in step."""
        self.arena.clear()
        self.set_device()
        self.set_compiled()
        self.mode(0)

    def mode(self, seed: int, scattered: bool | None = None, watch: bool | None = None) -> None:
        """How launches run from here on; by default, some of them scattered and some watched."""
        self.seed = seed
        self.scattered = seed % 4 == 3 if scattered is None else scattered
        self.watch = seed % 2 == 1 if watch is None else watch

    def set_device(
        self,
        sm: int = 90,
        multiprocessors: int = 132,
        shared_per_block: int = 227 * 1024,
        granted: int | None = None,
    ) -> None:
        """The device whose limits launches and queries see; an H100 until this is called.

        ``granted``: on how many of its multiprocessors launches run; None: on all.
        """
        granted = multiprocessors if granted is None else granted
        self._handle.stand_in_device(sm, multiprocessors, shared_per_block, granted)

    def set_compiled(self, architecture: int = 1 << 10) -> None:
        """The architecture of the PTX that kernels were made of; 0: there is no code at all."""
        self._handle.stand_in_compiled(architecture)

    def attribute_calls(self) -> int:
        """How often the runtime was asked for, or told, an attribute."""
        return int(self._handle.stand_in_calls())

    def asynchronous_only(self, address: int, size: int) -> None:
        """From here on plain reads of this memory are errors; asynchronous copies may read it."""
        self.arena.protect(address, size, ASYNCHRONOUS)

    def empty(
        self, *shape: int, dtype: torch.dtype = torch.float32, align: int = 256
    ) -> torch.Tensor:
        """Device memory that holds NaNs; a multiple of `align` bytes and of no more."""
        count = 1
        for size in shape:
            count *= size
        bytes_ = max(count * dtype.itemsize, 1)
        address = self.arena.allocate(bytes_, align)
        raw = (ctypes.c_char * bytes_).from_address(address)
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(raw, dtype=dtype, count=count).view(shape)

    def tensor(
        self, values: torch.Tensor, writable: bool = False, align: int = 256
    ) -> torch.Tensor:
        """A copy of `values` in device memory; writing to it is an error unless `writable`."""
        copy = self.empty(*values.shape, dtype=values.dtype, align=align)
        if copy.numel():
            copy.copy_(values)
            if not writable:
                self.arena.protect(copy.data_ptr(), copy.numel() * copy.element_size())
        return copy


def _pass(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if value is None:
        return ctypes.c_void_p(None)
    return ctypes.c_double(value) if isinstance(value, float) else ctypes.c_int64(int(value))


@functools.cache
def library(*sources: Path) -> Library:
    """The library of kernels and entry points.

    Entry points are extern "C" functions that return an error and take int64_t, double and
    pointers.
    """
    objects = build.compile_all([*sources, build.HERE / "runtime.cpp"])
    return Library(build.link(sources[-1].stem, objects), objects)
