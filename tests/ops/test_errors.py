"""Calls that ops refuse, and the errors: with data as for fake, symbolic and meta tensors."""

import functools
import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import rnnext
from fuzz.test_ops import MADE
from helpers import samples
from helpers.common import assert_refused, error_of

ops = torch.ops.rnnext
DTYPES = (torch.float64, torch.int64, torch.bool)
zeros, longs, bools = (functools.partial(torch.zeros, dtype=dtype) for dtype in DTYPES)
stack_of = functools.partial(samples.make_stack, 2)
ZEROS, GRU = {"H": 0, "hx": False}, {"cell": "gru"}  # any cell fits weights of no unit
# A call's parts, the one that is wrong, the message, the error if it is no RuntimeError.
OF_A_RECURRENCE = [
    ({}, {"input": zeros(5, 3, 5)}, "input must have 4 features, as many as weight_ih, got 5"),
    ({}, {"input": zeros(5, 4)}, "input must have 3 dimensions, got 2"),
    ({}, {"index": longs(5, 3)}, "index needs a table: weight_ih must be empty"),
    ({}, {"weight_ih": []}, "the last dimension of input must be 6, got 4"),
    ({}, {"weight_ih": [zeros(6, 4)] * 2}, "weight_ih must hold 1 tensors or none, got 2"),
    ({}, {"weight_ih": [zeros(6, 1, 1, 1, 1, 4)]}, "weight_ih must have shape [6, 4], got [6, 1"),
    ({}, {"weight_hh": []}, "weight_hh must hold 1 or 2 tensors, one a direction, got 0"),
    ({}, {"weight_hh": [zeros(6, 5)]}, "weight_hh must have shape [5, 5], got [6, 5]"),
    ({}, {"weight_hh": [zeros(6)]}, "weight_hh must have shape [H, H], got [6]"),
    ({}, {"weight_hh": [zeros(0, 0)]}, "weight_ih must have shape [0, 4], got [6, 4]"),
    ({}, {"weight_hh": [zeros(6, 6)] * 3}, "weight_hh must hold 1 or 2 tensors, one a direction"),
    ({}, {"bias_ih": []}, "bias_ih and bias_hh must both hold 1 tensors or none, got 0 and 1"),
    ({}, {"hx": zeros(3, 6)}, "hx must have shape [1, 3, 6], got [3, 6]"),
    ({}, {"lengths": longs(2)}, "lengths must have shape [3], got [2]", ValueError),
    ({}, {"lengths": longs(3).int()}, "lengths must be an int64 tensor, got int32", TypeError),
    ({}, {"batch_sizes": longs(5)}, "input of a packed sequence must have 2 dimensions, got 3"),
    ({"rows": "lengths"}, {"batch_sizes": longs(5)}, "lengths and batch_sizes must not both be"),
    ({"rows": "packed"}, {"batch_sizes": zeros(1)}, "batch_sizes must be a 1-D int64 tensor on"),
    ({"rows": "packed"}, {"batch_sizes": longs(1, 1)}, "got int64 of shape [1, 1] on cpu"),
    ({"source": "ready"}, {"input": zeros(5, 3, 5)}, "last dimension of input must be 6, got 5"),
    ({"source": "table"}, {"input": zeros(9, 3, 6)}, "the table must have 2 dimensions, got 3"),
    ({"source": "table"}, {"index": zeros(5, 3)}, "index must be int32 or int64, got float64"),
    ({"source": "table"}, {"index": longs(5)}, "index must have 2 dimensions, got 1"),
    ({"reverse": (False, True)}, {"reverse": [False]}, "reverse must hold one bool a direction, 2"),
    ({}, {"nonlinearity": "gelu"}, "nonlinearity must be one of 'tanh', 'relu'", ValueError),
    ({"dtype": torch.complex64}, {}, "weight_hh must be float32, float64, bfloat16 or float16, got"
     " complex64", NotImplementedError),
    ({}, {"cell": "cubic"}, "one of 'elman', 'rate', 'voltage', 'blend', 'gru',", ValueError),
    ({}, {"alpha": [zeros(6)]}, "alpha must not be given with cell='elman'", ValueError),
    ({"cell": "rate"}, {"alpha": []}, "alpha must be given with cell='rate'", ValueError),
    ({}, {"cell": "gru"}, "weight_hh must have shape [18, 6], got [6, 6]"),
    ({"source": "ready"}, {"cell": "lstm"}, "the last dimension of input must be 24, got 6"),
    (ZEROS, {**GRU, "hx": zeros(2, 3, 0)}, "hx must have shape [1, 3, 0], got [2, 3, 0]"),
    (ZEROS, {**GRU, "nonlinearity": "relu"}, "be 'tanh' with cell='gru', got 'relu'", ValueError),
    ({**ZEROS, "noise": True}, GRU, "noise must not be given with cell='gru'", ValueError),
    ({}, {"alpha": [zeros(6)] * 2}, "alpha must hold 1 tensors or none, got 2"),
    ({}, {"reset": zeros(5, 3)}, "reset must be a bool tensor, got float64", TypeError),
    ({}, {"reset": bools(3, 5)}, "reset must have shape [5, 3], got [3, 5]", ValueError),
    ({}, {"reset_state": zeros(1, 3, 6)}, "reset_state needs a reset", ValueError),
    ({"rows": "packed"}, {"reset": bools(5, 3)}, "reset must not be given with a", ValueError),
    ({"noise": True}, {"noise_key": None}, "noise and noise_key must both be given"),
    ({"noise": True}, {"noise": [zeros(6)] * 2}, "noise must hold 1 tensors or none, got 2"),
]  # fmt: skip
OF_A_STACK = [
    ({}, {"weight_ih": [zeros(6, 4)]}, "weight_ih must hold 2 tensors, one a layer, got 1"),
    ({}, {"weight_hh": []}, "weight_hh must hold a tensor for each layer"),
    ({}, {"bias_ih": [zeros(6)]}, "bias_ih and bias_hh must both"),
    ({}, {"alpha": [zeros(6)]}, "alpha must hold 2 tensors, one a layer, or none, got 1"),
    ({}, {"noise": [zeros(6)]}, "recurrence_stack adds no noise"),
]
OF_AN_ENSEMBLE = [
    ({}, {"weight_hh": [zeros(6, 6)]}, "of 3 dimensions, the first M > 0, got shape [6, 6]"),
    ({}, {"weight_hh": []}, "of 3 dimensions, the first M > 0, got none"),
    ({}, {"input": zeros(3, 5, 3, 4)}, "of 2 members, as weight_hh is, got shape [3, 5, 3, 4]"),
]


