import functools
import sys
import threading

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

import rnnext
from helpers.common import assert_close
from rnnext import _C, functional


def calls_of_each_function():
    """For each function's name: a call of it, which hands its first tensor to a function."""
    w_ih, w_hh, b = torch.randn(6, 4), torch.randn(6, 6), torch.randn(6)
    gru, lstm = ([torch.cat([w] * G) for w in (w_ih, w_hh, b, b)] for G in (3, 4))
    x, table = torch.randn(5, 3, 4, requires_grad=True), torch.randn(9, 4)
    return {
        "rnn": lambda make: functional.rnn(make(x), None, [w_ih, w_hh, b, b])[0],
        "recurrence": lambda make: functional.recurrence(make(x), None, w_ih, w_hh, alpha=0.5)[0],
        "rnn_cell": lambda make: functional.rnn_cell(make(x[0]), None, w_ih, w_hh, b, b),
        "gru": lambda make: functional.gru(make(x[0]), None, gru)[0],
        "lstm": lambda make: functional.lstm(make(x), None, lstm)[0],
        "gru_cell": lambda make: functional.gru_cell(make(x[0]), None, *gru),
        "lstm_cell": lambda make: functional.lstm_cell(make(x[0]), None, *lstm)[0],
        "embedding": lambda make: functional.embedding(make(torch.tensor([8, 0, 3])), table),
    }


