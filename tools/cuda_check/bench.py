"""`python -m tools.cuda_check.bench`: the GPU cases of the benchmarks, beside the rivals."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import bars, cases, measure, report, runner, store
from benchmarks.names import COMPILED, OURS, STEP_PATH, TORCH

from . import records

TIMED = (OURS, TORCH, STEP_PATH, COMPILED)


def text(out: Path) -> str:
    """The table and the bars of what was timed."""
    path = out / records.BENCH
    if not path.exists():
        return ""
    result = store.load(str(path))
    rows = list(result.rows.values())
    if not rows:
        return ""
    return f"{report.text(result, rows)}\n\n{bars.table(bars.evaluate(result)).text()}"


def main() -> None:
    options = records.options(__doc__, 110)
    rehearsal = options.device == "cpu"
    chosen = list(cases.REHEARSAL if rehearsal else cases.CASES["cuda"])
    result = store.Result(str(options.out / records.BENCH))
    for event in runner.run(chosen, measure.CUDA, TIMED, options.budget):
        result.take(*event)
    result.stamp["rehearsal"] = rehearsal
    result.save()
    if left := len(chosen) - len(result.rows):
        print(f"bench: {left} cases left out after {options.budget:.0f} s")
    print(text(options.out))
    wrong = sum(not {OURS, TORCH} <= row.seconds.keys() for row in result.rows.values())
    if wrong or not result.rows:
        sys.exit(f"{wrong} of {len(result.rows)} cases failed")


if __name__ == "__main__":
    main()
