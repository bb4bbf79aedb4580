"""The compiled kernels of the embedding, in the interpreter, against float64."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from cuda_ptx import build
from cuda_ptx.library import Library, library
from helpers.common import assert_close

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]  # DType's order


@pytest.fixture
def lib() -> Iterator[Library]:
    kernels = sorted((build.CUDA / "embedding").glob("*.cu"))
    lib = library(*kernels, build.HERE / "embedding_entries.cpp")
    lib.mode(3)
    yield lib
    lib.reset()


def error_record(lib: Library) -> Tensor:
    """IndexErrorRecord: (claimed, ready), position, value, bound."""
    return lib.tensor(torch.zeros(4, dtype=torch.int64), writable=True)


def gather(lib: Library, weight: Tensor, indices: Tensor, error: Tensor) -> Tensor:
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
    )
    return output


@pytest.mark.parametrize("columns", [1, 3, 8, 129, 1027])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8, torch.complex128])
def test_gather(lib, dtype, columns):
    weight = torch.randint(0, 200, (50, columns)).to(dtype)
    indices = torch.randint(0, 50, (137,), dtype=torch.int32 if columns % 2 else torch.int64)
    error = error_record(lib)
    output = gather(lib, lib.tensor(weight), indices, error)
    assert torch.equal(output, weight[indices.long()])
    assert error.eq(0).all()


def test_gather_from_a_strided_and_from_an_unaligned_table(lib):
    table = lib.tensor(torch.randn(20, 24))
    unaligned = lib.tensor(torch.randn(20, 8), align=4)
    indices = torch.randint(0, 20, (33,))
    for weight in (table[:, 4:12], table[:, 3:13], unaligned):
        assert torch.equal(gather(lib, weight, indices, error_record(lib)), weight[indices])


# Rows of so many bytes, with gaps between them, from different first bytes on: heads, tails and
# shifts of every length, with and without vectors between them.
@pytest.mark.parametrize("align", [1, 2, 4, 8])
@pytest.mark.parametrize("row", [128, 131, 136, 143, 159, 300, 1000])
def test_gather_of_long_rows_without_alignment(lib, row, align):
    row = row // align * align
    for more in (0, 3 * align):
        for begin in (0, 15 // align * align):
            rows = torch.randint(0, 256, (9 * (row + more) + begin,), dtype=torch.uint8)
            memory = lib.tensor(rows, align=max(align, 1))
            weight = memory[begin:].as_strided((9, row), (row + more, 1))
            indices = torch.tensor([3, 0, 8, 8, 1, 9, 5, 2, 7, -1])
            output = gather(lib, weight, indices, error_record(lib))
            assert torch.equal(output[[0, 1, 2, 3, 4, 6, 7, 8]], weight[[3, 0, 8, 8, 1, 5, 2, 7]])
            assert output[[5, 9]].eq(0).all()
        lib.arena.clear()


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
        lib.mode(seed)
        error = error_record(lib)
        gather(lib, lib.tensor(torch.randn(7, 5)), indices, error)
        _, position, value, bound = error.tolist()
        assert value == indices[position]
        assert not 0 <= value < 7
        assert bound == 7


def sort(lib, indices, rows, padding_idx=-1):
    """Sorted keys and their positions, as the binding makes them, which sorts by CUB."""
    count = indices.numel()
    keys, positions = (lib.empty(count, dtype=torch.int32) for _ in range(2))
    lib.run(
        "embedding_keys", lib.tensor(indices), indices.dtype == torch.int64, count, rows,
        padding_idx, keys, positions, error_record(lib),
    )  # fmt: skip
    sorted_keys, order = keys.sort(stable=True)
    return lib.tensor(sorted_keys), lib.tensor(positions[order])


GAPS = {
    "no key": [],
    "all rows": list(range(100)),
    "the first": [0],
    "the last": [99],
    "none of them": [100, 100],
    "at the borders of warps": [31, 32, 63, 64, 64, 96],
    "every other": list(range(1, 100, 2)),
    "a few": [5, 5, 5, 40, 41, 77, 100],
}


@pytest.mark.parametrize("keys", GAPS.values(), ids=GAPS)
@pytest.mark.parametrize(("columns", "dtype"), [(1, torch.bfloat16), (3, torch.float16),
                                                (8, torch.float32), (129, torch.float32),
                                                (20, torch.float64)])  # fmt: skip
def test_gaps_are_zeroed_and_nothing_else(lib, columns, dtype, keys):
    output = lib.empty(100, columns, dtype=dtype).fill_(7)
    given = lib.tensor(torch.tensor(keys, dtype=torch.int32))
    lib.run("embedding_gaps", given, len(keys), 100, columns * dtype.itemsize, output)
    expected = torch.zeros(100, columns, dtype=dtype)
    expected[[key for key in keys if key < 100]] = 7
    assert torch.equal(output, expected)


def backward(lib, grad, indices, rows, padding_idx=-1, by_frequency=False, sparse=False):
    """What the binding does around the kernels, with torch for long sorts and the sum."""
    count, columns = grad.shape
    keys, positions = sort(lib, indices, rows, padding_idx)
    slots = unique = None
    size = rows
    output = lib.empty(rows, columns, dtype=grad.dtype).fill_(torch.nan)
    if not sparse:
        row_bytes = columns * grad.element_size()
        lib.run("embedding_gaps", keys, count, rows, row_bytes, output)
    else:
        heads = lib.empty(count, dtype=torch.int32)
        lib.run("embedding_heads", keys, count, rows, heads)
        slots = lib.tensor(heads.cumsum(0, dtype=torch.int32))
        size = int(slots[-1])
        unique = lib.empty(size, dtype=torch.int64)
        lib.run("embedding_rows", keys, slots, count, rows, unique)
        output = lib.empty(size, columns, dtype=grad.dtype)
    dtype = DTYPES.index(grad.dtype)
    bytes_ = torch.zeros(1, dtype=torch.int64)
    lib.run("embedding_partial_size", count, columns, dtype, bytes_)
    partial = lib.empty(int(bytes_), dtype=torch.uint8)
    lib.run(
        "embedding_reduce", dtype, keys, positions, slots, count, rows, columns, by_frequency,
        lib.tensor(grad), output, partial,
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
@pytest.mark.parametrize(("count", "columns"), [(1, 5), (17, 1), (250, 33), (1500, 8)])
def test_backward(lib, runs, count, columns):
    indices = RUNS[runs](count)
    grad = torch.randn(count, columns)
    for options in ({}, {"padding_idx": 7, "by_frequency": True}):
        output = backward(lib, grad, indices, 2000, **options)
        assert_close(output, expected(grad, indices, 2000, **options))
        lib.arena.clear()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [12, 131, 256])
def test_backward_dtypes_and_index_types(lib, dtype, columns):
    indices = torch.randint(0, 30, (300,), dtype=torch.int32)
    grad = torch.randn(300, columns).to(dtype)
    output = backward(lib, grad, indices, 30)
    assert_close(output, expected(grad, indices, 30))


@pytest.mark.parametrize("options", [{}, {"padding_idx": 3}, {"by_frequency": True}])
@pytest.mark.parametrize("runs", RUNS)
def test_sparse_backward(lib, runs, options):
    indices = RUNS[runs](333)
    grad = torch.randn(333, 20)
    rows, values = backward(lib, grad, indices, 2000, sparse=True, **options)
    kept = indices[indices != options.get("padding_idx", -1)]
    assert torch.equal(rows, kept.unique())
    assert_close(values, expected(grad, indices, 2000, **options)[rows])


def test_backward_leaves_out_indices_out_of_range(lib):
    indices = torch.tensor([4, 9, -2, 4, 10, 0])
    grad = torch.randn(6, 3)
    assert_close(backward(lib, grad, indices, 10), expected(grad, indices, 10))


def test_the_order_of_summation_does_not_depend_on_the_schedule(lib):
    indices, grad = torch.randint(0, 5, (700,)), torch.randn(700, 24)
    first = backward(lib, grad, indices, 5).clone()
    for seed in range(4):
        lib.mode(seed)
        assert torch.equal(backward(lib, grad, indices, 5), first)
