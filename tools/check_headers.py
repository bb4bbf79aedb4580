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
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
CUDA = CSRC / "cuda"
MEMORY = CSRC / "cpu" / "runtime" / "memory.h"  # of tensors
# These include what takes longest to read. It is compiled once for all headers that reach them.
SHARED = [CSRC / "ops" / "signatures.h", CSRC / "cpu" / "simd" / "pragma.h"]
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


def included(source: Path) -> set[Path]:
    """The files of csrc/ that a source names."""
    return {CSRC / name for name in re.findall(r'^#include "(.*)"', source.read_text(), re.M)}


def reached(header: Path) -> set[Path]:
    """A header, what it includes, what that includes and so on."""
    found, new = set[Path](), {header}
    while new:
        found |= new
        new = set[Path]().union(*map(included, new)) - found
    return found


def flags(header: Path) -> list[str]:
    own = ["-std=c++20", "-Wall", "-Wextra", "-Werror"]
    own += ["-Wno-unused-function", "-Wno-unknown-pragmas", "-Wno-psabi"]
    own += [f"-I{CSRC}", f"-isystem{sysconfig.get_paths()['include']}"]
    if knows_torch(header):
        own += [f"-isystem{path}" for path in cpp_extension.include_paths()]
    return own


def check(headers: list[Path], folder: Path) -> int:
    """Compile what is shared into a folder, and then each header on its own."""
    cxx = os.environ.get("CXX", "c++")
    stubs = {header: folder / header.name for header in SHARED}
    first = {}
    for header, stub in stubs.items():
        stub.write_text(f'#include "{header}"\n')
        to = ["-x", "c++-header", str(stub), "-o", f"{stub}.gch"]
        first[f"what {header.name} includes"] = [cxx, *flags(header), *to]
    commands = {}
    for header in headers:
        own = [cxx, *flags(header), "-x", "c++", "-fsyntax-only"]
        for shared in [each for each in SHARED if each in reached(header)][:1]:
            own += ["-include", str(stubs[shared])]
        commands[str(header.relative_to(ROOT))] = [*own, "-include", str(header), os.devnull]
    return compile_all(first) or compile_all(commands)


def circle() -> list[Path]:
    """Folders that include each other in a circle, if there are some."""
    folders = graphlib.TopologicalSorter[Path]()
    for source in (path for path in CSRC.rglob("*") if path.is_file()):
        folders.add(source.parent, *{each.parent for each in included(source)} - {source.parent})
    try:
        folders.prepare()
    except graphlib.CycleError as error:
        return [folder.relative_to(ROOT) for folder in error.args[1]]
    return []


def main() -> int:
    headers = {h for h in CSRC.rglob("*.h") if CUDA not in h.parents} | WITHOUT_CUDAS
    with tempfile.TemporaryDirectory() as folder:
        failed = check(sorted(headers), Path(folder))
    if found := circle():
        print("folders include each other in a circle:", *found)
    return int(failed or bool(found))


if __name__ == "__main__":
    sys.exit(main())