@pytest.mark.parametrize("name", calls_of_each_function())
def test_overrides_of_torch_see_the_op(name):
    """A subclass, a function mode and make_fx."""
    call, seen = calls_of_each_function()[name], []
    op_name = name.replace("gru", "rnn").replace("lstm", "rnn")
    op, expected = getattr(torch.ops.rnnext, op_name).default, call(lambda tensor: tensor)

    class Own(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            seen.append(function)
            return super().__torch_function__(function, types, args, kwargs or {})

    class Functions(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    result = call(lambda tensor: tensor.as_subclass(Own))
    assert isinstance(result, Own)
    assert torch.equal(result, expected)
    assert op in seen
    seen.clear()
    with Functions():
        assert torch.equal(call(lambda tensor: tensor), expected)
    assert op in seen
    graph = make_fx(lambda: call(lambda tensor: tensor))()
    assert "rnnext" in {getattr(node.target, "namespace", "") for node in graph.graph.nodes}
    assert torch.equal(graph(), expected)
    assert graph().requires_grad == expected.requires_grad


def test_another_thread_runs_during_a_call():
    """The interpreter lock is free while a kernel runs, though no thread is asked to give it up."""
    module, x = rnnext.RNN(64, 256), torch.randn(2000, 16, 64)
    begins, ran = threading.Event(), []
    thread = threading.Thread(target=lambda: ran.append(begins.wait()))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(100)
    thread.start()
    try:
        with torch.no_grad():
            begins.set()
            module(x)
            during = len(ran)
    finally:
        sys.setswitchinterval(interval)
        thread.join()
    assert during == 1


def test_the_gradient_of_a_small_alpha():
    """The difference that alpha multiplies is not taken from states that hardly differ."""
    for form, dtype in zip(_C.forms(), (torch.float64, torch.float32, torch.bfloat16), strict=True):
        alpha = torch.full((8,), 2.0**-10, dtype=dtype)
        x, w = torch.randn(20, 6, 8).to(dtype), (torch.randn(8, 8) * 0.2).to(dtype)
        found = []
        for kind in (dtype, torch.float64):
            a, given = alpha.to(kind).requires_grad_(), (x.to(kind), None, None, w.to(kind))
            output, _ = functional.recurrence(*given, alpha=a, form=form)
            found.append(torch.autograd.grad(output.sum(), a)[0])
        assert_close(*found)


def assert_exact_gradients(module, x, reset, state):
    """In float32, to 1e-5 of the largest value of 8 rows; state: hx, and reset_state."""
    found = []
    for dtype in (torch.float32, torch.float64):
        hx, start = (h.to(dtype).requires_grad_() for h in state)
        module = module.to(dtype)
        output, _ = module(x.to(dtype), hx, reset=reset, reset_state=start)
        grads = torch.autograd.grad(output.sum(), [hx, start, *module.parameters()])
        found.append([gate for grad in grads for gate in torch.atleast_1d(grad).split(8)])
    for grad, expected in zip(*found, strict=True):
        assert (grad - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(("cell", "B"), [("gru", 1), ("gru", 1000), ("blend", 1), ("rate", 1)])
def test_gradients_of_a_hundred_thousand_equal_rows(cell, B):
    leaky = {"alpha": 0.3, "learn_alpha": True, "form": cell}
    module = rnnext.GRU(9, 8) if cell == "gru" else rnnext.LeakyRNN(9, 8, **leaky)
    x, reset = torch.full((100_000 // B, B, 9), 0.3), torch.ones(100_000 // B, B, dtype=torch.bool)
    reset[0] = False
    assert_exact_gradients(module, x, reset, torch.randn(2, 1, B, 8))


def test_gradients_of_a_gru_whose_states_are_large():
    """The step adds at most 1 to them, so that a difference of states would not have it."""
    gru = rnnext.GRU(4, 8)
    with torch.no_grad():
        gru.weight_hh_l0 /= 1e6
    state, reset = torch.randn(2, 1, 3, 8) * 1e6, torch.rand(5, 3) < 0.3
    assert_exact_gradients(gru, torch.randn(5, 3, 4), reset, state)


def test_noise_is_drawn_on_the_cpu_whatever_the_default_device():
    rnn, x = rnnext.LeakyRNN(3, 3, alpha=0.5, noise_std=1, noise_in_eval=True), torch.randn(4, 2, 3)
    weight, stepper = torch.randn(3, 3), rnnext.Stepper(rnn, 2)
    with torch.device("meta"):
        functional.recurrence(x, None, None, weight, noise_std=0.1)
        stepper.refresh()
        repr(rnn)


def test_the_dtype_of_alpha_may_be_another():
    x, w = torch.randn(4, 2, 3), torch.randn(3, 3)
    alpha = torch.from_numpy(1 / np.linspace(2, 9, 3)).requires_grad_()
    output, _ = functional.recurrence(x, None, None, w, alpha=alpha)
    assert torch.equal(output, functional.recurrence(x, None, None, w, alpha=alpha.float())[0])
    output.sum().backward()
    assert alpha.grad.dtype == torch.float64


def test_recurrence_follows_autocast():
    x, w = torch.randn(4, 2, 3), torch.randn(3, 3)
    with torch.autocast("cpu"):
        output, _ = functional.recurrence(x @ w, None, None, w, alpha=0.5)
    assert output.dtype == torch.bfloat16


@pytest.mark.parametrize("std", [0.5, torch.tensor(0.5), torch.linspace(0, 1, 6)])
def test_noise_of_a_key(std):
    x, weight = torch.randn(4, 3, 6), torch.zeros(6, 6)
    call = functools.partial(functional.recurrence, x, None, None, weight, nonlinearity="identity")
    key = torch.randint(2**63 - 1, (), generator=torch.Generator().manual_seed(1))
    assert_close(call(noise_std=std, noise_key=key)[0], x + std * rnnext.ops.noise(key, 4, 3, 1, 6))
    assert not torch.equal(call(noise_std=std)[0], call(noise_std=std)[0])
    for scale in (None, "sqrt_2_over_alpha", "sqrt_2_alpha", "none"):
        options = {"alpha": 0.1, "noise_std": std} | ({"noise_scale": scale} if scale else {})
        rnn = rnnext.LeakyRNN(6, 6, bias=False, **options)
        torch.manual_seed(1)
        expected = rnn(x)[0]
        torch.manual_seed(1)
        key = torch.randint(2**63 - 1, (1,))[0]
        weights = rnn.weight_ih_l0, rnn.weight_hh_l0
        found = functional.recurrence(x, None, *weights, noise_key=key, **options)[0]
        assert torch.equal(found, expected)
