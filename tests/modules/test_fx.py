"""torch.fx.symbolic_trace: the modules are leaves of its graphs, as torch.nn's."""

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace

import rnnext
from helpers.common import same

TOKENS, X = torch.randint(7, (5, 2)), torch.randn(5, 2, 3)
MODULES = {
    "RNN": (lambda: rnnext.RNN(3, 4, 2, dropout=0.5), X),
    "RNNCell": (lambda: rnnext.RNNCell(3, 4), X[0]),
    "Embedding": (lambda: rnnext.Embedding(7, 3, max_norm=1), TOKENS),
    "EmbeddingRNN": (lambda: rnnext.EmbeddingRNN(7, 3, 4, 2, dropout=0.5), TOKENS),
    "LeakyRNN": (lambda: rnnext.LeakyRNN(3, 4, alpha=0.5, noise_std=0.1), X),
}


def results(module, *given):
    """Its results, drawn from the same seed."""
    torch.manual_seed(0)
    result = module(*given)
    return [result] if isinstance(result, torch.Tensor) else result


def called(graph):
    return [(node.op, node.target) for node in graph.graph.nodes if node.op.startswith("call")]


@pytest.mark.parametrize(("make", "given"), MODULES.values(), ids=MODULES)
@pytest.mark.parametrize("traced_in", [True, False])
def test_a_module_is_a_leaf(make, given, traced_in):
    module = make()
    graph = symbolic_trace(nn.Sequential(module).train(traced_in))
    assert called(graph) == [("call_module", "0")]
    for training in (True, False):
        graph.train(training)
        module.train(training)
        assert same(results(graph, given), results(module, given))


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


def test_a_graph_takes_packed_sequences_and_can_be_reverted():
    model = nn.Sequential(rnnext.RNN(3, 4))
    graph, packed = symbolic_trace(model), nn.utils.rnn.pack_sequence([X[:, 0], X[:2, 1]])
    assert same(graph(packed)[0][:2], model(packed)[0][:2])
    rnnext.revert(graph)
    assert type(graph.get_submodule("0")) is nn.RNN
    torch.testing.assert_close(graph(X), model(X))


class Doubled(rnnext.RNN):
    def forward(self, x):
        return 2 * super().forward(x)[0]


@pytest.mark.parametrize("module", [Doubled(3, 4), rnnext.RNN(3, 4)], ids=["subclass", "hooks"])
def test_what_a_leaf_would_do_twice_is_recorded_once(module):
    if type(module) is rnnext.RNN:
        module.register_forward_pre_hook(lambda _, given: (3 * given[0],))
    graph = symbolic_trace(nn.Sequential(module))
    assert ("call_function", torch.ops.rnnext.rnn.default) in called(graph)
    assert same(results(graph, X), results(module, X))


def test_the_model_itself_and_functions_are_recorded_as_ops():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4, 4))

        def forward(self, x, h):
            return rnnext.functional.rnn_cell(x, h, self.a, self.b)

    given = (X[0], torch.randn(2, 4))
    for model in (rnnext.RNNCell(3, 4), Model()):
        graph = symbolic_trace(model)
        assert called(graph) == [("call_function", torch.ops.rnnext.rnn_cell.default)]
        assert same(results(graph, *given), results(model, *given))
