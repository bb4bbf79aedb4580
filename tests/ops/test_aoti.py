"""AOTInductor makes a library of a model with every module in it, which takes other sizes."""

import pytest
import torch
from torch import nn
from torch.export import Dim

import rnnext
from helpers.common import assert_close
from helpers.modules import outputs
from package.check_programs import packaged


class EveryModule(nn.Module):
    """With and without biases, which are lists of tensors that may be empty."""

    def __init__(self):
        super().__init__()
        self.embedding = rnnext.Embedding(7, 4)
        self.rnn = rnnext.RNN(4, 5, num_layers=2, bias=False)
        self.leaky = rnnext.LeakyRNN(5, 5, alpha=0.4, bidirectional=True)
        self.learned = rnnext.LeakyRNN(10, 5, alpha=0.4, learn_alpha=True, form="voltage")
        self.cell, self.words = rnnext.RNNCell(5, 6), rnnext.EmbeddingRNN(7, 4, 6)

    def forward(self, tokens):
        output, h_n = self.learned(self.leaky(self.rnn(self.embedding(tokens))[0])[0])
        return output, self.cell(h_n[0]), self.words(tokens)[0]


@pytest.mark.filterwarnings("ignore")  # torch's own
def test_a_library_of_every_module(tmp_path):
    model, tokens = EveryModule().eval(), torch.randint(7, (5, 3))
    sizes = {0: Dim("T", min=2, max=64), 1: Dim("B", min=2, max=64)}
    compiled = packaged(model, tokens, sizes, tmp_path / "model.pt2")
    for T, B in ((5, 3), (2, 9)):
        tokens = torch.randint(7, (T, B))
        assert_close(compiled(tokens), outputs(model, tokens))
