"""Each wrapper of csrc/cuda/device.h and mbarrier.h alone, against what its comment says."""

import ctypes
import re

import pytest
import torch

from cuda_ptx.library import KernelError


@pytest.fixture(autouse=True, params=range(4))
def lib(lib, request):
    lib.mode(request.param)
    with lib.tensors():
        yield lib


@pytest.fixture
def run(lib):
    """What a kernel of wrappers.cu makes of a tensor, in zeros of a shape."""

    def run(name, given, *shape, dtype=torch.int32):
        out = torch.zeros(shape, dtype=dtype)
        lib.run("run_wrapper", ctypes.create_string_buffer(name.encode()), given, out)
        return out

    return run


def numbers(*shape):
    return torch.randint(0, 1 << 20, shape, dtype=torch.int32)


def test_a_division_by_multiplying(run):
    for n in (2, 3, 7, 12, 100, 65535):
        x = torch.randint(0, 2**32 // n, (33,))
        x[32] = -(-(2**32) // n)
        assert torch.equal(run("divide", x, 32, dtype=torch.int64), x[:32] // n)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_are_rounded_to_the_nearest_and_ties_to_even(run, dtype):
    values = torch.tensor([0, -0.0, 1e-40, 1e-7, 65519, 65520, 3e38, 3.4e38, torch.inf, -torch.inf])
    step = torch.finfo(dtype).eps
    given = torch.cat([values, 1 + step * torch.arange(-5.5, 5.5, 0.5)])
    name = str(dtype).replace("torch.", "round ")
    assert torch.equal(run(name, given, 32, dtype=dtype), given.to(dtype))


@pytest.mark.parametrize("size", [4, 8, 16])
def test_a_copy_brings_its_bytes(run, size):
    given = torch.randint(0, 256, (32 * size,), dtype=torch.uint8)
    assert torch.equal(run(f"copy {size}", given, 32 * size, dtype=torch.uint8), given)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "tf32"])
def test_mma_multiplies_and_adds(run, name):
    dtype, k = (torch.float32, 8) if name == "tf32" else (getattr(torch, name), 16)
    given = torch.randint(-8, 9, (24, k)).to(dtype)
    a, b = given.float().split([16, 8])
    assert torch.equal(run(f"mma {name}", given, 16, 8, dtype=torch.float32), a @ b.t() + 1)


def test_tf32_rounds_to_nearest_and_ties_away_from_zero(run):
    one = 2.0**-10  # the last place of 11 bits
    given = torch.tensor([1 + one * x for x in (0.25, 0.5, 0.75, 1.5, -0.25)] + [0.0] * 27)
    for sign in (1, -1):
        out = run("round tf32", sign * given, 32, dtype=torch.float32)
        assert out[:5].tolist() == [sign * (1 + one * x) for x in (0, 1, 1, 2, 0)]


# By kernel: the shape of what it is given, how much it writes, and what the first of that must be.
HANDED_ON = {
    "two copies": ((64,), 64, lambda x: x),  # of which a wait may leave the newest under way
    "neighbours": ((2, 4, 32), 256, lambda x: x.roll(1, 1)),  # stored before a cluster's barrier
    "async": ((3, 4, 32, 4), 1536, lambda x: x.roll(1, 1)),  # counted by an mbarrier, by phases
    "flag": ((32,), 65, lambda x: x),  # stored before the flag that is released and acquired
    "tagged": ((32,), 160, lambda x: 3 * x + 3),  # in words that bring their number along
}


@pytest.mark.parametrize("name", HANDED_ON)
def test_what_is_handed_on_is_there(run, name):
    shape, size, wanted = HANDED_ON[name]
    given = numbers(*shape)
    assert torch.equal(run(name, given, size)[: given.numel()], wanted(given).flatten())


@pytest.mark.parametrize(
    ("name", "lost", "block"),
    [("flag", "release", "block 1"), ("tagged", "relaxed", "block 1"), ("async", "async", "block")],
)
def test_a_wait_for_what_never_comes_ends_and_says_so(lib, run, name, lost, block):
    (kernel,) = [each for each in lib.texts if f"{name}_kernel" in each]
    text = re.sub(rf"\n\s*st\.{lost}\S+ ", "\n// lost ", lib.texts[kernel])
    with lib.planted(kernel, text), pytest.raises(KernelError, match=f"trap in {block}"):
        run(name, numbers(3, 4, 32, 4), 1536)
