"""A small run end to end."""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks import (
    store,
)

ROOT = Path(__file__).parents[2]


def test_a_small_run_end_to_end(tmp_path):
    def bench(*arguments, code=0):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
        return done.stdout

    chosen = (
        "rnn-T1-B1-I8-H8-infer",
        "rnn-T3-B16-I16-H64-infer",
        "rnn-T35-B20-I200-H200-train-1thread",
    )
    run = ("run", *chosen, "--quick", "--label", "small", "--only", "rnnext", "torch.nn")
    bench(*run, code=2)  # neither is one of the quick cases
    printed = bench(*(word for word in run if word != "--quick"))
    assert all(name in printed for name in chosen)
    result = store.load(str(tmp_path / "results" / "small.json"))
    for name in chosen:
        assert result.rows[name].seconds.keys() == {"rnnext", "torch.nn"}
        assert not result.rows[name].failed
    assert result.roofs[1].threads == 1
    assert "1.00" in bench("report", "--compare", "small", "small")
    assert "| rnn-T1-B1-I8-H8-infer" in bench("report", "--label", "small", "--markdown")
    assert "roofline.png" in bench("plot", "--label", "small", "--out", "figures")
    assert (tmp_path / "figures" / "roofline.png").stat().st_size > 1000
    assert "rnn-T784-B64-I1-H128-train" in bench("cases", "headline")
