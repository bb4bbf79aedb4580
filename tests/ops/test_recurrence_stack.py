"""A stack of layers in one call: the bits of calls of single layers, the reference's values."""

import functools
from dataclasses import replace

import pytest
import torch

from helpers import samples
from helpers.cases import SETTINGS, VARIANTS, valid
from helpers.common import assert_close, case_id, pairwise, same
from rnnext import _C

ops = torch.ops.rnnext
zeros = functools.partial(torch.zeros, dtype=torch.float64)


def one_layer_at_a_time(stack, call):
    """Output and last states by calls of single layers; ``call`` takes samples.Recurrence."""
    output, last = stack.input, []
    for number in range(len(stack.weight_hh)):
        output, h_n = call(stack.layer(number, output))
        last.append(h_n)
    return output, torch.cat(last)


def of_op(layer):
    return layer.call(ops.recurrence)


STACK_CASES = [
    case
    for case in pairwise(
        layers=[1, 2, 3, 5],
        H=[1, 8, 17, 64, 130],
        T=[1, 2, 33, 100],
        B=[0, 1, 2, 4, 9],
        I=[0, 1, 5, 33],
        isa=SETTINGS["isa"],
        threads=[1, 2, 3],
        reverse=[(False,), (True,)],
        **{k: VARIANTS[k] for k in ("nonlinearity", "bias", "hx", "layout", "rows", "dtype")},
    )
    if valid(case)
]


@pytest.mark.parametrize("case", STACK_CASES, ids=case_id)
def test_recurrence_stack(case):
    case = dict(case)
    _C.set_cpu_isa(case.pop("isa"))
    torch.set_num_threads(case.pop("threads"))
    arguments = samples.make_stack(**case)
    result = arguments.call(ops.recurrence_stack)
    one_by_one = one_layer_at_a_time(arguments, of_op)
    assert same(result, one_by_one)
    expected = one_layer_at_a_time(
        arguments.to_double(), lambda layer: layer.expected(stored=case["dtype"])
    )
    assert_close(result, expected)


@pytest.mark.parametrize("dtype", VARIANTS["dtype"])
@pytest.mark.parametrize("B", [1, 2, 4])
def test_the_same_bits_where_threads_run_layers_as_a_pipeline(B, dtype, isa):
    for layers in (2, 3, 4):
        arguments = samples.make_stack(layers, T=100, B=B, I=64, H=64, dtype=dtype)
        torch.set_num_threads(1)
        expected = one_layer_at_a_time(arguments, of_op)
        for threads in (2, 4):
            torch.set_num_threads(threads)
            for _ in range(20):
                result = arguments.call(ops.recurrence_stack)
                assert same(result, expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("input", zeros(5, 3, 7), "input must have 4 features, as many as weight_ih, got 7"),
        ("weight_ih", [zeros(6, 4)], "weight_ih must hold 2 tensors, one a layer, got 1"),
        ("weight_ih", [zeros(6, 4)] * 2, "input must have 4 features, as many as weight_ih, got 6"),
        ("weight_hh", [], "weight_hh must hold a tensor for each layer"),
        ("weight_hh", [zeros(6, 6), zeros(5, 5)], r"weight_ih .* \[5, 6\], got \[6, 6\]"),
        ("weight_hh", [zeros(6, 6), torch.zeros(6, 6)], "dtype of weight_hh, float32, got float64"),
        ("bias_ih", [zeros(6)], "bias_ih and bias_hh must both"),
        ("bias_hh", [], "bias_ih and bias_hh must both"),
        ("hx", zeros(1, 3, 6), r"hx must have shape \[2, 3, 6\], got \[1, 3, 6\]"),
        ("hx", zeros(2, 6), r"hx must have shape \[2, 3, 6\], got \[2, 6\]"),
        ("lengths", torch.tensor([5, 6, 5]), r"lengths\[1\] = 6"),
        ("index", torch.zeros(5, 3, dtype=torch.int64), "index needs a table"),
        ("reverse", [False, False], "reverse must hold one bool a direction, 1, got 2"),
        ("nonlinearity", "gelu", "nonlinearity must be .* got 'gelu'"),
    ],
)
def test_recurrence_stack_refuses_what_does_not_fit(name, value, message):
    arguments = replace(samples.make_stack(2), **{name: value})
    with pytest.raises((RuntimeError, ValueError), match=message):
        arguments.call(ops.recurrence_stack)


@pytest.mark.parametrize("rows", ["full", "lengths", "packed"])
@pytest.mark.parametrize("leak", [None, "voltage"])
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
