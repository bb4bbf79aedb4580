"""`python -m tools.weight`: how heavy the tree is, beside what tools/weight.json records.

After a build. The compiler's seconds, summed over files, vary with the machine's other tenants, and
are compared only on the kind of core that they were recorded on.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import core_name

ROOT = Path(__file__).resolve().parents[1]
RECORD = Path(__file__).with_suffix(".json")
FOLDERS = ("csrc", "tests", "tools", "benchmarks", "rnnext")
SOURCES = (".py", ".pyi", ".cpp", ".h", ".cu", ".cuh")


def output_of(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def compile_seconds() -> float | None:
    """Ninja's note of each object's last compilation; None where nothing was built here."""
    logs = sorted(ROOT.glob("build/temp.*/.ninja_log"), key=lambda path: path.stat().st_mtime)
    if not logs:
        return None
    lines = (line.split("\t") for line in logs[-1].read_text().splitlines()[1:])
    spent = {output: int(end) - int(begin) for begin, end, _, output, _ in lines}
    return sum(spent.values()) / 1000


def figures() -> dict[str, float]:
    files = [ROOT / name for name in output_of("git", "ls-files").splitlines()]
    texts = {path: path.read_text() for path in files if path.suffix in (*SOURCES, ".md")}
    found: dict[str, float] = {}
    for folder in FOLDERS:
        sources = [t for path, t in texts.items() if path.is_relative_to(ROOT / folder)]
        found[f"{folder}, lines"] = sum(text.count("\n") for text in sources)
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    found["documents, words"] = sum(len(texts[page].split()) for page in pages)
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:xdist"]
    collect += ["-o", "addopts=--import-mode=importlib"]
    (count,) = re.findall(r"^(\d+) tests? collected", output_of(*collect), re.MULTILINE)
    found["tests, cases"] = int(count)
    found["extension, bytes"] = max(path.stat().st_size for path in ROOT.glob("rnnext/_C.*.so"))
    if seconds := compile_seconds():
        found[f"compiler, seconds on {core_name()}"] = round(seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.weight", description=__doc__)
    parser.add_argument("--record", action="store_true", help="these figures from now on")
    record, found = parser.parse_args().record, figures()
    recorded = json.loads(RECORD.read_text())
    for name, value in found.items():
        grown = f"{value / recorded[name] - 1:+.0%}" if name in recorded else "new"
        print(f"{name:35} {value:12,} {grown:>6}")
    if record:
        RECORD.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
