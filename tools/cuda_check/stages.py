"""The stages of the check: what each runs, for how long, and what it needs of those before."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import programs

ROOT = programs.ROOT
PACKAGES = programs.BUILD / "packages"
TESTS = ROOT / "tests" / "cuda"
# float32 and bfloat16 on every path, and the embedding: sanitizers run kernels many times slower.
SANITIZED = "(test_every_path and full and (dtype0 or dtype2)) or (test_embedding and 129)"


@dataclass
class Stage:
    """Commands that are run one after another while each succeeds, `seconds` for all of them.

    lacks: why it cannot run here, where it cannot. needs: stages that must have passed.
    variables: of the environment, beside the check's.
    """

    name: str
    seconds: float
    commands: list[list[str]]
    needs: tuple[str, ...] = ()
    lacks: str = ""
    variables: dict[str, str] = field(default_factory=dict)


def module(name: str, out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", f"tools.cuda_check.{name}", str(out), *options]


def pytest(*options: str) -> list[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    tests = [str(TESTS / name) for name in ("check_device.py", "check_cuda.py")]
    return [*command, "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), *options, *tests]


def in_parallel() -> list[str]:
    """Eight processes at most share a GPU; one, where pytest-xdist is missing."""
    try:
        import xdist  # noqa: F401
    except ImportError:
        return []
    return ["-n", str(min(8, len(os.sched_getaffinity(0))))]


def tool(name: str) -> str | None:
    """Where a tool of the toolkit is."""
    from torch.utils.cpp_extension import CUDA_HOME

    folders = [os.environ.get("PATH", ""), *([os.path.join(CUDA_HOME, "bin")] if CUDA_HOME else [])]
    return shutil.which(name, path=os.pathsep.join(folders))


def on_gpu(out: Path) -> Iterator[Stage]:
    """The check itself, 590 seconds at most: what stands first is worth most."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    base = ["--build-base", str(programs.BUILD), "--build-temp", str(programs.BUILD / "objects")]
    setup = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(PACKAGES), "build"]
    build = [*setup, *base, "--build-lib", str(PACKAGES)]
    programs_made = [sys.executable, "-m", "tools.cuda_check.programs"]
    # The variables say RNNEXT_CUDA=1: without nvcc this must fail, not build the CPU half alone.
    compiled = {"RNNEXT_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}"}
    if nvcc := programs.find_nvcc():  # torch takes the folder above the nvcc on the path
        compiled["CUDA_HOME"] = str(programs.home_of(nvcc))
    built = ("build",)
    yield Stage("micro", 20, [[*programs_made, "--micro"], module("micro", out)])
    yield Stage("build", 110, [build, programs_made], variables=compiled)
    yield Stage("tests", 90, [pytest(*in_parallel())], built)
    yield Stage("trace", 15, [module("trace", out)], built)
    yield Stage("exchange", 15, [module("exchange", out, "--budget", "8")], built)
    yield Stage("geometries", 80, [module("geometries", out, "--budget", "70")], built)
    yield Stage("bench", 110, [module("bench", out, "--budget", "95")], built)
    yield Stage("stress", 35, [module("stress", out, "--budget", "25")], built)
    ncu = tool("ncu") or ""
    yield Stage("counters", 35, [module("counters", out, "--ncu", ncu)], built,
                lacks="" if ncu else "ncu is not on this machine")  # fmt: skip
    sanitizer = tool("compute-sanitizer") or ""
    lacks = "" if sanitizer else "compute-sanitizer is not on this machine"
    for kind, seconds in (("memcheck", 45), ("racecheck", 35)):
        command = [sanitizer, "--tool", kind, "--error-exitcode", "9", "--kernel-regex"]
        command += ["kns=rnnext", *pytest("-k", SANITIZED)]
        yield Stage(kind, seconds, [command], built, lacks)


def rehearsed(out: Path) -> Iterator[Stage]:
    """The same stages here: each one's Python runs, on the host layer, on the CPU or on figures
    that stand in; and nvcc compiles what it can."""
    cpu = ["--device", "cpu"]
    nvcc = programs.find_nvcc()
    yield Stage("micro", 60, [module("micro", out, "--stand-in")])
    compiled = [sys.executable, "-m", "tools.cuda_check.programs", "--rehearse"]
    yield Stage("build", 300, [compiled], lacks="" if nvcc else "there is no nvcc here")
    yield Stage("tests", 600, [pytest(*in_parallel())])
    yield Stage("trace", 300, [module("trace", out, *cpu)])
    yield Stage("exchange", 300, [module("exchange", out, *cpu, "--budget", "60")])
    yield Stage("geometries", 300, [module("geometries", out, *cpu)])
    yield Stage("bench", 300, [module("bench", out, *cpu)])
    yield Stage("stress", 60, [module("stress", out, *cpu, "--budget", "3")])
    yield Stage("counters", 60, [module("counters", out, *cpu, "--ncu", "stand-in")])
    sanitized = [*pytest("-k", SANITIZED, "--collect-only")]
    yield Stage("sanitizers", 60, [sanitized])


STAGES: dict[str, Callable[[Path], Iterator[Stage]]] = {"cuda": on_gpu, "cpu": rehearsed}
