"""The embedding's ops beyond the calls of tests/fuzz: large tables, derivatives, what occurs."""

import itertools

import pytest
import torch

import rnnext
from helpers.common import assert_close, same
from helpers.samples import DTYPES
from rnnext import _C

ops = torch.ops.rnnext


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_gradient_is_the_same_every_time(dtype):
    indices = torch.randint(50, (13_000,))
    grad, results = torch.randn(13_000, 20).to(dtype), []
    for threads in (1, 2, 3, 3):
        torch.set_num_threads(threads)
        results.append(ops.embedding_backward(grad, indices, 60, -1, False))
        rows, values = ops.embedding_sparse_backward(grad, indices, 60, -1, False)
        assert torch.equal(values, results[-1][rows])
    assert all(torch.equal(r, results[0]) for r in results)


@pytest.mark.parametrize("V", [1, 2, 2048, 2049, 2**22 + 1, 2**32 - 1, 2**32, 2**33])
def test_sparse_gradient_of_tables_of_any_size(V):
    """Several threads radix-sort as many bits as V has, in words of 32 or 64 bits."""
    torch.set_num_threads(3)
    for N, padded in itertools.product([0, 1, 5, 3000, 50_000], [False, True]):
        indices = torch.randint(V, (N,))
        indices[: N // 2] = indices[: N // 2] % 7 % V
        indices[N // 2 : N // 2 + 2] = torch.tensor([V - 1, 0])[: max(0, N - N // 2)]
        grad, padding = torch.randn(N, 3), int(indices[0]) if padded and N > 0 else -1
        rows, values = ops.embedding_sparse_backward(grad, indices, V, padding, False)
        kept = indices != padding
        expected, inverse = torch.unique(indices[kept], return_inverse=True)
        sums = torch.zeros(len(expected), 3, dtype=torch.float64)
        assert torch.equal(rows, expected)
        assert_close(values, sums.index_add(0, inverse, grad[kept].double()))


@pytest.mark.parametrize("padding_idx", [-1, 4])
@pytest.mark.parametrize("by_frequency", [False, True])
def test_derivatives_of_the_gradient(padding_idx, by_frequency):
    grad = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    indices = torch.tensor([0, 4, 4, 2])

    def scatter(grad):
        return ops.embedding_backward(grad, indices, 5, padding_idx, by_frequency)

    assert torch.autograd.gradcheck(scatter, grad)
    assert torch.autograd.gradgradcheck(scatter, grad)


@pytest.mark.parametrize(("V", "rows"), [(10, 7), (3, 3)])
def test_without_data_a_sparse_gradient_has_the_most_rows_that_it_may(V, rows):
    grad, indices = torch.empty(7, 2, device="meta"), torch.empty(7, dtype=int, device="meta")
    found = ops.embedding_sparse_backward(grad, indices, V, -1, False)
    assert [len(part) for part in found] == [rows, rows]


def test_check_indices_waits_for_the_device_first(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda i: calls.append(("wait", i)))
    monkeypatch.setattr(_C, "check_indices", lambda i: calls.append(("ask", i)))
    check = rnnext.functional.check_indices
    check(3)
    assert calls == [("wait", 3), ("ask", 3)]
    check("cpu")  # there the call itself has raised
    check(torch.device("cuda:1"))
    assert calls[2:] == [("wait", 1), ("ask", 1)]


@pytest.mark.parametrize("num_rows", [1, 64, 65, 1000])
def test_the_rows_that_occur(num_rows):
    for dtype in (torch.int32, torch.int64):
        tokens = torch.randint(num_rows, (30, 7), dtype=dtype)
        tokens[0, :2] = torch.tensor([num_rows - 1, 0])
        expected, positions = tokens.unique(return_inverse=True)
        for most in (num_rows, len(expected)):
            rows, index = ops.occurring(tokens, num_rows, most)
            assert same((rows, index), (expected.long(), positions))
        rows, index = ops.occurring(tokens, num_rows, len(expected) - 1)
        assert len(rows) == 0
        assert same(index, torch.full_like(tokens, -1, dtype=torch.int64))
