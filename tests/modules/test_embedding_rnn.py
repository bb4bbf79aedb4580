"""EmbeddingRNN: rnn(embedding(tokens)), whichever way it is computed."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import rnnext
from helpers.common import assert_close, error_of, same
from rnnext import embedding_rnn


def test_no_sequence_of_features_is_made():
    V, T, B, E, H = 20, 50, 8, 33, 17
    module = rnnext.EmbeddingRNN(V, E, H)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda v: kept.append(v) or v, lambda v: v):
        output, _ = module(torch.randint(V, (T, B)))
    floats = [v for v in kept if v.is_floating_point()]
    assert [v.shape for v in floats if v.numel() >= T * B * H] == [output.shape]


def test_both_ways_give_the_same_bits(monkeypatch):
    monkeypatch.setattr(embedding_rnn, "COUNTED_WORK", 0)
    module = rnnext.EmbeddingRNN(200, 70, 50, num_layers=2, bidirectional=True)
    for tokens in (torch.randint(200, (30, 12)), torch.randint(5, (30, 12))):
        assert module._table(tokens) is not None
        assert same(module(tokens), module.rnn(module.embedding(tokens)))


class Doubled(rnnext.Embedding):
    def forward(self, tokens):
        return 2 * super().forward(tokens)


def patch(module):
    forward = module.rnn.forward
    module.rnn.forward = lambda x, hx=None: forward(2 * x)


class Halved(nn.Module):
    def forward(self, x):
        return x / 2


def parametrized(module):
    for part, name in ((module.embedding, "weight"), (module.rnn, "weight_hh_l0")):
        nn.utils.parametrize.register_parametrization(part, name, Halved())


# What changes the results of either module, or their gradients. (All modules' hooks are in
# tests/package/test_tools_of_torch.py.)
ATTACHED = {
    "max_norm": lambda m: setattr(m.embedding, "max_norm", 0.1),
    "parametrizations": parametrized,
    "scale_grad_by_freq": lambda m: setattr(m.embedding, "scale_grad_by_freq", True),
    "frozen": lambda m: m.embedding.requires_grad_(False),
    "spectral_norm": lambda m: nn.utils.spectral_norm(m.rnn, "weight_hh_l0"),
    "weight_norm": lambda m: nn.utils.weight_norm(m.rnn, "weight_hh_l0"),
    "prune": lambda m: prune.l1_unstructured(m.rnn, "weight_hh_l0", 0.5),
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
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_what_is_attached_to_a_part_holds(attach):
    """Also in a second step, after the weights have changed."""
    tokens, results = torch.randint(5, (20, 3)), []
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
    assert_close(*results)


def test_a_token_out_of_range_is_named():
    for V, bad in ((4, -1), (4, 9), (100, -1), (100, 4000), (4000, -1), (4000, 4000)):
        module = rnnext.EmbeddingRNN(V, 4, 3, batch_first=V > 4 and bad < 0)
        tokens = torch.randint(4, (30, 2))
        tokens[3, 1] = bad
        kind, message = error_of(lambda module=module, tokens=tokens: module(tokens))
        assert kind is IndexError
        assert f"in self: {bad} at [3, 1]," in message
