"""rnnext.Embedding against torch.nn.Embedding."""

import copy
import functools
import inspect
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import rnnext
from helpers import common
from helpers.common import assert_close, case_id, error_of, pairwise

INDICES = {
    "scalar": torch.tensor(2),
    "repeated": torch.tensor([1, 4, 1, 1, 0, 4, 9]),
    "matrix": torch.tensor([[1, 2, 3], [9, 2, 0]]),
    "strided": torch.tensor([[1, 2, 3], [9, 2, 0]]).t(),
    "expanded": torch.tensor([[5], [3]]).expand(2, 4),
    "cube": torch.arange(8).view(2, 2, 2),
    "empty": torch.empty(0, 3, dtype=torch.int64),
}


pair = functools.partial(common.pair, "Embedding")


def run(module, indices):
    """The rows and the gradient of the table, dense."""
    rows = module(indices)
    (rows * torch.arange(1, rows.numel() + 1).view_as(rows)).sum().backward()
    grad = module.weight.grad
    assert grad.is_sparse == module.sparse
    if module.sparse:
        assert grad.is_coalesced()
        grad = grad.to_dense()
    return [rows, module.weight, grad]


@pytest.mark.parametrize(
    "case",
    pairwise(
        indices=list(INDICES),
        index_dtype=[torch.int64, torch.int32],
        dtype=[torch.float32, torch.float64],
        padding_idx=[None, 0, 4, -1],
        max_norm=[None, 1.5],
        norm_type=[2.0, 1.0],
        scale_grad_by_freq=[False, True],
        sparse=[False, True],
    ),
    ids=case_id,
)
def test_values_and_gradients(case):
    case = dict(case)
    indices = INDICES[case.pop("indices")].to(case.pop("index_dtype"))
    sparse = case.pop("sparse")
    theirs, ours = pair(10, 3, **case)
    ours.sparse = sparse  # against torch.nn's dense gradient: its sparse one refuses some of these
    assert_close(run(ours, indices), run(theirs, indices))


def test_attributes_state_dict_and_repr():
    for arguments in [{}, {"padding_idx": -1, "max_norm": 2.0, "norm_type": 1.0, "sparse": True}]:
        theirs, ours = pair(10, 3, **arguments)
        assert repr(ours) == repr(theirs)
        for name in theirs.__constants__:
            assert getattr(ours, name) == getattr(theirs, name)
        assert list(ours.state_dict()) == ["weight"]
        assert torch.equal(ours.weight, theirs.weight)
    assert isinstance(ours, nn.Embedding)
    assert inspect.signature(rnnext.Embedding) == inspect.signature(nn.Embedding)


@pytest.mark.parametrize(
    "table", [torch.randn(5, 3), torch.randn(3, 5).t(), torch.randn(5, 6)[:, ::2]]
)
def test_from_pretrained_shares_the_table(table):
    emb = rnnext.Embedding.from_pretrained(table, padding_idx=1)
    assert type(emb) is rnnext.Embedding
    assert not emb.weight.requires_grad
    assert emb.weight.data_ptr() == table.data_ptr()
    assert emb.weight.stride() == table.stride()
    indices = torch.tensor([[0, 4], [1, 1]])
    assert torch.equal(emb(indices), table[indices])
    trained = rnnext.Embedding.from_pretrained(table.clone(), freeze=False)
    trained(indices).sum().backward()
    expected = torch.tensor([1.0, 2.0, 0.0, 0.0, 1.0]).unsqueeze(1).expand(5, 3)
    assert torch.equal(trained.weight.grad, expected)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_from_linear(bias, frozen):
    linear = nn.Linear(7, 3, bias=bias, dtype=torch.float64).requires_grad_(not frozen)
    emb = rnnext.Embedding.from_linear(linear)
    assert (emb.num_embeddings, emb.embedding_dim) == (7, 3)
    assert emb.weight.requires_grad is not frozen
    assert emb.weight.is_contiguous()
    indices = torch.arange(7)
    assert torch.equal(emb(indices), F.linear(F.one_hot(indices).double(), linear.weight))
    with torch.no_grad():
        emb.weight.zero_()
    assert linear.weight.any()


