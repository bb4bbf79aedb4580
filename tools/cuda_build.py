"""Compiles the CUDA half and tests it on a machine with no GPU and no toolkit.

NVIDIA's compiler comes from PyPI (350 MB). Every kernel is compiled for each of ``--archs``, with
both exchanges. The command fails if a kernel spills registers or has a stack frame, if a resident
kernel needs more registers than the choice of a path assumes, or if its step loop holds what it
must not, or lacks what it must hold (machine_code.py). Then tests/cuda_ptx runs the PTX of sm_90.

``--extension`` instead builds the whole extension beside a CUDA build of torch (5 GB) for every
architecture of setup.py, and imports it.
"""

import argparse
import concurrent.futures
import dataclasses
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
COMPILER = [
    f"nvidia-{name}==13.0.*"
    for name in ("cuda-nvcc", "cuda-crt", "nvvm", "cuda-cccl", "cuda-runtime")
]
# They read machine code of any older compiler; there is none of 13.0 on PyPI.
DISASSEMBLER = ["nvidia-cuda-cuobjdump==13.2.*", "nvidia-cuda-nvdisasm==13.2.*"]
RESIDENT = machine_code.RESIDENT
REGISTERS_OF_AN_SM = 65536


@dataclasses.dataclass(order=True)
class Usage:
    """What one kernel needs on one architecture."""

    kernel: str
    arch: str
    registers: int = 0
    stack: int = 0
    spilled: int = 0


def run(command: list[str], **kwargs: object) -> None:
    print("+", " ".join(command).strip().split("\n")[0], flush=True)
    subprocess.run(command, check=True, **kwargs)  # type: ignore[call-overload]


def install(packages: list[str], ready: Path, options: list[str]) -> None:
    """Installs packages unless `ready` says that they are there."""
    recipe = hashlib.sha256(" ".join(packages).encode()).hexdigest()
    if not (ready.exists() and ready.read_text() == recipe):
        run([*options, *packages])
        ready.write_text(recipe)


def environment() -> dict[str, str]:
    """Environment variables under which the compiler is found, which this installs."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target"]
    install([*COMPILER, *DISASSEMBLER], TOOLKIT / "ready", [*pip, str(TOOLKIT)])
    home = TOOLKIT / "nvidia" / "cu13"
    path = os.pathsep.join([str(home / "bin"), os.environ["PATH"]])
    return os.environ | {"CUDA_HOME": str(home), "PATH": path}


def assemble(source: Path, arch: str) -> tuple[Path, str]:
    """The machine code of a source for one architecture, and what ptxas reports."""
    from cuda_ptx import build

    ptx = build.compile_cuda(source, arch).with_suffix(".ptx")
    cubin = ptx.with_suffix(".cubin")
    command = ["ptxas", f"-arch=sm_{arch}", "-v", str(ptx), "-o", str(cubin)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return cubin, done.stderr


def read_report(report: str) -> list[Usage]:
    """All kernels of a file, from what ptxas says."""
    usages: list[Usage] = []
    for line in report.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)' for 'sm_(\w+)'", line):
            usages.append(Usage(found[1], found[2]))
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes.*, (\d+) bytes", line):
            usages[-1].stack = int(found[1])
            usages[-1].spilled = int(found[2]) + int(found[3])
        elif found := re.search(r"Used (\d+) registers", line):
            usages[-1].registers = int(found[1])
    names = machine_code.readable([usage.kernel for usage in usages])
    for usage, name in zip(usages, names, strict=True):
        usage.kernel = name
    return usages


def resident_register_limit() -> int:
    """Registers a thread of a resident kernel may have, its block alone on an SM."""
    text = (ROOT / "csrc" / "cuda" / "recurrence" / "choice.h").read_text()
    found = re.search(r"kThreads = (\d+)", text)
    assert found, "choice.h no longer says kThreads"
    return REGISTERS_OF_AN_SM // int(found[1]) // 8 * 8


def faults(usages: list[Usage]) -> list[str]:
    """What is wrong with the kernels, one line each."""
    limit = resident_register_limit()
    wrong = []
    for u in usages:
        if u.stack or u.spilled:
            wrong.append(f"{u.kernel} on sm_{u.arch}: stack frame or spilled registers")
        if u.kernel.startswith(RESIDENT) and u.registers > limit:
            wrong.append(f"{u.kernel} on sm_{u.arch}: {u.registers} registers, at most {limit}")
    if not any(u.kernel.startswith(RESIDENT) for u in usages):
        wrong.append(f"the report does not name {RESIDENT}")
    return wrong


def check_kernels(archs: list[str]) -> None:
    """Compiles all kernels, and raises SystemExit where the gate refuses one."""
    sources = sorted((ROOT / "csrc" / "cuda").rglob("*.cu"))
    pairs = [(source, arch) for arch in archs for source in sources]
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        made = list(pool.map(assemble, *zip(*pairs, strict=True)))
        usages = [usage for _, report in made for usage in read_report(report)]
        read = list(pool.map(machine_code.faults, [cubin for cubin, _ in made]))
    resident = [u.registers for u in usages if u.kernel.startswith(RESIDENT)]
    print(
        f"{len(usages)} kernels for {', '.join(archs)}; of {len(resident)} resident ones, "
        f"{sum(count for count, _ in read)} step loops and {max(resident, default=0)} registers"
    )
    if wrong := faults(usages) + [line for _, lines in read for line in lines]:
        raise SystemExit("\n".join(wrong))


IMPORT = """
import torch, rnnext
for op in ("recurrence", "recurrence_backward", "embedding", "embedding_backward",
           "embedding_sparse_backward"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key("rnnext::" + op, "CUDA"), op
print("imported with torch", torch.__version__, "- GPUs:", torch.cuda.device_count())
"""


def build_extension(variables: dict[str, str]) -> None:
    """Compiles, links and imports the whole extension beside a CUDA build of torch."""
    venv = ROOT / "build" / "cuda-venv"
    python = str(venv / "bin" / "python")
    if not venv.exists():
        run([sys.executable, "-m", "venv", str(venv)])
    install(TORCH, venv / "ready", [python, "-m", "pip", "install", "-q"])
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
