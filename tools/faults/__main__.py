"""Plants the faults of list.txt one at a time, and says which of them the tests find.

python -m tools.faults [WORD ...]   those whose file, kind or number has one of the words

One build holds all faults of the C++ sources, each behind a switch that RNNEXT_FAULT turns on: a
copy of this tree in build/faults, compiled there. CUDA's are written into the copy one at a time,
for the tests compile it; without CUDA_HOME, or `make cuda-build`, they are left out. Tests run
there, first those that know most about the fault's file, then, if they pass, all of them.
"""

import argparse
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COPY = ROOT / "build" / "faults"
OPTIMIZE = "-O1 -fexpensive-optimizations"
CUDA = "csrc/cuda"
TOOLKIT = os.environ.get("CUDA_HOME", str(ROOT / "build/cuda-toolkit/nvidia/cu13"))
HAS_NVCC = (Path(TOOLKIT) / "bin" / "nvcc").exists()
AT_ONCE = 2
ALONE = threading.Lock()  # of what changes the copy
SECONDS = 1200  # a run of tests that takes longer hangs

# The tests that come first, by how the name of a file begins.
FIRST = {
    "csrc/cuda": ["tests/cuda_ptx"],
    "csrc/cpu/runtime": ["tests/cpu"],
    "csrc/cpu/binding/stepper": [
        "tests/modules/test_stepper.py",
        "tests/modules/test_stepper_state.py",
        "tests/fuzz",
    ],
    "csrc": ["tests/fuzz", "tests/ops", "tests/cpu", "tests/modules", "tests/transforms"],
    "rnnext": ["tests/fuzz", "tests/modules", "tests/ops", "tests/package"],
}
SWITCH = """#pragma once
#include <cstdlib>
namespace rnnext_faults {
#ifdef __CUDACC__
constexpr int planted = 0;  // in a header that CUDA's kernels share with the CPU's
#else
inline const int planted = std::getenv("RNNEXT_FAULT") ? std::atoi(std::getenv("RNNEXT_FAULT")) : 0;
#endif
}
"""


class Fault(NamedTuple):
    """A fault of the list: `text` in its place between `before` and `after` becomes `instead`."""

    number: int
    file: str
    kind: str
    before: str
    text: str
    instead: str
    after: str

    def __str__(self) -> str:
        return f"{self.number:3} {self.file} ({self.kind}): {self.text} → {self.instead}"

    def has_one_of(self, words: list[str]) -> bool:
        return any(w in (str(self.number), self.kind) or w in self.file for w in words)

    def place(self, source: str) -> tuple[int, int]:
        """Where the text is in the source; an error that names the fault if it is not, or twice."""
        parts = (self.before, self.text, self.after)
        before, text, after = (r"\s*".join(map(re.escape, re.findall(r"\w+|\S", p))) for p in parts)
        found = list(re.finditer(rf"{before}\s*({text})\s*{after}", source))
        if len(found) != 1:
            raise SystemExit(f"the text occurs {len(found)} times, which must be once: {self}")
        return found[0].span(1)

    def switched(self, text: str) -> str:
        """The source's text, and the fault instead of it where this one is planted."""
        if self.file.endswith(".py"):
            return f'({self.instead} if _FAULT == "{self.number}" else {text})'
        planted = f"::rnnext_faults::planted == {self.number}"
        if text.endswith((";", "}")):
            return f"{{ if ({planted}) {{ {self.instead} }} else {{ {text} }} }}"
        return f"({planted} ? ({self.instead}) : ({text}))"


def read(path: Path) -> list[Fault]:
    """The faults of a list."""
    entries: list[tuple[str, str]] = []
    file = ""
    for line in path.read_text().splitlines():
        if line.startswith("    "):
            entries[-1] = (file, f"{entries[-1][1]} {line.strip()}")
        elif line.startswith("  "):
            entries.append((file, line.strip()))
        elif line and not line.startswith("#"):
            file = line
    faults = []
    for number, (file, entry) in enumerate(entries, 1):
        parts = re.fullmatch(r"(\w+): (.*?)«(.*?) → (.*?)»(.*)", entry)
        if not parts:
            raise SystemExit(f"no «text → fault» in {file}: {entry}")
        faults.append(Fault(number, file, *parts.groups()))
    return faults


def planted(source: str, faults: list[Fault]) -> str:
    """A source with switches for all of its faults."""
    places = sorted((fault.place(source), fault) for fault in faults)
    for (_, end), ((begin, _), fault) in zip([p for p, _ in places], places[1:], strict=False):
        if begin < end:
            raise SystemExit(f"another fault has a part of the text: {fault}")
    for (begin, end), fault in reversed(places):
        source = source[:begin] + fault.switched(source[begin:end]) + source[end:]
    if faults and faults[0].file.endswith(".py"):
        first = re.search(r"^(import|from (?!__future__))", source, re.M)
        assert first, faults[0].file
        line = 'import os as _os; _FAULT = _os.environ.get("RNNEXT_FAULT")\n'
        source = source[: first.start()] + line + source[first.start() :]
    return source


