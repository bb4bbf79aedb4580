"""The build gate and the targets of the GPU check say held where they should, and missed."""

import dataclasses
import subprocess
import sys

import pytest

from benchmarks import cuda_bench, cuda_build, cuda_report

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


ROOF = cuda_bench.Roof(1e12, dict.fromkeys(cuda_bench.DTYPES, 1e14))


def rows_at(ours, theirs):
    """Every case of the report with the same two times, in seconds."""
    seconds = {cuda_bench.OURS: ours, cuda_bench.CUDNN: theirs}
    return [cuda_bench.Row(c, dict(seconds), {}, {}) for c in cuda_bench.all_cases(rehearsal=False)]


def test_targets_are_held_by_fast_rows_and_missed_by_slow_ones():
    fast = cuda_report.verdicts(rows_at(1e-4, 3e-4), ROOF)
    assert [verdict.held for verdict in fast[:4]] == [True] * 4
    slow = cuda_report.verdicts(rows_at(1e-3, 5e-4), ROOF)
    assert not any(verdict.held for verdict in slow)
    assert not any(verdict.held for verdict in cuda_report.verdicts([], ROOF))


def test_one_slow_row_misses_its_target_alone():
    rows = rows_at(1e-4, 3e-4)
    wanted = {"kind": "rnn", "dtype": "float32", "H": 2048, "B": 8, "train": True}
    (slow,) = [r for r in rows if wanted.items() <= dataclasses.asdict(r.case).items()]
    slow.seconds[cuda_bench.OURS] = 2e-4
    held = {v.target: v.held for v in cuda_report.verdicts(rows, ROOF)}
    assert [target for target, ok in held.items() if not ok and "forward" not in target] == [
        ">= 2x cuDNN where it has no persistent kernel"
    ]


def test_the_forward_target_compares_bytes_with_the_copy():
    rows = rows_at(1.0, 1.0)
    for row in rows:
        row.seconds[cuda_bench.OURS] = row.case.bytes_moved / ROOF.bandwidth / 0.9
    *_, forward = cuda_report.verdicts(rows, ROOF)
    assert forward.held
    assert "90%" in forward.measured


def test_without_a_gpu_the_check_says_so_and_fails(tmp_path):
    code = "import torch; torch.cuda.is_available = lambda: False; import runpy; import sys; "
    code += "sys.argv[1:] = ['--out', sys.argv[1]]; "
    code += "runpy.run_module('benchmarks.cuda_check', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=cuda_build.ROOT,
    )
    assert done.returncode == 1
    assert "no GPU" in done.stdout + done.stderr
