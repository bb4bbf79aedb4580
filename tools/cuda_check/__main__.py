"""`python -m tools.cuda_check`: build, test, measure and sanitize the CUDA half on a GPU machine.

Takes 590 seconds at most, needs no network, and uses the Python (3.10 or later), torch (2.11 or
later), numpy, pytest and nvcc that it finds; pytest-xdist, Nsight Compute and compute-sanitizer if
they are there. A stage that fails or takes too long does not stop the others. Everything goes into
one folder, as it comes: report.txt, figures.jsonl and log.txt. docs/cuda-check.md says
how to read them. The exit code is 0 if every stage that could run passed, whatever the bars say.
`--dry-run` rehearses every stage on a machine without a GPU, and fails where it cannot.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from . import records
from .stages import PACKAGES, ROOT, STAGES, Stage

NEEDED = ("torch", "numpy", "pytest")


class Check:
    """The stages' outcomes, and the folder that they write to."""

    def __init__(self, out: Path, environment: dict[str, str]) -> None:
        self.out, self.environment = out, environment
        self.outcomes: dict[str, str] = {}
        out.mkdir(parents=True, exist_ok=True)
        for name in (records.FIGURES, records.LOG, records.REPORT):
            (out / name).unlink(missing_ok=True)

    def run(self, stage: Stage, limit: float) -> str:
        """Run a stage with its output in the log, and keep how it went."""
        start, end = time.monotonic(), time.monotonic() + limit
        missing = [name for name in stage.needs if self.outcomes.get(name) != "passed"]
        if stage.lacks:
            outcome = f"absent: {stage.lacks}"
        elif missing:
            outcome = f"skipped: {', '.join(missing)} did not pass"
        else:
            outcome = "passed"
        log = self.out / records.LOG
        for command in stage.commands if outcome == "passed" else ():
            with log.open("a") as file:
                file.write(f"\n==== {stage.name}: {' '.join(command)}\n")
            outcome = self.execute(command, stage.variables, log, end - time.monotonic())
            if outcome != "passed":
                print("\n".join(log.read_text(errors="replace").splitlines()[-25:]), flush=True)
                break
        seconds = time.monotonic() - start
        self.outcomes[stage.name] = outcome
        records.append(
            self.out, "outcome", name=stage.name, outcome=outcome, seconds=seconds, limit=limit
        )
        print(f"{stage.name}: {outcome}, {seconds:.0f} of {limit:.0f} s", flush=True)
        return outcome

    def execute(
        self, command: list[str], variables: dict[str, str], log: Path, limit: float
    ) -> str:
        """One command, and all that it starts, until the limit."""
        if limit <= 0:
            return "failed: no time was left"
        with log.open("a") as file:
            process = subprocess.Popen(
                command,
                cwd=ROOT if "setup.py" in command else self.out,
                env=self.environment | variables,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"failed: not done after {limit:.0f} s"
        return "passed" if code == 0 else f"failed: exit code {code}"


def why_no_gpu() -> str | None:
    """What this machine lacks, or None if the check can run."""
    try:
        import torch
    except ImportError:
        return "there is no torch here"
    if torch.version.cuda is None:
        return f"no GPU can be used: torch {torch.__version__} is not a CUDA build"
    if not torch.cuda.is_available():
        return "there is no GPU on this machine (torch.cuda.is_available() is false)"
    return None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.cuda_check", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--dry-run", action="store_true", help="rehearse on the CPU, small")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "cuda-check")
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="these stages alone")
    options = parser.parse_args(arguments)
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(f"cuda-check: nothing can run without {', '.join(missing)}.")
        return 1
    lacking = why_no_gpu()
    if lacking and not options.dry_run:
        print(f"cuda-check: {lacking}.")
        print("cuda-check: run it on a GPU machine, or with --dry-run to rehearse it.")
        return 1
    device = "cpu" if options.dry_run else "cuda"
    if options.dry_run:
        print("cuda-check: a rehearsal on the CPU; its figures say nothing about a GPU.")
    # The build for this GPU comes before the tree, whose own may be of the CPU half alone.
    path = [*([str(PACKAGES)] if device == "cuda" else []), str(ROOT), str(ROOT / "tests")]
    if before := os.environ.get("PYTHONPATH"):
        path.append(before)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path),
        "RNNEXT_CHECK_DEVICE": device,
        "PYTHONUNBUFFERED": "1",
    }
    check = Check(options.out.resolve(), environment)
    PACKAGES.mkdir(parents=True, exist_ok=True)
    chosen = [
        s for s in STAGES[device](check.out) if options.only is None or s.name in options.only
    ]
    # What a stage leaves over of its time is the next one's.
    end = time.monotonic()
    for stage in chosen:
        end += stage.seconds
        check.run(stage, end - time.monotonic())
    from . import report

    print("\n" + report.write(check.out))
    print(f"all of it is in {check.out}")
    good = [name for name, outcome in check.outcomes.items() if outcome == "passed"]
    failed = [name for name, o in check.outcomes.items() if o.startswith(("failed", "skipped"))]
    return 0 if good and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