def backward_of(**case):
    return samples.make(**case).backward_of(ops.recurrence)


def ensemble_of(**case):
    one = samples.make(**case)
    return one.stacked(one)


def without_data(arguments, way):
    """The same arguments as fake or meta tensors; batch_sizes has no place on another device."""
    if way == "meta":
        return replace(arguments.map(lambda t: t.to("meta")), batch_sizes=arguments.batch_sizes)
    mode = FakeTensorMode(shape_env=ShapeEnv())
    return arguments.map(lambda t: mode.from_tensor(t, static_shapes=way == "fake"))


def assert_refused_in_every_way(op, arguments, error, message):
    expected = error_of(arguments.call, op)
    assert expected[0] is error, expected
    assert message in expected[1]
    recorded = arguments.map(lambda t: t.detach().requires_grad_(t.is_floating_point()))
    assert error_of(recorded.call, op) == expected
    with forward_ad.dual_level():
        dual = arguments.map(lambda t: forward_ad.make_dual(t, t) if t.is_floating_point() else t)
        assert error_of(dual.call, op) == expected
    for way in ("fake", "symbolic", "meta"):
        found = error_of(without_data(arguments, way).call, op)
        assert found[0] is error, (way, found)
        if way != "symbolic":  # sizes have names there
            assert found[1] == expected[1], way


@pytest.mark.parametrize(
    ("op", "make", "wrong"),
    [
        (ops.recurrence, samples.make, OF_A_RECURRENCE),
        (ops.recurrence_stack, stack_of, OF_A_STACK),
        (ops.recurrence_ensemble, ensemble_of, OF_AN_ENSEMBLE),
    ],
    ids=lambda value: str(value).removeprefix("rnnext.") if "rnnext." in str(value) else "",
)
def test_what_does_not_fit_is_refused_with_data_and_without(op, make, wrong):
    for case, changes, message, *error in wrong:
        arguments = replace(make(**case), **changes)
        assert_refused_in_every_way(op, arguments, (error or [RuntimeError])[0], message)


FIRST = ["weight_ih", "bias_ih", "bias_hh", "hx", "alpha"]


@pytest.mark.parametrize(
    ("op", "make", "names"),
    [
        (ops.recurrence, samples.make, [*FIRST, "reset_state", "noise"]),
        (ops.recurrence_backward, backward_of, ["output", "grad_output", "grad_h_n", "saved"]),
        (ops.recurrence_stack, stack_of, ["weight_hh", *FIRST]),
    ],
    ids=["recurrence", "backward", "stack"],
)
def test_every_tensor_has_the_shape_and_the_dtype_of_the_call(op, make, names):
    right = make(cell="rate", reset="state", **({"noise": True} if "noise" in names else {}))
    for name in names:
        value = getattr(right, name)
        for how, message in (
            (lambda t: t[:-1], f"{name} must have shape ["),
            (Tensor.float, f"{name} must have the dtype of weight_hh, float64, got float32"),
        ):
            wrong = [*value[:-1], how(value[-1])] if isinstance(value, list) else how(value)
            assert_refused_in_every_way(op, replace(right, **{name: wrong}), RuntimeError, message)


def sizes(*batch_sizes):
    return {"batch_sizes": torch.tensor(batch_sizes, dtype=torch.int64), "input": zeros(5, 4)}


