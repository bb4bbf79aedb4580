"""Each wrapper of csrc/cuda/device.h and mbarrier.h alone, against what its comment says."""

import re

import pytest
import torch

from cuda_ptx.library import KernelError


@pytest.fixture(autouse=True, params=range(4))
def lib(lib, request):
    lib.mode(request.param)
    with lib.tensors():
        yield lib


def numbers(*shape):
    return torch.randint(0, 1 << 20, shape, dtype=torch.int32)


def zeros(*shape):
    return torch.zeros(*shape, dtype=torch.int32)


def test_a_division_by_multiplying(lib):
    for n in (2, 3, 7, 12, 100, 65535):
        x = torch.randint(0, 2**32 // n, (32,))
        out = torch.zeros(32, dtype=torch.int64)
        lib.run("run_divide", x, -(-(2**32) // n), out)
        assert torch.equal(out, x // n)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_are_rounded_to_the_nearest_and_ties_to_even(lib, dtype):
    values = torch.tensor([0, -0.0, 1e-40, 1e-7, 65519, 65520, 3e38, 3.4e38, torch.inf, -torch.inf])
    step = torch.finfo(dtype).eps
    given = torch.cat([values, 1 + step * torch.arange(-5.5, 5.5, 0.5)])
    out = torch.zeros(32, dtype=dtype)
    lib.run("run_round", int(dtype == torch.bfloat16), given, out)
    assert torch.equal(out, given.to(dtype))


@pytest.mark.parametrize("size", [4, 8, 16])
def test_a_copy_brings_its_bytes(lib, size):
    given = torch.randint(0, 256, (32 * size,), dtype=torch.uint8)
    out = torch.zeros_like(given)
    lib.run("run_copy", size, given, out)
    assert torch.equal(out, given)


def test_a_wait_may_leave_the_newest_copies_under_way(lib):
    given, out = numbers(64), zeros(64)
    lib.run("run_two_copies", given, out)
    assert torch.equal(out, given)


@pytest.mark.parametrize("number", range(3))
def test_mma_multiplies_and_adds(lib, number):
    dtype = [torch.float16, torch.bfloat16, torch.float32][number]
    k = 8 if dtype == torch.float32 else 16
    a, b = torch.randint(-8, 9, (16, k)).to(dtype), torch.randint(-8, 9, (8, k)).to(dtype)
    d = torch.zeros(16, 8)
    lib.run("run_mma", number, a, b, d)
    assert torch.equal(d, a.float() @ b.float().t() + 1)


def test_tf32_rounds_to_nearest_and_ties_away_from_zero(lib):
    one = 2.0**-10  # the last place of 11 bits
    given = torch.tensor([1 + one * x for x in (0.25, 0.5, 0.75, 1.5, -0.25)] + [0.0] * 27)
    out = torch.zeros(32)
    lib.run("run_tf32", given, out)
    assert out[:5].tolist() == [1 + one * x for x in (0, 1, 1, 2, 0)]
    lib.run("run_tf32", -given, out)
    assert out[:5].tolist() == [-1 - one * x for x in (0, 1, 1, 2, 0)]


def test_a_cluster_reads_what_neighbours_stored_before_its_barrier(lib):
    given, out = numbers(2, 4, 32), zeros(2, 4, 32)
    lib.run("run_neighbours", given, out)
    assert torch.equal(out, given.roll(1, 1))


def test_an_mbarrier_counts_stores_of_other_blocks_in_every_phase(lib):
    given, out = numbers(3, 4, 32, 4), zeros(3, 4, 32, 4)
    lib.run("run_async", given, out)
    assert torch.equal(out, given.roll(1, 1))


def test_a_flag_that_is_released_and_acquired_brings_what_was_stored(lib):
    given, out = numbers(32), zeros(32)
    lib.run("run_flag", given, zeros(32), zeros(1), out)
    assert torch.equal(out, given)


def test_a_word_brings_its_number_along(lib):
    given, out = numbers(32), zeros(32)
    lib.run("run_tagged", given, zeros(32, 4), out)
    assert torch.equal(out, 3 * given + 3)


LOST = {
    "run_flag": ([(32,), (32,), (1,), (32,)], "flag_kernel", r"st\.release\S+", "block 1"),
    "run_tagged": ([(32,), (32, 4), (32,)], "tagged_kernel", r"st\.relaxed\S+", "block 1"),
    "run_async": ([(3, 4, 32, 4)] * 2, "async_kernel", r"st\.async\S+", "block"),
}


@pytest.mark.parametrize("name", LOST)
def test_a_wait_for_what_never_comes_ends_and_says_so(lib, name):
    shapes, kernel, lost, block = LOST[name]
    (kernel,) = [each for each in lib.texts if kernel in each]
    text = re.sub(rf"\n\s*{lost} ", "\n// lost ", lib.texts[kernel])
    with lib.planted(kernel, text), pytest.raises(KernelError, match=f"trap in {block}"):
        lib.run(name, *(zeros(*shape) for shape in shapes))
