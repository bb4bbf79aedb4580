"""A small run end to end."""

import pytest

from benchmarks import cases, measure, store
from benchmarks.__main__ import main


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
    compared = bench("report", "--compare", "small", "small")[1]
    assert "geometric mean of 2 rows: 1.000" in compared
    assert f"| {chosen[0]}" in bench("report", "--label", "small", "--markdown")[1]
    assert bench("plot", "--label", "small") == (0, "")  # no headline case
    assert "rnn-T784-B64-I1-H128-train" in bench("cases", "headline")[1]
    names = [case.name for case in cases.CASES]
    assert len(names) == len(set(names))