def write(path: Path, content: bytes) -> None:
    """Write what has changed. Other files keep their time, and are not compiled again."""
    if not path.exists() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def copy(faults: list[Fault]) -> None:
    """This tree with all faults but CUDA's."""
    listed = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    for name in filter(lambda name: (ROOT / name).is_file(), listed):
        content = (ROOT / name).read_bytes()
        own = [fault for fault in faults if fault.file == name]
        if own and not name.startswith(CUDA):
            content = planted(content.decode(), own).encode()
        write(COPY / name, content)
    for path in [p for folder in ("csrc", "rnnext", "tests") for p in (COPY / folder).rglob("*.*")]:
        made = path.suffix in (".so", ".pyc") or path.name == "_build.py" or path.is_dir()
        if not made and str(path.relative_to(COPY)) not in listed:
            path.unlink()


def environment() -> dict[str, str]:
    """With a compiler that knows the switch, also for the tests that compile kernels.

    It hardly optimizes: the build takes half the time, and faults are found as well. (It fuses
    multiply-adds as ever: where AMX takes tiny products as zeros, tests tell the difference.)
    """
    switch, compiler = COPY / "switch.h", COPY / "c++"
    write(switch, SWITCH.encode())
    script = f'#!/bin/sh\nexec {os.environ.get("CXX", "c++")} -include {switch} "$@" {OPTIMIZE}\n'
    write(compiler, script.encode())
    compiler.chmod(0o755)
    variables = {"CXX": str(compiler), "PYTHONPATH": str(COPY), "RNNEXT_CUDA": "0"}
    variables |= {"RNNEXT_ISAS": "native,generic,amx_stand_in"}
    for_cuda = {"CUDA_HOME": TOOLKIT, "NVCC_PREPEND_FLAGS": f"-include {switch}"}
    return os.environ | variables | (for_cuda if HAS_NVCC else {})


def test(fault: int, arguments: list[str], env: dict[str, str]) -> str:
    """The first test that fails, or "" if none does."""
    # (Inductor's sources do not compile with the switch in front; those compiled for another
    # processor need it.)
    command = ["timeout", "--signal=KILL", str(SECONDS), sys.executable, "-m", "pytest", "-xq"]
    command += ["-p", "no:cacheprovider", *arguments]
    command += ["--ignore=tests/ops/test_aoti.py", "--ignore=tests/emulated"]
    given = env | {"RNNEXT_FAULT": str(fault)}
    done = subprocess.run(command, cwd=COPY, env=given, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    named = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
    return named[1] if named else f"exit code {done.returncode}: {done.stdout.strip()[-200:]}"


def first(file: str) -> list[str]:
    """The tests for faults of a file."""
    return next(FIRST[start] for start in FIRST if file.startswith(start))


def find(fault: Fault, env: dict[str, str], rest: bool) -> str:
    """The test that finds the fault, or ""."""
    runs = [first(fault.file), *([["tests"]] if rest else [])]
    if not fault.file.startswith(CUDA):
        return next(filter(None, (test(fault.number, run, env) for run in runs)), "")
    path = COPY / fault.file
    with ALONE:
        source = path.read_text()
        begin, end = fault.place(source)
        path.write_text(source[:begin] + fault.instead + source[end:])
        try:
            return next(filter(None, (test(0, run, env) for run in runs)), "")
        finally:
            path.write_text(source)


def main() -> int:
    """The command line: 0 if all faults are found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="WORD")
    parser.add_argument("--first", action="store_true", help="run the first tests alone")
    options = parser.parse_args()
    faults = read(HERE / "list.txt")
    chosen = [fault for fault in faults if not options.words or fault.has_one_of(options.words)]
    if not HAS_NVCC:
        print("there is no nvcc: the faults of CUDA are left out")
        chosen = [fault for fault in chosen if not fault.file.startswith(CUDA)]
    copy(faults)
    env = environment()
    for command in ["egg_info"], ["build_ext", "--inplace"]:
        subprocess.run([sys.executable, "setup.py", "-q", *command], cwd=COPY, env=env, check=True)
    missed = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for by in pool.map(lambda tests: test(0, [tests], env), {first(f.file)[0] for f in chosen}):
            if by:
                raise SystemExit(f"without a fault {by} fails")
        found = pool.map(lambda fault: find(fault, env, not options.first), chosen)
        for fault, by in zip(chosen, found, strict=True):
            print(f"{fault}\n      {'found by ' + by if by else 'NOT FOUND'}", flush=True)
            missed += not by
    print(f"{len(chosen) - missed} of {len(chosen)} faults are found")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
