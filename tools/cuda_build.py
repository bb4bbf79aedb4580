"""Compiles the CUDA half and tests it on a machine with no GPU and no toolkit.

NVIDIA's compiler comes from PyPI (350 MB). Every kernel is compiled for each of ``--archs``. The
command fails if a kernel spills registers or has a stack frame, or if the step
loop of a resident one holds what it must not, or lacks what it must hold (machine_code.py). Then
tests/cuda_ptx runs the PTX of sm_90.

``--extension`` instead builds the whole extension beside a CUDA build of torch (5 GB) for every
architecture of setup.py, and imports it.
"""

import argparse
import concurrent.futures
import hashlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from tools import machine_code

ROOT = Path(__file__).resolve().parents[1]
TOOLKIT = ROOT / "build" / "cuda-toolkit"
sys.path.insert(0, str(ROOT / "tests"))

# torch 2.11 is built for CUDA 13.0, so the compiler is of 13.0.
TORCH = ["torch==2.11.*", "setuptools>=77", "wheel", "ninja", "numpy", "pybind11"]
CUDA = "13.0"
COMPILER = ("cuda-nvcc", "cuda-crt", "nvvm", "cuda-cccl", "cuda-runtime")
# They read machine code of any older compiler; there is none of 13.0 on PyPI.
DISASSEMBLER = ["nvidia-cuda-cuobjdump==13.2.*", "nvidia-cuda-nvdisasm==13.2.*"]


def run(command: list[str], **kwargs: object) -> None:
    print("+", " ".join(command).strip().split("\n")[0], flush=True)
    subprocess.run(command, check=True, **kwargs)  # type: ignore[call-overload]


def install(packages: list[str], ready: Path, options: list[str]) -> None:
    """Installs packages unless `ready` says that they are there."""
    recipe = hashlib.sha256(" ".join(packages).encode()).hexdigest()
    if not (ready.exists() and ready.read_text() == recipe):
        run([*options, *packages])
        ready.write_text(recipe)


def interpreter(folder: Path, packages: list[str]) -> str:
    """Python of an environment in a folder that has the packages, made where it is missing."""
    python = folder / "bin" / "python"
    if not python.exists():
        run([sys.executable, "-m", "venv", str(folder)])
    install(packages, folder / "ready", [str(python), "-m", "pip", "install", "-q"])
    return str(python)


def compiler(cuda: str) -> list[str]:
    """The packages of a compiler, of CUDA 13 or later."""
    return [f"nvidia-{name}=={cuda}.*" for name in COMPILER]


def toolkit(packages: list[str]) -> Path:
    """The folder in which packages of NVIDIA's are installed."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target"]
    install(packages, TOOLKIT / "ready", [*pip, str(TOOLKIT)])
    return next(TOOLKIT.glob("nvidia/cu*"))


def environment() -> dict[str, str]:
    """Environment variables under which the compiler is found, which this installs."""
    home = toolkit([*compiler(CUDA), *DISASSEMBLER])
    path = os.pathsep.join([str(home / "bin"), os.environ["PATH"]])
    return os.environ | {"CUDA_HOME": str(home), "PATH": path}


def assemble(source: Path, arch: str) -> tuple[Path, str]:
    """The machine code of a source for one architecture, and what ptxas reports."""
    from cuda_ptx import build

    ptx = build.compiled(source, arch).with_suffix(".ptx")
    cubin = ptx.with_suffix(".cubin")
    command = ["ptxas", f"-arch=sm_{arch}", "-v", str(ptx), "-o", str(cubin)]
    return cubin, subprocess.run(command, check=True, capture_output=True, text=True).stderr


def faults(report: str) -> list[str]:
    """Kernels of which ptxas says that not all they keep is in registers, one a line."""
    found = re.findall(
        r"Function properties for (\w+)\n\s*(\d+) bytes stack frame, (\d+) bytes.*, (\d+) bytes",
        report,
    )
    bad = [name for name, *sizes in found if any(map(int, sizes))]
    arch = "".join(re.findall(r"' for '(sm_\w+)'", report)[:1])
    return [f"{name} on {arch}: registers spilled" for name in machine_code.readable(bad)]


def check_kernels(archs: list[str]) -> None:
    """Compiles all kernels, and raises SystemExit where the gate refuses one."""
    sources = sorted((ROOT / "csrc" / "cuda").rglob("*.cu"))
    pairs = [(source, arch) for arch in archs for source in sources]
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        made = list(pool.map(assemble, *zip(*pairs, strict=True)))
        read = list(pool.map(machine_code.faults, [cubin for cubin, _ in made]))
    reports = "\n".join(report for _, report in made)
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", reports)]
    loops = sum(count for count, _ in read)
    print(
        f"{len(registers)} kernels for {', '.join(archs)}, of at most {max(registers)} registers; "
        f"{loops} step loops"
    )
    wrong = [line for _, report in made for line in faults(report)]
    wrong += [line for _, lines in read for line in lines]
    if wrong or loops == 0:
        raise SystemExit("\n".join(wrong) or "no kernel has a step loop")


IMPORT = """
import torch, rnnext
for op in ("recurrence", "recurrence_backward", "embedding", "embedding_backward",
           "embedding_sparse_backward"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key("rnnext::" + op, "CUDA"), op
print("imported with torch", torch.__version__, "- GPUs:", torch.cuda.device_count())
"""


def build_extension(variables: dict[str, str]) -> None:
    """Compiles, links and imports the whole extension beside a CUDA build of torch."""
    python = interpreter(ROOT / "build" / "cuda-venv", TORCH)
    run([python, "-m", "tools.cuda_check.build"], cwd=ROOT, env=variables)
    run([python, "-c", IMPORT], cwd=ROOT / "build" / "cuda-check" / "packages", env=variables)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--archs", nargs="+", default=["90"], metavar="N", help="80 90 100 120")
    parser.add_argument("--extension", action="store_true", help="the whole, beside torch")
    options = parser.parse_args()
    started = time.monotonic()
    variables = environment()
    if options.extension:
        build_extension(variables)
        return
    os.environ.update(variables)
    check_kernels(options.archs)
    print(f"compiled and read in {time.monotonic() - started:.0f} s", flush=True)
    tests = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "tests/cuda_ptx"]
    run(tests, cwd=ROOT, env=variables)


if __name__ == "__main__":
    main()
