"""The least times of cases, and how calls are timed."""

from dataclasses import replace

import pytest

from benchmarks import cases, measure, roof
from helpers.runs import LIMITS


def test_bound_names_the_roof_that_a_case_meets_first():
    wide = cases.Case("rnn", "infer", T=64, B=64, I=256, H=256)
    assert roof.bound(wide, LIMITS) == roof.Bound("FMA", 64 * 64 * 512 * 512 / 1e11)
    single = cases.Case("rnn", "infer", T=100, B=1, I=8, H=256)
    assert roof.bound(single, LIMITS).limit == "L2"
    streamed = 100 * 4 * 256**2 / 1.5e11
    assert roof.bound(single, LIMITS).seconds == pytest.approx(
        streamed + 100 * 2 * 8 * 256 / LIMITS.flops["float32"]
    )
    train = replace(single, mode="train")  # two products of a step, four that are of none
    assert roof.bound(train, LIMITS).seconds == pytest.approx(
        2 * streamed + 100 * 2 * (3 * 8 + 256) * 256 / LIMITS.flops["float32"]
    )
    table = cases.Case("embedding", "train", V=50_000, D=256, N=8192)
    assert roof.bound(table, LIMITS).limit == "DRAM"
    # Design: 85 MB move; rows that occur twice make it a little less here.
    assert 70e6 < roof.moved_bytes(table) < 85e6


def test_a_round_that_is_disturbed_is_done_again(monkeypatch):
    busy = iter([0.0, 1.0, 0.0, 0.0])
    monkeypatch.setattr(measure.Bystanders, "cores", lambda self, seconds: next(busy))
    effort = measure.Effort(0.01, min_rounds=3, max_rounds=3, sample_seconds=0, warm_seconds=0)
    sleeper = measure.Contender(lambda: measure.time.sleep(0.001))
    timings = measure.interleave({"sleeper": sleeper}, effort)
    assert not list(busy)
    assert len(timings["sleeper"].samples) == 3
    assert measure.Timing(1, [1.0, 2.0, 3.0, 4.0, 5.0]).quartiles == (2.0, 3.0, 4.0)
