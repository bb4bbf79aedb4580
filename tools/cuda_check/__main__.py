"""`python -m tools.cuda_check`: build, test, measure and sanitize the CUDA half on a GPU machine.

Uses the Python, torch, pytest and nvcc that it finds, and needs no network where there is an nvcc.
A stage that fails or takes too long does not stop the others; run again, the command goes on with
those that have not passed. Everything goes into one folder, as it comes: report.txt, figures.jsonl
and log.txt, which docs/cuda-check.md explains. Exit code 0: every stage passed. `--dry-run`
rehearses every stage on a machine without a GPU, and fails where it cannot.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.cuda_build import ROOT

from . import records
from .build import BUILD, PACKAGES, toolkits

TESTS = ("cuda_ptx/test_recurrence.py", "cuda_ptx/test_embedding.py", "cuda/check_cuda.py")
GPU = "import torch; print('%d.%d' % torch.cuda.get_device_capability())"


@dataclass
class Stage:
    """A command with its limit. lacks: why it cannot run here; needs: what must have passed."""

    name: str
    seconds: float
    command: list[str]
    needs: str = ""
    lacks: str = ""


def module(name: str, *options: str) -> list[str]:
    return [sys.executable, "-m", f"tools.cuda_check.{name}", *options]


def tests() -> list[str]:
    """Up to eight processes share a GPU; one, where pytest-xdist is missing."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "tools.cuda_check.isolate", "--rootdir", str(ROOT)]
    command += ["-c", str(ROOT / "pyproject.toml"), "-o", "addopts=--import-mode=importlib"]
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(min(8, len(os.sched_getaffinity(0))))]
    return [*command, *(str(ROOT / "tests" / name) for name in TESTS)]


def stages(out: Path, dry: bool) -> Iterator[Stage]:
    """The stages, the most valuable first."""

    def work(name: str, seconds: float) -> Stage:
        seconds *= 6 if dry else 1  # a rehearsal measures nothing, and may share its cores
        budget = f"{0.9 * seconds:.0f}"
        return Stage(name, seconds, module("work", name, str(out), "--budget", budget), "build")

    yield Stage("preflight", 60, module("build", "preflight"))
    yield Stage("build", 420, module("build", *(["rehearse"] if dry else [])))
    yield work("smoke", 60)
    yield Stage("tests", 900 if dry else 150, tests(), "build")
    yield work("bench", 120)
    yield work("paths", 120)
    yield work("stress", 90)
    folders = [os.environ.get("PATH", ""), *(str(home / "bin") for home in toolkits())]
    # A rehearsal interprets the kernels, which takes minutes: each stage some of them.
    parts = {"ncu": ["step", "embedding"], "memcheck": ["block"], "racecheck": ["cluster"],
             "synccheck": ["grid"]}  # fmt: skip
    for name, part in parts.items():
        program = "ncu" if name == "ncu" else "compute-sanitizer"
        found = shutil.which(program, path=os.pathsep.join(folders)) or ""
        command = [found, "--tool", name, "--error-exitcode", "9", str(BUILD / "driver")]
        if name == "ncu":
            command = module("build", "counters", found)
        if dry:
            command = module("build", "drive", *part)
        lacks = "" if found or dry else f"{program} is not on this machine"
        yield Stage(name, 540 if dry else 90, command, "build", lacks)


def outcomes(out: Path) -> dict[str, str]:
    return {n: r["outcome"] for n, r in records.read(out, "outcome").items()}


def run(stage: Stage, limit: float, out: Path, environment: dict[str, str]) -> None:
    """Run a stage that has not passed; log its output and record its outcome."""
    start, before = time.monotonic(), outcomes(out)
    if before.get(stage.name) == "passed":
        return
    if stage.lacks:
        outcome = f"absent: {stage.lacks}"
    elif stage.needs and before.get(stage.needs) != "passed":
        outcome = f"skipped: {stage.needs} did not pass"
    else:
        print(f"{stage.name}: at most {limit:.0f} s", flush=True)
        outcome = execute(stage, limit, out / records.LOG, environment)
    seconds = time.monotonic() - start
    records.append(out, "outcome", stage.name, outcome=outcome, seconds=seconds)
    print(f"{stage.name}: {outcome}, {seconds:.0f} s", flush=True)


def execute(stage: Stage, limit: float, log: Path, environment: dict[str, str]) -> str:
    """Run the stage's command for at most `limit` seconds. `timeout` kills itself with all that the
    command started, so a process that hangs in the driver is not waited for."""
    command = ["timeout", "--signal=KILL", str(limit), *stage.command]
    with log.open("a") as file:
        print(f"\n==== {stage.name}: {' '.join(stage.command)}", file=file, flush=True)
        code = subprocess.run(
            command, cwd=log.parent, env=environment, stdout=file, stderr=subprocess.STDOUT
        ).returncode
    if code == -signal.SIGKILL:
        return f"failed: not done after {limit:.0f} s"
    if code:
        print("\n".join(log.read_text(errors="replace").splitlines()[-25:]), flush=True)
    return f"failed: exit code {code}" if code else "passed"


def capability() -> str:
    """Of the first GPU, "9.0"; empty where there is none. (Asked in a process of its own.)"""
    done = subprocess.run([sys.executable, "-c", GPU], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.cuda_check", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--dry-run", action="store_true", help="rehearse on the CPU, small")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "cuda-check")
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="these stages alone, again")
    parser.add_argument("--limit", type=float, default=1500, help="seconds for all stages")
    options = parser.parse_args(arguments)
    from . import report

    card = "9.0" if options.dry_run else capability()
    if not card:
        print("cuda-check: torch finds no GPU on this machine; --dry-run rehearses without one.")
        return 1
    path = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    # The build for this GPU comes before the tree, whose own may be of the CPU half alone.
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([*([] if options.dry_run else [str(PACKAGES)]), *path]),
        "RNNEXT_CHECK_DEVICE": "cpu" if options.dry_run else "cuda",
        "RNNEXT_CHECK_CAPABILITY": card,
        "TORCH_CUDA_ARCH_LIST": card,
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # counting GPUs must not start CUDA: cases fork
        "PYTHONUNBUFFERED": "1",
    }
    if options.dry_run:
        environment["OMP_NUM_THREADS"] = "1"  # nothing is measured: others may use the cores
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + options.limit
    for stage in stages(out, options.dry_run):
        if options.only and stage.name not in options.only:
            continue
        if options.only:
            records.append(out, "outcome", stage.name, outcome="asked for again", seconds=0)
            stage.needs = ""
        limit = min(stage.seconds, end - time.monotonic())
        if limit <= 0:
            print(f"no time from {stage.name} on: run the same command again")
            break
        run(stage, limit, out, environment)
        page = report.write(out)
    print(f"\n{page}\nall of it is in {out}")
    return int(any(outcome != "passed" for outcome in outcomes(out).values()))


if __name__ == "__main__":
    sys.exit(main())
