"""Stepper beside whole sequences of every kind of module, and what it refuses."""

import functools

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations

import rnnext
from helpers.common import assert_close, assert_refused, run_python, steps, supported_isas
from helpers.prose import ROOT
from rnnext import Stepper


def test_modules_of_torch_can_be_stepped():
    x = torch.randn(6, 3, 5)
    for kind in (nn.RNN, rnnext.RNN, nn.RNNCell, rnnext.RNNCell):
        module, reference = kind(5, 40), nn.RNN(5, 40)
        stepper = Stepper(module, batch_size=3)
        for ours, theirs in zip(module.parameters(), reference.parameters(), strict=True):
            theirs.data.copy_(ours)
        with torch.no_grad():
            assert_close(steps(stepper, x), reference(x)[0])
        assert repr(stepper) == "Stepper(5, 40, num_layers=1, batch_size=3)"
        sizes = (stepper.input_size, stepper.hidden_size, stepper.num_layers, stepper.batch_size)
        assert sizes == (5, 40, 1, 3)


@torch.no_grad()
def test_modules_whose_attributes_were_set():
    """A cell may lack features and biases, an RNN not; the mode decides which nonlinearity."""
    x = torch.randn(3, 1, 4)
    for library in (nn, rnnext):
        cell, h = library.RNNCell(0, 6), torch.randn(1, 6)
        expected = cell(x[0, :, :0], h)
        assert_close(Stepper(cell).step(x[0, :, :0], h[None])[0], expected)
        for missing in (["bias_ih"], ["bias_hh"], ["bias_ih", "bias_hh"]):
            cell = library.RNNCell(4, 6)
            for name in missing:
                setattr(cell, name, None)
            assert_close(Stepper(cell)(x[0]), cell(x[0]))
        rnn = library.RNN(4, 6, num_layers=2)
        rnn.mode = "RNN_RELU"
        assert_close(steps(Stepper(rnn), x), rnn(x)[0])
        rnn.bias_hh_l1 = None
        message = "bias_hh_l1 must be a tensor, got NoneType"
        assert_refused(functools.partial(Stepper, rnn), TypeError, message)


def test_inputs_of_any_layout():
    """Of a parametrized module."""
    rnn = parametrizations.weight_norm(rnnext.RNN(4, 6, num_layers=2), "weight_hh_l0")
    x = torch.randn(4, 3, 9).transpose(0, 2)  # [9, 3, 4], each step with columns apart
    with torch.no_grad():
        expected = rnn(x)[0]
    assert torch.equal(steps(Stepper(rnn, 3), x), expected)
    assert torch.equal(steps(Stepper(rnn), x[:, :1]), expected[:, :1])
    assert torch.equal(steps(Stepper(rnn), x[:, 0]), expected[:, 0])
    assert torch.equal(steps(Stepper(rnn, 3), torch._neg_view(-x)), expected)


def test_inference_mode_may_change_between_making_and_stepping():
    rnn, x = rnnext.RNN(4, 6), torch.randn(1, 4)
    with torch.inference_mode():
        inside = Stepper(rnn)
        expected = inside(x)
    outside = Stepper(rnn)
    inside.reset()
    assert torch.equal(inside(x), expected)
    inside.set_state(inside.get_state() + 1)
    with torch.inference_mode():
        assert torch.equal(outside(x), expected)
        outside.set_state(inside.get_state())
    assert torch.equal(outside(x), inside(x))


def test_threads_and_isa_may_change_after_it_was_made():
    rnn, x = rnnext.RNN(200, 300, num_layers=2), torch.randn(6, 2, 200)
    with torch.no_grad():
        expected = rnn(x)[0]
    for made_with in (1, 3):
        torch.set_num_threads(made_with)
        stepper = Stepper(rnn, 2)
        for isa, threads, x_t, wanted in zip(
            ["generic", *supported_isas()], [3, 1, 2, 3], x, expected, strict=False
        ):
            rnnext._C.set_cpu_isa(isa)
            torch.set_num_threads(threads)
            assert torch.equal(stepper(x_t), wanted)
        rnnext._C.set_cpu_isa(supported_isas()[-1])


