"""What ops refuse without data: fake and meta tensors are checked as eager calls are."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import rnnext
from helpers import samples
from helpers.common import error_of

ops = torch.ops.rnnext


def zeros(*shape, dtype=torch.float64):
    return torch.zeros(shape, dtype=dtype)


def without_data(arguments, kind):
    """The same arguments as fake or meta tensors; batch_sizes has no place on another device."""
    if kind == "meta":
        return replace(arguments.map(lambda t: t.to("meta")), batch_sizes=arguments.batch_sizes)
    mode = FakeTensorMode(shape_env=ShapeEnv())
    return arguments.map(lambda t: mode.from_tensor(t, static_shapes=kind == "fake"))


WRONG = [
    ({}, {"input": zeros(5, 3, 5)}),
    ({}, {"input": zeros(5, 3, 4, dtype=torch.float32)}),
    ({}, {"input": zeros(5, 4)}),
    ({}, {"index": zeros(5, 3, dtype=torch.int64)}),
    ({}, {"weight_ih": []}),
    ({}, {"weight_ih": [zeros(5, 4)]}),
    ({}, {"weight_ih": [zeros(6, 4)] * 2}),
    ({}, {"weight_hh": []}),
    ({}, {"weight_hh": [zeros(6, 5)]}),
    ({}, {"weight_hh": [zeros(6)]}),
    ({}, {"weight_hh": [zeros(0, 0)]}),
    ({}, {"weight_hh": [zeros(6, 6)] * 3}),
    ({}, {"bias_ih": []}),
    ({}, {"bias_ih": [zeros(5)]}),
    ({}, {"bias_hh": [zeros(6, 1)]}),
    ({}, {"bias_hh": [zeros(6, dtype=torch.float16)]}),
    ({}, {"hx": zeros(1, 2, 6)}),
    ({}, {"hx": zeros(3, 6)}),
    ({}, {"hx": zeros(1, 3, 6, dtype=torch.bfloat16)}),
    ({}, {"lengths": torch.tensor([5, 5])}),
    ({}, {"lengths": torch.tensor([5, 5, 5], dtype=torch.int32)}),
    ({}, {"batch_sizes": torch.tensor([3, 3, 3, 3, 3])}),
    ({"rows": "lengths"}, {"batch_sizes": torch.tensor([3, 3, 3, 3, 3])}),
    ({"rows": "packed"}, {"batch_sizes": torch.tensor([3.0])}),
    ({"rows": "packed"}, {"batch_sizes": torch.tensor([[3]])}),
    ({"rows": "packed"}, {"hx": zeros(1, 3, 5)}),
    ({"source": "ready"}, {"input": zeros(5, 3, 5)}),
    ({"source": "table"}, {"input": zeros(9, 5)}),
    ({"source": "table"}, {"input": zeros(9, 3, 6)}),
    ({"source": "table"}, {"index": zeros(5, 3)}),
    ({"source": "table"}, {"index": zeros(5, dtype=torch.int64)}),
    ({"reverse": (False, True)}, {"reverse": [False]}),
    ({"nonlinearity": "gelu"}, {}),
    ({"dtype": torch.complex64}, {}),
    ({"leak": "cubic"}, {}),
    ({"leak": "rate"}, {"alpha": [zeros(5)]}),
    ({"leak": "rate"}, {"alpha": [zeros(6)] * 2}),
    ({"leak": "rate"}, {"alpha": [zeros(6, dtype=torch.float32)]}),
    ({"reset": "zeros"}, {"reset": zeros(5, 3)}),
    ({"reset": "zeros"}, {"reset": torch.zeros(3, 5, dtype=torch.bool)}),
    ({"reset": "zeros"}, {"reset": torch.zeros(5, dtype=torch.bool)}),
    ({"reset": "zeros"}, {"reset_state": zeros(3, 6)}),
    ({}, {"reset_state": zeros(1, 3, 6)}),
    ({"rows": "packed"}, {"reset": torch.zeros(5, 3, dtype=torch.bool)}),
]


@pytest.mark.parametrize("kind", ["fake", "symbolic", "meta"])
@pytest.mark.parametrize(("case", "changes"), WRONG, ids=range(len(WRONG)))
def test_a_recurrence_is_refused_as_with_data(case, changes, kind):
    arguments = replace(samples.make(**case), **changes)
    expected = error_of(lambda: arguments.call(ops.recurrence))
    lacking = without_data(arguments, kind)
    kind_of_error, message = error_of(lambda: lacking.call(ops.recurrence))
    assert kind_of_error is expected[0]
    if kind != "symbolic":  # sizes have names there
        assert message == expected[1]


@pytest.mark.parametrize("kind", ["fake", "symbolic", "meta"])
@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ({}, {"output": zeros(5, 3, 5)}),
        ({}, {"grad_output": zeros(5, 2, 6)}),
        ({}, {"grad_output": zeros(5, 3, 6, dtype=torch.float32)}),
        ({}, {"grad_h_n": zeros(1, 3, 5)}),
        ({}, {"input": zeros(5, 3, 5)}),
        ({"rows": "packed"}, {"grad_h_n": zeros(3, 6)}),
        ({"rows": "packed", "hx": False}, {"output": zeros(5, 3, 6)}),
    ],
    ids=range(7),
)
def test_a_backward_pass_is_refused_as_with_data(case, changes, kind):
    arguments = samples.make(**case)
    results = arguments.call(ops.recurrence)
    backward = replace(arguments.backward(results[0], *results), **changes)
    expected = error_of(lambda: backward.call(ops.recurrence_backward))
    lacking = without_data(backward, kind)
    kind_of_error, message = error_of(lambda: lacking.call(ops.recurrence_backward))
    assert kind_of_error is expected[0]
    if kind != "symbolic":
        assert message == expected[1]


@pytest.mark.parametrize("kind", ["fake", "symbolic", "meta"])
@pytest.mark.parametrize(
    "changes",
    [
        {"weight_ih": [zeros(6, 4)]},
        {"weight_hh": []},
        {"weight_hh": [zeros(6, 6), zeros(6, 5)]},
        {"bias_hh": [zeros(6)]},
        {"hx": zeros(3, 3, 6)},
    ],
    ids=range(5),
)
def test_a_stack_is_refused_as_with_data(changes, kind):
    arguments = replace(samples.make_stack(2), **changes)
    expected = error_of(lambda: arguments.call(ops.recurrence_stack))
    lacking = without_data(arguments, kind)
    kind_of_error, message = error_of(lambda: lacking.call(ops.recurrence_stack))
    assert kind_of_error is expected[0]
    if kind != "symbolic":
        assert message == expected[1]


@pytest.mark.parametrize("rows", ["full", "lengths", "packed"])
@pytest.mark.parametrize("reverse", [(False,), (False, True)])
@pytest.mark.parametrize("hx", [True, False])
@pytest.mark.parametrize("kind", ["fake", "meta"])
def test_shapes_without_data(rows, reverse, hx, kind):
    arguments = samples.make(rows=rows, reverse=reverse, hx=hx)
    expected = arguments.call(ops.recurrence)
    lacking = without_data(arguments, kind)
    results = lacking.call(ops.recurrence)
    assert results[0].shape == expected[0].shape
    if not (kind == "fake" and rows == "packed" and not hx):  # B is then a value
        assert results[1].shape == expected[1].shape
    backward = arguments.backward(expected[0], *expected, [True, True, True, hx, True, True])
    grads = without_data(backward, kind).call(ops.recurrence_backward)
    for got, wanted in zip(grads, backward.call(ops.recurrence_backward), strict=True):
        if isinstance(wanted, list):
            assert [g.shape for g in got] == [w.shape for w in wanted]
        else:
            assert got.shape == wanted.shape


@pytest.mark.parametrize("kind", ["fake", "meta"])
@pytest.mark.parametrize(
    ("op", "tensors", "options"),
    [
        (ops.embedding, (zeros(5, 3), zeros(2)), (-1, False, False)),
        (ops.embedding, (zeros(5, 3, 2), torch.tensor([1])), (-1, False, False)),
        (ops.embedding_backward, (zeros(2, 3), torch.tensor([1])), (5, -1, False)),
        (ops.embedding_backward, (zeros(3), torch.tensor([1])), (5, -1, False)),
        (ops.embedding_backward, (zeros(1, 3).to(torch.int64), torch.tensor([1])), (5, -1, False)),
        (ops.embedding_sparse_backward, (zeros(1, 3), zeros(1)), (5, -1, False)),
    ],
    ids=range(6),
)
def test_an_embedding_is_refused_as_with_data(op, tensors, options, kind):
    expected = error_of(lambda: op(*tensors, *options))
    mode = FakeTensorMode()
    lacking = [t.to("meta") if kind == "meta" else mode.from_tensor(t) for t in tensors]
    error, message = error_of(lambda: op(*lacking, *options))
    assert (error, message.replace("torch.meta.", "torch.")) == expected


@pytest.mark.parametrize(
    "arguments",
    [
        (zeros(5, 3, 5),),
        (zeros(5, 3, 4, dtype=torch.float32),),
        (zeros(5, 3, 4), zeros(1, 2, 6)),
        (zeros(5, 3, 4), zeros(3, 6)),
        (zeros(5, 3, 4), zeros(1, 3, 6, dtype=torch.float32)),
        (zeros(0, 3, 4),),
    ],
    ids=range(6),
)
def test_a_module_on_the_meta_device_refuses_as_with_data(arguments):
    rnn = rnnext.RNN(4, 6, dtype=torch.float64)
    expected = error_of(lambda: rnn(*arguments))
    rnn = rnn.to("meta")
    assert error_of(lambda: rnn(*(t.to("meta") for t in arguments))) == expected


def test_meta_tensors_without_a_tracer():
    """Packed without hx, and a sparse gradient, whose rows are as many as there can be."""
    data = torch.empty(7, 3, device="meta")
    packed = torch.nn.utils.rnn.PackedSequence(data, torch.tensor([3, 2, 2]))
    rnn = rnnext.RNN(3, 4, num_layers=2, bidirectional=True, device="meta")
    output, h_n = rnn(packed)
    assert output.data.shape == (7, 8)
    assert h_n.shape == (4, 3, 4)
    output.data.sum().backward()
    assert rnn.weight_hh_l0.grad.shape == (4, 4)
    embedding = rnnext.Embedding(10, 4, sparse=True, device="meta")
    embedding(torch.empty(5, dtype=torch.long, device="meta")).sum().backward()
    assert embedding.weight.grad.layout == torch.sparse_coo
    assert embedding.weight.grad.shape == (10, 4)
