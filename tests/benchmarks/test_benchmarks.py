"""The bench: its case list, its arithmetic, its rivals' agreement, and one small run end to end."""

import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import (
    bars,
    cases,
    costs,
    edges,
    measure,
    names,
    report,
    rivals,
    roof,
    store,
    tables,
)
from benchmarks.rivals import contract, torch_modules

ROOT = Path(__file__).parents[2]
CASES = cases.CASES["cpu"]
LIMITS = roof.Roof(
    threads=2,
    flops={"float32": 1e11, "float64": 5e10, "bfloat16": 2e11},
    read={"L1": 3e11, "L2": 1.5e11, "L3": 1e11, "DRAM": 4e10},
    size={"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20},
)


def test_cases_cover_the_promised_ranges():
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))
    assert set(names) >= cases.QUICK
    plain = [c for c in CASES if c.kind == "rnn" and c.dtype == "float32" and not c.threads]
    for mode in cases.MODES:
        shapes = {(c.T, c.B, c.I, c.H) for c in plain if c.mode == mode}
        assert set(cases.HEADLINE) <= shapes
        for position, least, most in ((0, 1, 2000), (1, 1, 256), (2, 1, 1024), (3, 16, 2048)):
            values = {shape[position] for shape in shapes}
            assert min(values) <= least
            assert max(values) >= most
    assert {c.dtype for c in CASES} == {"float32", "float64", "bfloat16"}
    assert {c.threads for c in CASES} == {0, 1}
    with pytest.raises(ValueError, match="no case matches 'nonsense'"):
        cases.select(CASES, ["nonsense"])


def test_bound_names_the_roof_that_a_case_meets_first():
    wide = cases.Case("rnn", "infer", T=64, B=64, I=256, H=256)
    assert roof.bound(wide, LIMITS) == roof.Bound(
        "FMA", 64 * 64 * 512 * 512 / 1e11, 64 * 64 * 2**18
    )
    single = cases.Case("rnn", "infer", T=100, B=1, I=8, H=256)
    assert roof.bound(single, LIMITS).limit == "L2"
    assert roof.bound(single, LIMITS).seconds == pytest.approx(100 * 4 * 256**2 / 1.5e11)
    table = cases.Case("embedding", "train", V=50_000, D=256, N=8192)
    assert roof.bound(table, LIMITS).limit == "DRAM"
    # Design: 85 MB move; rows that occur twice make it a little less here.
    assert 70e6 < roof.bound(table, LIMITS).amount < 85e6


def test_roof_of_this_machine_is_plausible():
    limits = roof.measure(threads=1)
    assert limits.flops["float32"] > 1.5 * limits.flops["float64"] > 1e9
    assert limits.read["L1"] > limits.read["DRAM"] > 1e9
    for case in (
        cases.Case("rnn", "infer", T=64, B=64, I=256, H=256),
        cases.Case("embedding", "infer", V=50_000, D=256, N=8192),
    ):
        rate = roof.Probe(case, limits).sample(warm_seconds=0.0)
        found = roof.bound(case, limits)
        assert rate == pytest.approx(found.amount / found.seconds, rel=0.9)


def test_a_row_is_held_against_the_roof_of_its_own_rounds():
    case = cases.Case("rnn", "infer", T=64, B=64, I=256, H=256)
    result = store.Result("made-up", roofs={0: LIMITS})
    global_bound, own = result.bound(store.Row(case)), result.bound(store.Row(case, roof=5e10))
    assert global_bound == roof.bound(case, LIMITS)
    assert own.seconds == pytest.approx(2 * global_bound.seconds)
    assert result.bound(store.Row(replace(case, threads=1))) is None


def test_interleave_measures_what_a_call_takes():
    def contender(seconds):
        return measure.Contender(lambda: measure.time.sleep(seconds))

    effort = measure.Effort(0.02, min_rounds=3, max_rounds=3, sample_seconds=0, warm_seconds=0)
    timings = measure.interleave({"short": contender(0.002), "long": contender(0.02)}, effort)
    assert [len(t.samples) for t in timings.values()] == [3, 3]
    assert timings["short"].median >= 0.002
    assert timings["long"].median > 4 * timings["short"].median
    assert measure.Timing(1, [1.0, 2.0, 3.0, 4.0, 5.0]).quartiles == (2.0, 3.0, 4.0)


