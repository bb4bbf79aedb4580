"""Kernels and their launchers in this process: launches run in the interpreter."""

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from cuda_ptx import machine
from cuda_ptx.choice import DEVICES
from cuda_ptx.memory import CONSTANT, Arena, Fault
from cuda_ptx.parse import entries, kernel_of


class Launch(ctypes.Structure):
    """The struct of this name in runtime.cpp."""

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


class Library:
    """The launchers of a shared library, the PTX of its kernels, and device memory."""

    seed = 0  # how launches run: see machine.py

    def __init__(self, path: Path, objects: Sequence[Path]) -> None:
        self.handle = ctypes.CDLL(str(path))
        self.texts: dict[str, str] = {}
        for one in objects:
            if (ptx := one.with_suffix(".ptx")).exists():
                self.texts.update(entries(ptx.read_text()))
        self.arena = Arena()
        self.ran: dict[str, int] = {}  # launches of each kernel
        self.error: Exception | None = None  # of the last launch that failed
        self._launched = LAUNCH(self._launch)
        self._tensor_memory = MEMORY(self.arena.allocate)
        self._kept_memory = MEMORY(lambda size: self.arena.allocate(size, kept=True))
        self.handle.stand_in_callbacks(self._launched, self._kept_memory)
        self.reset()

    def _launch(self, pointer) -> int:
        launch = pointer.contents
        name = launch.name.decode()
        try:
            kernel = kernel_of(self.texts[name])
            params = bytearray(max((at + size for _, at, size in kernel.params), default=0))
            for number, (_, at, size) in enumerate(kernel.params):
                params[at : at + size] = ctypes.string_at(launch.arguments[number], size)
            self.ran[name] = self.ran.get(name, 0) + 1
            machine.run(kernel, launch, bytes(params), self.arena, self.seed)
        except Exception as error:  # nothing may pass through C++
            message = str(error) if isinstance(error, Fault) else f"{type(error)}: {error}"
            self.error = error
            self.handle.stand_in_message(message.encode())
            return 1
        return 0

    def planted(self, name: str, text: str) -> contextlib.AbstractContextManager[Any]:
        """A kernel with other PTX, for a while."""
        return patch.dict(self.texts, {name: text})

    def reset(self) -> None:
        """Takes back all device memory, and makes the device an H100 whose lanes run in step."""
        self.arena.clear()
        self.set_device()
        self.seed = 0

    def set_device(
        self, name: str = "H100", granted: int | None = None, compiled: int = 1 << 10
    ) -> None:
        """The device whose limits launches and queries see. `granted`: how many multiprocessors
        launches run on, else all; `compiled`: the architecture of the PTX, 0 without code."""
        sm, multiprocessors, shared_bytes = DEVICES[name][:3]
        granted = multiprocessors if granted is None else granted
        self.handle.stand_in_device(sm, multiprocessors, shared_bytes, granted, compiled)

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