@pytest.mark.parametrize(
    "arguments",
    [
        {"padding_idx": 10},
        {"padding_idx": -11},
        {"num_embeddings": -1},
        {"embedding_dim": -1},
        {"_weight": torch.zeros(2, 2)},
        {"dtype": torch.int64},
    ],
    ids=str,
)
def test_constructor_refuses_what_torch_refuses(arguments):
    arguments = {"num_embeddings": 10, "embedding_dim": 3} | arguments
    assert error_of(lambda: rnnext.Embedding(**arguments)) == error_of(
        lambda: nn.Embedding(**arguments)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16, torch.uint8, torch.bool])
def test_indices_of_another_type_are_refused(dtype):
    theirs, ours = pair(10, 3)
    indices = torch.ones(2, dtype=dtype)
    expected = error_of(lambda: theirs(indices))
    assert error_of(lambda: ours(indices)) == expected
    ours.max_norm = 1
    assert error_of(lambda: ours(indices)) == expected


@pytest.mark.parametrize("indices", [[1, 2], 1, None])
def test_indices_must_be_a_tensor(indices):
    theirs, ours = pair(10, 3)
    assert error_of(lambda: ours(indices)) == error_of(lambda: theirs(indices))


@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize(
    ("indices", "where"),
    [
        ([1, 7, 10], "indices[2] = 10"),
        ([0, -1], "indices[1] = -1"),
        ([[1, 2], [2**31 - 1, 3]], f"indices[1, 0] = {2**31 - 1}"),
        (10, "indices = 10"),
    ],
)
def test_index_out_of_range_is_named(indices, where, max_norm, index_dtype):
    _, ours = pair(10, 3, max_norm=max_norm)
    before = ours.weight.detach().clone()
    kind, message = error_of(lambda: ours(torch.tensor(indices, dtype=index_dtype)))
    assert kind is IndexError
    assert message.startswith(f"index out of range in self: {where}, expected 0 <= index < 10")
    assert torch.equal(ours.weight, before)


def test_a_64_bit_index_does_not_wrap():
    with pytest.raises(IndexError, match=f"= {2**32}, expected"):
        rnnext.Embedding(10, 3)(torch.tensor([2**32]))


def test_empty_table():
    emb = rnnext.Embedding(0, 3)
    assert emb(torch.empty(0, dtype=torch.int64)).shape == (0, 3)
    with pytest.raises(IndexError, match=r"indices\[0\] = 0, expected 0 <= index < 0"):
        emb(torch.tensor([0]))
    assert rnnext.Embedding(3, 0)(torch.tensor([1])).shape == (1, 0)


# Not with scale_grad_by_freq, which torch.nn leaves out of its second derivative.
@pytest.mark.parametrize("options", [{}, {"padding_idx": 4}], ids=str)
def test_double_backward(options):
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    indices = torch.tensor([[0, 4, 4], [2, 0, 4]])
    results = []
    for embedding in (F.embedding, rnnext.functional.embedding):
        rows = embedding(indices, weight, **options) ** 3
        (first,) = torch.autograd.grad(rows, weight, grad, create_graph=True)
        second = torch.autograd.grad(first.square().sum(), (weight, grad), create_graph=True)
        third = torch.autograd.grad(second[0].sum(), (weight, grad))
        results.append([first, *second, *third])
    assert_close(results[1], results[0])


