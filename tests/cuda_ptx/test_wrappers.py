"""Each wrapper of csrc/cuda/device.h and mbarrier.h alone, against what its comment says."""

import pytest
import torch


@pytest.fixture(autouse=True, params=range(4))
def lib(lib, request):
    lib.mode(request.param)
    with lib.tensors():
        yield lib


def numbers(*shape):
    return torch.randint(0, 1 << 20, shape, dtype=torch.int32)


def zeros(*shape):
    return torch.zeros(*shape, dtype=torch.int32)


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
