"""rnnext.functional against torch.nn.functional, torch's cell functions and the modules."""

import sys
import threading

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.nn.utils import rnn as rnn_utils
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import rnnext
from helpers.common import assert_close, error_of, same
from rnnext import _C, functional


def flat(module):
    return [w for ws in module.all_weights for w in ws]


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("bias", [True, False])
def test_rnn(nonlinearity, bias):
    options = {
        "nonlinearity": nonlinearity,
        "batch_first": True,
        "dropout": 0.5,
        "bidirectional": True,
    }
    module = nn.RNN(4, 6, num_layers=2, bias=bias, **options)
    x, hx = torch.randn(3, 5, 4), torch.randn(4, 3, 6)
    torch.manual_seed(1)
    expected = module(x, hx)
    torch.manual_seed(1)
    assert_close(functional.rnn(x, hx, flat(module), training=True, **options), expected)
    module.eval()
    assert_close(functional.rnn(x, hx, flat(module), **options), module(x, hx))
    assert_close(functional.rnn(x[0], None, flat(module), **options), module(x[0]))


def test_rnn_defaults_and_packed_input():
    module = nn.RNN(4, 6)
    x = torch.randn(5, 3, 4)
    assert_close(functional.rnn(x, None, tuple(flat(module))), module(x))
    packed = rnn_utils.pack_padded_sequence(x, [2, 5, 1], enforce_sorted=False)
    (output, h_n), expected = functional.rnn(packed, None, flat(module)), module(packed)
    assert_close([output.data, h_n], [expected[0].data, expected[1]])
    assert torch.equal(output.batch_sizes, expected[0].batch_sizes)
    assert torch.equal(output.unsorted_indices, expected[0].unsorted_indices)


@pytest.mark.parametrize("form", ["flat", "sets", "nested", "tuples"])
@pytest.mark.parametrize("I", [4, 6, 12])  # H is 6: widths that other layers read, too
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_layers_directions_and_biases_follow_from_the_weights(I, bias, layers, bidirectional, form):  # noqa: E741
    module = nn.RNN(I, 6, layers, bias=bias, bidirectional=bidirectional)
    x, sets = torch.randn(5, 3, I), module.all_weights
    D = 1 + bidirectional
    weights = {
        "flat": flat(module),
        "sets": sets,
        "nested": [sets[i : i + D] for i in range(0, len(sets), D)],
        "tuples": tuple(tuple(each) for each in sets),
    }[form]
    ambiguous = I == 6 and len(sets) == 2 and form != "nested"
    if ambiguous:
        with pytest.raises(ValueError, match="two layers or of two directions"):
            functional.rnn(x, None, weights)
    else:
        assert_close(functional.rnn(x, None, weights), module(x))
    assert_close(functional.rnn(x, None, weights, bidirectional=bidirectional), module(x))


@pytest.mark.parametrize("nonlinearity", ["sigmoid", "softplus", "identity"])
def test_more_nonlinearities_than_the_modules(nonlinearity):
    module = nn.RNN(4, 6, batch_first=True)
    x, hx = torch.randn(3, 5, 4), torch.randn(1, 3, 6)
    f = {"sigmoid": torch.sigmoid, "softplus": F.softplus, "identity": lambda v: v}[nonlinearity]
    w_ih, w_hh, b_ih, b_hh = flat(module)
    state, states = hx[0], []
    for t in range(5):
        state = f(F.linear(x[:, t], w_ih, b_ih) + F.linear(state, w_hh, b_hh))
        states.append(state)
    found = functional.rnn(x, hx, flat(module), batch_first=True, nonlinearity=nonlinearity)
    assert_close(found, [torch.stack(states, 1), state.unsqueeze(0)])
    step = functional.rnn_cell(x[:, 0], hx[0], w_ih, w_hh, b_ih, b_hh, nonlinearity)
    assert_close(step, states[0])


