"""The GPU check: its bars, its stages' arithmetic, and a rehearsal of what can run here."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.names import OURS, TORCH
from tools.cuda_check import (
    __main__,
    bench,
    counters,
    exchange,
    geometries,
    micro,
    programs,
    records,
    stages,
    stress,
    trace,
)
from tools.cuda_check.stages import Stage


def test_a_rehearsed_bench(tmp_path, monkeypatch):
    first = next(bench.cases("cpu"))
    monkeypatch.setattr(bench, "cases", lambda device: [first])
    monkeypatch.setattr(sys, "argv", ["bench", str(tmp_path), "--device", "cpu"])
    bench.main()
    (row,) = records.read(tmp_path, "bench")
    assert min(row[OURS], row[TORCH]) > 0
    assert first.name in bench.text(tmp_path)


# ---- stages


def script(text):
    return [[sys.executable, "-c", text]]


def test_a_failed_stage_does_not_stop_the_others(tmp_path):
    check = __main__.Check(tmp_path, {})
    assert check.run(Stage("bad", 9, script("print('why'); raise SystemExit(3)")), 9) == (
        "failed: exit code 3"
    )
    assert check.run(Stage("of it", 9, script(""), needs=("bad",)), 9) == (
        "skipped: bad did not pass"
    )
    assert check.run(Stage("none", 9, script(""), lacks="no tool"), 9) == "absent: no tool"
    assert check.run(Stage("late", 9, script("")), -1) == "failed: no time was left"
    assert check.run(Stage("good", 9, script("print('said')")), 9) == "passed"
    outcomes = {r["name"]: r["outcome"] for r in records.read(tmp_path, "outcome")}
    assert outcomes == check.outcomes
    log = (tmp_path / records.LOG).read_text()
    assert "why" in log
    assert "said" in log


def test_a_stage_that_hangs_is_ended_with_all_that_it_started(tmp_path):
    mark = tmp_path / "mark"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(mark)!r}).touch()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    check = __main__.Check(tmp_path, {})
    assert check.run(Stage("hangs", 1, script(parent)), 1) == "failed: not done after 1 s"
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", "import time; time.sleep(9)"], timeout=3)
    assert not mark.exists()


@pytest.fixture
def _h100(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))


@pytest.mark.usefixtures("_h100")
def test_the_check_ends_within_its_time(tmp_path):
    chosen = list(stages.on_gpu(tmp_path))
    assert sum(stage.seconds for stage in chosen) == 590
    names = [stage.name for stage in chosen]
    assert names[-1] == "racecheck"
    assert not any("tests" in stage.needs for stage in chosen)  # the sanitizer least of all
    for stage in stages.rehearsed(tmp_path):
        assert stage.name in [*names, "sanitizers"]


def test_without_a_gpu_the_check_says_so_and_fails(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert __main__.main(["--out", str(tmp_path)]) == 1
    assert "no GPU" in capsys.readouterr().out


def test_a_rehearsal_of_nothing_fails(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(__main__, "NEEDED", ("torch", "no_such_package"))
    assert __main__.main(["--out", str(tmp_path), "--dry-run"]) == 1
    assert "nothing can run without no_such_package" in capsys.readouterr().out
    monkeypatch.setattr(__main__, "NEEDED", ())
    lacking = [Stage("build", 1, script(""), lacks="no nvcc")]
    monkeypatch.setitem(__main__.STAGES, "cpu", lambda out: iter(lacking))
    assert __main__.main(["--out", str(tmp_path), "--dry-run"]) == 1


REHEARSED = ["micro", "trace", "exchange", "geometries", "stress", "counters"]


def test_a_rehearsal_leaves_figures_of_every_stage(tmp_path):
    assert __main__.main(["--out", str(tmp_path), "--dry-run", "--only", *REHEARSED]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        records.FIGURES, records.LOG, records.REPORT
    }  # fmt: skip
    assert {r["stage"] for r in records.read(tmp_path)} == {*REHEARSED, "outcome"}
    text = (tmp_path / records.REPORT).read_text()
    for title in ("Microbenchmarks", "Where a step's cycles go", "Forced geometries", "Counters"):
        assert title in text
    steps = {r["path"]: r["parts"] for r in records.read(tmp_path, "trace")}
    assert steps.keys() == {"block", "cluster", "grid", "cluster tagged", "grid tagged"}
    for parts in steps.values():
        assert all(parts[name] > 0 for name in trace.PARTS)
        assert parts["step"] >= len(trace.PARTS)

    assert {r["path"] for r in records.read(tmp_path, "exchange")} == {"cluster", "grid"}
    assert all(r["same"] for r in records.read(tmp_path, "exchange"))


def test_the_exchange_to_keep_has_the_same_bits_and_is_faster():
    row = {"path": "grid", "same": True, "fenced": 4e-6, "tagged": 2e-6}
    other = {"path": "cluster", "same": True, "fenced": 2e-6, "tagged": 3e-6}
    keep = "grid: keep tagged: the same bits, a step takes 0.50 times that with fences"
    assert exchange.verdict([row, other], "grid") == keep
    assert exchange.verdict([row, other], "cluster").startswith("cluster: keep fenced: the same")
    wrong = exchange.verdict([row, row | {"same": False}], "grid")
    assert wrong == "grid: keep fenced: other bits in 1 of 2 cases"


def test_the_toolkit_is_found_where_its_compiler_says(tmp_path):
    home, script = tmp_path / "toolkit", tmp_path / "bin" / "nvcc"
    for folder in (home / "bin", script.parent):
        folder.mkdir(parents=True)
    for text in (f"#$ _SPACE_= \n#$ TOP={home}/bin/..\n#$ NVVM=x\n", ""):
        script.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{text}END\n")
        script.chmod(0o755)
        assert programs.home_of(str(script)) == (home if text else tmp_path)


@pytest.mark.skipif(programs.find_nvcc() is None, reason="there is no nvcc")
def test_the_programs_compile(tmp_path):
    programs.rehearse(programs.find_nvcc(), tmp_path)
    assert (tmp_path / "micro.o").stat().st_size > 0
    assert (tmp_path / "trace.o").stat().st_size > 0


# ---- figures


def test_a_record_that_was_cut_off_is_left_out(tmp_path):
    records.append(tmp_path, "micro", name="sm_clock", value=1.9)
    records.append(tmp_path, "trace", parts={})
    with (tmp_path / records.FIGURES).open("a") as file:
        file.write('{"stage": "micro", "na')
    assert [r["stage"] for r in records.read(tmp_path)] == ["micro", "trace"]
    assert records.sm_clock(tmp_path) == 1.9


def test_the_microbenchmarks_print_what_is_read():
    source = (programs.HERE / "micro.cu").read_text()
    for line in micro.STAND_IN:
        assert f'"{json.loads(line)["name"]}"' in source


def test_a_trace_is_split_at_its_places_through_the_ring_and_the_clock():
    cycles = [10, 20, 30, 40, 50, 60, 7]
    steps, now = [], trace.CYCLE - 1000
    for _ in range(trace.STEPS):
        places = [now + sum(cycles[:i]) for i in range(7)]
        steps.append([at % trace.CYCLE for at in places])
        now += sum(cycles)
    for turn in (0, 1, 40, trace.STEPS - 1):
        parts = trace.split(steps[turn:] + steps[:turn])
        assert parts == dict(zip((*trace.PARTS, "step"), [*cycles, sum(cycles)], strict=True))


def made_up_rows():
    factors = {"fixed block": 2.0, "fixed grid": 0.5, "product": 1.5, "cell": 0.25}
    rows = []
    for n in range(1, 9):
        for path in ("block", "grid"):
            terms = {f"fixed {path}": 1000.0, "product": 100.0 * n * n, "cell": 60.0 * (9 - n)}
            cycles = sum(factors[name] * value for name, value in terms.items())
            rows.append({"compute": "f32", "H": n, "B": 1, "terms": terms, "cycles": cycles})
    return rows, factors


def test_the_fit_finds_by_how_much_each_constant_is_off():
    rows, factors = made_up_rows()
    assert geometries.fit(rows) == pytest.approx(factors)
    rows[0]["terms"]["no cost"] = 1000.0  # it would have to be negative
    rows[0]["cycles"] -= 500
    assert all(factor >= 0 for factor in geometries.fit(rows).values())


def test_the_regret_is_what_a_choice_costs():
    rows, factors = made_up_rows()
    before = geometries.regret(rows)  # the model finds both the same, and takes the first
    for problem, ratio in before.items():
        slow, fast = (r["cycles"] for r in rows if problem == f"f32 H={r['H']} B=1")
        assert ratio == pytest.approx(slow / fast)
    assert set(geometries.regret(rows, factors).values()) == {1.0}


def test_counters_are_read_from_what_ncu_prints():
    (found,) = counters.parse(counters.STAND_IN)
    assert found["kernel"] == "void rnnext::cuda::recurrence_kernel<stand-in>"
    assert found["counters"]["sm__cycles_elapsed.max"] == ("1,000", "cycle")
    assert list(counters.parse("==ERROR== no permission\n")) == []


def test_stress_sees_what_a_call_leaves_out(monkeypatch):
    def forgets(*_):
        def call():
            memory = torch.empty(8)
            memory[:5] = 0
            return [memory]

        return call

    monkeypatch.setattr(stress, "make_call", forgets)
    monkeypatch.setattr("helpers.device.ON_GPU", False)
    assert stress.replays("cpu", "block", torch.float32, 0.0)["unwritten"] == 1


def test_stress_sees_other_bits(monkeypatch):
    count = itertools.count()
    monkeypatch.setattr(stress, "make_call", lambda *_: lambda: [torch.ones(3) * (next(count) > 2)])
    monkeypatch.setattr("helpers.device.ON_GPU", False)
    assert stress.replays("cpu", "block", torch.float32, 0.05)["wrong"] > 0


def test_the_page_names_every_file_and_stage():
    page = (Path(programs.ROOT) / "docs" / "cuda-check.md").read_text()
    for name in (records.FIGURES, records.LOG, records.REPORT, *micro.CONSTANTS):
        assert f"`{name}`" in page
    for part in trace.PARTS:
        assert f"| {part} |" in page
