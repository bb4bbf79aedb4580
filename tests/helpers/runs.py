"""Made-up runs of the benchmark, for what reads them."""

import random
from dataclasses import replace

from benchmarks import cases, measure, names, roof, store

CASES = cases.CASES
LIMITS = roof.Roof(
    threads=2,
    flops={"float32": 1e11, "float64": 5e10, "bfloat16": 2e11},
    read={"L1": 3e11, "L2": 1.5e11, "L3": 1e11, "DRAM": 4e10},
    size={"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20},
)


def run_of(label, factor):
    """A made-up run in which rnnext takes `factor` ms and torch.nn 10 ms on every case."""
    result = store.Result(label, measure.stamp(2), {0: LIMITS, 1: replace(LIMITS, threads=1)})
    for case in CASES:
        row = store.Row(case)
        for rival, ms in ((names.OURS, factor), (names.TORCH, 10.0)):
            row.seconds[rival] = {"q1": ms * 0.9e-3, "median": ms * 1e-3, "q3": ms * 1.2e-3}
        result.rows[case.name] = row
    return result


def scattered(label):
    """A made-up run with every case, and times as far apart as a real one's."""
    draw = random.Random(0)
    result = store.Result(label, measure.stamp(2), {0: LIMITS, 1: replace(LIMITS, threads=1)})
    for case in CASES:
        row = result.rows[case.name] = store.Row(case)
        ours = result.bound(row).seconds * draw.uniform(1.05, 3) + 3e-6
        for rival in (names.OURS, *names.RIVALS):
            median = ours * (1 if rival == names.OURS else draw.uniform(1.2, 40))
            row.seconds[rival] = {"q1": 0.9 * median, "median": median, "q3": 1.1 * median}
    return result
