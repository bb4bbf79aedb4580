"""`python -m tools.cuda_check.build`: what the machine has, and rnnext built beside its torch.

Each toolkit that is found is tried in turn; the last one is NVIDIA's compiler from PyPI, of the
CUDA of this torch. $TORCH_CUDA_ARCH_LIST says for which cards. Waits of the kernels are bounded.
`preflight` says what there is and what does not fit; `rehearse` compiles the kernels and links the
program that sanitizers watch; `drive` runs that in the interpreter of tests/cuda_ptx, `counters`
under Nsight Compute.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

from tools.cuda_build import ROOT, TOOLKIT, compiler, toolkit

BUILD = ROOT / "build" / "cuda-check"
PACKAGES = BUILD / "packages"
DRIVER = ROOT / "tests" / "cuda" / "driver.cpp"
BOUND = 20_000_000_000  # cycles after which a wait is given up: some 10 s
# The newest GCC that nvcc takes, from each version on.
NEWEST_GCC = {(12, 0): 12, (12, 4): 13, (12, 8): 14, (13, 0): 15}


def said(*command: str) -> str:
    """The output of a command, empty where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr if done.returncode == 0 else ""


def version_in(text: str, before: str) -> tuple[int, ...]:
    found = re.search(rf"{before}(\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else ()


def torch_cuda() -> str:
    import torch

    return torch.version.cuda or ""


def toolkits() -> list[Path]:
    """Folders with bin/nvcc: the one that torch takes, and those of pip's packages."""
    from torch.utils.cpp_extension import CUDA_HOME

    found = [Path(CUDA_HOME)] if CUDA_HOME else []
    for packages in (Path(sysconfig.get_path("purelib")), TOOLKIT):
        found += sorted(packages.glob("nvidia/cu*"))
    return [home for home in dict.fromkeys(found) if (home / "bin" / "nvcc").exists()]


def environment(home: Path) -> dict[str, str]:
    """ninja lies beside the Python that runs, whose environment may not be activated. PyPI's
    packages of the compiler have no libcudart.so, which the linker wants, and no headers of the
    libraries that torch's headers include: those come with torch's own packages."""
    links = BUILD / "libraries"
    links.mkdir(parents=True, exist_ok=True)
    for library in home.glob("lib*/libcudart.so.*"):
        (links / "libcudart.so").unlink(missing_ok=True)
        (links / "libcudart.so").symlink_to(library)
    headers = Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/include")
    first = {
        "PATH": [Path(sys.executable).parent, home / "bin"],
        "LIBRARY_PATH": [links],
        "CPATH": headers,
    }
    return os.environ | {
        **{n: os.pathsep.join([*map(str, f), os.environ.get(n, "")]) for n, f in first.items()},
        "CUDA_HOME": str(home),
        "NVCC_APPEND_FLAGS": f"-DRNNEXT_CUDA_BOUNDED={BOUND}",
        "RNNEXT_CUDA": "1",  # without nvcc this must fail, not build the CPU half alone
        "MAX_JOBS": str(len(os.sched_getaffinity(0))),
    }


def preflight() -> bool:
    """Print what there is, and a sentence for each thing that does not fit."""
    import torch

    cuda, homes = torch_cuda(), toolkits()
    gcc = version_in(said("gcc", "-dumpfullversion"), "")
    driver = version_in(said("nvidia-smi"), r"CUDA Version: ")
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__} for CUDA {cuda or 'none'}, "
          f"gcc {gcc}, driver for CUDA {driver}")  # fmt: skip
    wrong = []
    if not cuda:
        wrong.append(f"torch {torch.__version__} is not a CUDA build: install one from pytorch.org")
    elif driver and driver < version_in(cuda, ""):
        wrong.append(f"the driver runs CUDA up to {driver}, and torch is built for {cuda}")
    for home in homes:
        nvcc = version_in(said(str(home / "bin" / "nvcc"), "--version"), "release ")
        print(f"nvcc {nvcc} in {home}")
        newest = max((n for since, n in NEWEST_GCC.items() if nvcc >= since), default=0)
        if gcc and gcc[0] > newest:
            wrong.append(f"nvcc {nvcc} takes GCC up to {newest}, here is {gcc}: set NVCC_CCBIN")
        if cuda and nvcc[:1] != version_in(cuda, "")[:1]:
            wrong.append(f"nvcc {nvcc} is of another CUDA than torch's, {cuda}")
    if not homes:
        wrong.append("there is no nvcc; the build tries PyPI's, which needs the network")
    for package in ("setuptools", "ninja", "pybind11", "numpy", "pytest", "pytest-xdist"):
        try:
            print(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{package} is missing: python -m pip install {package}")
    print("\n".join(wrong))
    return True


def build() -> bool:
    return any(map(build_with, toolkits())) or build_with(toolkit(compiler(torch_cuda())))


def build_with(home: Path) -> bool:
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(PACKAGES), "build"]
    command += ["--build-base", str(BUILD), "--build-temp", str(BUILD / "objects")]
    command += ["--build-lib", str(PACKAGES)]
    print(f"building with {home}", flush=True)
    made = subprocess.run(command, cwd=ROOT, env=environment(home)).returncode == 0
    objects = (BUILD / "objects" / "csrc" / "cuda").rglob("*.o")
    return made and link_driver(home, [o for o in objects if o.parent.name != "binding"])


