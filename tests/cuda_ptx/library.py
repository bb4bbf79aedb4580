"""Kernels and their launchers in this process: launches run in the interpreter."""

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from cuda_ptx import machine
from cuda_ptx.memory import CONSTANT, Arena, Fault
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


LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Launch))
MEMORY = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)


class Entries:
    """Functions of a shared library: extern "C", of int64_t and pointers; 0: no error."""

    def __init__(self, path: Path) -> None:
        self.handle = ctypes.CDLL(str(path))
        self.fault = ""

    def run(self, function: str, *arguments) -> None:
        """Calls one; KernelError says what a kernel did wrong.

        Tensors are passed by address, structs by reference, int as int64_t.
        """
        self.fault = ""
        if code := getattr(self.handle, function)(*map(_pass, arguments)):
            raise KernelError(self.fault or f"error {code}")


def _pass(value):
    if isinstance(value, torch.Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, (ctypes.Structure, ctypes.Array)):
        return ctypes.byref(value)
    return value if value is None else ctypes.c_int64(value)


class Library(Entries):
    """The launchers of a shared library, the PTX of its kernels, and device memory."""

    def __init__(self, path: Path, objects: Sequence[Path]) -> None:
        super().__init__(path)
        self.texts: dict[str, str] = {}
        for one in objects:
            if (ptx := one.with_suffix(".ptx")).exists():
                self.texts.update(entries(ptx.read_text()))
        self.arena = Arena()
        self._kernels: dict[str, Kernel] = {}
        self.ran: dict[str, int] = {}  # launches of each kernel
        self.error: Exception | None = None  # of the last launch that failed
        self._launched = LAUNCH(self._launch)
        self._tensor_memory = MEMORY(self.arena.allocate)
        self._kept_memory = MEMORY(lambda size: self.arena.allocate(size, kept=True))
        self.handle.stand_in_callbacks(self._launched, self._kept_memory)
        self.handle.stand_in_calls.restype = ctypes.c_int64
        self.reset()

    def _launch(self, pointer) -> int:
        launch = pointer.contents
        name = launch.name.decode()
        try:
            if name not in self._kernels:
                self._kernels[name] = kernel_of(self.texts[name])
            kernel = self._kernels[name]
            params = bytearray(max((at + size for _, at, size in kernel.params), default=0))
            for number, (_, at, size) in enumerate(kernel.params):
                params[at : at + size] = ctypes.string_at(launch.arguments[number], size)
            self.ran[name] = self.ran.get(name, 0) + 1
            machine.run(kernel, launch, bytes(params), self.arena, self.seed)
        except Exception as error:  # nothing may pass through C++
            self.fault = str(error) if isinstance(error, Fault) else f"{type(error)}: {error}"
            self.error = error
            self.handle.stand_in_message(self.fault.encode())
            return 1
        return 0

    @contextlib.contextmanager
    def planted(self, name: str, text: str) -> Iterator[None]:
        """A kernel with other PTX, for a while."""
        before, self.texts[name] = self.texts[name], text
        self._kernels.pop(name, None)
        try:
            yield
        finally:
            self.texts[name] = before
            self._kernels.pop(name, None)

    def reset(self) -> None:
        """Takes back all device memory, and makes the device an H100 whose lanes run in step."""
        self.arena.clear()
        self.set_device()
        self.set_compiled()
        self.mode(0)

    def mode(self, seed: int) -> None:
        """How launches run from here on: see machine.py."""
        self.seed = seed

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
        self.handle.stand_in_device(sm, multiprocessors, shared_per_block, granted)

    def set_compiled(self, architecture: int = 1 << 10) -> None:
        """The architecture of the PTX that kernels were made of; 0: there is no code at all."""
        self.handle.stand_in_compiled(architecture)

    def attribute_calls(self) -> int:
        """How often the runtime was asked for, or told, an attribute."""
        return int(self.handle.stand_in_calls())

    @contextlib.contextmanager
    def tensors(self) -> Iterator[None]:
        """Torch's new tensors lie in device memory, which holds NaNs, until reset() takes it."""
        self.handle.stand_in_tensors(self._tensor_memory)
        torch._C._set_mkldnn_enabled(False)  # whose caches stay
        try:
            yield
        finally:
            torch._C._set_mkldnn_enabled(True)
            self.handle.stand_in_tensors(None)

    def protect(self, tensor: torch.Tensor, access: int = CONSTANT) -> torch.Tensor:
        """The tensor, to whose memory kernels have this access from here on."""
        storage = tensor.untyped_storage()
        self.arena.protect(storage.data_ptr(), storage.nbytes(), access)
        return tensor

    def put(self, values: torch.Tensor) -> torch.Tensor:
        """A copy in device memory that lies there as before, and that kernels may not write."""
        before = values.untyped_storage()
        with self.tensors():
            storage = torch.empty(before.nbytes(), dtype=torch.uint8).untyped_storage()
        storage.copy_(before)
        copy = torch.empty(0, dtype=values.dtype)
        copy.set_(storage, values.storage_offset(), values.shape, values.stride())
        return self.protect(copy)