def test_refuses_tensors_without_memory():
    stepper = Stepper(rnnext.RNN(4, 6))
    with FakeTensorMode() as mode:
        with pytest.raises(RuntimeError, match="weight_ih must be a plain tensor"):
            Stepper(rnnext.RNN(4, 6, bias=False))
        fake = mode.from_tensor(torch.zeros(1, 4))
    zeros, rnn = torch._efficientzerotensor, nn.RNN(4, 6)
    del rnn.weight_hh_l0
    rnn.weight_hh_l0 = zeros(6, 6)
    of_tokens = Stepper(rnnext.EmbeddingRNN(9, 4, 6))
    for name, call in (
        ("input", lambda: stepper(fake)),
        ("input", lambda: stepper(zeros(1, 4))),
        ("state", lambda: stepper.set_state(zeros(1, 1, 6))),
        ("tokens", lambda: of_tokens(zeros(1, dtype=torch.int64))),
        ("mask", lambda: stepper.reset(zeros(1, dtype=torch.bool))),
        ("weight_hh", lambda: Stepper(rnn)),
    ):
        assert_refused(call, RuntimeError, f"{name} must be a plain tensor")


def test_refuses_tensors_that_a_transform_holds():
    stepper, x = Stepper(rnnext.RNN(4, 6)), torch.zeros(1, 4)
    for transform, calls in ((torch.func.functionalize, []), (torch.func.vmap, [1])):
        with pytest.raises(RuntimeError, match=r"^input must be a plain tensor"):
            transform(stepper)(torch.zeros(*calls, 1, 4))
        with pytest.raises(RuntimeError, match=r"^state must be a plain tensor"):
            transform(stepper.set_state)(torch.zeros(*calls, 1, 1, 6))
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(stepper, (x,), (x,))
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x)
        assert_refused(functools.partial(stepper, dual), RuntimeError, "forward-mode")


def test_refuses_what_it_cannot_do():
    rnn, leak, both = rnnext.RNN(4, 6, num_layers=2), {"alpha": 0.5}, {"bidirectional": True}
    of_leak = rnnext.LeakyRNN(4, 6, **leak)
    of_leak.alpha.fill_(1.5)
    for given, error, message in (
        ((nn.Linear(4, 6),), TypeError, "RNNCell, got Linear"),
        ((nn.LSTM(4, 6),), TypeError, "got LSTM"),
        ((rnnext.RNN(4, 6, **both),), ValueError, "one direction"),
        ((rnnext.LeakyRNN(4, 6, **leak, **both),), ValueError, "one direction"),
        ((rnnext.EmbeddingRNN(9, 4, 6, **both),), ValueError, "one direction"),
        ((of_leak,), ValueError, "alpha must be in (0, 1], got 1.5"),
        ((rnn, 0), ValueError, "batch_size must be positive, got 0"),
        ((rnn, 1.5), TypeError, "batch_size must be an integer, got float"),
        ((rnn, 10**13), RuntimeError, "allocate memory"),
        ((rnnext.RNN(4, 6, device="meta"),), RuntimeError, "CPU: the weights are on meta"),
    ):
        assert_refused(functools.partial(Stepper, *given), error, message)


def of_features():
    return Stepper(rnnext.RNN(4, 6), 2), torch.randn(2, 4)


def of_tokens():
    return Stepper(rnnext.EmbeddingRNN(9, 5, 6), 2), torch.tensor([3, 8])


