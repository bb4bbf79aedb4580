"""Builds the CUDA half on a machine with no GPU and no toolkit, and checks what the compiler made.

A virtual environment of its own gets a CUDA build of torch and NVIDIA's compiler from PyPI (about
5 GB), the whole extension is compiled and linked for every architecture in ``ARCHITECTURES``, it is
imported, and the compiler's resource report is printed as a table, and what the step loops hold as
another (machine_code.py). The command fails if a kernel spills registers or has a stack frame, if a
resident kernel needs more registers than the choice of a path assumes, or if its step loop holds
what it must not.
"""

import argparse
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
BUILD = ROOT / "build" / "cuda"

# torch 2.11 is built for CUDA 13.0, so the compiler is of 13.0.
TORCH = "torch==2.11.*"
TOOLKIT = [
    f"{name}==13.0.*"
    for name in ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-cccl")
]
# They read machine code of any older compiler; there is none of 13.0 on PyPI.
DISASSEMBLER = ["nvidia-cuda-cuobjdump==13.2.*", "nvidia-cuda-nvdisasm==13.2.*"]
TOOLS = ["setuptools>=77", "wheel", "ninja", "numpy", "pybind11"]
# A100, H100, B200, RTX 50; the PTX of the last is for cards to come.
ARCHITECTURES = "8.0;9.0;10.0;12.0+PTX"
RESIDENT = machine_code.RESIDENT
REGISTERS_OF_AN_SM = 65536

# Stands between ninja and nvcc: keeps the resource report of each object beside it, so that a build
# that finds most objects up to date still knows about all of them.
NVCC_WRAPPER = """#!/bin/sh
out=
previous=
for argument; do
  [ "$previous" = -o ] && out=$argument
  previous=$argument
done
"$CUDA_HOME/bin/nvcc" --resource-usage "$@" > "$out.report" 2>&1
status=$?
grep -v '^ptxas info\\|bytes stack frame\\|^ *$' "$out.report"
exit $status
"""


@dataclasses.dataclass(order=True)
class Usage:
    """What one kernel needs on one architecture."""

    kernel: str
    arch: str
    registers: int = 0
    shared: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0


def run(command: list[str], **kwargs: object) -> None:
    print("+", " ".join(command).strip().split("\n")[0], flush=True)
    subprocess.run(command, check=True, **kwargs)  # type: ignore[call-overload]


def make_environment(folder: Path) -> Path:
    """The interpreter of the environment, created or completed where the recipe has changed."""
    python = folder / "bin" / "python"
    recipe = hashlib.sha256(" ".join([TORCH, *TOOLKIT, *DISASSEMBLER, *TOOLS]).encode()).hexdigest()
    ready = folder / "ready"
    if not (ready.exists() and ready.read_text() == recipe):
        if not python.exists():
            run([sys.executable, "-m", "venv", str(folder)])
        run([str(python), "-m", "pip", "install", "-q", TORCH, *TOOLKIT, *DISASSEMBLER, *TOOLS])
        ready.write_text(recipe)
    return python


def build_environment(python: Path) -> dict[str, str]:
    """Environment variables under which setup.py finds the compiler and builds the CUDA half."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True)
    home = Path(site.stdout.strip()) / "nvidia" / "cu13"
    # The linker wants libcudart.so; the package has libcudart.so.13 alone.
    libraries = BUILD / "libraries"
    libraries.mkdir(parents=True, exist_ok=True)
    link = libraries / "libcudart.so"
    link.unlink(missing_ok=True)
    link.symlink_to(home / "lib" / "libcudart.so.13")
    wrapper = BUILD / "nvcc"
    if not wrapper.exists() or wrapper.read_text() != NVCC_WRAPPER:
        wrapper.write_text(NVCC_WRAPPER)
        wrapper.chmod(0o755)
    paths = [str(python.parent), str(home / "bin"), os.environ["PATH"]]
    return os.environ | {
        "CUDA_HOME": str(home),
        "PYTORCH_NVCC": str(wrapper),
        "LIBRARY_PATH": os.pathsep.join(filter(None, [str(libraries), os.getenv("LIBRARY_PATH")])),
        "PATH": os.pathsep.join(paths),
        "TORCH_CUDA_ARCH_LIST": os.getenv("TORCH_CUDA_ARCH_LIST", ARCHITECTURES),
        "RNNEXT_CUDA": "1",
        "MAX_JOBS": os.getenv("MAX_JOBS", str(len(os.sched_getaffinity(0)))),
    }


def build(python: Path, environment: dict[str, str]) -> Path:
    """Compile and link into a folder that also holds the package's Python files."""
    packages = BUILD / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    command = [str(python), "setup.py", "-q", "egg_info", "--egg-base", str(packages), "build"]
    command += ["--build-base", str(BUILD), "--build-temp", str(BUILD / "objects")]
    run([*command, "--build-lib", str(packages)], cwd=ROOT, env=environment)
    return packages


IMPORT = """
import torch, rnnext
for op in ("recurrence", "recurrence_backward", "embedding", "embedding_backward",
           "embedding_sparse_backward"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key("rnnext::" + op, "CUDA"), op
print("imported with torch", torch.__version__, "- GPUs:", torch.cuda.device_count())
"""


