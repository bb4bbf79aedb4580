"""rnnext.Embedding against torch.nn.Embedding."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import rnnext
from helpers.common import error_of


def test_from_linear():
    for frozen in (False, True):
        linear = nn.Linear(7, 3, bias=frozen, dtype=torch.float64).requires_grad_(not frozen)
        emb = rnnext.Embedding.from_linear(linear)
        assert (emb.num_embeddings, emb.embedding_dim) == (7, 3)
        assert emb.weight.requires_grad is not frozen
        assert emb.weight.is_contiguous()
        indices = torch.arange(7)
        assert torch.equal(emb(indices), F.linear(F.one_hot(indices).double(), linear.weight))
        with torch.no_grad():
            emb.weight.zero_()
        assert linear.weight.any()


@pytest.mark.filterwarnings("ignore::UserWarning")  # that nested tensors are a prototype
def test_indices_in_a_nested_tensor():
    nested = torch.nested.nested_tensor([[1, 2, 2], [5]], dtype=torch.int64, layout=torch.jagged)
    ours = rnnext.Embedding(7, 3, padding_idx=-2, scale_grad_by_freq=True)
    theirs = copy.deepcopy(ours)
    theirs.__class__ = nn.Embedding
    for call in (ours, torch.compile(ours, fullgraph=True, backend="eager")):
        ours.zero_grad()
        theirs.zero_grad()
        found, expected = call(nested), theirs(nested)
        assert torch.equal(found.values(), expected.values())
        for rows in (found, expected):
            rows.values().sum().backward()
        assert torch.equal(ours.weight.grad, theirs.weight.grad)
    ours.max_norm = 1.0
    with pytest.raises(RuntimeError, match=r"^indices must be a dense tensor, got torch\.jagged"):
        ours(nested)


def test_empty_table():
    emb = rnnext.Embedding(0, 3)
    assert emb(torch.empty(0, dtype=torch.int64)).shape == (0, 3)
    with pytest.raises(IndexError, match=r"in self: 0 at \[0\], expected 0 <= index < 0"):
        emb(torch.tensor([0]))
    assert rnnext.Embedding(3, 0)(torch.tensor([1])).shape == (1, 0)
    table = torch.randn(3, 5).t()
    assert rnnext.Embedding.from_pretrained(table).weight.data_ptr() == table.data_ptr()


def test_tables_of_other_dtypes_are_read_and_a_complex_one_has_no_gradient():
    """torch refuses in forward, where the caller still sees the reason."""
    indices, embed = torch.tensor([[1, 4], [4, 0]]), rnnext.functional.embedding
    for dtype in (torch.int64, torch.bool, torch.uint8, torch.complex64, torch.complex128):
        table = torch.randint(2, (5, 3)).to(dtype)
        assert torch.equal(embed(indices, table), table[indices])
    table.requires_grad_()
    with torch.no_grad():
        assert torch.equal(embed(indices, table), table[indices])
    for sparse in (False, True):
        _, message = error_of(functools.partial(F.embedding, indices, table, sparse=sparse))
        refused = functools.partial(embed, indices, table, sparse=sparse)
        assert error_of(refused) == (RuntimeError, message)
