"""rnnext.convert and rnnext.revert."""

import copy
import functools
import logging

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations, parametrize
from torch.testing._internal.two_tensor import TwoTensor

import rnnext
from helpers.common import assert_close, error_of, same
from helpers.modules import OF_TORCH, results, through_a_file

PAIRS = {nn.RNN: rnnext.RNN, nn.RNNCell: rnnext.RNNCell, nn.Embedding: rnnext.Embedding}


class OwnRNN(nn.RNN):
    """A subclass that convert must not touch."""


class Model(nn.Module):
    """The three modules, one of them nested, shared and parametrized, among others."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4, padding_idx=0)
        self.stack = nn.ModuleDict({"rnn": nn.RNN(4, 6, 2, dropout=0.5, bidirectional=True)})
        self.again = self.stack["rnn"]
        self.normed = parametrizations.weight_norm(nn.RNN(12, 5), "weight_hh_l0")
        self.cell = nn.RNNCell(5, 3, nonlinearity="relu")
        self.own = OwnRNN(3, 3)
        self.lstm = nn.LSTM(3, 3)

    def forward(self, indices):
        x, _ = self.again(self.embedding(indices))
        x, _ = self.normed(x)
        x, _ = self.own(self.cell(x[-1]))
        return self.lstm(x)[0]


@pytest.fixture
def model():
    return Model()


def test_results_stay_and_revert_undoes(model):
    indices = torch.randint(10, (5, 3))
    classes = {name: type(m) for name, m in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    before = results(model.eval(), indices)  # without dropout, whose masks differ
    assert rnnext.convert(model) is model
    assert_close(results(model, indices), before)
    assert isinstance(model.normed, rnnext.RNN)
    assert type(model.own) is OwnRNN
    assert type(model.lstm) is nn.LSTM
    for name, old in classes.items():
        if old in PAIRS:
            assert type(model.get_submodule(name)) is PAIRS[old]
    assert model.again is model.stack["rnn"]
    assert model.state_dict().keys() == state.keys()
    assert rnnext.revert(model) is model
    assert same(results(model, indices), before)
    assert all(
        type(m) is classes[name] or parametrize.is_parametrized(m)
        for name, m in model.named_modules()
    )
    assert isinstance(model.normed, nn.RNN)


@pytest.mark.parametrize(
    "options",
    [
        {"num_layers": 2, "bidirectional": True, "batch_first": True},
        {"nonlinearity": "relu", "bias": False},
    ],
    ids=str,
)
def test_a_module_that_takes_lengths_is_left_on_request(options):
    rnn, lengths = rnnext.RNN(3, 6, **options), torch.tensor([7, 0, 3, 1])
    states = rnn.num_layers * (1 + rnn.bidirectional)
    given = torch.randn(*((4, 7) if rnn.batch_first else (7, 4)), 3), torch.randn(states, 4, 6)
    padding = torch.arange(7) >= lengths.unsqueeze(1)
    given[0][padding if rnn.batch_first else padding.t()] = torch.nan
    before = results(rnn, *given, lengths=lengths)
    rnnext.revert(rnn, lengths=True)
    assert isinstance(rnn, nn.RNN)
    assert_close(results(rnn, *given, lengths=lengths), before)
    assert_close(through_a_file(rnn)(given[0], lengths=lengths)[0], rnn(given[0], None, lengths)[0])
    assert_close(rnn(given[0], lengths=lengths.tolist())[0], rnn(given[0], None, lengths)[0])
    x = given[0].nan_to_num()
    assert_close(rnn(x)[0], rnnext.RNN.forward(rnn, x)[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert {y.dtype for y in rnn(*given, lengths)} == {torch.bfloat16}
    program = torch.export.export(rnn, given, {"lengths": lengths}).run_decompositions()
    assert not any("rnn" in str(node.target) for node in program.graph.nodes)
    assert_close(program.module()(*given, lengths=lengths), rnn(*given, lengths))
    with pytest.raises(NotImplementedError, match=r"torch\.jit\.script cannot compile"):
        torch.jit.script(rnn)
    assert type(rnnext.revert(rnn, lengths=True)) is not nn.RNN
    assert type(rnnext.convert(rnn)) is rnnext.RNN
    assert type(rnnext.revert(rnnext.revert(rnn, lengths=True))) is nn.RNN


def test_a_module_that_takes_lengths_refuses_what_rnnexts_refuses():
    ours = rnnext.RNN(3, 4, batch_first=True)
    left = rnnext.revert(copy.deepcopy(ours), lengths=True)
    x = torch.randn(2, 5, 3)
    packed = nn.utils.rnn.pack_padded_sequence(x, [5, 3], batch_first=True)
    for input, hx, lengths in (
        (x, None, [5]),
        (x, None, [5, -1]),
        (x, None, torch.tensor([6, 0])),
        (x, None, [5.0, 1.0]),
        (x, None, "x"),
        (x, torch.zeros(1, 3, 4), [5, 1]),
        (x.double(), None, [5, 1]),
        (x[..., :2], None, [5, 1]),
        (x[0], None, [5]),
        (packed, None, [5, 3]),
    ):
        calls = (functools.partial(module, input, hx, lengths) for module in (ours, left))
        expected, found = map(error_of, calls)
        assert found == expected


@pytest.mark.parametrize("sample", OF_TORCH.values(), ids=OF_TORCH)
def test_the_model_itself(sample):
    module = sample.make(nn).eval()
    old, text, expected = type(module), repr(module), results(module, sample.given)
    assert rnnext.convert(module) is module
    for each in (module, copy.deepcopy(module)):
        assert type(each) is PAIRS[old]
        assert repr(each) == text
        assert_close(results(each, sample.given), expected)
    assert type(rnnext.revert(module)) is old
    assert same(results(module, sample.given), expected)


def test_everything_about_the_modules_stays(model):
    calls = []
    model.cell.register_forward_hook(lambda *_: calls.append("hook"))
    model.again.eval()
    model.cell.weight_hh.requires_grad_(False)
    parameters = dict(model.named_parameters())
    rnnext.convert(model)
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert not model.again.training
    assert model.cell.training
    assert not model.cell.weight_hh.requires_grad
    model.cell(torch.zeros(3, 5))
    assert calls == ["hook"]


def test_parametrization_may_be_added_or_removed_afterwards():
    x = torch.randn(5, 3, 4)
    for kind, swap, other in (
        (nn.RNN, rnnext.convert, rnnext.RNN),
        (rnnext.RNN, rnnext.revert, nn.RNN),
    ):
        module = kind(4, 6)
        parametrizations.weight_norm(module, "weight_hh_l0")
        swap(module)
        parametrizations.spectral_norm(module, "weight_ih_l0")
        module.eval()
        expected = module(x)
        for name in ("weight_hh_l0", "weight_ih_l0"):
            parametrize.remove_parametrizations(module, name)
        assert type(module) is other
        assert_close(module(x), expected)


def test_changes_are_logged(model, caplog):
    with caplog.at_level(logging.INFO, logger="rnnext"):
        for change, count in ((rnnext.convert, 4), (rnnext.convert, 0), (rnnext.revert, 4)):
            caplog.clear()
            change(model)
            assert len(caplog.records) == count
    assert "stack.rnn: rnnext.RNN -> torch.nn.RNN" in caplog.messages


def test_a_dry_run_prints_what_would_change_and_why_the_rest_stays(model, capsys):
    model.cell.to(torch.complex64)
    model.indices = nn.Embedding(3, 4)
    model.indices.weight = nn.Parameter(torch.zeros(3, 4, dtype=torch.int8), requires_grad=False)
    model.tokens = rnnext.EmbeddingRNN(10, 4, 5)
    model.far = nn.RNN(3, 4, bias=False, device="meta")
    with FakeTensorMode():
        model.far.weight_hh_l0 = nn.Parameter(torch.empty(4, 4, device="xpu"))
    model.wrapped = nn.RNNCell(3, 4)
    model.wrapped.forward = model.wrapped.forward
    model.own_way = rnnext.RNN(3, 4)
    model.own_way.forward = model.own_way.forward
    model.pair = nn.Embedding(3, 4)
    model.pair.weight = nn.Parameter(TwoTensor(torch.zeros(3, 4), torch.zeros(3, 4)))
    classes = [type(m) for m in model.modules()]
    assert rnnext.convert(model, dry_run=True) is model
    assert [type(m) for m in model.modules()] == classes
    printed = capsys.readouterr().out
    assert printed == rnnext.summary(model) + "\n"
    own = f"{OwnRNN.__module__}.OwnRNN"
    assert printed.splitlines() == [
        "embedding: torch.nn.Embedding -> rnnext.Embedding",
        "stack.rnn: torch.nn.RNN -> rnnext.RNN",
        "normed: torch.nn.RNN -> rnnext.RNN",
        "cell: torch.nn.RNNCell stays: weight_ih is complex64; rnnext has float32, float64, "
        "bfloat16 and float16",
        f"own: {own} stays: a subclass of torch.nn.RNN may override what rnnext replaces",
        "lstm: torch.nn.LSTM stays: rnnext has none of this kind",
        "indices: torch.nn.Embedding -> rnnext.Embedding",
        "tokens.embedding: rnnext.Embedding stays: it is rnnext's",
        "tokens.rnn: rnnext.RNN stays: it is rnnext's",
        "far: torch.nn.RNN stays: weight_hh_l0 is on xpu:0, for which this build of rnnext has no "
        "kernels",
        "wrapped: torch.nn.RNNCell stays: its forward has been replaced",
        "own_way: rnnext.RNN stays: it is rnnext's",
        "pair: torch.nn.Embedding stays: weight is a TwoTensor, for which rnnext has no kernels",
    ]
    rnnext.convert(model)
    changed = [a is not type(m) for a, m in zip(classes, model.modules(), strict=True)]
    assert sum(changed) == printed.count(" -> ")
    assert type(model.cell) is nn.RNNCell
    without = rnnext.summary(rnnext.revert(model), embedding=False)
    assert type(model.own_way) is rnnext.RNN
    assert "embedding: torch.nn.Embedding stays: embedding=False" in without.splitlines()
    assert type(rnnext.convert(model, embedding=False).embedding) is nn.Embedding
    assert type(model.stack["rnn"]) is rnnext.RNN
    assert rnnext.summary(nn.RNN(3, 4)) == "(the model): torch.nn.RNN -> rnnext.RNN"


def test_revert_leaves_an_embedding_rnn_whole():
    model = nn.Sequential(rnnext.EmbeddingRNN(10, 4, 5))
    few, many = torch.randint(10, (5, 2)), torch.randint(10, (5, 20))
    expected = [model(few)[0], model(many)[0]]
    rnnext.revert(model)
    assert same([model(few)[0], model(many)[0]], expected)
    assert type(model[0].rnn) is rnnext.RNN


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
