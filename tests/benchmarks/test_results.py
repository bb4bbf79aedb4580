"""Runs: how calls are timed, their least times, stored runs combined and held against the bars."""

from dataclasses import replace

import pytest

from benchmarks import bars, cases, edges, measure, names, report, roof, store
from benchmarks.__main__ import main
from helpers.runs import LIMITS, run_of


def test_of_combined_runs_each_row_is_the_fastest_reading():
    runs = [run_of(str(factor), factor) for factor in (2.0, 5.0, 3.0)]
    name, other = list(runs[0].rows)[:2]
    del runs[1].rows[name]
    runs[2].rows[other].seconds.pop(names.TORCH)
    last = list(runs[0].rows)[-1]
    for times in runs[0].rows[last].seconds.values():
        times["median"] *= 3
    combined = store.combine("all", runs)
    assert name not in combined.rows
    assert combined.rows.keys() == runs[1].rows.keys()
    assert combined.rows[other] is runs[0].rows[other]
    assert combined.rows[last] is runs[2].rows[last]
    assert "the fastest of 3 runs" in report.describe(combined)
    assert "rows" not in report.describe(runs[0])
    assert runs[0].rows[other].seconds[names.OURS]["median"] == pytest.approx(2e-3)


def test_bars_are_held_or_missed_by_their_numbers():
    def verdicts(run):
        return {line[0]: line for line in (bar.verdict(run) for bar in bars.BARS)}

    held, missed = (verdicts(run_of("made-up", factor)) for factor in (1.9, 5.0))
    assert held["infer over torch.nn: mean"][2:4] == ("5.26", "held")
    assert held["infer over the best rival: mean"][2:4] == ("5.26", "held")
    assert missed["infer over torch.nn: mean"][3] == "missed"
    assert missed["infer over torch.nn: mean"][4].endswith(" at the roof")
    assert missed["one call, RNNCell over torch.nn: worst"][3] == "held"
    assert held["GRU infer over torch.nn: mean"][3] == "held"
    run = run_of("slower gates", 1.9)
    for row in run.rows.values():  # three times the work in more than three times the time
        row.seconds[names.OURS]["median"] *= 3.1 if row.case.cell == "gru" else 1
    run.rows["gru-cell-B1-I64-H64-infer"].seconds[names.TORCH]["median"] *= 4
    behind = "points of the roof behind the RNN, H = 128, B >= 16: worst"
    assert (held[behind][3], verdicts(run)[behind][3]) == ("held", "missed")
    what = "one call, T=1, GRU, LSTM over the cell of torch.nn"
    (one_step,) = (b for b in bars.BARS if b.what == what)
    found = one_step.values(run)
    assert found["gru-T1-B1-I64-H64-infer (torch.nn)"] == pytest.approx(40 / (3.1 * 1.9))
    assert found["lstm-T1-B1-I64-H64-infer (torch.nn)"] == pytest.approx(10 / 1.9)
    run = run_of("empty", 1.9)
    run.rows.clear()
    text, none_missed = bars.text(run, bars.BARS)
    assert none_missed
    assert "not measured" in text


def test_the_cost_of_one_more_counts_whole_vectors():
    # 65 units take five vectors of 16, as 80 do.
    work = {H: edges.work(edges.edge_case("infer", "H", H), "H") for H in (64, 65)}
    assert work[65] / work[64] == pytest.approx(80 * (32 + 65) / (64 * (32 + 64)))
    assert edges.worst_rise({"12": 1.0, "13": 1.5, "14": 1.4}) == (1.5, "13")


def test_bound_names_the_roof_that_a_case_meets_first():
    wide = cases.Case("rnn", "infer", T=64, B=64, I=256, H=256)
    assert roof.bound(wide, LIMITS) == roof.Bound("FMA", 64 * 64 * 512 * 512 / 1e11)
    for cell, gates in (("gru", 3), ("lstm", 4)):
        times = roof.bound(replace(wide, cell=cell), LIMITS).seconds
        assert times == pytest.approx(gates * 64 * 64 * 512 * 512 / 1e11)
    single = cases.Case("rnn", "infer", T=100, B=1, I=8, H=256)
    assert roof.bound(single, LIMITS).limit == "L2"
    streamed = 100 * 4 * 256**2 / 1.5e11
    expected = streamed + 100 * 2 * 8 * 256 / LIMITS.flops["float32"]
    assert roof.bound(single, LIMITS).seconds == pytest.approx(expected)
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
    assert len(measure.interleave({"sleeper": sleeper}, effort)["sleeper"].samples) == 3
    assert not list(busy)
    assert measure.Timing(1, [1.0, 2.0, 3.0, 4.0, 5.0]).quartiles == (2.0, 3.0, 4.0)


def test_a_small_run_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "FULL", measure.QUICK)

    def bench(*arguments):
        return main(arguments), capsys.readouterr().out

    chosen = "rnn-T1-B1-I8-H8-infer", "rnn-T3-B16-I16-H64-infer"
    run = ("run", *chosen, "--label", "small", "--only", "rnnext", "torch.nn")
    assert bench(*run, "--quick")[0] == 2  # neither is one of the quick cases
    code, printed = bench(*run)
    assert code == 0
    assert all(name in printed for name in chosen)
    result = store.load("small")
    for name in chosen:
        assert result.rows[name].seconds.keys() == {"rnnext", "torch.nn"}
        assert not result.rows[name].failed
    assert result.roofs[0].threads >= 1
    with pytest.raises(FileNotFoundError, match=r"stored: .*small"):
        store.load("missing")
    assert "geometric mean of 2 rows: 1.000" in bench("report", "--compare", "small", "small")[1]
    assert f"|{chosen[0]}" in bench("report", "--label", "small", "--markdown")[1]
    assert bench("plot", "--label", "small") == (0, "")  # no headline case
    assert "rnn-T784-B64-I1-H128-train" in bench("cases", "headline")[1]
    all_names = [case.name for case in cases.CASES]
    assert len(all_names) == len(set(all_names))
