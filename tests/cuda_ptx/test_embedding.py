"""The compiled kernels of the embedding under their binding against float64."""

import itertools
import re

import pytest
import torch

import reference
from cuda_ptx.ops import INTERPRETED, op
from helpers.common import assert_close
from helpers.device import DEVICE
from helpers.samples import DTYPES

embedding, embedding_backward = op("embedding"), op("embedding_backward")
embedding_sparse_backward = op("embedding_sparse_backward")


@pytest.fixture(autouse=True)
def lib(lib):
    lib.seed = 3
    return lib


@pytest.mark.parametrize("columns", [1, 3, 8, 129, 1027])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8, torch.complex128])
def test_gather(dtype, columns):
    weight = torch.randint(0, 200, (50, columns)).to(dtype)
    indices = torch.randint(0, 50, (137,), dtype=torch.int32 if columns % 2 else torch.int64)
    assert torch.equal(embedding(weight, indices), weight[indices.long()])


def test_gather_from_a_strided_and_from_an_unaligned_table():
    table, indices = torch.randn(20, 24), torch.randint(0, 20, (3, 11))
    for weight in (table[:, 4:12], table[:, 3:13], table[:, ::2], torch.randn(161)[1:].view(20, 8)):
        assert torch.equal(embedding(weight, indices), weight[indices])


@pytest.mark.parametrize("align", [1, 2, 4, 8, 16])
def test_gather_of_rows_that_begin_at_any_address(align):
    indices = torch.tensor([3, 0, 8, 8, 1, 5, 2, 7])
    for row, gap, begin in itertools.product((128, 300), (0, 3 * align), (0, 15)):
        row, begin = (size // align * align for size in (row, begin))
        rows = torch.randint(0, 256, (9 * (row + gap) + begin,), dtype=torch.uint8)
        weight = rows[begin:].as_strided((9, row), (row + gap, 1), begin)
        assert torch.equal(embedding(weight, indices), weight[indices])


# The CPU, on which a check of a GPU is rehearsed, names a wrong index at once.
later = pytest.mark.skipif(not INTERPRETED and DEVICE == "cpu", reason="the CPU waits")


@later
@pytest.mark.parametrize("columns", [5, 129])
@pytest.mark.parametrize("bad", [50, -1, 2**40, -(2**40)])
def test_an_index_out_of_range_gives_zeros_and_is_named_later(bad, columns):
    weight, indices = torch.randn(50, columns), torch.randint(0, 50, (70,))
    indices[61] = bad
    output = embedding(weight, indices)
    assert output[61].eq(0).all()
    assert torch.equal(output[:61], weight[indices[:61]])
    with pytest.raises(IndexError, match=rf"\[61\] = {bad}, expected 0 <= index < 50"):
        embedding(weight, indices[:5])
    assert torch.equal(embedding(weight, indices[:5]), weight[indices[:5]])


@later
def test_one_of_several_errors_is_recorded_whole(lib):
    indices = torch.arange(-300, 300)
    for seed in range(4):
        lib.seed = seed
        embedding(torch.randn(7, 5), indices)
        with pytest.raises(IndexError) as error:
            embedding(torch.randn(7, 5), indices)
        found = re.search(r"\[(\d+)\] = (-?\d+), .* < (\d+) ", str(error.value))
        position, value, bound = map(int, found.groups())
        assert value == indices[position]
        assert not 0 <= value < 7
        assert bound == 7


def check_backward(grad, indices, rows, padding_idx=-1, by_frequency=False):
    options = {"num_weights": rows, "padding_idx": padding_idx, "scale_grad_by_freq": by_frequency}
    expected = reference.embedding_backward(grad.double(), indices, **options)
    assert_close(embedding_backward(grad, indices, **options), expected)
    unique, values = embedding_sparse_backward(grad, indices, **options)
    assert torch.equal(unique, indices[indices != padding_idx].long().unique())
    assert_close(values, expected[unique])


RUNS = {
    "random": lambda n: torch.randint(0, 40, (n,)),
    "one row": lambda n: torch.full((n,), 7),
    "two long runs": lambda n: torch.arange(n).ge(n // 3).long(),
    "all different": lambda n: torch.arange(n).flip(0) % 2000,
    "borders": lambda n: torch.arange(n) // 16,  # runs end where the chunks do
    "past borders": lambda n: torch.arange(n) // 17,
}


@pytest.mark.parametrize("runs", RUNS)
@pytest.mark.parametrize(("count", "columns"), [(0, 8), (1, 5), (17, 1), (250, 33), (1500, 8)])
def test_backward(runs, count, columns):
    for options in ({}, {"padding_idx": 7, "by_frequency": True}):
        check_backward(torch.randn(count, columns), RUNS[runs](count), 2000, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [12, 131, 256])
def test_backward_dtypes_and_index_types(dtype, columns):
    indices = torch.randint(0, 30, (300,), dtype=torch.int32)
    check_backward(torch.randn(300, columns).to(dtype), indices, 30)


def test_the_order_of_summation_does_not_depend_on_the_schedule(lib):
    grad, indices = torch.randn(700, 24), torch.randint(0, 5, (700,))
    first = embedding_backward(grad, indices, 5, -1, False).clone()
    for seed in range(4):
        lib.seed = seed
        assert torch.equal(embedding_backward(grad, indices, 5, -1, False), first)


def test_a_gradient_refuses_what_does_not_fit():
    for call in (embedding_backward, embedding_sparse_backward):
        with pytest.raises(RuntimeError, match="grad must have the shape of indices and one more"):
            call(torch.randn(3, 4), torch.zeros(2, dtype=torch.int64), 5, -1, False)