def test_the_modules_keep_torchs_two_nonlinearities():
    for kind in ("RNN", "RNNCell"):
        ours, theirs = getattr(rnnext, kind)(4, 6), getattr(nn, kind)(4, 6)
        for module in (ours, theirs):
            module.mode, module.nonlinearity = "RNN_SIGMOID", "sigmoid"
        x = torch.zeros(3, 4)
        assert error_of(lambda m=ours, x=x: m(x)) == error_of(lambda m=theirs, x=x: m(x))
        with pytest.raises((AssertionError, RuntimeError)):
            rnnext.Stepper(ours)


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ([], {}, "got sets of \\[\\] tensors"),
        ([torch.zeros(6, 4)], {}, "got sets of \\[1\\] tensors"),
        ([torch.zeros(6, 4), torch.zeros(6, 6), torch.zeros(6)], {}, "sets of \\[3\\]"),
        ([[torch.zeros(6, 4), torch.zeros(6, 6)], [torch.zeros(6, 6)]], {}, "sets of \\[2, 1\\]"),
        ([torch.zeros(6, 4), None], {}, "got a Tensor among them"),
        ([[torch.zeros(6, 4), None]], {}, "must hold tensors, got a NoneType"),
        ([None] * 4, {}, "got a NoneType among them"),
        ([1, 2, 3, 4], {}, "got a int among them"),
        ([torch.zeros(6, 4), torch.zeros(6, 6)], {"bidirectional": True}, "two sets a layer"),
        ([[[torch.zeros(6, 4), torch.zeros(6, 6)]]], {"bidirectional": True}, "of 2 directions"),
        ([[[torch.zeros(6, 4), torch.zeros(6, 6)]] * 3], {}, "of 1 or 2 directions"),
        (
            [[[torch.zeros(6, 4), torch.zeros(6, 6)]], [[torch.zeros(6, 6)] * 2] * 2],
            {},
            "of as many in each layer, got \\[1, 2\\]",
        ),
    ],
    ids=range(12),
)
@pytest.mark.parametrize("hx", [None, torch.zeros(1, 3, 6)])
def test_rnn_refuses_what_are_no_weights(weights, options, message, hx):
    with pytest.raises(ValueError, match=message):
        functional.rnn(torch.zeros(5, 3, 4), hx, weights, **options)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"nonlinearity": "gelu"}, ValueError),
        ({"lengths": torch.tensor([6, 1, 1])}, ValueError),
        ({"dropout": 1.5, "training": True}, (RuntimeError, ValueError)),
    ],
    ids=str,
)
def test_rnn_refuses_bad_options(change, kind):
    with pytest.raises(kind):
        functional.rnn(torch.zeros(5, 3, 4), None, flat(nn.RNN(4, 6, 2)), **change)


@pytest.mark.parametrize("which", range(4))
def test_rnn_refuses_parameters_of_the_wrong_shape(which):
    params = flat(nn.RNN(4, 6))
    for shape in [(5, 5), (6,), (7,), (6, 4, 1)]:
        if shape != tuple(params[which].shape):
            wrong = [*params[:which], torch.zeros(shape), *params[which + 1 :]]
            with pytest.raises(RuntimeError):
                functional.rnn(torch.zeros(5, 3, 4), None, wrong)
    wrong = [*params[:which], params[which].detach().double(), *params[which + 1 :]]
    with pytest.raises((RuntimeError, ValueError), match=r"(?i)dtype|double|float64"):
        functional.rnn(torch.zeros(5, 3, 4), None, wrong)


@pytest.mark.parametrize("shape", [(3, 4), (4,)])
@pytest.mark.parametrize("bias", [True, False])
def test_rnn_cell(shape, bias):
    weights = [torch.randn(6, 4), torch.randn(6, 6)]
    biases = [torch.randn(6), torch.randn(6)] if bias else []
    x, hx = torch.randn(shape), torch.randn(*shape[:-1], 6)
    for name, reference in [("tanh", torch.rnn_tanh_cell), ("relu", torch.rnn_relu_cell)]:
        expected = reference(x.view(-1, 4), hx.view(-1, 6), *weights, *biases).view(hx.shape)
        assert_close(functional.rnn_cell(x, hx, *weights, *biases, nonlinearity=name), expected)


