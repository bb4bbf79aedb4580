"""Compiles the CPU half with clang, also for macOS, on a Linux machine that has neither.

The clang is zig's, from PyPI (about 450 MB), with the standard library and system headers of each
target; torch's headers are the same everywhere. Each source is compiled to an object, warnings
being errors. Nothing is linked or run: there is no libtorch for macOS here.
"""

import argparse
import os
import sys
import sysconfig
from pathlib import Path

from torch.utils import cpp_extension

from .check_headers import ROOT, compile_all
from .cuda_build import interpreter

BUILD = ROOT / "build" / "clang"
COMPILER = "ziglang==0.17.*"
TARGETS = ["aarch64-macos", "x86_64-macos", "x86_64-linux-gnu"]
SOURCES = ["csrc/*.cpp", "csrc/ops/*.cpp", "csrc/cpu/*/*.cpp"]


def command(python: str, target: str, source: Path) -> list[str]:
    made = BUILD / target / source.relative_to(ROOT).with_suffix(".o")
    made.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]
    flags += ["-Wno-psabi", "-fvisibility=hidden", "-DTORCH_EXTENSION_NAME=_C"]
    flags += ['-DRNNEXT_TORCH_VERSION=""', f"-I{ROOT / 'csrc'}"]
    headers: list[str] = [*cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    flags += [flag for path in headers for flag in ("-isystem", path)]
    compiler = [python, "-m", "ziglang", "c++", "-target", target]
    return [*compiler, *flags, "-c", str(source), "-o", str(made)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=TARGETS, help="default: %(default)s")
    options = parser.parse_args()
    python = interpreter(BUILD / "venv", [COMPILER])
    sources = sorted(path for pattern in SOURCES for path in ROOT.glob(pattern))
    commands = {
        f"{target}: {source.relative_to(ROOT)}": command(python, target, source)
        for target in options.targets
        for source in sources
    }
    cache = {f"ZIG_{whose}_CACHE_DIR": str(BUILD / "cache") for whose in ("GLOBAL", "LOCAL")}
    return compile_all(commands, {**os.environ, **cache})


if __name__ == "__main__":
    sys.exit(main())
