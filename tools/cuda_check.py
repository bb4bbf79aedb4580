"""`python -m tools.cuda_check`: build, test, sanitize and time the CUDA half on a GPU machine.

Needs no network: it uses the Python (3.10 or later), torch (2.11 or later), numpy, pytest and nvcc
that it finds, and matplotlib if there is one.
Everything it finds goes into one folder: `check.json`, `table.txt`, plots and a log of each step.
The exit code is 0 if the build, the tests and the sanitizer passed, whatever the targets say.
`--dry-run` rehearses the same steps on a machine without a GPU, on the CPU and small.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import bars, cases, measure, report, runner, store
from benchmarks.names import COMPILED, OURS, STEP_PATH, TORCH

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ROOT / "build" / "cuda-check" / "packages"
TESTS = ROOT / "tests" / "cuda"
TIMED = (OURS, TORCH, STEP_PATH, COMPILED)
# float32 and bfloat16 on every path, and the embedding: sanitizers run kernels many times slower.
SANITIZED = "(test_every_path and full and (dtype0 or dtype2)) or (test_embedding and 129)"


class Check:
    """The steps, their outcomes, and the folder that they write to."""

    def __init__(self, out: Path, device: str, environment: dict[str, str]) -> None:
        self.out, self.device, self.environment = out, device, environment
        self.steps: dict[str, str] = {}

    def step(self, name: str, command: list[str], limit: float, **variables: str) -> bool:
        """Run one command with its output in `NAME.log`; say how it went."""
        start = time.monotonic()
        log = self.out / f"{name.replace(' ', '-')}.log"
        with log.open("w") as file:
            try:
                done = subprocess.run(
                    command,
                    cwd=ROOT if name == "build" else self.out,  # the tree's rnnext stays unseen
                    env=self.environment | variables,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=limit,
                )
                outcome = "passed" if done.returncode == 0 else f"failed ({done.returncode})"
            except subprocess.TimeoutExpired:
                outcome = f"failed (not done after {limit:.0f} s)"
        self.steps[name] = outcome
        print(f"{name}: {outcome} in {time.monotonic() - start:.0f} s, {log}", flush=True)
        if outcome != "passed":
            print("\n".join(log.read_text().splitlines()[-25:]), flush=True)
        return outcome == "passed"

    def build(self) -> bool:
        """Compile for this GPU alone, into a folder of its own."""
        import torch

        major, minor = torch.cuda.get_device_capability()
        PACKAGES.mkdir(parents=True, exist_ok=True)
        base = [
            "--build-base",
            str(PACKAGES.parent),
            "--build-temp",
            str(PACKAGES.parent / "objects"),
        ]
        command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(PACKAGES)]
        command += ["build", *base, "--build-lib", str(PACKAGES)]
        # The sources say RNNEXT_CUDA=1: without nvcc this must fail, not build the CPU half alone.
        return self.step(
            "build", command, 300, RNNEXT_CUDA="1", TORCH_CUDA_ARCH_LIST=f"{major}.{minor}"
        )

    def test(self) -> bool:
        names = ["check_device.py"] + ["check_cuda.py"] * (self.device == "cuda")
        return self.step("tests", self.pytest(*names), 150, RNNEXT_CHECK_DEVICE=self.device)

    def pytest(self, *names: str) -> list[str]:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        return [*command, "--rootdir", str(ROOT), *(str(TESTS / name) for name in names)]

    def sanitize(self) -> bool:
        """memcheck and racecheck of the project's own kernels on a few tests."""
        tool = shutil.which("compute-sanitizer", path=os.pathsep.join(tool_folders()))
        if tool is None:
            self.steps["sanitizer"] = "absent"
            print("sanitizer: compute-sanitizer is not on this machine")
            return True
        passed = True
        for kind in ("memcheck", "racecheck"):
            command = [
                tool,
                "--tool",
                kind,
                "--error-exitcode",
                "9",
                "--kernel-regex",
                "kns=rnnext",
            ]
            command += [*self.pytest("check_device.py", "check_cuda.py"), "-x", "-k", SANITIZED]
            passed &= self.step(kind, command, 90, RNNEXT_CHECK_DEVICE="cuda")
        return passed

    def bench(self, rehearsal: bool, budget: float) -> None:
        """Time the cases until the budget is spent; write result, table, bars and plots."""
        chosen = list(cases.REHEARSAL if rehearsal else cases.CASES["cuda"])
        result = store.Result(str(self.out / "check.json"))
        for event in runner.run(chosen, measure.CUDA, TIMED, budget):
            result.take(*event)
        if left := len(chosen) - len(result.rows):
            print(f"bench: {left} cases left out after {budget:.0f} s")
        rows = list(result.rows.values())
        wrong = sum(not {OURS, TORCH} <= row.seconds.keys() for row in rows)
        self.steps["bench"] = f"failed ({wrong} cases)" if wrong else f"passed ({len(rows)} cases)"
        verdicts = bars.evaluate(result)
        text = f"{report.text(result, rows)}\n\n{bars.table(verdicts).text()}"
        print(text, flush=True)
        (self.out / "table.txt").write_text(text + "\n")
        result.stamp |= {"rehearsal": rehearsal, "steps": self.steps}
        result.save()
        try:
            from benchmarks import plots
        except ImportError:
            print("bench: no plots, matplotlib is not installed")
        else:
            made = plots.draw(result, self.out)
            print(f"bench: {len(rows)} cases, {len(made)} plots in {self.out}")


def tool_folders() -> list[str]:
    from torch.utils.cpp_extension import CUDA_HOME

    return [os.environ.get("PATH", ""), *([os.path.join(CUDA_HOME, "bin")] if CUDA_HOME else [])]


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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.cuda_check")
    parser.add_argument("--dry-run", action="store_true", help="rehearse on the CPU, small")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "cuda-check")
    parser.add_argument(
        "--budget", type=float, default=200, help="seconds for the bench (default 200)"
    )
    options = parser.parse_args()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    lacking = why_no_gpu()
    if lacking:
        print(f"cuda-check: {lacking}.")
        if not options.dry_run:
            raise SystemExit(
                "cuda-check: run it on a GPU machine, or with --dry-run to rehearse it."
            )
        print("cuda-check: rehearsing on the CPU; the figures below say nothing about a GPU.")
        needed = ("torch", "rnnext", "numpy", "pytest")
        if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
            print(f"cuda-check: nothing to rehearse without {', '.join(missing)}.")
            return
    device = "cpu" if lacking or options.dry_run else "cuda"
    environment = dict(os.environ)
    if device == "cuda":
        # Ahead of the tree, whose own build may be of the CPU half alone.
        environment["PYTHONPATH"] = str(PACKAGES)
        sys.path.insert(0, str(PACKAGES))
    check = Check(options.out, device, environment)
    passed = device == "cpu" or check.build()
    passed = passed and check.test()
    if passed and device == "cuda":
        passed = check.sanitize()
    if device == "cpu" or check.steps.get("build") == "passed":
        check.bench(rehearsal=device == "cpu", budget=options.budget)
    for name, outcome in check.steps.items():
        print(f"{name}: {outcome}")
    if not passed or check.steps["bench"].startswith("failed"):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
