"""functional.recurrence: its inputs, resets to a state, derivatives of alpha, and its errors."""

import torch

from helpers.common import assert_close
from rnnext import functional

FORMS = ["rate", "voltage", "blend"]


def test_the_gradient_of_a_small_alpha():
    """The difference that alpha multiplies is not taken from states that hardly differ."""
    for form, dtype in zip(FORMS, (torch.float64, torch.float32, torch.bfloat16), strict=True):
        alpha = torch.full((8,), 2.0**-10, dtype=dtype)
        x, w = torch.randn(20, 6, 8).to(dtype), (torch.randn(8, 8) * 0.2).to(dtype)
        found = []
        for kind in (dtype, torch.float64):
            a, given = alpha.to(kind).requires_grad_(), (x.to(kind), None, None, w.to(kind))
            output, _ = functional.recurrence(*given, alpha=a, form=form)
            found.append(torch.autograd.grad(output.sum(), a)[0])
        assert_close(*found)


def test_recurrence_follows_autocast():
    x, w = torch.randn(4, 2, 3), torch.randn(3, 3)
    with torch.autocast("cpu"):
        output, _ = functional.recurrence(torch.nn.Linear(3, 3)(x), None, None, w, alpha=0.5)
    assert output.dtype == torch.bfloat16


def test_gradients_of_a_scalar_alpha():
    alpha = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    x, w = torch.randn(4, 2, 3).double(), torch.randn(3, 3).double()

    def call(alpha):
        return functional.recurrence(x, None, None, w, alpha=alpha)[0]

    assert torch.autograd.gradcheck(call, alpha)
    assert torch.autograd.gradgradcheck(call, alpha)


def test_a_state_that_a_reset_drops_has_no_gradient():
    x, w = torch.randn(4, 2, 3).double(), torch.randn(3, 3).double()
    reset = torch.tensor([[True, False], *[[False, False]] * 3])
    for form in FORMS:
        hx = torch.randn(2, 3).double()
        hx[0] = float("nan")
        hx.requires_grad_()
        output, _ = functional.recurrence(x, hx, None, w, reset=reset, alpha=0.5, form=form)
        (grad,) = torch.autograd.grad(output.sum(), hx)
        assert not grad[0].any()
        assert grad[1].all()
