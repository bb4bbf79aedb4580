"""The embedding's ops against the reference in float64: values, gradients, any table's size."""

import itertools

import pytest
import torch

import reference
import rnnext
from helpers.cases import SETTINGS, VARIANTS
from helpers.common import assert_close, cover, same
from rnnext import _C

ops = torch.ops.rnnext


def embedding_case(V, width, indices, index_dtype, dtype, strided):
    shape = {"scalar": (), "empty": (0, 2), "matrix": (5, 7)}[indices]
    weight = torch.rand(width, V, dtype=torch.float64).t()
    weight = weight.to(dtype) if strided else weight.to(dtype).contiguous()
    return weight.requires_grad_(), torch.randint(V, shape).to(index_dtype)


@cover(
    "case",
    V=[1, 3, 1000],
    width=[1, 17, 129],
    indices=["scalar", "empty", "matrix"],
    index_dtype=[torch.int64, torch.int32],
    dtype=VARIANTS["dtype"],
    strided=[False, True],
    padding_idx=[-1, 0],
    scale_grad_by_freq=[False, True],
    sparse=[False, True],
    **SETTINGS,
)
def test_embedding_and_its_gradients(case, isa, threads):
    sparse = case.pop("sparse")
    options = {name: case.pop(name) for name in ("padding_idx", "scale_grad_by_freq")}
    weight, indices = embedding_case(**case)
    rows = ops.embedding(weight, indices, **options, sparse=sparse)
    assert torch.equal(rows, reference.embedding(weight, indices))
    grad = torch.rand_like(rows)
    rows.backward(grad)
    options = {"indices": indices, "num_weights": weight.size(0), **options}
    if sparse:
        assert weight.grad.is_coalesced()
        found = [weight.grad.indices()[0], weight.grad.values()]
        rows, values = reference.embedding_sparse_backward(grad.double(), **options)
        assert torch.equal(found[0], rows)
        assert_close(found[1], values)
        assert_close(ops.embedding_sparse_backward(grad, **options)[1], found[1])
    else:
        assert_close(weight.grad, reference.embedding_backward(grad.double(), **options))
        assert torch.equal(ops.embedding_backward(grad, **options), weight.grad)


@pytest.mark.parametrize("dtype", VARIANTS["dtype"])
def test_embedding_gradient_is_the_same_every_time(dtype):
    indices = torch.randint(50, (13_000,))
    grad = torch.randn(13_000, 20).to(dtype)
    results = []
    for threads in (1, 2, 3, 3):
        torch.set_num_threads(threads)
        results.append(ops.embedding_backward(grad, indices, 60, -1, False))
        rows, values = ops.embedding_sparse_backward(grad, indices, 60, -1, False)
        assert torch.equal(values, results[-1][rows])
    assert all(torch.equal(r, results[0]) for r in results)


@pytest.mark.parametrize("V", [1, 2, 2048, 2049, 2**22 + 1, 2**32 - 1, 2**32, 2**33])
def test_sparse_gradient_of_tables_of_any_size(V):
    """Sorted in passes of a few bits: as many as V has, in words of 32 or 64 bits, by a team."""
    torch.set_num_threads(3)
    for N, padded in itertools.product([0, 1, 5, 3000, 50_000], [False, True]):
        indices = torch.randint(V, (N,))
        indices[: N // 2] = indices[: N // 2] % 7 % V
        indices[N // 2 : N // 2 + 2] = torch.tensor([V - 1, 0])[: max(0, N - N // 2)]
        grad = torch.randn(N, 3)
        padding = int(indices[0]) if padded and N > 0 else -1
        rows, values = ops.embedding_sparse_backward(grad, indices, V, padding, False)
        kept = indices != padding
        expected, inverse = torch.unique(indices[kept], return_inverse=True)
        sums = torch.zeros(len(expected), 3, dtype=torch.float64)
        assert torch.equal(rows, expected)
        assert_close(values, sums.index_add(0, inverse, grad[kept].double()))


def test_embedding_gradcheck():
    weight = torch.rand(5, 3, dtype=torch.float64, requires_grad=True)
    grad = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    indices = torch.tensor([0, 4, 4, 2])
    assert torch.autograd.gradcheck(lambda w: ops.embedding(w, indices), weight)
    assert torch.autograd.gradgradcheck(lambda w: ops.embedding(w, indices), weight)
    for options in [(-1, False), (4, False), (-1, True), (4, True)]:

        def scatter(grad, options=options):
            return ops.embedding_backward(grad, indices, 5, *options)

        assert torch.autograd.gradcheck(scatter, grad)
        assert torch.autograd.gradgradcheck(scatter, grad)


def test_a_check_of_indices_waits_before_it_asks(monkeypatch):
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
