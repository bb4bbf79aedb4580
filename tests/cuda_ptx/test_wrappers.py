"""Each wrapper of csrc/cuda/device.h and mbarrier.h alone, against what its comment says."""

import pytest
import torch

from cuda_ptx import build
from cuda_ptx.library import library


@pytest.fixture(params=range(4))
def lib(request):
    lib = library(build.HERE / "wrappers.cu")
    lib.mode(request.param)
    yield lib
    lib.reset()


def numbers(*shape):
    return torch.randint(0, 1 << 20, shape, dtype=torch.int32)


def zeros(lib, *shape):
    return lib.tensor(torch.zeros(*shape, dtype=torch.int32), writable=True)


@pytest.mark.parametrize("size", [4, 8, 16])
def test_a_copy_brings_its_bytes(lib, size):
    given, out = (
        torch.randint(0, 256, (32 * size,), dtype=torch.uint8),
        lib.empty(32 * size, dtype=torch.uint8),
    )
    lib.run("run_copy", size, lib.tensor(given), out)
    assert torch.equal(out, given)


def test_a_wait_may_leave_the_newest_copies_under_way(lib):
    given, out = numbers(64), zeros(lib, 64)
    lib.run("run_two_copies", lib.tensor(given), out)
    assert torch.equal(out, given)


@pytest.mark.parametrize("number", range(3))
def test_mma_multiplies_and_adds(lib, number):
    dtype = [torch.float16, torch.bfloat16, torch.float32][number]
    k = 8 if dtype == torch.float32 else 16
    a, b = torch.randint(-8, 9, (16, k)).to(dtype), torch.randint(-8, 9, (8, k)).to(dtype)
    d = lib.empty(16, 8)
    lib.run("run_mma", number, lib.tensor(a), lib.tensor(b), d)
    assert torch.equal(d, a.float() @ b.float().t() + 1)


def test_tf32_rounds_to_nearest_and_ties_away_from_zero(lib):
    one = 2.0**-10  # the last place of 11 bits
    given = torch.tensor([1 + one * x for x in (0.25, 0.5, 0.75, 1.5, -0.25)] + [0.0] * 27)
    out = lib.empty(32)
    lib.run("run_tf32", lib.tensor(given), out)
    assert out[:5].tolist() == [1 + one * x for x in (0, 1, 1, 2, 0)]
    lib.run("run_tf32", lib.tensor(-given), out)
    assert out[:5].tolist() == [-1 - one * x for x in (0, 1, 1, 2, 0)]


def test_a_cluster_reads_what_neighbours_stored_before_its_barrier(lib):
    given, out = numbers(2, 4, 32), zeros(lib, 2, 4, 32)
    lib.run("run_neighbours", lib.tensor(given), out)
    assert torch.equal(out, given.roll(1, 1))


def test_an_mbarrier_counts_stores_of_other_blocks_in_every_phase(lib):
    given, out = numbers(3, 4, 32, 4), zeros(lib, 3, 4, 32, 4)
    lib.run("run_async", lib.tensor(given), out)
    assert torch.equal(out, given.roll(1, 1))


def test_a_flag_that_is_released_and_acquired_brings_what_was_stored(lib):
    given, out = numbers(32), zeros(lib, 32)
    lib.run("run_flag", lib.tensor(given), zeros(lib, 32), zeros(lib, 1), out)
    assert torch.equal(out, given)


def test_a_word_brings_its_number_along(lib):
    given, out = numbers(32), zeros(lib, 32)
    lib.run("run_tagged", lib.tensor(given), zeros(lib, 32, 4), out)
    assert torch.equal(out, 3 * given + 3)