def link_driver(home: Path, objects: list[Path]) -> bool:
    command = [os.environ.get("CXX", "g++"), "-std=c++20", "-o", str(BUILD / "driver"), str(DRIVER)]
    command += [f"-I{ROOT / 'csrc'}", f"-I{home / 'include'}", *map(str, objects), "-lcudart"]
    command += [f"-Wl,-rpath,{home / folder}" for folder in ("lib", "lib64")]
    return subprocess.run(command, env=environment(home)).returncode == 0


def interpreted() -> list[Path]:
    """The objects of the kernels and of their choice, as the interpreter runs them."""
    from cuda_ptx import build as ptx

    sources = [*ptx.CUDA.rglob("*.cu"), ptx.CUDA / "recurrence" / "choice.cpp"]
    objects: list[Path] = ptx.compile_all(sources)
    return objects


def rehearse() -> bool:
    homes = toolkits()
    if not homes:
        print("there is no nvcc: building was not rehearsed")
    return bool(homes) and link_driver(homes[0], interpreted())


def drive(*only: str) -> bool:
    """Run the program's cases that begin with one of `only`."""
    from cuda_ptx import build as ptx
    from cuda_ptx.library import Library

    objects = [*interpreted(), *ptx.compile_all([ptx.HERE / "runtime.cpp", DRIVER])]
    library = Library(ptx.link("driver", objects), objects)
    run, H = library.handle.run_kernels, ctypes.c_int64(40)
    return all(run(H, name.encode()) == 0 for name in only or [""])


def counters(ncu: str) -> bool:
    """One call of ncu for each path of a recurrence, so that one that is stopped loses no other."""
    command = ["timeout", "--signal=KILL", "40", ncu, "--csv", "--page", "raw", "--set", "basic"]
    paths = ("step", "block", "cluster", "grid")
    runs = [[*command, str(BUILD / "driver"), f"{path}, bf16"] for path in paths]
    return {subprocess.run(each).returncode for each in runs} == {0}


STEPS = {each.__name__: each for each in (build, preflight, rehearse, drive, counters)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", nargs="?", choices=STEPS, default="build")
    parser.add_argument("words", nargs="*", help="of drive: names of cases; of counters: ncu")
    options = parser.parse_args()
    PACKAGES.mkdir(parents=True, exist_ok=True)
    return int(not STEPS[options.step](*options.words))


if __name__ == "__main__":
    sys.exit(main())
