"""The build gate of the CUDA half refuses what it should."""

import pytest

from tools import cuda_build

REPORT = """\
ptxas info    : Compiling entry function '_ZN6rnnext4cuda17recurrence_kernelIfEEvi' for 'sm_80'
ptxas info    : Function properties for _ZN6rnnext4cuda17recurrence_kernelIfEEvi
    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used 96 registers, used 1 barriers, 1024 bytes smem, 424 bytes cmem[0]
ptxas info    : Function properties for _ZN6rnnext4cuda4stepEv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""


@pytest.mark.parametrize("what", ["", "stack", "stores", "loads"])
def test_the_gate_refuses_kernels_that_keep_something_in_memory(what):
    found = cuda_build.faults(REPORT.format(**{"stack": 0, "stores": 0, "loads": 0} | {what: 8}))
    wrong = ["recurrence_kernel<float> on sm_80: registers spilled"]
    assert found == (wrong if what else [])
