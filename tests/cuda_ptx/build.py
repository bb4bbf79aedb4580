"""Compiles CUDA sources into PTX, and their launchers into a library over the stand-in runtime.

nvcc comes from $CUDA_HOME, or is what `make cuda-build` has installed.
"""

import concurrent.futures
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch.utils import cpp_extension

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
CUDA, CACHE = CSRC / "cuda", ROOT / "build" / "cuda_ptx"
ARCH = "90"
CXX = os.environ.get("CXX", "g++")


@functools.cache
def home() -> Path | None:
    """The folder of the CUDA toolkit."""
    folders = [os.environ.get("CUDA_HOME"), ROOT / "build" / "cuda-toolkit" / "nvidia" / "cu13"]
    return next((Path(f) for f in folders if f and (Path(f) / "bin" / "nvcc").exists()), None)


def _made(name: str, command: Sequence[str], depends: Iterable[Path] = ()) -> Path:
    """The file of this name that a command makes of files of this content, unless it is there."""
    digest = hashlib.sha256(" ".join(command).encode())
    for path in sorted(depends):
        digest.update(path.read_bytes())
    folder = CACHE / f"{Path(name).stem}-{digest.hexdigest()[:16]}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=CACHE))
        done = subprocess.run([*command, "-o", name], cwd=partial, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        for path in partial.iterdir():
            if path.suffix not in (".o", ".ptx", ".so"):
                path.unlink()
        try:
            partial.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(partial)
    return folder / name


def compiled(source: Path, arch: str = ARCH) -> Path:
    """The object of a source in CUDA, beside which its PTX lies, or in C++."""
    depends = [source, *CUDA.rglob("*.h"), *CUDA.rglob("*.cuh"), *CSRC.glob("recurrence/*.h")]
    flags, toolkit = ["-std=c++20", f"-I{CSRC}", "-c", str(source)], home()
    if source.suffix == ".cu":
        assert toolkit, "no nvcc: set CUDA_HOME, or `make cuda-build`"
        flags += ["-O3", "-Xcompiler=-fPIC,-O0", "--keep"]
        flags += ["-gencode", f"arch=compute_{arch},code=compute_{arch}"]
        return _made(f"{source.stem}.o", [str(toolkit / "bin" / "nvcc"), *flags], depends)
    depends += [*(HERE / "torch").rglob("*.h"), *CSRC.glob("ops/*.h"), *CUDA.glob("binding/*.cpp")]
    flags += ["-fPIC", "-g1", "-O1", "-Wall", "-Wextra", "-Wno-unused-parameter"]
    flags.append(f"-I{HERE / 'torch'}")
    includes = [*cpp_extension.include_paths(), *([toolkit / "include"] if toolkit else [])]
    flags += [f"-isystem{path}" for path in includes]
    # For the cache: another torch in the same place is another build.
    flags.append(f"-DTORCH_VERSION={torch.__version__.split('+')[0]}")
    return _made(f"{source.stem}.o", [CXX, *flags], depends)


def link(name: str, objects: Sequence[Path], libraries: Sequence[str] = ()) -> Path:
    command = [CXX, "-shared", "-Wl,-Bsymbolic", "-Wl,-z,defs", *map(str, objects), *libraries]
    return _made(f"{name}.so", command)


def compile_all(sources: Sequence[Path]) -> list[Path]:
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(compiled, sources))
