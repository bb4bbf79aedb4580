"""What the check compiles beside rnnext: the microbenchmarks, and the kernels as a library.

`python -m tools.cuda_check.programs` makes the library for the GPU that is there, with `--micro`
the microbenchmarks alone; `--rehearse` compiles the sources of both without a GPU.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "cuda-check"
OBJECTS = BUILD / "objects" / "csrc" / "cuda" / "recurrence"
MICRO, KERNELS = BUILD / "micro", BUILD / "kernels.so"
SOURCES = ROOT / "csrc" / "cuda" / "recurrence"
ENTRIES = ROOT / "tests" / "cuda_host" / "rnn_entries.cpp"


def find_nvcc() -> str | None:
    """The toolkit's compiler: CUDA_HOME's, that on the path, or that of `make cuda-build`."""
    environment = ROOT / "build" / "cuda-venv" / "lib"
    homes = [*environment.glob("python3*/site-packages/nvidia/cu13")]
    if home := os.environ.get("CUDA_HOME"):
        homes.insert(0, Path(home))
    folders = [str(home / "bin") for home in homes]
    order = [*folders[:1], os.environ.get("PATH", ""), *folders[1:]]
    return shutil.which("nvcc", path=os.pathsep.join(order))


def home_of(nvcc: str) -> Path:
    """The toolkit's folder, by what nvcc says itself: on the path it may be a script elsewhere."""
    command = [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True).stderr
    found = re.search(r"^#\$ TOP=(.+)$", said, re.MULTILINE)
    return Path(found[1]).resolve() if found else Path(nvcc).resolve().parents[1]


def target(capability: tuple[int, int]) -> str:
    """nvcc's word for a GPU; from sm_90 on with what only that one has, such as wgmma."""
    arch = f"{capability[0]}{capability[1]}" + ("a" if capability >= (9, 0) else "")
    return f"arch=compute_{arch},code=sm_{arch}"


def compile_micro(nvcc: str, capability: tuple[int, int], to: Path, link: bool = True) -> None:
    """micro.cu as a program, or as an object."""
    _run(nvcc, capability, [*([] if link else ["-c"]), str(HERE / "micro.cu"), "-o", str(to)])


def compile_trace(nvcc: str, capability: tuple[int, int], to: Path) -> None:
    """trace.cu as an object."""
    flags = [f"-I{ROOT / 'csrc'}", "-Xcompiler", "-fPIC", "-c"]
    _run(nvcc, capability, [*flags, str(HERE / "trace.cu"), "-o", str(to)])


def link_kernels(nvcc: str, capability: tuple[int, int], objects: Path, to: Path) -> None:
    """The built kernels, the trace and the tests' entry points, as one library."""
    trace, entries = to.with_name("trace.o"), to.with_name("entries.o")
    compile_trace(nvcc, capability, trace)
    flags = [f"-I{ROOT / 'csrc'}", "-Xcompiler", "-fPIC", "-c", "-x", "cu"]
    _run(nvcc, capability, [*flags, str(ENTRIES), "-o", str(entries)])
    # What knows no torch.
    known = [*sorted(SOURCES.glob("*.cu")), SOURCES / "choice.cpp"]
    built = [str(objects / f"{path.stem}.o") for path in known]
    # As torch has it: the same runtime in the same process. By its file, since the packages of PyPI
    # have none of the name that nvcc looks for.
    home = home_of(nvcc)
    runtimes = [path for lib in ("lib64", "lib") for path in (home / lib).glob("libcudart.so*")]
    if not runtimes:
        raise FileNotFoundError(f"no libcudart.so in {home / 'lib64'} or {home / 'lib'}")
    shared = ["-shared", "-cudart", "none", "-cudadevrt", "none", "-Xlinker", str(runtimes[0])]
    _run(nvcc, capability, [*shared, *built, str(trace), str(entries), "-o", str(to)])


def _run(nvcc: str, capability: tuple[int, int], arguments: list[str]) -> None:
    command = [nvcc, "-std=c++17", "-O3", "-gencode", target(capability), *arguments]
    print("+", " ".join(command), flush=True)
    subprocess.run(command, check=True)


def rehearse(nvcc: str, folder: Path) -> None:
    """Both sources for two cards, and the library where `make cuda-build` left its objects."""
    for capability in ((8, 0), (9, 0)):
        compile_micro(nvcc, capability, folder / "micro.o", link=False)
        compile_trace(nvcc, capability, folder / "trace.o")
    objects = ROOT / "build" / "cuda" / "objects" / "csrc" / "cuda" / "recurrence"
    if (objects / "resident.o").exists():
        link_kernels(nvcc, (9, 0), objects, folder / "kernels.so")
    else:
        print("not linked: there are no objects of `make cuda-build` here")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--micro", action="store_true")
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        raise SystemExit("no nvcc: neither in CUDA_HOME nor on the path")
    BUILD.mkdir(parents=True, exist_ok=True)
    if options.rehearse:
        rehearse(nvcc, BUILD)
        return
    import torch

    capability = torch.cuda.get_device_capability()
    if options.micro:
        compile_micro(nvcc, capability, MICRO)
    else:
        link_kernels(nvcc, capability, OBJECTS, KERNELS)


if __name__ == "__main__":
    main()
