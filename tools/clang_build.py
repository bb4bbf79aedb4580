"""Compiles the CPU half with clang, also for macOS, on a Linux machine that has neither.

The clang is zig's, from PyPI (about 450 MB), with the standard library and system headers of each
target; torch's headers are the same everywhere. Each source is compiled to an object, warnings
being errors. Nothing is linked or run: there is no libtorch for macOS here.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "clang"
COMPILER = "ziglang==0.17.*"
TARGETS = ["aarch64-macos", "x86_64-macos", "x86_64-linux-gnu"]
SOURCES = ["csrc/*.cpp", "csrc/ops/*.cpp", "csrc/cpu/*/*.cpp"]


def make_environment() -> Path:
    """The interpreter of the environment that has the compiler."""
    python = BUILD / "venv" / "bin" / "python"
    if not python.exists():
        venv.create(BUILD / "venv", with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "-q", COMPILER], check=True)
    return python


def compiled(python: Path, target: str, source: Path) -> str:
    """The compiler's complaints, empty if there are none."""
    made = BUILD / target / source.relative_to(ROOT).with_suffix(".o")
    made.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]
    flags += ["-Wno-psabi", "-fvisibility=hidden", "-DTORCH_EXTENSION_NAME=_C"]
    flags += ['-DRNNEXT_TORCH_VERSION=""', f"-I{ROOT / 'csrc'}"]
    headers: list[str] = [*cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    flags += [flag for path in headers for flag in ("-isystem", path)]
    command = [str(python), "-m", "ziglang", "c++", "-target", target, *flags]
    command += ["-c", str(source), "-o", str(made)]
    cache = {f"ZIG_{whose}_CACHE_DIR": str(BUILD / "cache") for whose in ("GLOBAL", "LOCAL")}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **cache})
    return done.stderr if done.returncode else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=TARGETS, help="default: %(default)s")
    options = parser.parse_args()
    python = make_environment()
    sources = sorted(path for pattern in SOURCES for path in ROOT.glob(pattern))
    jobs = [(target, source) for target in options.targets for source in sources]
    failed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        complaints = pool.map(lambda job: compiled(python, *job), jobs)
        for (target, source), complaint in zip(jobs, complaints, strict=True):
            print(f"{'failed' if complaint else 'ok':7} {target}: {source.relative_to(ROOT)}")
            if complaint:
                print(complaint)
            failed += bool(complaint)
    print(f"{len(jobs) - failed} of {len(jobs)} compiled")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
