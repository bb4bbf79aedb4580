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


def read(**numbers):
    numbers = {"stack": 0, "spilled": 0, "registers": 96} | numbers
    return cuda_build.read_report(REPORT.format(**numbers))


def test_the_resource_report_is_read():
    usages = read()
    assert usages == [
        cuda_build.Usage("recurrence_kernel<float>", "80", registers=96),
        cuda_build.Usage("step", "90", registers=32),
    ]
    assert cuda_build.faults(usages) == []


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"spilled": 8}, "spilled"),
        ({"stack": 16}, "stack frame"),
        ({"registers": 248}, "248 registers, at most"),
    ],
)
def test_the_gate_refuses(numbers, message):
    (fault,) = cuda_build.faults(read(**numbers))
    assert message in fault


def test_the_gate_refuses_a_report_without_resident_kernels():
    usages = [usage for usage in read() if usage.kernel == "step"]
    assert cuda_build.faults(usages) == ["the report does not name recurrence_kernel"]
