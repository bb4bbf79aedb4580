"""`python -m tools.cuda_check.report FOLDER`: the figures of a check as one page of text."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from . import bench, counters, exchange, geometries, micro, records, stress, trace

PARTS: dict[str, Callable[[Path], str]] = {
    "Microbenchmarks": micro.report,
    "Where a step's cycles go (median)": trace.report,
    "The two exchanges": exchange.report,
    "Forced geometries": geometries.report,
    "Benchmarks": bench.text,
    "The same bits": stress.report,
    "Counters": counters.report,
}


def outcomes(out: Path) -> str:
    return records.table(
        records.read(out, "outcome"),
        {
            "stage": lambda r: r["name"],
            "outcome": lambda r: r["outcome"],
            "seconds": lambda r: round(r["seconds"]),
            "limit": lambda r: round(r["limit"]),
        },
    )


def write(out: Path) -> str:
    """Make the page, keep it, and return it. A part without figures is left out."""
    text = f"Stages\n\n{outcomes(out)}\n"
    for title, part in PARTS.items():
        if records.read(out) and (body := part(out)):
            text += f"\n\n{title}\n\n{body}\n"
    (out / records.REPORT).write_text(text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    print(write(parser.parse_args().folder))


if __name__ == "__main__":
    main()
