"""rnnext.Embedding against torch.nn.Embedding."""

import functools
import inspect

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import rnnext
from helpers import common
from helpers.common import error_of

pair = functools.partial(common.pair, "Embedding")


def test_constructor():
    assert inspect.signature(rnnext.Embedding) == inspect.signature(nn.Embedding)
    theirs, ours = pair(10, 3, padding_idx=-1, max_norm=2.0, norm_type=1.0, sparse=True)
    assert repr(ours) == repr(theirs)
    assert ours.padding_idx == theirs.padding_idx == 9


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


def test_empty_table():
    emb = rnnext.Embedding(0, 3)
    assert emb(torch.empty(0, dtype=torch.int64)).shape == (0, 3)
    with pytest.raises(IndexError, match=r"indices\[0\] = 0, expected 0 <= index < 0"):
        emb(torch.tensor([0]))
    assert rnnext.Embedding(3, 0)(torch.tensor([1])).shape == (1, 0)


def test_tables_of_other_dtypes_are_read_and_a_complex_one_has_no_gradient():
    """torch refuses in forward, where the caller still sees the reason."""
    indices = torch.tensor([[1, 4], [4, 0]])
    for dtype in (torch.int64, torch.bool, torch.uint8, torch.complex64, torch.complex128):
        table = torch.randint(2, (5, 3)).to(dtype)
        assert torch.equal(rnnext.functional.embedding(indices, table), table[indices])
        if not dtype.is_complex:
            continue
        table.requires_grad_()
        with torch.no_grad():
            assert torch.equal(rnnext.functional.embedding(indices, table), table[indices])
        for sparse in (False, True):
            theirs, ours = (
                error_of(lambda e=e, t=table, s=sparse: e(indices, t, sparse=s))
                for e in (F.embedding, rnnext.functional.embedding)
            )
            assert ours == theirs