def test_a_round_that_is_thrown_away_leaves_no_roof(monkeypatch):
    probe = roof.Probe(cases.Case("rnn", "infer", T=64, B=64, I=256, H=256), LIMITS)
    samples, busy = iter([1.0, 2.0, 3.0, 4.0]), iter([0.0, 1.0, 0.0, 0.0])
    monkeypatch.setattr(probe, "sample", lambda warm_seconds: next(samples))
    monkeypatch.setattr(measure.Bystanders, "cores", lambda self, seconds: next(busy))
    effort = measure.Effort(0.01, min_rounds=3, max_rounds=3, sample_seconds=0, warm_seconds=0)
    sleeper = measure.Contender(lambda: measure.time.sleep(0.001))
    timings = measure.interleave({"sleeper": sleeper}, effort, probe=probe)
    assert probe.rates == [1.0, 3.0, 4.0]
    assert len(timings["sleeper"].samples) == 3


SHAPE = {"T": 5, "B": 3, "I": 4, "H": 6}


@pytest.mark.parametrize("mode", cases.MODES)
@pytest.mark.parametrize("options", [{}, *cases.OPTIONS])
def test_every_rival_agrees(mode, options, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    case = cases.Case("rnn", mode, **SHAPE, **options)
    data, expected = contract.Data(case), None
    for rival in rivals.installed():
        try:
            prepared = rival.prepare(case, data, threads=1)
        except contract.Unsupported:
            assert rival.name not in (names.OURS, names.TORCH)
            continue
        prepared.call()
        result = prepared.result()
        expected = expected or result
        contract.compare(case, expected, result)
    spoilt = {**expected, "output": expected["output"] + 1e-3}
    with pytest.raises(ValueError, match="output is off by"):
        contract.compare(case, expected, spoilt)


@pytest.mark.parametrize("B", [1, 3])
def test_rivals_agree_about_a_stream_and_go_on_from_their_state(B):
    case = cases.Case("step", "infer", B=B, I=4, H=6)
    data = contract.Data(case)
    rnn = torch.nn.RNN(4, 6)
    rnn.load_state_dict(data.state)
    with torch.no_grad():
        second = rnn(data.input.expand(2, B, 4))[0][1]
    streaming = {"rnnext", "torch.nn", "onnxruntime", "openvino", "jax"}
    for rival in (rival for rival in rivals.installed() if rival.name in streaming):
        prepared = rival.prepare(case, data, threads=1)
        for _ in range(3):
            prepared.call()
        contract.compare(case, {"output": contract.array(second)}, prepared.result())


@pytest.mark.parametrize("mode", cases.MODES)
@pytest.mark.parametrize("lower", [{"dtype": "bfloat16"}, {"precision": "medium"}])
def test_float32_runs_beside_less_precise_cases(mode, lower):
    own = torch_modules.OwnFloat32()
    with pytest.raises(contract.Unsupported):
        own.prepare(cases.Case("rnn", mode, **SHAPE), contract.Data(cases.Case("rnn", mode)), 1)
    case = cases.Case("rnn", mode, T=5, B=3, I=20, H=40, **lower)
    torch.set_float32_matmul_precision(case.precision)
    try:
        prepared = own.prepare(case, contract.Data(case), 1)
        with prepared.context():
            assert torch.get_float32_matmul_precision() == "highest"
            prepared.call()
        assert torch.get_float32_matmul_precision() == case.precision
        ours = rivals.ours().prepare(case, contract.Data(case), 1)
        contract.compare(case, ours.result(), prepared.result())
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("sparse", [False, True])
def test_embedding_rivals_agree_and_indices_change(sparse):
    case = cases.Case("embedding", "train", V=50, D=3, N=40, indices="zipf", sparse=sparse)
    data = contract.Data(case)
    ours, torchs = (r.prepare(case, data, 1) for r in (rivals.ours(), rivals.theirs()))
    assert contract.compare(case, ours.result(), torchs.result()) < 1e-6
    assert len({tuple(indices.tolist()) for indices in data.indices}) == contract.INDEX_SETS
    assert contract.saved_bytes(case, torchs) == 40 * 3 * 4  # the output; indices live anyway


@pytest.mark.parametrize("indices", ["uniform", "repeated"])
def test_embedding_rivals_agree_about_the_gradient_alone(indices):
    case = cases.Case("embedding", "backward", V=50, D=3, N=40, indices=indices)
    data = contract.Data(case)
    assert len(set(data.indices[0].tolist())) <= (50 if indices == "uniform" else 16)
    results = [r.prepare(case, data, 1).result() for r in (rivals.ours(), rivals.theirs())]
    assert results[0].keys() == {"grad:weight"}
    assert contract.compare(case, *results) < 1e-6


def test_the_demo_takes_the_same_steps_with_both_libraries():
    case = cases.Case("demo", "train", T=7, B=2, I=12, H=12, V=20)
    data = contract.Data(case)
    ours, theirs = (r.prepare(case, data, 1) for r in (rivals.ours(), rivals.theirs()))
    ours.call()
    assert contract.compare(case, ours.result(), theirs.result()) < 1e-5
    for rival in rivals.installed():
        if rival.name not in (names.OURS, names.TORCH):
            with pytest.raises(contract.Unsupported):
                rival.prepare(case, data, 1)


def test_saved_bytes_counts_output_and_kept_steps():
    case = cases.Case("rnn", "train", T=7, B=2, I=3, H=8)
    prepared = rivals.theirs().prepare(case, contract.Data(case), 1)
    output = 7 * 2 * 8 * 4
    initial_state = 2 * 8 * 4
    assert contract.saved_bytes(case, prepared) == 2 * output + initial_state


def run_of(label, factor):
    """A made-up run in which rnnext takes `factor` ms and torch.nn 10 ms on every case."""
    result = store.Result(label, measure.stamp(2), {0: LIMITS, 1: replace(LIMITS, threads=1)})
    for case in CASES:
        row = store.Row(case)
        if case.precision == "medium":
            row.seconds[names.FLOAT32] = {"median": factor * 1.7e-3}
        for rival, ms in ((names.OURS, factor), (names.TORCH, 10.0)):
            row.seconds[rival] = {"q1": ms * 0.9e-3, "median": ms * 1e-3, "q3": ms * 1.2e-3}
        row.saved_bytes = {names.OURS: 100, names.TORCH: 200}
        result.rows[case.name] = row
    return result


def test_store_round_trip_and_comparison(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FOLDER", tmp_path)
    slow, fast = run_of("slow", 4.0), run_of("fast", 2.0)
    slow.edges = {"infer H=62..63": [[62, 1.0], [63, 1.1]]}
    slow.save()
    assert store.load("slow") == slow
    assert store.load(str(tmp_path / "slow.json")) == slow
    with pytest.raises(FileNotFoundError, match="stored: slow"):
        store.load("missing")
    printed = report.comparison(slow, fast, names.OURS)
    assert f"geometric mean of {len(CASES)} rows: 2.000" in printed
    assert "1.50" in printed  # 3.6 / 2.4: the low end of the range


def test_combined_runs_are_medians():
    runs = [run_of(str(factor), factor) for factor in (2.0, 5.0, 3.0)]
    for n, run in enumerate(runs):
        run.edges = {"infer H=62..63": [[62, 1.0 + n], [63, 4.0 - n]]}
        for row in run.rows.values():
            row.roof = 1e11 * (1 + n)
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
    assert last.roof == 2e11
    assert combined.edges == {"infer H=62..63": [[62, 2.0], [63, 3.0]]}
    assert "median of 3 runs" in report.describe(combined)
    assert "rows" not in report.describe(runs[0])
    assert runs[0].rows[other].seconds[names.OURS]["median"] == pytest.approx(2e-3)


def test_bars_are_held_or_missed_by_their_numbers():
    def verdicts(factor):
        return {v.what: v for v in bars.evaluate(run_of("made-up", factor))}

    held, missed = verdicts(1.9), verdicts(5.0)
    assert held["infer over torch.nn: mean"].got == pytest.approx(10 / 1.9)
    assert held["infer over torch.nn: mean"].held
    assert not missed["infer over torch.nn: mean"].held
    assert missed["one call, RNNCell over torch.nn: worst row"].held
    assert held["output + saved bytes of torch.nn's: worst row"].held
    assert held["infer over the best rival: mean"].got == pytest.approx(10 / 1.9)
    assert held["bfloat16 and medium over our float32: worst row"].got == pytest.approx(1.7)
    assert held["cost per unit, one size to the next: worst rise"].held is None
    # What a kernel at the roof would get does not depend on how fast ours is.
    bounds = [
        roof.bound(case, LIMITS).seconds
        for case in CASES
        if case.kind == "rnn"
        and case.mode == "infer"
        and case.T > 1
        and case.threads == 0
        and case.dtype == "float32"
        and case.precision == "highest"
    ]
    top = 10e-3 / statistics.geometric_mean(bounds)
    for verdict in (held, missed):
        assert verdict["infer over torch.nn: mean"].at_roof == pytest.approx(top)


def test_worst_jump_counts_whole_vectors():
    even = [[size, float(costs.operations(edges.edge_case("infer", "B", size)))]
            for size in (12, 13)]  # fmt: skip
    assert edges.worst_jump({"infer B=12..13": even})[0] == pytest.approx(1)
    even[1][1] *= 1.5
    assert edges.worst_jump({"infer B=12..13": even}) == (pytest.approx(1.5), "infer B=12 to 13")
    # 65 units take five vectors of 16, as 80 do: not a jump.
    padded = [[64, 64.0 * 96], [65, 80.0 * 97]]
    assert edges.worst_jump({"infer H=64..65": padded})[0] == pytest.approx(1)


DOCUMENT = """# Title
<!-- benchmarks: readme -->
old
<!-- end -->
Between.
<!-- benchmarks: bars -->
<!-- end -->
After.
"""


def test_tables_replace_what_is_between_their_marks(tmp_path):
    result = run_of("made-up", 2.0)
    plain, document = tmp_path / "plain.md", tmp_path / "document.md"
    plain.write_text("no table")
    document.write_text(DOCUMENT)
    assert tables.write(result, [plain, document]) == [document]
    text = document.read_text()
    assert text.startswith("# Title\n<!-- benchmarks: readme -->\n\n|")
    assert "| the demo's whole training step | 100 | 20 | 256 | 256 | 2 ms | 10 ms | 5.0 |" in text
    assert "| one call, RNNCell over torch.nn: worst row | >= 1.5x | 5.00x | held |" in text
    assert "\nold\n" not in text
    assert "Between." in text
    assert text.endswith("<!-- end -->\nAfter.\n")
    assert max(len(line) for line in text.split("\n") if not line.startswith("|")) <= 100
    assert tables.write(result, [document]) == [document]
    assert document.read_text() == text
    with pytest.raises(ValueError, match="no table is called 'nonsense'"):
        tables.replaced("<!-- benchmarks: nonsense -->\n<!-- end -->", result)
    del result.rows["demo-T100-B20-I256-H256-train"]
    with pytest.raises(ValueError, match="no times of demo"):
        tables.replaced(DOCUMENT, result)


def test_a_text_table_has_its_columns_under_each_other():
    table = report.Table(["case", "x"], [["a", "1.0"], ["long", ""]])
    assert table.text() == "case    x\na     1.0\nlong"
    assert table.markdown() == "| case | x |\n| --- | ---: |\n| a | 1.0 |\n| long |  |"


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

    chosen = ("rnn-T1-B1-I8-H8-infer", "rnn-T35-B20-I200-H200-train-1thread")
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
