"""torch.fx.symbolic_trace, beside that modules are leaves of its graphs, as torch.nn's."""

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace

import rnnext
from helpers.common import same
from helpers.modules import X, outputs


def test_all_arguments_are_recorded():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.cell = rnnext.RNN(3, 4), rnnext.RNNCell(3, 4)

        def forward(self, x, hx, reset, lengths):
            output, h_n = self.rnn(x, hx, lengths, reset)
            return output, self.cell(x[0], h_n[0])

    model = Model()
    hx, reset, lengths = torch.randn(1, 2, 4), torch.rand(5, 2) < 0.5, torch.tensor([5, 3])
    given = (X, hx, reset, lengths)
    assert same(symbolic_trace(model)(*given), model(*given))


class Doubled(rnnext.RNN):
    def forward(self, x):
        return 2 * super().forward(x)[0]


@pytest.mark.parametrize("module", [Doubled(3, 4), rnnext.RNN(3, 4)], ids=["subclass", "hooks"])
def test_what_a_leaf_would_do_twice_is_recorded_once(module):
    if type(module) is rnnext.RNN:
        module.register_forward_pre_hook(lambda _, given: (3 * given[0],))
    graph = symbolic_trace(nn.Sequential(module))
    assert torch.ops.rnnext.rnn.default in [node.target for node in graph.graph.nodes]
    assert same(outputs(graph, X), outputs(module, X))
