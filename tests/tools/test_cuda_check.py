"""The GPU check: cases that hang or die harm no other, runs go on, and a rehearsal of all of it."""

import os
import sys
import time

import torch

from benchmarks.names import OURS, TORCH
from helpers.common import ROOT, assert_refused, run_python
from tools.cuda_check import __main__ as check
from tools.cuda_check import records, report, work
from tools.cuda_check.isolate import isolated


def test_a_case_that_hangs_or_dies_says_so():
    assert isolated(lambda: {"us": 1.0}, 60) == ("", {"us": 1.0})
    assert isolated(lambda: 1 // 0, 60)[0].startswith("ZeroDivisionError")
    assert isolated(lambda: os._exit(3), 60) == ("the process died, exit code 3", None)
    assert isolated(lambda: time.sleep(60), 0.2) == ("not done after 0 s", None)


def test_a_test_that_dies_leaves_the_others(tmp_path):
    text = "import os\ndef test_dies(): os._exit(1)\ndef test_after(): pass\n"
    (tmp_path / "test_some.py").write_text(text)
    options = ["-p", "tools.cuda_check.isolate", "-p", "no:xdist", "-p", "no:cacheprovider"]
    done = run_python("-m", "pytest", *options, str(tmp_path), cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert "1 failed, 1 passed" in done.stdout
    assert "test_some.py::test_dies\n" in done.stderr  # before it runs


def test_a_path_that_gives_nan_does_not_pass(monkeypatch):
    monkeypatch.setattr(work, "small", lambda *_: lambda: [torch.tensor(torch.nan)] * 6)
    assert_refused(work.agree, ValueError, "off by nan", "step", "float32")


def stage(name, text, **options):
    return check.Stage(name, 9, [sys.executable, "-c", text], **options)


def test_a_run_goes_on_with_what_has_not_passed(tmp_path):
    def run(*stages):
        for each in stages:
            check.run(each, each.seconds, tmp_path, dict(os.environ))
        return check.outcomes(tmp_path)

    good = stage("good", "open('ran', 'a').write('x')")
    late = check.Stage("late", 0.5, [sys.executable, "-c", "import time; time.sleep(60)"])
    missing = stage("missing", "", lacks="no such tool")
    outcomes = run(good, stage("bad", "exit(3)"), stage("of it", "", needs="bad"), late, missing)
    assert outcomes == {
        "good": "passed",
        "bad": "failed: exit code 3",
        "of it": "skipped: bad did not pass",
        "late": "failed: not done after 0 s",
        "missing": "absent: no such tool",
    }
    outcomes = run(good, stage("bad", ""), stage("of it", "", needs="bad"))
    assert (outcomes["bad"], outcomes["of it"]) == ("passed", "passed")
    assert (tmp_path / "ran").read_text() == "x"


def test_the_report_names_slow_choices_and_what_failed(tmp_path):
    for path, us in (("chosen", 3.0), ("cluster", 3.0), ("grid", 2.0)):
        records.append(tmp_path, "paths", f"f32 H=1 B=1: {path}", us=us)
    records.append(tmp_path, "smoke", "grid, float32", error="off by 1.0e+00")
    for T, us in ((128, 1000.0), (1024, 2000.0)):
        records.append(tmp_path, "bench", f"rnn-T{T}-B1", us={OURS: us, TORCH: 3 * us})
    with (tmp_path / records.FIGURES).open("a") as file:
        file.write('{"stage": "smoke", "na')  # cut off
    page = report.write(tmp_path)
    assert "f32 H=1 B=1    3.00     3.00  2.00    1.50" in page
    assert "grid, float32: off by 1.0e+00" in page
    rows = [row.split() for row in page.splitlines()]
    assert ["rnn-T1024-B1", "2000", "6000", "3.00", "1.12"] in rows


def test_without_a_gpu_the_check_says_so_and_fails(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check, "capability", lambda: "")
    assert check.main(["--out", str(tmp_path)]) == 1
    assert "no GPU" in capsys.readouterr().out


def test_a_rehearsal_runs_every_case(tmp_path, monkeypatch):
    names = ["preflight", "smoke", "tests", "paths", "stress"]  # others need nvcc
    monkeypatch.setattr(check, "TESTS", check.TESTS[2:])  # tests/cuda_ptx has the others
    assert check.main(["--dry-run", "--out", str(tmp_path), "--only", *names]) == 0
    for name in ("smoke", "paths", "stress"):
        found = records.read(tmp_path, name)
        assert found
        assert not [n for n, record in found.items() if "error" in record]


def test_the_page_names_every_file_and_stage(tmp_path):
    page = (ROOT / "docs" / "cuda-check.md").read_text()
    for name in (records.FIGURES, records.LOG, records.REPORT):
        assert f"`{name}`" in page
    for each in check.stages(tmp_path, dry=True):
        assert f"| {each.name} |" in page