def test_rnn_cell_refuses_wrong_parameters():
    x, w_ih, w_hh, b = torch.zeros(3, 4), torch.zeros(6, 4), torch.zeros(6, 6), torch.zeros(6)
    for arguments in [
        (x, None, w_ih, torch.zeros(6, 5)),
        (x, None, w_ih, torch.zeros(5, 5)),
        (x, None, w_ih, w_hh, torch.zeros(5), b),
        (x, None, w_ih, w_hh, b, torch.zeros(6, 1)),
        (x, None, w_ih.double(), w_hh.double(), b.double(), b.double()),
    ]:
        with pytest.raises(RuntimeError):
            functional.rnn_cell(*arguments)
    with pytest.raises(ValueError, match=r"nonlinearity must be one of 'tanh', .* got 'gelu'"):
        functional.rnn_cell(x, None, w_ih, w_hh, b, b, "gelu")


@pytest.mark.parametrize("padding_idx", [None, 0, 3, -1, -5])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_embedding(padding_idx, max_norm):
    indices = torch.tensor([[0, 4, 4], [3, 0, 4]])
    table, results = torch.randn(5, 3), []
    for embedding in (F.embedding, functional.embedding):
        weight = table.clone().requires_grad_()
        rows = embedding(indices, weight, padding_idx, max_norm, 2.0, True)
        rows.square().sum().backward()
        results.append([rows, weight, weight.grad])
    assert_close(results[1], results[0])


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.tensor([1]), torch.zeros(5, 3), 5),
        (torch.tensor([1]), torch.zeros(5, 3), -6),
        (torch.tensor([1]), torch.zeros(5)),
        (torch.tensor([1]), torch.zeros(5, 3, 2)),
        ([1], torch.zeros(5, 3)),
    ],
)
def test_embedding_refuses_what_torch_refuses(arguments):
    assert error_of(lambda: functional.embedding(*arguments)) == error_of(
        lambda: F.embedding(*arguments)
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool, torch.uint8])
def test_embedding_reads_tables_of_other_dtypes(dtype):
    table, indices = torch.randint(2, (5, 3)).to(dtype), torch.tensor([[1, 4], [4, 0]])
    assert torch.equal(functional.embedding(indices, table), table[indices])


def test_embedding_refuses_mixed_devices():
    with pytest.raises(RuntimeError, match="device"):
        functional.embedding(torch.tensor([1], device="meta"), torch.zeros(5, 3))


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
def test_whoever_overrides_torch_functions_sees_the_op(name):
    call, seen = calls_of_each_function()[name], []
    expected = call(lambda tensor: tensor)

    class Own(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            seen.append(function)
            return super().__torch_function__(function, types, args, kwargs or {})

    class Mode(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    op = getattr(torch.ops.rnnext, name).default
    result = call(lambda tensor: tensor.as_subclass(Own))
    assert op in seen
    assert isinstance(result, Own)
    assert torch.equal(result, expected)
    seen.clear()
    with Mode():
        assert torch.equal(call(lambda tensor: tensor), expected)
    assert op in seen


def test_the_short_way_takes_what_torch_ops_take():
    weights, x = [torch.randn(6, 4), torch.randn(6, 6)], torch.randn(5, 3, 4)
    given = {
        "input": x, "hx": None, "weights": weights, "has_biases": False, "num_layers": 1,
        "bidirectional": False, "batch_first": False, "dropout": 0.0, "training": False,
        "index": None, "lengths": None, "batch_sizes": None, "reset": None, "alpha": (),
        "form": "rate", "noise": [], "nonlinearity": "relu",
    }  # fmt: skip
    expected = functional.rnn(x, None, weights, nonlinearity="relu")
    others = {"weights": tuple(weights), "dropout": 0, "training": 1}
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


@pytest.mark.parametrize("name", calls_of_each_function())
def test_whoever_overrides_the_dispatcher_sees_the_op(name):
    call, seen = calls_of_each_function()[name], []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function.namespace)
            return function(*args, **(kwargs or {}))

    with Mode():
        result = call(lambda tensor: tensor)
    assert "rnnext" in seen
    assert torch.equal(result, call(lambda tensor: tensor))
    graph = make_fx(lambda: call(lambda tensor: tensor))()
    assert "rnnext" in {getattr(node.target, "namespace", "") for node in graph.graph.nodes}
    assert torch.equal(graph(), result)


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