BAD_VALUES = [
    ({}, {"hx": zeros(1, 3, 6, device="meta")}, "device of weight_hh, cpu, got"),
    ({"noise": True}, {"noise_key": longs(1)}, "on the CPU, got int64 of shape [1]"),
    ({"noise": True}, {"noise_key": zeros(())}, "on the CPU, got float64 of shape []"),
    ({}, {"lengths": torch.tensor([5, 6, 5])}, "lengths[1] = 6", ValueError),
    ({}, {"lengths": torch.tensor([5, -1, 5])}, "lengths[1] = -1", ValueError),
    *[
        ({"cell": "rate"}, {"alpha": [torch.tensor(alpha).double()]}, " at 4", ValueError)
        for alpha in ([1, 1, 1, 1, bad, 1] for bad in (0.0, 1.0001, float("nan")))
    ],
    *[
        ({"rows": "packed", "T": 2, "B": 2}, sizes(*batch_sizes), message)
        for batch_sizes, message in [
            ([], "sum(batch_sizes) = 0 rows, got 5"),
            ([0], "got 0 at step 0"),
            ([2, 3], "must not increase, got 3 at step 1"),
            ([3, 1], "sum(batch_sizes) = 4 rows, got 5"),
            ([3, 2, 1], "sum(batch_sizes) = 6 rows, got 5"),
            ([2**40], f"batch_sizes[0] = {2**40} is more than input has rows, 5"),
            ([3, -(2**62)], f"got -{2**62} at step 1"),
        ]
    ],
]


def test_bad_values_are_named():
    for case, changes, message, *error in BAD_VALUES:
        kind, found = error_of(replace(samples.make(**case), **changes).call, ops.recurrence)
        assert kind is (error or [RuntimeError])[0], found
        assert message in found


@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32])
def test_a_table_index_out_of_range_is_named(index_dtype):
    for position, value in itertools.product([0, 7, 14], [-1, 9, 2**31 - 1]):
        arguments = samples.make(source="table", index_dtype=index_dtype)
        arguments.index.view(-1)[position] = value
        kind, message = error_of(arguments.call, ops.recurrence)
        assert kind is IndexError
        assert f"[{position}] = {value}, expected 0 <= index < 9" in message


OF_AN_EMBEDDING = [
    (ops.embedding, (zeros(5, 3), zeros(2)), (-1, False, False)),
    (ops.embedding, (zeros(5, 3, 2), longs(1)), (-1, False, False)),
    (ops.embedding_backward, (zeros(2, 3), longs(1)), (5, -1, False)),
    (ops.embedding_backward, (longs(1, 3), longs(1)), (5, -1, False)),
    (ops.embedding_sparse_backward, (zeros(1, 3), zeros(1)), (5, -1, False)),
]


def test_an_embedding_refuses_as_with_data():
    for op, tensors, options in OF_AN_EMBEDDING:
        expected = error_of(op, *tensors, *options)
        for convert in (lambda tensor: tensor.to("meta"), FakeTensorMode().from_tensor):
            error, message = error_of(op, *map(convert, tensors), *options)
            assert error is expected[0]
            assert message.split("; but got")[0] == expected[1].split("; but got")[0]


def test_the_gradient_of_an_embedding_refuses_indices_elsewhere():
    for op in (ops.embedding_backward, ops.embedding_sparse_backward):
        given = zeros(2, 3), longs(2).to("meta"), 5, -1, False
        assert_refused(op, RuntimeError, "indices must be on cpu, got meta", *given)


def test_meta_tensors_without_a_tracer():
    """Packed without hx, and a sparse gradient, whose rows are as many as there can be."""
    data = torch.empty(7, 3, device="meta")
    rnn = rnnext.RNN(3, 4, num_layers=2, bidirectional=True, device="meta")
    output, h_n = rnn(torch.nn.utils.rnn.PackedSequence(data, torch.tensor([3, 2, 2])))
    assert output.data.shape == (7, 8)
    assert h_n.shape == (4, 3, 4)
    output.data.sum().backward()
    assert rnn.weight_hh_l0.grad.shape == (4, 4)
    embedding = rnnext.Embedding(10, 4, sparse=True, device="meta")
    embedding(torch.empty(5, dtype=torch.long, device="meta")).sum().backward()
    assert embedding.weight.grad.layout == torch.sparse_coo
    assert embedding.weight.grad.shape == (10, 4)


@pytest.mark.skipif(bool(rnnext._C.build_info()["cuda_archs"]), reason="the CUDA half was built")
def test_a_build_without_cuda_kernels_says_so_and_how_to_have_them():
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    for name in ("recurrence", "embedding"):
        for op in (name, f"{name}_backward"):
            message = f"rnnext::{op} got tensors on a GPU, but .* no CUDA kernels.*RNNEXT_CUDA=1"
            with pytest.raises(NotImplementedError, match=message):
                # As the dispatcher calls it for tensors on a GPU, which no CPU torch can make.
                getattr(ops, op).default.redispatch(cuda, **MADE[op](samples.make()))
