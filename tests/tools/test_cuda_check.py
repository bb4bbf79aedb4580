"""The build gate and the bars of the GPU check say held where they should, and missed."""

import subprocess
import sys
from copy import deepcopy

import pytest

from benchmarks import bars, cases, roof, store
from benchmarks.bars import cuda as cuda_bars
from benchmarks.names import OURS, STEP_PATH, TORCH
from tools import cuda_build, cuda_check

REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN6rnnext4cuda17recurrence_kernelIfEEvi' for 'sm_80'
ptxas info    : Function properties for _ZN6rnnext4cuda17recurrence_kernelIfEEvi
    {stack} bytes stack frame, {spilled} bytes spill stores, {spilled} bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, 1024 bytes smem, 424 bytes cmem[0]
ptxas info    : Compiling entry function '_ZN6rnnext4cuda4stepEv' for 'sm_90'
ptxas info    : Function properties for _ZN6rnnext4cuda4stepEv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
"""
BOTH = {"TORCH_CUDA_ARCH_LIST": "8.0;9.0+PTX"}


def read(folder, **numbers):
    numbers = {"stack": 0, "spilled": 0, "registers": 96} | numbers
    (folder / "kernel.o").touch()
    (folder / "kernel.o.report").write_text(REPORT.format(**numbers))
    return cuda_build.read_reports(folder)


def test_the_resource_report_is_read(tmp_path, capsys):
    usages = read(tmp_path)
    assert usages == [
        cuda_build.Usage("recurrence_kernel<float>", "80", registers=96, shared=1024),
        cuda_build.Usage("step", "90", registers=32),
    ]
    assert cuda_build.faults(usages, BOTH) == []
    cuda_build.print_table(usages)
    assert "sm_ 80  sm_ 90" in capsys.readouterr().out


def test_kernels_have_the_names_of_their_nonlinearities():
    kernel = "_ZN6rnnext4cuda17recurrence_kernelINS0_5FixedILNS_12NonlinearityE1EEEEEvv"
    (usage,) = cuda_build.demangled([cuda_build.Usage(kernel, "80")])
    assert usage.kernel == "recurrence_kernel<Fixed<relu> >"


def test_a_report_without_its_object_is_ignored(tmp_path):
    read(tmp_path)
    (tmp_path / "kernel.o").unlink()
    assert cuda_build.read_reports(tmp_path) == []


@pytest.mark.parametrize(
    ("numbers", "archs", "message"),
    [
        ({"spilled": 8}, BOTH, "spilled"),
        ({"stack": 16}, BOTH, "stack frame"),
        ({"registers": 248}, BOTH, "248 registers, at most"),
        ({}, {"TORCH_CUDA_ARCH_LIST": "8.0;9.0;12.0"}, "no kernel was compiled for sm_120"),
    ],
)
def test_the_gate_refuses(tmp_path, numbers, archs, message):
    (fault,) = cuda_build.faults(read(tmp_path, **numbers), archs)
    assert message in fault


def test_the_gate_refuses_a_report_without_resident_kernels(tmp_path):
    usages = [usage for usage in read(tmp_path) if usage.kernel == "step"]
    assert "the report does not name recurrence_kernel" in cuda_build.faults(usages, {**BOTH})


ROOF = roof.Roof(0, dict.fromkeys(("float32", "tf32", "bfloat16", "float16"), 1e14),
                 {"DRAM": 1e12}, {})  # fmt: skip


def run_at(ours, theirs):
    """Every case of the GPU's grid with the same two times, in seconds."""
    seconds = {OURS: {"median": ours}, TORCH: {"median": theirs}}
    rows = {c.name: store.Row(c, deepcopy(seconds)) for c in cases.CASES["cuda"]}
    return store.Result("made-up", roofs={0: ROOF}, rows=rows)


def held(result):
    return {verdict.what: verdict.held for verdict in bars.evaluate(result)}


def test_bars_are_held_by_fast_rows_and_missed_by_slow_ones():
    fast = list(held(run_at(1e-4, 3e-4)).values())
    assert fast[:4] == [True] * 4
    slow = list(held(run_at(1e-3, 5e-4)).values())
    assert slow == [False] * 5
    assert [v.held for v in cuda_bars.evaluate(store.Result("empty"))] == [None] * 5


def test_one_slow_row_misses_its_bar_alone():
    result = run_at(1e-4, 3e-4)
    result.rows["rnn-T256-B8-I2048-H2048-train-cuda"].seconds[OURS]["median"] = 2e-4
    verdicts = {v.what: v for v in bars.evaluate(result)}
    missed = [what for what, v in verdicts.items() if not v.held and "forward" not in what]
    assert missed == ["over cuDNN where it has no persistent kernel"]
    assert "rnn-T256-B8-I2048-H2048-train-cuda; " in verdicts[missed[0]].detail


def test_the_forward_bar_compares_bytes_with_the_copy():
    result = run_at(1.0, 1.0)
    for row in result.rows.values():
        size = 4 if row.case.dtype == "float32" else 2
        row.seconds[OURS]["median"] = 2 * row.case.N * row.case.D * size / 1e12 / 0.9 or 1.0
    *_, forward = bars.evaluate(result)
    assert forward.held
    assert forward.got == pytest.approx(90)


def test_the_least_time_on_a_gpu_is_of_products_or_of_memory():
    wide = cases.Case("rnn", "infer", T=64, B=256, I=512, H=512, precision="high", device="cuda")
    assert roof.bound(wide, ROOF).limit == "FMA"
    gather = cases.Case("embedding", "infer", V=1000, D=64, N=10, device="cuda")
    assert roof.bound(gather, ROOF).limit == "DRAM"


def test_the_rehearsal_has_a_case_of_every_kind():
    def kinds(of):
        return {(c.kind, c.mode, c.bidirectional, c.packed, c.indices) for c in of}

    assert kinds(cases.REHEARSAL) == kinds(cases.CASES["cuda"])
    assert {c.device for c in cases.REHEARSAL} == {"cpu"}


def test_a_rehearsed_bench(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cases, "REHEARSAL", cases.REHEARSAL[:1])
    check = cuda_check.Check(tmp_path, "cpu", {})
    check.bench(rehearsal=True, budget=100)
    result = store.load(str(tmp_path / "check.json"))
    first = next(iter(result.rows.values()))
    assert first.seconds.keys() >= {OURS, TORCH, STEP_PATH}
    assert check.steps["bench"].startswith("passed"), capsys.readouterr().out
    assert first.case.name in (tmp_path / "table.txt").read_text()
    assert (tmp_path / "steps-float32.png").stat().st_size > 1000


def test_without_a_gpu_the_check_says_so_and_fails(tmp_path):
    code = "import torch; torch.cuda.is_available = lambda: False; import runpy; import sys; "
    code += "sys.argv[1:] = ['--out', sys.argv[1]]; "
    code += "runpy.run_module('tools.cuda_check', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=cuda_build.ROOT,
    )
    assert done.returncode == 1
    assert "no GPU" in done.stdout + done.stderr
