"""Compiles CUDA sources into PTX, and their launchers into a library over the stand-in runtime.

nvcc comes from $CUDA_HOME, or is what `make cuda-build` has installed.
"""

import concurrent.futures
import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
CUDA = CSRC / "cuda"
CACHE = ROOT / "build" / "cuda_ptx"
ARCH = "90"


@functools.cache
def home() -> Path | None:
    """The folder of the CUDA toolkit."""
    folders = [os.environ.get("CUDA_HOME"), ROOT / "build" / "cuda-toolkit" / "nvidia" / "cu13"]
    return next((Path(f) for f in folders if f and (Path(f) / "bin" / "nvcc").exists()), None)


def _digest(paths: Sequence[Path], flags: Sequence[str]) -> str:
    digest = hashlib.sha256(" ".join(flags).encode())
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _run(command: Sequence[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def headers() -> list[Path]:
    return sorted([*CUDA.rglob("*.h"), *CUDA.rglob("*.cuh"), *CSRC.glob("recurrence/*.h")])


def compile_cuda(source: Path, arch: str = ARCH) -> Path:
    """The object of a .cu; its PTX lies beside it."""
    toolkit = home()
    assert toolkit, "no nvcc: set CUDA_HOME, or `make cuda-build`"
    flags = ["-std=c++20", "-O3", f"-I{CSRC}", "-Xcompiler=-fPIC,-O0", "-c"]
    flags.append("-DRNNEXT_CUDA_TAGGED")
    flags += ["-gencode", f"arch=compute_{arch},code=compute_{arch}"]
    folder = CACHE / f"{source.stem}-{_digest([source, *headers()], flags)}"
    target = folder / f"{source.stem}.o"
    if not target.exists():
        partial = folder.with_name(f"{folder.name}.{os.getpid()}")
        partial.mkdir(parents=True)
        command = [str(toolkit / "bin" / "nvcc"), *flags, "--keep", "--keep-dir", str(partial)]
        path = os.pathsep.join([str(toolkit / "bin"), os.environ["PATH"]])
        _run([*command, "-o", str(partial / target.name), str(source)], os.environ | {"PATH": path})
        for path_ in partial.iterdir():
            if path_.suffix not in (".o", ".ptx"):
                path_.unlink()
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    return target


def compile_host(source: Path, flags: Sequence[str], depends: Sequence[Path]) -> Path:
    """The object of a C++ source."""
    flags = ["-std=c++20", "-fPIC", "-g1", "-O1", "-Wall", "-Wextra", f"-I{CSRC}", *flags]
    if (toolkit := home()) is not None:
        flags.append(f"-isystem{toolkit / 'include'}")
    target = CACHE / f"{source.stem}-{_digest([source, *depends], flags)}.o"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        _run([os.environ.get("CXX", "g++"), *flags, "-c", str(source), "-o", str(partial)])
        partial.rename(target)
    return target


def link(name: str, objects: Sequence[Path], libraries: Sequence[str] = ()) -> Path:
    digest = hashlib.sha256(" ".join(map(str, objects)).encode()).hexdigest()[:16]
    target = CACHE / f"{name}-{digest}.so"
    if not target.exists():
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        command = [os.environ.get("CXX", "g++"), "-shared", "-Wl,-Bsymbolic", "-Wl,-z,defs"]
        _run([*command, *map(str, objects), *libraries, "-o", str(partial)])
        partial.rename(target)
    return target


def compile_all(sources: Sequence[Path]) -> list[Path]:
    """Objects of sources in CUDA and C++, as many at once as there are cores."""

    def one(source: Path) -> Path:
        if source.suffix == ".cu":
            return compile_cuda(source)
        return compile_host(source, [], headers())

    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(one, sources))
