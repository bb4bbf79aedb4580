import copy
import logging

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations, parametrize
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._pytree import tree_leaves

import rnnext
from helpers.common import assert_close, error_of, same
from helpers.modules import results, through_a_file

KINDS = ("RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell", "Embedding")
PAIRS = {getattr(nn, kind): getattr(rnnext, kind) for kind in KINDS}


class OwnRNN(nn.RNN):
    """A subclass that convert must not touch."""


class Model(nn.Module):
    """Modules of most kinds, one of them nested, shared and parametrized, among others."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4, padding_idx=0)
        self.stack = nn.ModuleDict({"rnn": nn.RNN(4, 6, 2, dropout=0.5, bidirectional=True)})
        self.again = self.stack["rnn"]
        self.normed = parametrizations.weight_norm(nn.RNN(12, 5), "weight_hh_l0")
        self.cell = nn.RNNCell(5, 3, nonlinearity="relu")
        self.own = OwnRNN(3, 3)
        self.lstm = nn.LSTM(3, 3)
        self.gru = nn.GRU(3, 4)
        self.gru_cell, self.lstm_cell = nn.GRUCell(4, 4), nn.LSTMCell(4, 4)

    def forward(self, indices):
        x, _ = self.again(self.embedding(indices))
        x, _ = self.normed(x)
        x, _ = self.own(self.cell(x[-1]))
        x, _ = self.gru(self.lstm(x)[0])
        return self.lstm_cell(self.gru_cell(x))


def test_convert_keeps_results_and_modules_and_revert_undoes_it(caplog):
    model, indices, hooked = Model(), torch.randint(10, (5, 3)), []
    model.eval()  # without dropout, whose masks differ
    model.cell.train()
    model.cell.weight_hh.requires_grad_(False)
    model.cell.register_forward_hook(lambda *_: hooked.append(type(model.cell)))
    classes = {name: type(m) for name, m in model.named_modules()}
    parameters, before = dict(model.named_parameters()), results(model, indices)
    with caplog.at_level(logging.INFO, logger="rnnext"):
        for change, count in ((rnnext.convert, 8), (rnnext.convert, 0)):
            caplog.clear()
            assert change(model) is model
            assert len(caplog.records) == count
        assert_close(results(model, indices), before)
        for name, old in classes.items():
            if name != "normed":  # which has a class of its own
                assert type(model.get_submodule(name)) is PAIRS.get(old, old)
        assert isinstance(model.normed, rnnext.RNN)
        assert model.again is model.stack["rnn"]
        assert all(p is parameters[name] for name, p in model.named_parameters())
        assert [m.training for m in (model.again, model.cell)] == [False, True]
        rnnext.revert(model)
    assert "stack.rnn: rnnext.RNN -> torch.nn.RNN" in caplog.messages
    assert same(results(model, indices), before)
    assert hooked == [nn.RNNCell, rnnext.RNNCell, nn.RNNCell]
    assert isinstance(model.normed, nn.RNN)
    parametrize.remove_parametrizations(model.normed, "weight_hh_l0")
    assert type(model.normed) is nn.RNN


def test_a_parametrized_rnn_can_be_copied_and_reverted():
    """(torch.nn lists all weights at ``.to()`` and in ``forward``, also those with a graph.)"""
    x = torch.randn(4, 2, 3)
    for prepare in (lambda m: m.to(torch.float32), lambda m: m(x), rnnext.convert):
        theirs = parametrizations.weight_norm(nn.RNN(3, 4, 2), "weight_hh_l0")
        prepare(theirs)
        ours = rnnext.convert(theirs).to(torch.float32)
        with torch.no_grad():
            ours.bias_ih_l1 = nn.Parameter(torch.ones(4))
            ours.parametrizations.weight_hh_l0.original1.mul_(0.5)
        before, averaged = ours(x), torch.optim.swa_utils.AveragedModel(ours)
        assert same(averaged(x), before)
        assert same(copy.deepcopy(ours)(x), before)
        assert_close(rnnext.revert(ours)(x), before)


@pytest.mark.parametrize("kind", [*KINDS[:3], "RNN of relu"])
def test_revert_keeps_lengths_on_request(kind):
    options = {"nonlinearity": "relu"} if "relu" in kind else {}
    kind = kind.split()[0]
    ours, theirs = getattr(rnnext, kind), getattr(nn, kind)
    rnn = ours(3, 6, 2, batch_first=True, bidirectional=True, **options)
    x, hx, lengths = torch.randn(4, 4, 3), torch.randn(4, 4, 6), torch.tensor([4, 0, 3, 1])
    x[torch.arange(4) >= lengths.unsqueeze(1)] = torch.nan
    given = (x, (hx, torch.randn(4, 4, 6)) if kind == "LSTM" else hx)
    before = results(rnn, *given, lengths=lengths)
    rnnext.revert(rnn, lengths=True)
    assert isinstance(rnn, theirs)
    assert_close(results(rnn, *given, lengths=lengths), before)
    assert_close(through_a_file(rnn)(x, lengths=lengths)[0], rnn(x, None, lengths)[0])
    assert_close(rnn(x, lengths=lengths.tolist())[0], rnn(x, None, lengths)[0])
    without = x.nan_to_num()
    assert_close(rnn(without)[0], rnnext.convert(copy.deepcopy(rnn))(without)[0])
    if kind == "RNN":  # (A GRU's is float32 in torch.nn, too, and oneDNN may lack an LSTM's.)
        with torch.autocast("cpu", torch.bfloat16):
            assert {y.dtype for y in rnn(*given, lengths)} == {torch.bfloat16}
    program = torch.export.export(rnn, given, {"lengths": lengths}).run_decompositions()
    assert not any("rnnext" in str(node.target) for node in program.graph.nodes)
    found = program.module()(*given, lengths=lengths)
    assert_close(tree_leaves(found), tree_leaves(rnn(*given, lengths)))
    message = rf"cannot compile rnnext\.Lengths{kind}: .* makes it torch\.nn\.{kind}, or"
    with pytest.raises(NotImplementedError, match=message):
        torch.jit.script(rnn)
    assert type(rnnext.revert(rnn, lengths=True)) is not theirs
    assert type(rnnext.convert(rnn)) is ours
    assert type(rnnext.revert(rnnext.revert(rnn, lengths=True))) is theirs


@pytest.mark.parametrize("kind", KINDS[:3])
def test_a_subclass_of_torchs_class_is_made_on_request(kind):
    theirs, x = getattr(nn, kind)(3, 4, 2), torch.randn(5, 2, 3)
    model = nn.ModuleList([parametrizations.weight_norm(getattr(nn, kind)(3, 4), "weight_hh_l0")])
    model.append(theirs)
    before, expected = [module(x)[0] for module in model], results(rnnext.convert(theirs), x)
    rnnext.revert(theirs)
    assert f"1: torch.nn.{kind} -> rnnext.Torch{kind}" in rnnext.summary(model, subclass=True)
    rnnext.convert(model, subclass=True)
    for module in model:
        assert isinstance(module, getattr(nn, kind))
        assert isinstance(module, getattr(rnnext, kind))
    assert_close([module(x)[0] for module in model], before)
    assert same(results(theirs, x), expected)
    assert same(results(theirs, x, lengths=[5, 3]), results(copy.deepcopy(theirs), x, None, [5, 3]))
    assert type(through_a_file(theirs)) is type(theirs)
    message = f"call rnnext.revert(model) first, which makes it torch.nn.{kind}, or use"
    assert message in error_of(torch.jit.script, theirs)[1]
    assert type(rnnext.convert(model)[1]) is getattr(rnnext, kind)
    assert isinstance(rnnext.convert(model, subclass=True)[1], getattr(nn, kind))
    assert type(rnnext.revert(model)[1]) is getattr(nn, kind)


def test_a_module_that_takes_lengths_refuses_what_rnnexts_refuses():
    ours = rnnext.RNN(3, 4, 2, dropout=1.0)  # nothing reaches the second layer
    left, x = rnnext.revert(copy.deepcopy(ours), lengths=True), torch.randn(5, 2, 3)
    assert_close(left(x, lengths=[5, 3]), ours(x, lengths=[5, 3]))
    packed = nn.utils.rnn.pack_padded_sequence(x, [5, 3])
    for input, hx, lengths in (
        (x, None, [5]),
        (x, None, [5, -1]),
        (x, None, torch.tensor([6, 0])),
        (x, None, [5.0, 1.0]),
        (x, torch.zeros(1, 3, 4), [5, 1]),
        (x[:, 0], None, [5]),
        (packed, None, [5, 3]),
    ):
        assert error_of(left, input, hx, lengths) == error_of(ours, input, hx, lengths)


def test_a_dry_run_prints_what_would_change_and_why_the_rest_stays(capsys):
    model = Model()
    model.cell.to(torch.complex64)
    model.indices = nn.Embedding(3, 4)
    model.indices.weight = nn.Parameter(torch.zeros(3, 4, dtype=torch.int8), requires_grad=False)
    model.tokens = rnnext.EmbeddingRNN(10, 4, 5)
    model.projects = nn.LSTM(3, 4, proj_size=2)
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
        "lstm: torch.nn.LSTM -> rnnext.LSTM",
        "gru: torch.nn.GRU -> rnnext.GRU",
        "gru_cell: torch.nn.GRUCell -> rnnext.GRUCell",
        "lstm_cell: torch.nn.LSTMCell -> rnnext.LSTMCell",
        "indices: torch.nn.Embedding -> rnnext.Embedding",
        "tokens.embedding: rnnext.Embedding stays: it is rnnext's",
        "tokens.rnn: rnnext.RNN stays: it is rnnext's",
        "projects: torch.nn.LSTM stays: proj_size is 2; rnnext has no projections",
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
    assert type(model.tokens.embedding) is rnnext.Embedding  # revert has left it
    assert rnnext.summary(nn.RNN(3, 4)) == "(the model): torch.nn.RNN -> rnnext.RNN"
    assert rnnext.summary(nn.Linear(3, 4)) == "no recurrent layer, cell or Embedding"
