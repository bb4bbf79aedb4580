"""Stepper beside whole sequences of every kind of module, and what it refuses."""

import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

import rnnext
from helpers.common import ISAS, ROOT, assert_close, assert_refused, run_python, same, steps
from rnnext import Stepper


def test_modules_of_torch_can_be_stepped():
    x = torch.randn(6, 3, 5)
    for kind in (nn.RNN, rnnext.RNN, nn.RNNCell, rnnext.RNNCell):
        module, reference = kind(5, 40), nn.RNN(5, 40)
        stepper = Stepper(module, batch_size=3)
        for ours, theirs in zip(module.parameters(), reference.parameters(), strict=True):
            theirs.data.copy_(ours)
        with torch.no_grad():
            expected = reference(x)[0]
            assert_close(steps(stepper, x), expected)
            assert_close(steps(Stepper(module), x[:, 0]), expected[:, 0])
        stepper.reset()
        assert same(steps(stepper, torch._neg_view(-x)), steps(Stepper(module, 3), x))
        assert repr(stepper) == "Stepper(5, 40, num_layers=1, batch_size=3)"
        sizes = (stepper.input_size, stepper.hidden_size, stepper.num_layers, stepper.batch_size)
        assert sizes == (5, 40, 1, 3)


@torch.no_grad()
def test_modules_whose_attributes_were_set():
    """A cell may lack features and biases, an RNN not; the mode decides which nonlinearity."""
    x, h = torch.randn(3, 1, 4), torch.randn(1, 6)
    for library in (nn, rnnext):
        cell = library.RNNCell(0, 6)
        assert_close(Stepper(cell).step(x[0, :, :0], h[None])[0], cell(x[0, :, :0], h))
        cell = library.RNNCell(4, 6)
        for name in ("bias_ih", "bias_hh"):
            setattr(cell, name, None)
            assert_close(Stepper(cell)(x[0]), cell(x[0]))
        rnn = library.RNN(4, 6, num_layers=2)
        rnn.mode = "RNN_RELU"
        assert_close(steps(Stepper(rnn), x), rnn(x)[0])
        rnn.bias_hh_l1 = None
        message = "bias_hh_l1 must be a tensor, got NoneType"
        assert_refused(functools.partial(Stepper, rnn), TypeError, message)


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
            ["generic", *ISAS], [3, 1, 2, 3], x, expected, strict=False
        ):
            rnnext._C.set_cpu_isa(isa)
            torch.set_num_threads(threads)
            assert torch.equal(stepper(x_t), wanted)
        rnnext._C.set_cpu_isa(ISAS[-1])


def test_refuses_tensors_without_memory():
    stepper, zeros = Stepper(rnnext.RNN(4, 6)), torch._efficientzerotensor
    with FakeTensorMode() as mode:
        with pytest.raises(RuntimeError, match="weight_ih must be a plain tensor"):
            Stepper(rnnext.RNN(4, 6, bias=False))
        fake = mode.from_tensor(torch.zeros(1, 4))
    of_tokens = Stepper(rnnext.EmbeddingRNN(9, 4, 6))
    for name, call in (
        ("input", lambda: stepper(fake)),
        ("input", lambda: stepper(zeros(1, 4))),
        ("state", lambda: stepper.set_state(zeros(1, 1, 6))),
        ("tokens", lambda: of_tokens(zeros(1, dtype=torch.int64))),
        ("mask", lambda: stepper.reset(zeros(1, dtype=torch.bool))),
        ("input", lambda: torch.func.functionalize(stepper)(torch.zeros(1, 4))),
        ("input", lambda: torch.func.vmap(stepper)(torch.zeros(1, 1, 4))),
        ("state", lambda: torch.func.vmap(stepper.set_state)(torch.zeros(1, 1, 1, 6))),
    ):
        assert_refused(call, RuntimeError, f"{name} must be a plain tensor")


def test_a_step_has_no_gradient():
    stepper, x = Stepper(rnnext.RNN(4, 6)), torch.zeros(1, 4)
    learned = [t.requires_grad_() for t in (torch.randn(1, 4), torch.zeros(1, 1, 6))]
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x)
        assert_refused(lambda: stepper(dual), RuntimeError, "no forward-mode derivative")
    assert_refused(lambda: stepper(learned[0]), RuntimeError, "has no gradient")
    assert_refused(lambda: stepper.step(x, learned[1]), RuntimeError, "has no gradient")
    with torch.no_grad():
        assert not any(v.requires_grad for v in stepper.step(*learned))


class OwnForward(rnnext.Embedding):
    def forward(self, input):
        return 2 * super().forward(input)


