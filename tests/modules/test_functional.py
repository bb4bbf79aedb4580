"""rnnext.functional against torch.nn.functional and the modules."""

import sys
import threading

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import rnnext
from helpers.common import error_of, same
from helpers.modules import weights
from rnnext import _C, functional


def test_rnn_refuses_what_are_no_weights():
    w_ih, w_hh, b = torch.zeros(6, 4), torch.zeros(6, 6), torch.zeros(6)
    two = {"bidirectional": True}
    for given, options, message in (
        ([], {}, "each of 1 directions, got 0 tensors"),
        ([w_ih], {}, "got 1 tensors"),
        ([w_ih, w_hh, b], {}, "got 3 tensors"),
        ([w_ih, w_hh], two, "2 directions, got 2"),
        ([w_ih, None], {}, "got a NoneType among them"),
        ([[w_ih, w_hh]], {}, "one flat list of tensors, got a list"),
    ):
        for hx in (None, torch.zeros(1, 3, 6)):
            with pytest.raises((TypeError, ValueError), match=message):
                functional.rnn(torch.zeros(5, 3, 4), hx, given, **options)


def test_functions_refuse_what_does_not_fit():
    x, table = torch.zeros(5, 3, 4), torch.zeros(5, 3)
    layers, one = weights(nn.RNN(4, 6, 2)), weights(nn.RNN(4, 6))
    w_ih, w_hh, b_ih, b_hh = one
    wrong = {"nonlinearity": "gelu"}, {"lengths": [6, 1, 1]}, {"dropout": 1.5, "training": True}
    for options in wrong:
        with pytest.raises((RuntimeError, ValueError)):
            functional.rnn(x, None, layers, **options)
    for given in (
        (w_ih, torch.zeros(6, 5)),
        (w_ih, torch.zeros(5, 5)),
        (w_ih, w_hh, torch.zeros(5), b_hh),
        (w_ih, w_hh, b_ih, torch.zeros(6, 1)),
        (w_ih.double(), w_hh.double(), b_ih.double(), b_hh.double()),
    ):
        with pytest.raises(RuntimeError):
            functional.rnn_cell(x[0], None, *given)
    with pytest.raises(ValueError, match=r"nonlinearity must be one of 'tanh', .* got 'gelu'"):
        functional.rnn_cell(x[0], None, *one, "gelu")
    indices = torch.tensor([1])
    for given in (
        (indices, table, 5),
        (indices, table, -6),
        (indices, table[0]),
        (indices, table[None]),
        ([1], table),
    ):
        ours, theirs = (
            error_of(lambda e=e, given=given: e(*given))
            for e in (functional.embedding, F.embedding)
        )
        assert ours == theirs


def calls_of_each_function():
    """For each function's name: a call of it, which hands its first tensor to a function."""
    w_ih, w_hh, b = torch.randn(6, 4), torch.randn(6, 6), torch.randn(6)
    x, table, index = torch.randn(5, 3, 4), torch.randn(9, 4), torch.tensor([8, 0, 3])
    return {
        "rnn": lambda make: functional.rnn(make(x), None, [w_ih, w_hh, b, b])[0],
        "recurrence": lambda make: functional.recurrence(make(x), None, w_ih, w_hh, alpha=0.5)[0],
        "rnn_cell": lambda make: functional.rnn_cell(make(x[0]), None, w_ih, w_hh, b, b),
        "embedding": lambda make: functional.embedding(make(index), table),
    }


@pytest.mark.parametrize("name", calls_of_each_function())
def test_whoever_overrides_torch_sees_the_op(name):
    """Its functions, by a subclass or a mode, its dispatcher, and make_fx."""
    call, seen = calls_of_each_function()[name], []
    op, expected = getattr(torch.ops.rnnext, name).default, call(lambda tensor: tensor)

    class Own(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            seen.append(function)
            return super().__torch_function__(function, types, args, kwargs or {})

    class Functions(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    class Dispatcher(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function.namespace)
            return function(*args, **(kwargs or {}))

    result = call(lambda tensor: tensor.as_subclass(Own))
    assert isinstance(result, Own)
    assert torch.equal(result, expected)
    assert op in seen
    for mode, what in ((Functions, op), (Dispatcher, "rnnext")):
        seen.clear()
        with mode():
            assert torch.equal(call(lambda tensor: tensor), expected)
        assert what in seen
    graph = make_fx(lambda: call(lambda tensor: tensor))()
    assert "rnnext" in {getattr(node.target, "namespace", "") for node in graph.graph.nodes}
    assert torch.equal(graph(), expected)


def test_the_short_way_takes_what_torch_ops_take():
    own, x = [torch.randn(6, 4), torch.randn(6, 6)], torch.randn(5, 3, 4)
    given = {
        "input": x, "hx": None, "weights": own, "has_biases": False, "num_layers": 1,
        "bidirectional": False, "batch_first": False, "dropout": 0.0, "training": False,
        "index": None, "lengths": None, "batch_sizes": None, "reset": None,
        "reset_state": None, "alpha": (),
        "form": "rate", "noise": [], "nonlinearity": "relu",
    }  # fmt: skip
    expected = functional.rnn(x, None, own, nonlinearity="relu")
    others = {"weights": tuple(own), "dropout": 0, "training": 1}
    for name, value in others.items():
        assert same(_C.rnn(*(given | {name: value}).values()), expected)
    refused = {"weights": [1, 2], "num_layers": "1", "form": 3, "nonlinearity": "\udc00", "hx": 0}
    for name, value in refused.items():
        with pytest.raises((RuntimeError, TypeError, ValueError)):
            _C.rnn(*(given | {name: value}).values())
    with pytest.raises(RuntimeError, match="missing value"):
        _C.rnn(x)
    for layers in (2**61, 2**62, 2**70):  # times the number of tensors of each: 0, or too much
        with pytest.raises((RuntimeError, OverflowError, TypeError)):
            _C.rnn(*(given | {"weights": [], "num_layers": layers, "bidirectional": True}).values())


def test_other_threads_run_during_a_call():
    """The interpreter lock is free while a kernel runs, though no thread is asked to give it up."""
    module, x = rnnext.RNN(64, 256), torch.randn(2000, 16, 64)
    counted, done = [0], threading.Event()

    def count():
        while not done.wait(0.001):
            counted[0] += 1

    thread = threading.Thread(target=count)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(100)
    thread.start()
    try:
        with torch.no_grad():
            before = counted[0]
            module(x)
            during = counted[0] - before
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert during > 0


def test_the_package_offers_the_functions():
    others = {"check_indices", "rnn_ensemble"}
    assert set(functional.__all__) == {*calls_of_each_function(), *others}
    for name in functional.__all__:
        function = getattr(rnnext.functional, name)
        assert "Args:" in function.__doc__
        assert "Raises:" in function.__doc__
