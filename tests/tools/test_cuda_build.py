"""The build gate of the CUDA half refuses what it should."""

import pytest

from tools import cuda_build

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