BOTH = {"bidirectional": True}
OF_OWN = rnnext.EmbeddingRNN(9, 4, 6)
OF_OWN.embedding = OwnForward(9, 4)
OF_LEAK = rnnext.LeakyRNN(4, 6, alpha=0.5)
OF_LEAK.alpha.fill_(1.5)
MADE_OF = [
    ((nn.Linear(4, 6),), TypeError, "RNNCell, got Linear"),
    ((nn.LSTM(4, 6),), TypeError, "got LSTM"),
    ((OF_OWN,), TypeError, "no forward of its own, as no step calls it: OwnForward has"),
    ((rnnext.RNN(4, 6, **BOTH),), ValueError, "one direction"),
    ((rnnext.EmbeddingRNN(9, 4, 6, **BOTH),), ValueError, "one direction"),
    ((OF_LEAK,), ValueError, "alpha must be in (0, 1], got 1.5"),
    ((rnnext.RNN(4, 6), 0), ValueError, "batch_size must be positive, got 0"),
    ((rnnext.RNN(4, 6), 1.5), TypeError, "batch_size must be an integer, got float"),
    ((rnnext.RNN(4, 6), 10**13), RuntimeError, "allocate memory"),
    ((rnnext.RNN(4, 6, device="meta"),), RuntimeError, "CPU: the weights are on meta"),
]
ZEROS, STATES, MASK = torch.zeros(2, 4), torch.zeros(1, 2, 6), torch.tensor([True, False])
FEATURES = [
    (torch.zeros(3, 4), RuntimeError, "input must have shape [2, 4], got [3, 4]"),
    (torch.zeros(4), RuntimeError, "input must have shape [2, 4], got [4]"),
    (ZEROS.double(), RuntimeError, "weights' dtype, float32, got float64"),
    (ZEROS.to("meta"), RuntimeError, "input must be on the CPU, got meta"),
    ([0.0], TypeError, "input must be a tensor, got list: give torch.tensor(input)"),
]
TOKENS = [
    (torch.tensor([0, 9]), IndexError, "tokens[1] = 9 is out of range: expected 0 <= token < 9"),
    (torch.tensor([-1, 0]).int(), IndexError, "tokens[0] = -1 is out of range"),
    (torch.tensor([0]), RuntimeError, "tokens must have shape [2], got [1]"),
    (torch.zeros(2), TypeError, "tokens must be int32 or int64, got float32"),
    (torch.tensor([0, 0], device="meta"), RuntimeError, "on the CPU, got meta"),
    (np.zeros(2), TypeError, "tokens must be a tensor, got ndarray: give torch.from_numpy(tokens)"),
]
SET_STATE = [
    (torch.zeros(2, 6), RuntimeError, "state must have shape [1, 2, 6], got [2, 6]"),
    (STATES.double(), RuntimeError, "weights' dtype, float32, got float64"),
    (STATES.to("meta"), RuntimeError, "state must be on the CPU, got meta"),
    ([0.0], TypeError, "state must be a tensor, got list"),
]
RESET = [
    ((torch.zeros(2),), TypeError, "mask must be a bool tensor, got float32"),
    (([True, False],), TypeError, "mask must be a tensor, got list"),
    ((MASK[:1],), ValueError, "mask must have shape [2], got [1]"),
    ((MASK.to("meta"),), ValueError, "on the CPU, got meta"),
    ((MASK, torch.zeros(6)), ValueError, "state must"),
    ((MASK, torch.zeros(1, 6).double()), RuntimeError, "state must"),
    ((MASK, [0.0]), TypeError, "state must"),
    ((MASK[:1], torch.zeros(1, 6)), ValueError, "mask must"),
]


@pytest.mark.parametrize("ahead", [True, False])
def test_refuses_what_does_not_fit_and_keeps_its_state(ahead, monkeypatch):
    if not ahead:
        monkeypatch.setattr("rnnext.stepper._PROJECTED_ROWS", -1)
    of_features = Stepper(rnnext.RNN(4, 6), 2)
    of_tokens = Stepper(rnnext.EmbeddingRNN(9, 5, 6), 2)
    of_features(torch.randn(2, 4))
    of_tokens(torch.tensor([3, 8]))
    states = [stepper.get_state() for stepper in (of_features, of_tokens)]
    for call, rows in (
        (lambda given: Stepper(*given), MADE_OF),
        (of_features, FEATURES),
        (of_tokens, TOKENS),
        (of_features.set_state, SET_STATE),
        (lambda state: of_features.step(ZEROS, state), SET_STATE),
        (lambda given: of_features.reset(*given), RESET),
    ):
        for wrong, error, message in rows:
            assert_refused(functools.partial(call, wrong), error, message)
    assert same([of_features.get_state(), of_tokens.get_state()], states)
    one, message = Stepper(rnnext.RNN(4, 6)), "input must have shape [1, 4] or [4], got [5]"
    assert_refused(lambda: one(torch.zeros(5)), RuntimeError, message)
    with pytest.raises(AttributeError, match="batch_size"):
        one.batch_size = 2


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
