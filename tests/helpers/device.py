"""The device that a check runs on (RNNEXT_CHECK_DEVICE names it), and the ops on it."""

import os

import torch

import reference
from helpers import samples
from helpers.common import assert_close

DEVICE = os.environ.get("RNNEXT_CHECK_DEVICE", "cuda")


def to_device(value):
    """The same arguments on the device, as new leaves; batch_sizes stays where it belongs."""
    if isinstance(value, list):
        return [to_device(v) for v in value]
    if not isinstance(value, torch.Tensor):
        return value
    moved = torch.empty_strided(
        value.shape, value.stride(), dtype=value.dtype, device=DEVICE
    ).copy_(value.detach())
    return moved.requires_grad_(value.requires_grad)


def gradients(op, arguments):
    """Output, last state and the gradients of every floating-point argument."""
    output, h_n = op(*arguments)
    grad_output = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
    grad_h_n = torch.linspace(1, -1, h_n.numel(), dtype=torch.float64).view(h_n.shape)
    torch.autograd.backward(
        [output, h_n],
        [grad_output.to(output), grad_h_n.to(h_n)],
        inputs=samples.float_tensors(arguments),
    )
    return [output, h_n, *(t.grad for t in samples.float_tensors(arguments))]


def check_recurrence(case):
    """Values and gradients of one description (see samples.make) on the device."""
    case = dict(case)
    dtype = case["dtype"]
    arguments = samples.make(requires_grad=True, **case)
    moved = to_device(arguments)
    if moved[8] is not None:
        moved[8] = moved[8].cpu()
    actual = [t.cpu() for t in gradients(torch.ops.rnnext.recurrence, moved)]
    stored = dtype if dtype in (torch.bfloat16, torch.float16) else None
    expected = gradients(
        lambda *a: reference.recurrence(*a, stored=stored), samples.to_double(arguments)
    )
    assert_close(actual, expected)
