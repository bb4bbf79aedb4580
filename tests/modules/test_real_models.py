"""Models that others wrote: converted in one call, they train as before, loss for loss."""

import copy

import pytest
import torch
from torch import nn

import rnnext
from helpers.common import assert_close


class WordModel(nn.Module):
    """The structure of PyTorch's official word-language-model example."""

    def __init__(self, tokens, size, layers):
        super().__init__()
        self.drop = nn.Dropout(0.2)
        self.encoder = nn.Embedding(tokens, size)
        self.rnn = nn.RNN(size, size, layers)  # no dropout: the masks would differ
        self.decoder = nn.Linear(size, tokens)
        self.decoder.weight = self.encoder.weight
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, tokens, hidden):
        output, hidden = self.rnn(self.drop(self.encoder(tokens)), hidden)
        scores = self.decoder(self.drop(output))
        return nn.functional.log_softmax(scores.flatten(0, 1), dim=1), hidden


def test_the_word_language_model():
    """As it is trained there: the state cut off between pieces, clipped gradients, plain steps."""
    T, B, layers, size = 7, 4, 2, 16
    text = torch.randint(30, (8 * T + 1, B))
    text[1::2] = text[:-1:2]  # every second token repeats the one before
    model = WordModel(30, size, layers)
    ours = rnnext.convert(copy.deepcopy(model))
    assert ours.decoder.weight is ours.encoder.weight
    losses = []
    for each in (model, ours):
        hidden = torch.zeros(layers, B, size)
        for epoch in range(3):
            for piece in range(0, 8 * T, T):
                torch.manual_seed(epoch * 1000 + piece)
                hidden.detach_()
                each.zero_grad()
                scores, hidden = each(text[piece : piece + T], hidden)
                loss = nn.functional.nll_loss(scores, text[piece + 1 : piece + T + 1].flatten())
                loss.backward()
                nn.utils.clip_grad_norm_(each.parameters(), 0.25)
                for parameter in each.parameters():
                    parameter.data.add_(parameter.grad, alpha=-5.0)
                losses.append(loss.detach())
    expected, actual = torch.stack(losses).chunk(2)
    assert expected[-8:].mean() < expected[:8].mean()
    assert_close(actual, expected)
    assert type(rnnext.revert(ours).rnn) is nn.RNN


def test_a_spiking_network_of_snntorch():
    """Its losses are the same, step by step. (It is made twice: a copy has no hooks.)"""
    snntorch = pytest.importorskip("snntorch", reason="in the extra `test`")
    x, labels, losses = torch.rand(20, 8, 6) * 3, torch.randint(3, (8,)), []
    for swap in (lambda network: network, rnnext.convert):
        torch.manual_seed(7)
        network = swap(nn.Sequential(
            snntorch.LeakyParallel(6, 16, beta=0.5, learn_beta=True),
            snntorch.LeakyParallel(16, 3, beta=0.9),
        ))  # fmt: skip
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for _ in range(8):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(x).sum(0), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    assert {type(m) for m in network.modules()} & {rnnext.RNN, rnnext.RNNCell}
    expected, actual = torch.stack(losses).chunk(2)
    assert expected[-1] < expected[0]
    assert_close(actual, expected)