def test_gradcheck():
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    indices = torch.tensor([[0, 4, 4], [2, 0, 4]])

    def call(weight):
        return rnnext.functional.embedding(indices, weight) ** 2

    assert torch.autograd.gradcheck(call, weight)
    assert torch.autograd.gradgradcheck(call, weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_count_an_index_that_comes_often(dtype):
    weight = torch.ones(3, 2, dtype=dtype, requires_grad=True)
    indices, n = torch.zeros(3000, dtype=torch.int64), 3000
    rows = rnnext.functional.embedding(indices, weight, scale_grad_by_freq=True)
    grad = torch.ones_like(rows, requires_grad=True)
    (first,) = torch.autograd.grad(rows, weight, grad, create_graph=True)
    assert_close(first[0], torch.ones(2))
    (second,) = torch.autograd.grad(first.sum(), grad)
    assert_close(second * n, torch.ones(n, 2))


def test_no_grad_builds_no_graph():
    emb, indices = rnnext.Embedding(10, 3), torch.tensor([1, 2])
    for guard in (torch.no_grad, torch.inference_mode):
        with guard():
            assert not emb(indices).requires_grad
    assert emb.requires_grad_(False)(indices).grad_fn is None


@pytest.mark.parametrize("sparse", [False, True])
def test_a_result_without_a_gradient_gives_the_table_none(sparse):
    emb, indices = rnnext.Embedding(5, 3, sparse=sparse), torch.tensor([1, 2])
    common.NoGradient.apply(emb(indices)).sum().backward()
    assert emb.weight.grad is None


def test_sparse_gradient_steps():
    theirs, ours = pair(10, 3, sparse=True)
    for emb in (theirs, ours):
        optimizer = torch.optim.SparseAdam(emb.parameters())
        for indices in (torch.tensor([1, 1, 5]), torch.tensor([5, 2])):
            optimizer.zero_grad()
            emb(indices).square().sum().backward()
            optimizer.step()
    assert_close(ours.weight, theirs.weight)


def test_parametrized_table_trains():
    results = []
    for emb in pair(10, 3):
        nn.utils.parametrizations.weight_norm(emb, "weight")
        emb(torch.tensor([1, 5])).sum().backward()
        results.append([p.grad for p in emb.parameters()])
    assert_close(results[1], results[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_conversion_to_another_dtype(dtype):
    theirs, ours = pair(10, 3)
    indices = torch.tensor([1, 1, 5])
    rows = ours.to(dtype)(indices)
    assert torch.equal(rows, theirs.to(dtype)(indices))
    rows.sum().backward()
    assert ours.weight.grad.dtype == dtype
    assert torch.equal(ours.weight.grad[[0, 1, 5], 0], torch.tensor([0, 2, 1], dtype=dtype))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_equal(clone):
    emb, indices = rnnext.Embedding(10, 3, padding_idx=2), torch.tensor([1, 2])
    twin = clone(emb)
    assert type(twin) is rnnext.Embedding
    assert repr(twin) == repr(emb)
    assert torch.equal(twin(indices), emb(indices))


def test_meta_device_and_autocast():
    emb = rnnext.Embedding(10, 3, device="meta")
    assert emb(torch.zeros(2, 4, dtype=torch.int64, device="meta")).shape == (2, 4, 3)
    theirs, ours = pair(10, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(torch.tensor([1])).dtype == theirs(torch.tensor([1])).dtype == torch.float32


@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_compile_without_graph_breaks(max_norm):
    emb = rnnext.Embedding(10, 3, padding_idx=1, max_norm=max_norm)
    compiled = torch.compile(emb, fullgraph=True, backend="aot_eager")
    indices = torch.tensor([[1, 2, 2], [9, 0, 1]])
    rows = compiled(indices)
    rows.sum().backward()
    grad, emb.weight.grad = emb.weight.grad, None
    expected = emb(indices)
    expected.sum().backward()
    assert_close([rows, grad], [expected, emb.weight.grad])


def test_export_with_dynamic_shape():
    emb = rnnext.Embedding(10, 3)
    auto = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        emb, (torch.zeros(2, 5, dtype=torch.int64),), dynamic_shapes=({0: auto, 1: auto},)
    )
    for shape in [(2, 5), (7, 3)]:
        indices = torch.randint(10, shape)
        assert torch.equal(program.module()(indices), emb(indices))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_complex_table_has_no_gradient(dtype, sparse):
    """torch refuses in forward, where the caller still sees the reason."""
    table, indices = torch.randn(5, 3, dtype=dtype), torch.tensor([0, 4, 4])
    assert torch.equal(rnnext.functional.embedding(indices, table), table[indices])
    table.requires_grad_()
    with torch.no_grad():
        assert torch.equal(rnnext.functional.embedding(indices, table), table[indices])
    assert error_of(lambda: rnnext.functional.embedding(indices, table, sparse=sparse)) == error_of(
        lambda: F.embedding(indices, table, sparse=sparse)
    )
