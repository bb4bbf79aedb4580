"""Compiles every header under csrc/ on its own: each includes what it needs, in whatever order.

What kernels may include is read without torch's headers: see the rules of docs/architecture.md.
Headers that include CUDA's are left to nvcc (`make cuda-build`).
"""

import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"


def knows_torch(folders: tuple[str, ...]) -> bool:
    """Whether a header in these folders of csrc/ may include torch's."""
    return folders[0] not in ("recurrence", "cpu", "cuda") or folders[1] == "binding"


def command(header: Path) -> list[str]:
    flags = ["-x", "c++", "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"]
    flags += ["-Wno-unused-function", "-Wno-unknown-pragmas", "-Wno-psabi"]
    folders = header.relative_to(CSRC).parts
    flags += [f"-I{CSRC}", f"-isystem{sysconfig.get_paths()['include']}"]
    if knows_torch(folders):
        flags += [f"-isystem{path}" for path in cpp_extension.include_paths()]
    return [os.environ.get("CXX", "c++"), *flags, "-include", str(header), os.devnull]


def check(header: Path) -> str:
    """The compiler's complaints, empty if there are none."""
    done = subprocess.run(command(header), capture_output=True, text=True)
    return done.stderr if done.returncode else ""


def main() -> int:
    headers = sorted(CSRC.rglob("*.h"))
    cuda = CSRC / "cuda"
    plain = [cuda / "recurrence" / "choice.h", cuda / "embedding" / "index_error.h"]
    headers = [path for path in headers if cuda not in path.parents or path in plain]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        complaints = dict(zip(headers, pool.map(check, headers), strict=True))
    failed = [header for header in headers if complaints[header]]
    for header in failed:
        print(f"{header.relative_to(ROOT)} does not compile alone:\n{complaints[header]}")
    print(f"{len(headers) - len(failed)} of {len(headers)} headers compile alone")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
