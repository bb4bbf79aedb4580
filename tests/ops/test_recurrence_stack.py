"""Layers at once: the bits of the layers one after the other, and the reference's values."""

import pytest
import torch

import reference
from helpers import samples
from helpers.cases import SETTINGS, VARIANTS, valid
from helpers.common import assert_close, case_id, pairwise
from rnnext import _C

ops = torch.ops.rnnext


def one_layer_at_a_time(op, input, weight_ih, weight_hh, bias_ih, bias_hh, h0, *rest, **options):
    last = []
    for layer in range(len(weight_hh)):
        one = slice(layer, layer + 1)
        lists = [v[one] for v in (weight_ih, weight_hh, bias_ih, bias_hh)]
        start = None if h0 is None else h0[one]
        input, h_n = op(input, None, *lists, start, *rest, [False], **options)
        last.append(h_n)
    return input, torch.cat(last)


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
        **{k: VARIANTS[k] for k in ("nonlinearity", "bias", "h0", "layout", "rows", "dtype")},
    )
    if valid(case)
]


@pytest.mark.parametrize("case", STACK_CASES, ids=case_id)
def test_recurrence_stack(case):
    case = dict(case)
    _C.set_cpu_isa(case.pop("isa"))
    torch.set_num_threads(case.pop("threads"))
    arguments = samples.make_stack(**case)
    result = ops.recurrence_stack(*arguments)
    one_by_one = one_layer_at_a_time(ops.recurrence, *arguments)
    assert all(torch.equal(a, b) for a, b in zip(result, one_by_one, strict=True))
    doubles = samples.to_double(arguments)
    expected = one_layer_at_a_time(reference.recurrence, *doubles, stored=case["dtype"])
    assert_close(result, expected)


@pytest.mark.parametrize("dtype", VARIANTS["dtype"])
@pytest.mark.parametrize("B", [1, 2, 4])
def test_layers_at_once_wait_for_each_other(B, dtype, isa):
    for layers in (2, 3, 4):
        arguments = samples.make_stack(layers, T=100, B=B, I=64, H=64, dtype=dtype)
        torch.set_num_threads(1)
        expected = one_layer_at_a_time(ops.recurrence, *arguments)
        for threads in (2, 4):
            torch.set_num_threads(threads)
            for _ in range(20):
                result = ops.recurrence_stack(*arguments)
                assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, torch.zeros(5, 3, 7, dtype=torch.float64)),
        (1, [torch.zeros(6, 4, dtype=torch.float64)]),
        (1, [torch.zeros(6, 4, dtype=torch.float64)] * 2),
        (2, []),
        (2, [torch.zeros(6, 6, dtype=torch.float64), torch.zeros(5, 5, dtype=torch.float64)]),
        (2, [torch.zeros(6, 6, dtype=torch.float64), torch.zeros(6, 6)]),
        (3, [torch.zeros(6, dtype=torch.float64)]),
        (4, []),
        (5, torch.zeros(1, 3, 6, dtype=torch.float64)),
        (5, torch.zeros(2, 6, dtype=torch.float64)),
        (6, torch.tensor([5, 6, 5])),
        (8, "gelu"),
    ],
    ids=range(12),
)
def test_recurrence_stack_refuses_what_does_not_fit(place, value):
    arguments = samples.make_stack(2)
    arguments[place] = value
    with pytest.raises((RuntimeError, ValueError)):
        ops.recurrence_stack(*arguments)


@pytest.mark.parametrize("place", [0, 1, 4, 5])
def test_a_stack_refuses_what_needs_a_gradient(place):
    arguments = samples.make_stack(2)
    value = arguments[place]
    (value if isinstance(value, torch.Tensor) else value[1]).requires_grad_()
    with pytest.raises(NotImplementedError, match="no gradient"):
        ops.recurrence_stack(*arguments)
    with torch.no_grad():
        ops.recurrence_stack(*arguments)
