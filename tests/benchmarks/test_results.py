"""Stored runs: combined, held against the bars."""

import pytest

from benchmarks import bars, edges, names, report, store
from helpers.runs import run_of


def test_combined_runs_are_medians():
    runs = [run_of(str(factor), factor) for factor in (2.0, 5.0, 3.0)]
    name, other = list(runs[0].rows)[:2]
    del runs[1].rows[name]
    runs[2].rows[other].seconds.pop(names.TORCH)
    combined = store.combine("all", runs)
    assert name not in combined.rows
    assert combined.rows.keys() == runs[1].rows.keys()
    assert combined.rows[other].seconds.keys() == {names.OURS}
    last = combined.rows[list(combined.rows)[-1]]
    assert last.seconds[names.OURS] == pytest.approx({"q1": 2.7e-3, "median": 3e-3, "q3": 3.6e-3})
    assert last.ratio(names.TORCH, names.OURS) == pytest.approx(10 / 3)
    assert "median of 3 runs" in report.describe(combined)
    assert "rows" not in report.describe(runs[0])
    assert runs[0].rows[other].seconds[names.OURS]["median"] == pytest.approx(2e-3)


def test_bars_are_held_or_missed_by_their_numbers():
    def verdicts(factor):
        run = run_of("made-up", factor)
        return {line[0]: line for line in (bar.verdict(run) for bar in bars.BARS)}

    held, missed = verdicts(1.9), verdicts(5.0)
    assert held["infer over torch.nn: mean"][2:4] == ("5.26", "held")
    assert held["infer over the best rival: mean"][2:4] == ("5.26", "held")
    assert missed["infer over torch.nn: mean"][3] == "missed"
    assert missed["one call, RNNCell over torch.nn: worst"][3] == "held"
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
