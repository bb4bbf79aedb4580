"""The reference's derivatives, which it takes from the value alone, against torch's."""

import pytest
import torch

from reference.elman import ACTIVATIONS, SLOPES


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_are_the_derivatives(name):
    x = torch.linspace(-30, 30, 250, dtype=torch.float64, requires_grad=True)
    h = ACTIVATIONS[name](x)
    (slope,) = torch.autograd.grad(h.sum(), x)
    torch.testing.assert_close(SLOPES[name](h.detach()), slope, rtol=1e-9, atol=1e-15)
