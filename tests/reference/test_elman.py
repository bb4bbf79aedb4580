"""The reference's derivatives, which it takes from the value alone, against torch's."""

import pytest
import torch

from reference.elman import ACTIVATIONS


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_are_the_derivatives(name):
    """Also where the value is stored in 16 bits, as the backward pass sees it."""
    x = torch.linspace(-30, 30, 250, dtype=torch.float64, requires_grad=True)
    h = ACTIVATIONS[name](x)
    (slope,) = torch.autograd.grad(h.sum(), x)
    of_value, h = ACTIVATIONS[name].slope, h.detach()
    torch.testing.assert_close(of_value(h), slope, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(of_value(h.bfloat16().double()), slope, rtol=0, atol=2**-7)
