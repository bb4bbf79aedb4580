"""Promises of csrc/cuda/device.h that no result of a kernel shows: rounding, and what a flag is."""

import re
import struct
from types import SimpleNamespace

import pytest
import torch

from cuda_ptx import machine
from cuda_ptx.memory import Fault
from cuda_ptx.parse import kernel_of


@pytest.fixture(autouse=True, params=range(4))
def lib(lib, request):
    lib.seed = request.param
    with lib.tensors():
        yield lib


@pytest.fixture
def run(lib):
    """Runs wrappers.cu's kernel of this name, whose PTX `edit` may change; its output was zeros."""

    def run(name, given, *shape, dtype=torch.int32, blocks=1, edit=lambda text: text):
        (text,) = [lib.texts[each] for each in lib.texts if name in each]
        out = torch.zeros(shape, dtype=dtype)
        launch = SimpleNamespace(
            grid=(blocks, 1, 1), block=(32, 1, 1), cluster=1, shared_bytes=0, cooperative=blocks > 1
        )
        params = struct.pack("PP", given.data_ptr(), out.data_ptr())
        machine.run(kernel_of(edit(text)), launch, params, lib.arena, lib.seed)
        return out

    return run


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_are_rounded_to_the_nearest_and_ties_to_even(run, dtype):
    values = torch.tensor([0, -0.0, 1e-40, 1e-7, 65519, 65520, 3e38, 3.4e38, torch.inf, -torch.inf])
    given = torch.cat([values, 1 + torch.finfo(dtype).eps * torch.arange(-5.5, 5.5, 0.5)])
    name = "round_kernelI6__half" if dtype == torch.float16 else "round_kernelI13__nv_bfloat16"
    assert torch.equal(run(name, given, 32, dtype=dtype), given.to(dtype))


def test_tf32_rounds_to_nearest_and_ties_away_from_zero(run):
    one = 2.0**-10  # the last place of 11 bits
    given = torch.tensor([1 + one * x for x in (0.25, 0.5, 0.75, 1.5, -0.25)] + [0.0] * 27)
    for sign in (1, -1):
        out = run("tf32_kernel", sign * given, 32, dtype=torch.float32)
        assert out[:5].tolist() == [sign * (1 + one * x) for x in (0, 1, 1, 2, 0)]


def test_a_wait_for_what_never_comes_ends_and_says_so(run):
    def edit(text):
        return re.sub(r"\n\s*st\.release\S+ ", "\n// lost ", text)

    with pytest.raises(Fault, match="trap in block"):
        run("flag_kernel", torch.zeros(1), 1, blocks=2, edit=edit)


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        (r"ld\.acquire\.gpu", "ld.relaxed.cta", "other blocks are outside its scope"),
        (r"st\.release\.gpu", "st.relaxed.cluster", "other blocks are outside its scope"),
        (r"(st\.release\.gpu\.global)\.u32 (\S+), (%r\d+)", r"\1.v2.u32 \2, {\3, \3}",
         "a vector is several accesses"),
    ],
)  # fmt: skip
def test_a_flag_is_one_number_that_the_whole_gpu_sees(run, pattern, replacement, message):
    """(test_faults.py has acquire and release.)"""

    def edit(text):
        text, count = re.subn(pattern, replacement, text)
        assert count
        return text

    with pytest.raises(Fault, match=message):
        run("flag_kernel", torch.zeros(1), 1, blocks=2, edit=edit)
