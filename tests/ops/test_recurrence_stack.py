"""A stack of layers in one call: the bits of calls of single layers, the reference's values."""

import itertools

import pytest
import torch

from helpers import samples
from helpers.cases import VARIANTS, valid
from helpers.common import assert_close, cover, same

ops = torch.ops.rnnext


def one_layer_at_a_time(stack, call):
    """Output and last states by calls of single layers; ``call`` takes samples.Recurrence."""
    output, last = stack.input, []
    for number in range(len(stack.weight_hh)):
        output, h_n = call(stack.layer(number, output))
        last.append(h_n)
    return output, torch.cat(last)


def of_op(layer):
    return layer.call(ops.recurrence)


@cover(
    "case",
    valid,
    layers=[1, 2, 4],
    H=[1, 17, 130],
    T=[1, 2, 100],
    B=[0, 1, 9],
    I=[0, 1, 33],
    reverse=[(False,), (True,)],
    leak=[None, "blend"],
    reset=[None, "zeros"],
    **{k: VARIANTS[k] for k in ("bias", "hx", "rows", "dtype")},
    layout=["contiguous", "strided"],
    threads=[1, 2, 3],
)
def test_recurrence_stack(case, threads):
    arguments = samples.make_stack(**case)
    result = arguments.call(ops.recurrence_stack)
    one_by_one = one_layer_at_a_time(arguments, of_op)
    assert same(result, one_by_one)
    expected = one_layer_at_a_time(
        arguments.to_double(), lambda layer: layer.expected(stored=case["dtype"])
    )
    assert_close(result, expected)


@pytest.mark.parametrize("dtype", VARIANTS["dtype"])
def test_the_same_bits_where_threads_run_layers_as_a_pipeline(dtype):
    for layers, B in itertools.product([2, 3, 4], [1, 2, 4]):
        arguments = samples.make_stack(layers, T=100, B=B, I=64, H=64, dtype=dtype)
        torch.set_num_threads(1)
        expected = one_layer_at_a_time(arguments, of_op)
        for threads in (2, 4):
            torch.set_num_threads(threads)
            for _ in range(20):
                assert same(arguments.call(ops.recurrence_stack), expected)


@pytest.mark.parametrize(
    ("rows", "leak"), [("full", None), ("lengths", "voltage"), ("packed", "rate")]
)
def test_the_gradients_of_a_stack_are_those_of_its_layers(rows, leak):
    arguments = samples.make_stack(3, rows=rows, leak=leak)
    tensors = [tensor.detach().requires_grad_() for tensor in arguments.float_tensors()]
    arguments = arguments.with_tensors(tensors)
    result = arguments.call(ops.recurrence_stack)
    x, states = arguments.input, []
    for number in range(3):
        x, h_n = arguments.layer(number, x).expected()
        states.append(h_n)
    expected = x, torch.cat(states)
    assert_close(result, expected)
    cotangents = [torch.rand_like(each) for each in expected]
    assert_close(*(torch.autograd.grad(of, tensors, cotangents) for of in (result, expected)))
