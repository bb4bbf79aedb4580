"""`python -m tools.compare_builds bits|time A B`: two built source trees, on this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console


def folder(path: str) -> Path:
    return Path(path).resolve()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 equal, or no slower; 1 not; 2 wrong usage, or a worker died."""
    parser = argparse.ArgumentParser(prog="python -m tools.compare_builds", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, text in (
        ("bits", "compare results to the bit, derivatives included; patterns choose samples"),
        ("time", "compare times, taking turns; patterns choose cases of benchmarks"),
    ):
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("a", type=folder, metavar="A", help="the tree to compare with")
        added.add_argument("b", type=folder, metavar="B", help="the tree in question")
        added.add_argument("patterns", nargs="*", metavar="PATTERN")
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 200)
    try:
        if options.command == "bits":
            from .bits import compare
        else:
            from .times import compare
        same = compare(options.a, options.b, options.patterns, console)
    except (ValueError, RuntimeError) as error:
        print(f"compare_builds: {error}", file=sys.stderr)
        return 2
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
