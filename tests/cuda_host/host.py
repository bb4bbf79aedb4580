"""Compiles CUDA kernel sources with the C++ compiler and runs them on the CPU (see execution.h)."""

import ctypes
import functools
import hashlib
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils import cpp_extension

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
CUDA = CSRC / "cuda"
CACHE = ROOT / "build" / "cuda_host"

RUNTIME = ["memory", "schedule", "operations", "launch"]
COMMON = ["-std=c++17", "-fPIC", "-g1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
RUNTIME_FLAGS = [*COMMON, "-O2"]
# Kernels: the hooks of these sanitizers are the host layer's own, so nothing is linked for them.
KERNEL_FLAGS = [
    *COMMON,
    "-O1",
    "-fsanitize=thread",
    "--param=tsan-instrument-func-entry-exit=0",
    "-fsanitize=alignment,null,bounds-strict,shift,integer-divide-by-zero",
    "-fno-strict-aliasing",
    f"-I{HERE / 'include'}",
    f"-I{CSRC}",
]


class KernelError(RuntimeError):
    """A launch failed: a race, a bad access, a deadlock or a launch the device would refuse."""


def _digest(paths: Sequence[Path], flags: Sequence[str]) -> str:
    digest = hashlib.sha256(" ".join(flags).encode())
    digest.update(subprocess.check_output([_compiler(), "--version"]))
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _compile(source: Path, flags: Sequence[str], depends: Sequence[Path]) -> Path:
    """The object file of one source, from the cache where nothing it depends on has changed."""
    name = f"{source.stem}-{_digest([source, *depends], flags)}.o"
    return _make(name, ["-x", "c++", *flags, "-c", str(source)])


def _make(name: str, arguments: Sequence[str]) -> Path:
    target = CACHE / name
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        command = [_compiler(), *arguments, "-o", str(partial)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
        partial.rename(target)
    return target


# Bindings: torch, with twins of its CUDA headers before it.
BINDING_FLAGS = [
    *COMMON,
    "-O1",
    "-Wno-unused-parameter",
    f"-I{HERE / 'torch'}",
    f"-I{HERE / 'include'}",
    f"-I{CSRC}",
    *(f"-isystem{path}" for path in cpp_extension.include_paths()),
]


@functools.cache
def library(*sources: Path, binding: Path | None = None) -> "Library":
    """The library of the kernel `sources` (.cu, .cpp) and the host layer, built where it must be.

    ``binding`` is a source that uses torch; what it registers is there once this returns.

    Entry points are extern "C" functions that return a cudaError_t and take int64_t, double and
    pointers.
    """
    headers = [*CUDA.rglob("*.h"), *CUDA.rglob("*.cuh"), *CSRC.glob("recurrence/*.h")]
    layer = [*(HERE / "include").glob("*.h"), *HERE.glob("*.h")]
    depends = sorted(path for path in [*headers, *layer] if path.exists())
    objects = [_compile(HERE / f"{n}.cpp", RUNTIME_FLAGS, layer) for n in RUNTIME]
    objects += [_compile(source, KERNEL_FLAGS, depends) for source in sources]
    libraries = ["-lpthread"]
    if binding is not None:
        twins = [*(HERE / "torch").rglob("*.h"), *CSRC.glob("ops/*.h")]
        twins += [CUDA / "binding" / name for name in ("recurrence.cpp", "call.cpp")]
        # The version is there for the cache: another torch in the same place is another build.
        flags = [*BINDING_FLAGS, f"-DTORCH_VERSION={torch.__version__.split('+')[0]}"]
        objects.append(_compile(binding, flags, sorted([*depends, *twins])))
        libraries += [f"-L{path}" for path in cpp_extension.library_paths()]
        libraries += ["-ltorch", "-ltorch_cpu", "-lc10"]
    joined = hashlib.sha256(" ".join(map(str, objects)).encode()).hexdigest()[:16]
    path = _make(
        f"{sources[-1].stem}-{joined}.so",
        ["-shared", "-Wl,-Bsymbolic", "-Wl,-z,defs", *map(str, objects), *libraries],
    )
    return Library(ctypes.CDLL(str(path)))


class Library:
    """Kernels that run on the CPU, and the guarded memory that they may touch."""

    def __init__(self, handle: ctypes.CDLL) -> None:
        self._handle = handle
        handle.cuda_host_allocate.restype = ctypes.c_void_p
        handle.cuda_host_allocate.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_char_p]
        handle.cuda_host_mark_written.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        handle.cuda_host_mark_written.restype = None
        handle.cuda_host_asynchronous_only.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        handle.cuda_host_asynchronous_only.restype = None
        handle.cuda_host_seed.argtypes = [ctypes.c_uint64]
        handle.cuda_host_seed.restype = None
        handle.cuda_host_stores_sent.restype = ctypes.c_uint64
        handle.cuda_host_free_all.restype = None
        handle.cuda_host_error.restype = ctypes.c_char_p
        self._buffers = 0

    def free_all(self) -> None:
        """Takes back all device memory; tensors made before must not be used again."""
        self._handle.cuda_host_free_all()
        self._buffers = 0

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
        self._handle.cuda_host_device(sm, multiprocessors, shared_per_block, granted)

    def set_compiled(self, architecture: int = 1 << 10) -> None:
        """The architecture of the PTX that kernels were made of; 0: there is no code at all."""
        self._handle.cuda_host_compiled(architecture)

    def empty(
        self, *shape: int, dtype: torch.dtype = torch.float32, align: int = 256, name: str = ""
    ) -> torch.Tensor:
        """Device memory that a kernel must write before it reads; a multiple of `align` bytes."""
        self._buffers += 1
        count = 1
        for size in shape:
            count *= size
        bytes_ = max(count * dtype.itemsize, 1)
        label = name or f"buffer {self._buffers} ({dtype}, {shape})"
        address = self._handle.cuda_host_allocate(bytes_, align, label.encode())
        raw = (ctypes.c_char * bytes_).from_address(address)
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(raw, dtype=dtype, count=count).view(shape)

    def tensor(
        self, values: torch.Tensor, writable: bool = False, align: int = 256, name: str = ""
    ) -> torch.Tensor:
        """A copy of `values` in device memory; writing to it is an error unless `writable`."""
        copy = self.empty(*values.shape, dtype=values.dtype, align=align, name=name)
        if copy.numel():
            copy.copy_(values)
            size = copy.numel() * copy.element_size()
            self._handle.cuda_host_mark_written(copy.data_ptr(), size, int(not writable))
        return copy

    def asynchronous_only(self, address: int, size: int) -> None:
        """From here on plain reads of this memory are errors; asynchronous copies may read it."""
        self._handle.cuda_host_asynchronous_only(address, size)

    def stores_sent(self) -> int:
        """How many asynchronous and relaxed stores kernels have sent since the process began."""
        return int(self._handle.cuda_host_stores_sent())

    def run(self, function: str, *arguments: Any, seed: int = 0) -> None:
        """Calls an entry point; KernelError says what a thread did wrong.

        Tensors are passed by address, None as a null pointer, int as int64_t, float as double.
        Even seeds schedule threads evenly, odd ones let some run far ahead.
        """
        entry: Callable[..., int] = getattr(self._handle, function)
        self._handle.cuda_host_seed(seed)
        if entry(*map(_pass, arguments)) != 0:
            raise KernelError(self._handle.cuda_host_error().decode())


def _pass(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if value is None:
        return ctypes.c_void_p(None)
    return ctypes.c_double(value) if isinstance(value, float) else ctypes.c_int64(int(value))
