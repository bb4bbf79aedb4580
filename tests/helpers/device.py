"""The device that a check runs on (RNNEXT_CHECK_DEVICE names it), and the ops on it."""

import os

import torch

from helpers import samples
from helpers.common import assert_close

DEVICE = os.environ.get("RNNEXT_CHECK_DEVICE", "cuda")


def cuda_paths(capability):
    """The words of RNNEXT_CUDA_PATH that a card of this capability can run."""
    return (
        ["step"] + ["block", "grid"] * (capability >= (8, 0)) + ["cluster"] * (capability >= (9, 0))
    )


def with_gradients(output, h_n, tensors):
    """Both results, and the gradients of the tensors for fixed cotangents."""
    grad_output = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
    grad_h_n = torch.linspace(1, -1, h_n.numel(), dtype=torch.float64).view(h_n.shape)
    torch.autograd.backward(
        [output, h_n], [grad_output.to(output), grad_h_n.to(h_n)], inputs=tensors
    )
    return [output, h_n, *(t.grad for t in tensors)]


def check_recurrence(case):
    """Values and gradients of one description (see samples.make) on the device."""
    arguments = samples.make(**case, requires_grad=True)
    moved, wanted = arguments.to_device(DEVICE), arguments.to_double()
    result = moved.call(torch.ops.rnnext.recurrence)
    actual = with_gradients(*result, moved.float_tensors())
    expected = with_gradients(*wanted.expected(stored=case["dtype"]), wanted.float_tensors())
    assert_close([t.cpu() for t in actual], expected)