ZEROS = torch.zeros(2, 4)
FEATURES = [
    (torch.zeros(3, 4), RuntimeError, "input must have shape [2, 4], got [3, 4]"),
    (torch.zeros(2, 5), RuntimeError, "input must have shape [2, 4], got [2, 5]"),
    (torch.zeros(4), RuntimeError, "input must have shape [2, 4], got [4]"),
    (torch.zeros(1, 2, 4), RuntimeError, "input must have shape [2, 4], got [1, 2, 4]"),
    (ZEROS.double(), RuntimeError, "weights' dtype, float32, got float64"),
    (ZEROS.to("meta"), RuntimeError, "input must be on the CPU, got meta"),
    (torch.zeros(2, 4, requires_grad=True), RuntimeError, "has no gradient"),
    ([0.0], TypeError, "input must be a tensor, got list"),
]
TOKENS = [
    (torch.tensor([0, 9]), IndexError, "tokens[1] = 9 is out of range: expected 0 <= token < 9"),
    (torch.tensor([-1, 0]).int(), IndexError, "tokens[0] = -1 is out of range"),
    (torch.tensor([0]), RuntimeError, "tokens must have shape [2], got [1]"),
    (torch.tensor(0), RuntimeError, "tokens must have shape [2], got []"),
    (torch.zeros(2), TypeError, "tokens must be int32 or int64, got float32"),
    (torch.tensor([0, 0], device="meta"), RuntimeError, "on the CPU, got meta"),
    ([0, 0], TypeError, "tokens must be a tensor, got list"),
]


@pytest.mark.parametrize("ahead", [True, False])
def test_refuses_a_wrong_input_and_keeps_its_state(ahead, monkeypatch):
    if not ahead:
        monkeypatch.setattr("rnnext.stepper._PROJECTED_ROWS", -1)
    for (stepper, right), rows in ((of_features(), FEATURES), (of_tokens(), TOKENS)):
        stepper(right)
        before = stepper.get_state()
        for wrong, error, message in rows:
            assert_refused(functools.partial(stepper, wrong), error, message)
            assert torch.equal(stepper.get_state(), before)
    one, message = Stepper(rnnext.RNN(4, 6)), "input must have shape [1, 4] or [4], got [5]"
    assert_refused(lambda: one(torch.zeros(5)), RuntimeError, message)


def test_nothing_comes_of_an_instance_that_was_never_made():
    """In a process of its own: such an instance once crashed it."""
    code = """
import copy, rnnext, torch
from rnnext import _C
made = rnnext.Stepper(rnnext.RNN(4, 6))._stepper
for make in (_C.Stepper.__new__, object.__new__, lambda kind: copy.copy(made)):
    try:
        make(_C.Stepper).step(torch.zeros(1, 4))
    except TypeError:
        print("refused")
"""
    assert run_python("-c", code, cwd=ROOT).stdout.split() == ["refused"] * 3


def test_only_a_small_table_is_multiplied_ahead(monkeypatch):
    calls, recurrence = [], rnnext.functional.recurrence
    monkeypatch.setattr(
        "rnnext.functional.recurrence", lambda *a, **k: calls.append(a) or recurrence(*a, **k)
    )
    for V, dtype, made in (
        (1024, torch.float32, 1),
        (1025, torch.float32, 0),
        (1000, torch.float64, 1),
        (1000, torch.bfloat16, 0),  # rounded it would have other bits
    ):
        calls.clear()
        Stepper(rnnext.EmbeddingRNN(V, 8, 64, dtype=dtype))
        assert len(calls) == made


def test_other_tables_tokens_and_autocast():
    """A table of torch.nn's whose rows are scaled, one token without a dimension."""
    model, tokens = rnnext.EmbeddingRNN(9, 5, 6, num_layers=2), torch.randint(9, (7,))
    model.embedding = nn.Embedding(9, 5, max_norm=1.0)
    for rnn in (rnnext.LeakyRNN(5, 6, 2, alpha=0.3), model.rnn):
        model.rnn = rnn
        with torch.no_grad():
            expected = rnn(model.embedding(tokens))[0]
        one = Stepper(model)
        assert torch.equal(steps(one, tokens), expected)
    assert repr(one) == "Stepper(9, 6, num_layers=2, batch_size=1)"
    with torch.autocast("cpu", torch.bfloat16):
        stepper = Stepper(model)
        assert torch.equal(steps(stepper, tokens[:, None])[:, 0], expected)
