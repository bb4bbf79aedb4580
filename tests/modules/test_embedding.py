"""Embedding against torch.nn's; EmbeddingRNN against its parts, whichever way it is computed."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import register_parametrization
from torch.utils._pytree import tree_leaves

import rnnext
from helpers.common import assert_close, assert_refused, error_of, same
from rnnext import embedding_rnn


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
    strided = torch.nested.nested_tensor([torch.tensor([1, 2, 2]), torch.tensor([5])])
    assert torch.equal(ours(strided).values(), theirs(strided).values())
    ours.max_norm = 1.0
    with pytest.raises(RuntimeError, match=r"^indices must be a dense tensor, got torch\.jagged"):
        ours(nested)


def test_empty_table():
    emb = rnnext.Embedding(0, 3)
    assert emb(torch.empty(0, dtype=torch.int64)).shape == (0, 3)
    assert_refused(emb, IndexError, "in self: 0 at [0], expected 0 <= index < 0", torch.tensor([0]))
    assert rnnext.Embedding(3, 0)(torch.tensor([1])).shape == (1, 0)


def test_tables_of_other_dtypes():
    """torch refuses in forward, where the caller still sees the reason."""
    indices, embed = torch.tensor([[1, 4], [4, 0]]), rnnext.functional.embedding
    for dtype in (torch.int64, torch.bool, torch.uint8, torch.complex64, torch.complex128):
        table = torch.randint(2, (5, 3)).to(dtype)
        assert torch.equal(embed(indices, table), table[indices])
    table.requires_grad_()
    with torch.no_grad():
        assert torch.equal(embed(indices, table), table[indices])
    for sparse in (False, True):
        _, message = error_of(F.embedding, indices, table, sparse=sparse)
        assert error_of(embed, indices, table, sparse=sparse) == (RuntimeError, message)


def test_no_sequence_of_features_is_made():
    V, T, B, E, H = 20, 50, 8, 33, 17
    module, kept = rnnext.EmbeddingRNN(V, E, H), []
    with torch.autograd.graph.saved_tensors_hooks(lambda v: kept.append(v) or v, lambda v: v):
        output, _ = module(torch.randint(V, (T, B)))
    floats = [v for v in kept if v.is_floating_point()]
    assert [v.shape for v in floats if v.numel() >= T * B * H] == [output.shape]


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_both_ways_give_the_same_bits(monkeypatch, cell):
    monkeypatch.setattr(embedding_rnn, "COUNTED_WORK", 0)
    module = rnnext.EmbeddingRNN(200, 70, 50, num_layers=2, bidirectional=True, cell=cell)
    for tokens in (torch.randint(200, (30, 12)), torch.randint(5, (30, 12))):
        assert module._table(tokens) is not None
        found, expected = module(tokens), module.rnn(module.embedding(tokens))
        assert same(tree_leaves(found), tree_leaves(expected))
        gradients = [
            torch.autograd.grad(output.square().sum(), module.parameters())
            for output, _ in (found, expected)
        ]
        assert_close(*gradients)


class Doubled(rnnext.Embedding):
    def forward(self, tokens):
        return 2 * super().forward(tokens)


def patch(module):
    forward = module.rnn.forward
    module.rnn.forward = lambda x, hx=None: forward(2 * x)


# Changes to either module's results or gradients. (All modules' hooks are in test_tools_of_torch.)
ATTACHED = {
    "max_norm": lambda m: setattr(m.embedding, "max_norm", 0.1),
    "a parametrized table": lambda m: register_parametrization(m.embedding, "weight", nn.Tanh()),
    "a parametrized weight": lambda m: register_parametrization(m.rnn, "weight_hh_l0", nn.Tanh()),
    "scale_grad_by_freq": lambda m: setattr(m.embedding, "scale_grad_by_freq", True),
    "sparse": lambda m: setattr(m.embedding, "sparse", True),
    "frozen": lambda m: m.embedding.requires_grad_(False),
    "spectral_norm": lambda m: nn.utils.spectral_norm(m.rnn, "weight_hh_l0"),
    "a leak": lambda m: setattr(m, "rnn", rnnext.LeakyRNN(4, 3, alpha=0.1)),
    "torch.nn's RNN": lambda m: setattr(m, "rnn", nn.RNN(4, 3)),
    "an embedding of a user's": lambda m: setattr(m, "embedding", Doubled(5, 4)),
    "another forward": patch,
    "a hook": lambda m: m.rnn.register_forward_hook(lambda _, x, y: (2 * y[0], y[1])),
    "a hook before": lambda m: m.embedding.register_forward_pre_hook(lambda _, x: (x[0] // 2,)),
    "a backward hook": lambda m: m.rnn.register_full_backward_hook(
        lambda _, x, y: (2 * x[0], *x[1:])
    ),
    "a backward hook before": lambda m: m.embedding.register_full_backward_pre_hook(
        lambda _, y: (2 * y[0],)
    ),
}


@pytest.mark.parametrize("attach", ATTACHED.values(), ids=ATTACHED)
def test_changes_of_a_part_take_effect(attach):
    """Also in a second step, after the weights have changed."""
    tokens, results, layouts = torch.randint(5, (20, 3)), [], []
    for call in (lambda m: m(tokens), lambda m: m.rnn(m.embedding(tokens))):
        torch.manual_seed(0)
        module = rnnext.EmbeddingRNN(5, 4, 3)
        attach(module)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(2):
            output = call(module)[0]
            optimizer.zero_grad()
            output.square().sum().backward()
            optimizer.step()
        results.append([output, *module.parameters()])
        layouts.append([p.grad.layout for p in module.parameters() if p.grad is not None])
    assert_close(*results)
    assert layouts[0] == layouts[1]


def test_a_token_out_of_range_is_named():
    for V, bad in ((4, -1), (4, 9), (100, -1), (100, 4000), (4000, -1), (4000, 4000)):
        module = rnnext.EmbeddingRNN(V, 4, 3, batch_first=V > 4 and bad < 0)
        tokens = torch.randint(4, (30, 2))
        tokens[3, 1] = bad
        kind, message = error_of(module, tokens)
        assert kind is IndexError
        assert f"in self: {bad} at [3, 1]," in message


def test_a_table_that_has_grown_or_shrunk():
    for sizes, V in (((9, 4, 8), 20), ((9, 4, 8), 6), ((1000, 64, 128), 3000)):
        module, tokens = rnnext.EmbeddingRNN(*sizes, padding_idx=0), torch.randint(V, (500, 8))
        module.embedding.weight = nn.Parameter(torch.randn(V, sizes[1]))
        torch.testing.assert_close(module(tokens), module.rnn(module.embedding(tokens)))
