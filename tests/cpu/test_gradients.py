"""The backward pass where its kernels go another way: against the reference in float64."""

import pytest
import torch

from helpers import samples
from helpers.common import assert_close

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
ROWS = ["full", "lengths", "packed"]


def check(rows, dtype, **sizes):
    arguments = samples.make(rows=rows, dtype=dtype, **sizes, requires_grad=True)
    wanted = arguments.to_double()
    result = arguments.call(torch.ops.rnnext.recurrence)
    expected = wanted.expected(stored=dtype)
    cotangents = [torch.rand_like(v) for v in result]
    torch.autograd.backward(result, cotangents)
    torch.autograd.backward(expected, [c.double() for c in cotangents])
    for a, e in zip(arguments.float_tensors(), wanted.float_tensors(), strict=True):
        assert_close(a.grad, e.grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
def test_a_thread_takes_both_directions(rows, dtype, isa, threads):
    check(rows, dtype, T=12, B=40, I=24, H=70, reverse=(False, True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("I", range(1, 10))
def test_few_features_are_summed_like_the_bias(I, rows, dtype, isa):  # noqa: E741
    check(rows, dtype, T=6, B=9, I=I, H=39)
    check(rows, dtype, T=2, B=3, I=I, H=7, reverse=(False, True))  # more hidden units than rows
