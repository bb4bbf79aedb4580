"""Each wrapper of csrc/cuda/device.h alone, against what its comment says."""

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
    """Runs the kernel of wrappers.cu of this name on a tensor; returns its output, which was zeros.
    `edit` may change the PTX."""

    def run(name, given, *shape, dtype=torch.int32, blocks=1, cluster=1, edit=lambda text: text):
        (text,) = [lib.texts[each] for each in lib.texts if name in each]
        out = torch.zeros(shape, dtype=dtype)
        launch = SimpleNamespace(
            grid=(blocks, 1, 1), block=(32, 1, 1), cluster=cluster, shared_bytes=2048,
            cooperative=blocks > cluster,
        )  # fmt: skip
        params = struct.pack("PP", given.data_ptr(), out.data_ptr())
        machine.run(kernel_of(edit(text)), launch, params, lib.arena, lib.seed)
        return out

    return run


def numbers(*shape):
    return torch.randint(0, 1 << 20, shape, dtype=torch.int32)


def test_a_division_by_multiplying(run):
    for n in (2, 3, 7, 12, 100, 65535):
        x = torch.randint(0, 2**32 // n, (33,))
        x[32] = -(-(2**32) // n)
        assert torch.equal(run("divide_kernel", x, 32, dtype=torch.int64), x[:32] // n)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_are_rounded_to_the_nearest_and_ties_to_even(run, dtype):
    values = torch.tensor([0, -0.0, 1e-40, 1e-7, 65519, 65520, 3e38, 3.4e38, torch.inf, -torch.inf])
    step = torch.finfo(dtype).eps
    given = torch.cat([values, 1 + step * torch.arange(-5.5, 5.5, 0.5)])
    name = "round_kernelI6__half" if dtype == torch.float16 else "round_kernelI13__nv_bfloat16"
    assert torch.equal(run(name, given, 32, dtype=dtype), given.to(dtype))


@pytest.mark.parametrize("size", [4, 8, 16])
def test_a_copy_brings_its_bytes(run, size):
    given = torch.randint(0, 256, (32 * size,), dtype=torch.uint8)
    assert torch.equal(run(f"copy_kernelILi{size}E", given, 32 * size, dtype=torch.uint8), given)


@pytest.mark.parametrize(
    ("name", "dtype", "k"),
    [("6__half", torch.float16, 16), ("13__nv_bfloat16", torch.bfloat16, 16),
     ("N6rnnext4cuda4Tf32", torch.float32, 8)],
)  # fmt: skip
def test_mma_multiplies_and_adds(run, name, dtype, k):
    given = torch.randint(-8, 9, (24, k)).to(dtype)
    a, b = given.float().split([16, 8])
    assert torch.equal(run(f"mma_kernelI{name}", given, 16, 8, dtype=torch.float32), a @ b.t() + 1)


def test_tf32_rounds_to_nearest_and_ties_away_from_zero(run):
    one = 2.0**-10  # the last place of 11 bits
    given = torch.tensor([1 + one * x for x in (0.25, 0.5, 0.75, 1.5, -0.25)] + [0.0] * 27)
    for sign in (1, -1):
        out = run("tf32_kernel", sign * given, 32, dtype=torch.float32)
        assert out[:5].tolist() == [sign * (1 + one * x) for x in (0, 1, 1, 2, 0)]


# By kernel: how many blocks run, how many form a cluster, the input's shape, the output's size,
# and what the output must begin with.
HANDED_ON = {
    "two_copies": (1, 1, (64,), 64, lambda x: x),  # a wait may leave the newest under way
    "neighbours": (8, 4, (2, 4, 32), 256, lambda x: x.roll(1, 1)),  # before a cluster's barrier
    "flag": (2, 1, (32,), 65, lambda x: x),  # before a flag that is released and acquired
}


@pytest.mark.parametrize("name", HANDED_ON)
def test_data_that_is_handed_on_has_arrived(run, name):
    blocks, cluster, shape, size, wanted = HANDED_ON[name]
    given = numbers(*shape)
    out = run(f"{name}_kernel", given, size, blocks=blocks, cluster=cluster)
    assert torch.equal(out[: given.numel()], wanted(given).flatten())


def test_a_wait_for_what_never_comes_ends_and_says_so(run):
    def edit(text):
        return re.sub(r"\n\s*st\.release\S+ ", "\n// lost ", text)

    with pytest.raises(Fault, match="trap in block"):
        run("flag_kernel", numbers(32), 65, blocks=2, edit=edit)


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        (r"ld\.acquire\.gpu", "ld.acquire.cta", "other blocks are outside its scope"),
        (r"st\.release\.gpu", "st.release.cta", "other blocks are outside its scope"),
        (r"ld\.acquire\.gpu", "ld.relaxed.cta", "other blocks are outside its scope"),
        (r"st\.release\.gpu", "st.relaxed.cluster", "other blocks are outside its scope"),
        (r"(st\.release\.gpu\.global)\.u32 (\S+), (%r\d+)", r"\1.v2.u32 \2, {\3, \3}",
         "a vector is several accesses"),
    ],
)  # fmt: skip
def test_a_flag_is_one_number_that_the_whole_gpu_sees(run, pattern, replacement, message):
    def edit(text):
        text, count = re.subn(pattern, replacement, text)
        assert count
        return text

    with pytest.raises(Fault, match=message):
        run("flag_kernel", numbers(32), 66, blocks=2, edit=edit)
