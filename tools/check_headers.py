"""Compiles every header under csrc/ on its own: each includes what it needs, in whatever order.

What kernels may include is read without torch's headers: see the rules of docs/architecture.md.
Headers that include CUDA's are left to nvcc (`make cuda-build`). The folders include each other in
no circle.
"""

import graphlib
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
CUDA = CSRC / "cuda"
MEMORY = CSRC / "cpu" / "runtime" / "memory.h"  # of tensors
WITHOUT_CUDAS = {CUDA / "recurrence" / "choice.h", CUDA / "indices.h"}


def compile_all(commands: dict[str, list[str]], env: Mapping[str, str] = os.environ) -> int:
    """Run the compiler's commands, say what fails and why; 1 if one does, else 0."""

    def complaint(command: list[str]) -> str:
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        return (done.stderr or "failed") if done.returncode else ""

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        complaints = dict(zip(commands, pool.map(complaint, commands.values()), strict=True))
    failed = {name: text for name, text in complaints.items() if text}
    for name, text in failed.items():
        print(f"{name} does not compile:\n{text}")
    print(f"{len(commands) - len(failed)} of {len(commands)} compile")
    return int(bool(failed))


def knows_torch(header: Path) -> bool:
    """Whether a header may include torch's."""
    device, folder = header.relative_to(CSRC).parts[0], header.parent.name
    return device not in ("recurrence", "cpu", "cuda") or folder == "binding" or header == MEMORY


def command(header: Path) -> list[str]:
    flags = ["-x", "c++", "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"]
    flags += ["-Wno-unused-function", "-Wno-unknown-pragmas", "-Wno-psabi"]
    flags += [f"-I{CSRC}", f"-isystem{sysconfig.get_paths()['include']}"]
    if knows_torch(header):
        flags += [f"-isystem{path}" for path in cpp_extension.include_paths()]
    return [os.environ.get("CXX", "c++"), *flags, "-include", str(header), os.devnull]


def circle() -> list[Path]:
    """Folders that include each other in a circle, if there are some."""
    includes: dict[Path, set[Path]] = {}
    for source in (path for path in CSRC.rglob("*") if path.is_file()):
        names = re.findall(r'^#include "(.*)"', source.read_text(), re.MULTILINE)
        others = {(CSRC / name).parent for name in names} - {source.parent}
        includes.setdefault(source.parent, set()).update(others)
    try:
        graphlib.TopologicalSorter(includes).prepare()
    except graphlib.CycleError as error:
        return [folder.relative_to(ROOT) for folder in error.args[1]]
    return []


def main() -> int:
    headers = {h for h in CSRC.rglob("*.h") if CUDA not in h.parents} | WITHOUT_CUDAS
    failed = compile_all({str(h.relative_to(ROOT)): command(h) for h in sorted(headers)})
    if found := circle():
        print("folders include each other in a circle:", *found)
    return int(failed or bool(found))


if __name__ == "__main__":
    sys.exit(main())
