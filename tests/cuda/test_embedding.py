"""The CUDA embedding kernels, run on the CPU by the host execution layer, against float64."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from cuda_host.host import CUDA, HERE, Library, library
from helpers.common import assert_close

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]  # DType's order


@pytest.fixture
def lib() -> Iterator[Library]:
    lib = library(CUDA / "embedding" / "kernel.cu", HERE / "embedding_entries.cpp")
    yield lib
    lib.free_all()


def error_record(lib: Library) -> Tensor:
    """IndexErrorRecord: (claimed, ready), position, value, bound."""
    return lib.tensor(torch.zeros(4, dtype=torch.int64), writable=True, name="error record")


def gather(lib: Library, weight: Tensor, indices: Tensor, error: Tensor, seed: int = 0) -> Tensor:
    output = lib.empty(indices.numel(), weight.shape[1], dtype=weight.dtype)
    size = weight.element_size()
    lib.run(
        "embedding_gather",
        lib.tensor(indices),
        indices.dtype == torch.int64,
        indices.numel(),
        weight.shape[0],
        weight,
        weight.stride(0) * size,
        weight.shape[1] * size,
        output,
        error,
        seed=seed,
    )
    return output


@pytest.mark.parametrize("columns", [1, 3, 8, 31, 100, 1027])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8, torch.complex128])
def test_gather(lib, dtype, columns):
    weight = torch.randint(0, 200, (50, columns)).to(dtype)
    indices = torch.randint(0, 50, (137,), dtype=torch.int32 if columns % 2 else torch.int64)
    error = error_record(lib)
    output = gather(lib, lib.tensor(weight), indices, error, seed=columns)
    assert torch.equal(output, weight[indices.long()])
    assert error.eq(0).all()


def test_gather_from_a_strided_and_from_an_unaligned_table(lib):
    table = lib.tensor(torch.randn(20, 24))
    unaligned = lib.tensor(torch.randn(20, 8), align=4)
    indices = torch.randint(0, 20, (33,))
    for weight in (table[:, 4:12], table[:, 3:13], unaligned):
        assert torch.equal(gather(lib, weight, indices, error_record(lib)), weight[indices])


@pytest.mark.parametrize("bad", [50, -1, 2**40, -(2**40)])
def test_an_index_out_of_range_is_recorded_and_gives_zeros(lib, bad):
    weight = lib.tensor(torch.randn(50, 5))
    indices = torch.randint(0, 50, (70,))
    indices[61] = bad
    error = error_record(lib)
    output = gather(lib, weight, indices, error)
    assert output[61].eq(0).all()
    assert torch.equal(output[:61], weight[indices[:61]])
    assert error.tolist() == [1 + (1 << 32), 61, bad, 50]


def test_one_of_several_errors_is_recorded_whole(lib):
    indices = torch.arange(-300, 300)
    for seed in range(4):
        error = error_record(lib)
        gather(lib, lib.tensor(torch.randn(7, 5)), indices, error, seed=seed)
        _, position, value, bound = error.tolist()
        assert value == indices[position]
        assert not 0 <= value < 7
        assert bound == 7


def backward(lib, grad, indices, rows, padding_idx=-1, by_frequency=False, sparse=False, seed=0):
    """What the binding does around the kernels, with torch for the sort and the sum."""
    count, columns = grad.shape
    keys, positions = (lib.empty(count, dtype=torch.int32) for _ in range(2))
    is_int64 = indices.dtype == torch.int64
    error = error_record(lib)
    lib.run(
        "embedding_keys", lib.tensor(indices), is_int64, count, rows, padding_idx, keys,
        positions, error, seed=seed,
    )  # fmt: skip
    sorted_keys, order = keys.sort(stable=True)
    keys, positions = lib.tensor(sorted_keys), lib.tensor(positions[order])
    slots = unique = None
    size = rows
    output = lib.tensor(torch.zeros(rows, columns, dtype=grad.dtype), writable=True)
    if sparse:
        heads = lib.empty(count, dtype=torch.int32)
        lib.run("embedding_heads", keys, count, rows, heads, seed=seed)
        slots = lib.tensor(heads.cumsum(0, dtype=torch.int32))
        size = int(slots[-1])
        unique = lib.empty(size, dtype=torch.int64)
        lib.run("embedding_rows", keys, slots, count, rows, unique, seed=seed)
        output = lib.empty(size, columns, dtype=grad.dtype)
    dtype = DTYPES.index(grad.dtype)
    bytes_ = torch.zeros(1, dtype=torch.int64)
    lib.run("embedding_partial_size", count, columns, dtype, bytes_)
    partial = lib.empty(int(bytes_), dtype=torch.uint8)
    lib.run(
        "embedding_reduce", dtype, keys, positions, slots, count, rows, columns, by_frequency,
        lib.tensor(grad), output, partial, seed=seed,
    )  # fmt: skip
    return (unique, output) if sparse else output


def expected(grad, indices, rows, padding_idx=-1, by_frequency=False):
    indices = indices.long()
    keep = (indices != padding_idx) & (indices >= 0) & (indices < rows)
    total = torch.zeros(rows, grad.shape[1], dtype=torch.float64)
    total.index_add_(0, indices[keep], grad[keep].double())
    if by_frequency:
        total /= indices[keep].bincount(minlength=rows).clamp(min=1)[:, None]
    return total


RUNS = {
    "random": lambda n: torch.randint(0, 40, (n,)),
    "one row": lambda n: torch.full((n,), 7),
    "two long runs": lambda n: torch.arange(n).ge(n // 3).long(),
    "all different": lambda n: torch.arange(n).flip(0) % 2000,
    "borders": lambda n: torch.arange(n) // 16,  # runs end where the chunks do
    "past borders": lambda n: torch.arange(n) // 17,
}


@pytest.mark.parametrize("runs", RUNS)
@pytest.mark.parametrize(("count", "columns"), [(1, 5), (16, 8), (17, 1), (250, 33), (1500, 8)])
def test_backward(lib, runs, count, columns):
    indices = RUNS[runs](count)
    grad = torch.randn(count, columns)
    for seed, options in enumerate(
        [{}, {"padding_idx": 7}, {"by_frequency": True}, {"padding_idx": 0, "by_frequency": True}]
    ):
        output = backward(lib, grad, indices, 2000, seed=seed, **options)
        assert_close(output, expected(grad, indices, 2000, **options))
        lib.free_all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [12, 16, 256])
def test_backward_dtypes_and_index_types(lib, dtype, columns):
    indices = torch.randint(0, 30, (300,), dtype=torch.int32)
    grad = torch.randn(300, columns).to(dtype)
    output = backward(lib, grad, indices, 30, seed=1)
    assert_close(output, expected(grad, indices, 30))


@pytest.mark.parametrize("options", [{}, {"padding_idx": 3}, {"by_frequency": True}])
@pytest.mark.parametrize("runs", RUNS)
def test_sparse_backward(lib, runs, options):
    indices = RUNS[runs](333)
    grad = torch.randn(333, 20)
    rows, values = backward(lib, grad, indices, 2000, sparse=True, seed=2, **options)
    kept = indices[indices != options.get("padding_idx", -1)]
    assert torch.equal(rows, kept.unique())
    assert_close(values, expected(grad, indices, 2000, **options)[rows])


def test_backward_leaves_out_indices_out_of_range(lib):
    indices = torch.tensor([4, 9, -2, 4, 10, 0])
    grad = torch.randn(6, 3)
    assert_close(backward(lib, grad, indices, 10), expected(grad, indices, 10))


def test_the_order_of_summation_does_not_depend_on_the_schedule(lib):
    indices, grad = torch.randint(0, 5, (700,)), torch.randn(700, 24)
    first = backward(lib, grad, indices, 5, seed=0).clone()
    for seed in range(1, 5):
        assert torch.equal(backward(lib, grad, indices, 5, seed=seed), first)
