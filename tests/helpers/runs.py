"""Made-up runs of the benchmark, for what reads them."""

from dataclasses import replace

from benchmarks import cases, measure, names, roof, store

LIMITS = roof.Roof(
    threads=2,
    flops={"float32": 1e11, "float64": 5e10, "bfloat16": 2e11},
    read={"L1": 3e11, "L2": 1.5e11, "L3": 1e11, "DRAM": 4e10},
    size={"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20},
)


def run_of(label, factor):
    """A made-up run in which rnnext takes `factor` ms and torch.nn 10 ms on every case."""
    result = store.Result(label, measure.stamp(2), {0: LIMITS, 1: replace(LIMITS, threads=1)})
    for case in cases.CASES:
        row = store.Row(case)
        for rival, ms in ((names.OURS, factor), (names.TORCH, 10.0)):
            row.seconds[rival] = {"q1": ms * 0.9e-3, "median": ms * 1e-3, "q3": ms * 1.2e-3}
        result.rows[case.name] = row
    return result
