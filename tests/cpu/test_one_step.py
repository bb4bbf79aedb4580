"""Calls of one step, whose kernels are their own: the bits of any other call, and right values."""

import pytest
import torch

from helpers import samples
from helpers.common import assert_close, same

recurrence = torch.ops.rnnext.recurrence
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
CASES = [
    {},
    {"leak": "rate"},
    {"leak": "voltage"},
    {"rows": "lengths"},
    {"reset": "state"},
    {"source": "ready"},
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nonlinearity", ["tanh", "identity"])
@pytest.mark.parametrize("H", [7, 70, 300])
def test_one_step_of_many_sequences_from_zeros(dtype, nonlinearity, H, isa, threads):
    """A product of rows, taken by blocks of them; W_hh has no part in it, nor a gradient."""
    arguments = samples.make(
        T=1, B=270, I=21, H=H, reverse=(False, True), hx=False, nonlinearity=nonlinearity,
        dtype=dtype, requires_grad=True,
    )  # fmt: skip
    output, h_n = arguments.call(recurrence)
    for rows in (slice(0, 1), slice(60, 66), slice(1, 270)):
        assert same(arguments.sequences(rows).call(recurrence), (output[:, rows], h_n[:, rows]))
    wanted = arguments.to_double()
    expected = wanted.expected()
    assert_close((output, h_n), expected, dtype)
    cotangents = [torch.rand_like(v) for v in (output, h_n)]
    torch.autograd.backward((output, h_n), cotangents)
    torch.autograd.backward(expected, [c.double() for c in cotangents])
    for a, e in zip(arguments.float_tensors(), wanted.float_tensors(), strict=True):
        assert_close(a.grad, torch.zeros_like(e) if e.grad is None else e.grad, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("H", [7, 70, 300])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_step_of_some_sequences(case, dtype, H, isa, threads):
    """From the weights as they lie, or panel by panel, as they are packed."""
    arguments = samples.make(T=1, B=26, I=21, H=H, reverse=(False, True), dtype=dtype, **case)
    output, h_n = arguments.call(recurrence)
    for rows in (slice(0, 1), slice(5, 12), slice(1, 26)):
        assert same(arguments.sequences(rows).call(recurrence), (output[:, rows], h_n[:, rows]))
    assert_close((output, h_n), arguments.to_double().expected(), dtype)


def gradients(arguments, cotangents, dtype=None):
    """Of all that can have one, None where the call does not depend on it."""
    leaves = arguments.map(lambda t: t.detach().requires_grad_(t.is_floating_point()))
    result = leaves.call(recurrence) if dtype is None else leaves.expected(stored=dtype)
    return torch.autograd.grad(result, leaves.float_tensors(), cotangents, allow_unused=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("I", "H"), [(3, 7), (21, 70), (64, 128), (130, 300)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_of_one_step(case, I, H, dtype, isa, threads):  # noqa: E741
    """By weights as they lie, to their last columns, and sums that the tiles write in place."""
    arguments = samples.make(T=1, B=26, I=I, H=H, reverse=(False, True), dtype=dtype, **case)
    cotangents = [torch.rand_like(result) for result in arguments.call(recurrence)]
    found = gradients(arguments, cotangents)
    expected = gradients(arguments.to_double(), [c.double() for c in cotangents], dtype)
    for a, e in zip(found, expected, strict=True):
        assert_close(a, torch.zeros_like(a) if e is None else e, dtype)
    for rows in (slice(0, 1), slice(5, 12)):
        alone = gradients(arguments.sequences(rows), [c[:, rows] for c in cotangents])
        assert same(alone[:2], (found[0][:, rows], found[1][:, rows]))