def read_reports(folder: Path) -> list[Usage]:
    """All kernels of the objects under `folder`, from what nvcc said when it made each one."""
    usages: dict[tuple[str, str], Usage] = {}
    for report in folder.rglob("*.o.report"):
        if not report.with_suffix("").exists():
            continue  # of an object that is gone
        entry: Usage | None = None
        for line in report.read_text().splitlines():
            if found := re.search(r"Compiling entry function '(\w+)' for 'sm_(\w+)'", line):
                entry = usages.setdefault((found[1], found[2]), Usage(found[1], found[2]))
            elif entry is None:
                continue
            elif found := re.search(
                r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
            ):
                entry.stack, entry.spill_stores, entry.spill_loads = map(int, found.groups())
            elif found := re.search(r"Used (\d+) registers", line):
                entry.registers = int(found[1])
                shared = re.search(r"(\d+) bytes smem", line)
                entry.shared = int(shared[1]) if shared else 0
                entry = None
    return demangled(list(usages.values()))


def demangled(usages: list[Usage]) -> list[Usage]:
    """The same with readable names."""
    names = machine_code.readable([usage.kernel for usage in usages])
    for usage, name in zip(usages, names, strict=True):
        usage.kernel = name
    return sorted(usages)


def resident_register_limit() -> int:
    """Registers a thread of a resident kernel may have, its block alone on an SM."""
    text = (ROOT / "csrc" / "cuda" / "recurrence" / "choice.h").read_text()
    found = re.search(r"kThreads = (\d+)", text)
    if found is None:
        raise SystemExit(
            "csrc/cuda/recurrence/choice.h no longer says kThreads: the register check needs it"
        )
    return REGISTERS_OF_AN_SM // int(found[1]) // 8 * 8


def print_table(usages: list[Usage]) -> None:
    """One line a kernel: registers on each architecture, and the largest of the other columns.

    A kernel may have more shared memory than the static kind, which is in the table: the resident
    ones ask for what the choice of a path computed.
    """
    archs = sorted({u.arch for u in usages}, key=lambda arch: int(re.sub(r"\D", "", arch)))
    rows: dict[str, dict[str, Usage]] = {}
    for u in usages:
        rows.setdefault(u.kernel, {})[u.arch] = u
    width = max(map(len, rows))
    registers = "  ".join(f"sm_{arch:>3}" for arch in archs)
    print(f"{'registers of':{width}}  {registers}  shared  stack  spilled bytes")
    for kernel, by_arch in rows.items():
        cells = "  ".join(f"{by_arch[a].registers if a in by_arch else '-':>6}" for a in archs)
        shared, stack = (max(getattr(u, f) for u in by_arch.values()) for f in ("shared", "stack"))
        spilled = max(u.spill_stores + u.spill_loads for u in by_arch.values())
        print(f"{kernel:{width}}  {cells}  {shared:6}  {stack:5}  {spilled:13}")


def faults(usages: list[Usage], environment: dict[str, str]) -> list[str]:
    """What is wrong with the kernels, one line each."""
    limit = resident_register_limit()
    wrong = []
    for u in usages:
        if u.stack or u.spill_stores or u.spill_loads:
            wrong.append(f"{u.kernel} on sm_{u.arch}: stack frame or spilled registers")
        if u.kernel.startswith(RESIDENT) and u.registers > limit:
            wrong.append(f"{u.kernel} on sm_{u.arch}: {u.registers} registers, at most {limit}")
    wanted = re.findall(r"(\d+)\.(\d+)", environment["TORCH_CUDA_ARCH_LIST"])
    missing = {a + b for a, b in wanted} - {u.arch.rstrip("af") for u in usages}
    wrong += [f"no kernel was compiled for sm_{arch}" for arch in sorted(missing)]
    if not any(u.kernel.startswith(RESIDENT) for u in usages):
        wrong.append(f"the report does not name {RESIDENT}")
    return wrong


def read_loops(folder: Path, environment: dict[str, str]) -> list[machine_code.Loop]:
    """The step loops of the resident kernels in the objects under `folder`."""
    loops = machine_code.read(sorted(folder.rglob("kernel_*.o")), environment)
    (BUILD / "loops.json").write_text(machine_code.dumps(loops))
    return loops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--venv", type=Path, default=ROOT / "build" / "cuda-venv")
    options = parser.parse_args()
    started = time.monotonic()
    BUILD.mkdir(parents=True, exist_ok=True)
    python = make_environment(options.venv)
    installed = time.monotonic()
    environment = build_environment(python)
    packages = build(python, environment)
    usages = read_reports(BUILD / "objects")
    print_table(usages)
    run([str(python), "-c", IMPORT], cwd=packages, env=environment)
    loops = read_loops(BUILD / "objects", environment)
    print("\n".join([machine_code.table(loops), *machine_code.known(loops)]))
    wrong = faults(usages, environment) + machine_code.faults(
        loops, {(u.kernel, u.arch) for u in usages if u.kernel.startswith(RESIDENT)}
    )
    now = time.monotonic()
    print(
        f"{len({u.kernel for u in usages})} kernels, {len({u.arch for u in usages})} targets; "
        f"environment {installed - started:.0f} s, build and checks {now - installed:.0f} s"
    )
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
