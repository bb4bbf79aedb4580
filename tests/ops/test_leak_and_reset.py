"""Leaks and resets: what calls with them have in common with other calls, to the bit."""

import itertools
from dataclasses import replace

import pytest
import torch

from helpers import samples
from helpers.cases import VARIANTS
from helpers.common import assert_close, same

ops = torch.ops.rnnext


@pytest.mark.parametrize("leak", VARIANTS["leak"])
def test_a_batch_of_rollouts_equals_its_episodes_one_by_one(leak):
    case = {"leak": leak, "reset": "zeros", "reverse": (False, True), "hx": False}
    arguments = samples.make(T=23, B=4, H=17, **case, requires_grad=True)
    output, _ = arguments.call(ops.recurrence)
    cotangent = torch.rand_like(output)
    tensors = arguments.float_tensors()
    grads = torch.autograd.grad(output, tensors, cotangent)
    arguments.reset[0] = True
    pieces, total = torch.zeros_like(output), [torch.zeros_like(t) for t in tensors]
    for b in range(4):
        starts = [*arguments.reset[:, b].nonzero().flatten().tolist(), 23]
        for start, end in itertools.pairwise(starts):
            episode = replace(arguments.sequences(slice(b, b + 1)), reset=None)
            alone, _ = replace(episode, input=episode.input[start:end]).call(ops.recurrence)
            pieces[start:end, b : b + 1] = alone.detach()
            of_episode = torch.autograd.grad(alone, tensors, cotangent[start:end, b : b + 1])
            total = [t + g for t, g in zip(total, of_episode, strict=True)]
    assert torch.equal(output, pieces)
    assert_close(grads, total)


def test_a_leak_of_one_is_no_leak_to_the_bit(isa):
    for form in ("rate", "blend"):
        arguments = samples.make(T=9, B=13, I=19, H=33, leak=form, dtype=torch.float32)
        arguments.alpha[0].fill_(1)
        plain = replace(arguments, alpha=[])
        assert same(arguments.call(ops.recurrence), plain.call(ops.recurrence))


def test_the_same_bits_step_by_step(isa):
    for leak, dtype in itertools.product(VARIANTS["leak"], VARIANTS["dtype"]):
        check_step_by_step(leak, dtype)


def check_step_by_step(leak, dtype):
    arguments = samples.make(T=9, B=26, I=19, H=65, leak=leak, reset="state", dtype=dtype)
    output, h_n = arguments.call(ops.recurrence)
    state = arguments.hx
    for t in range(9):
        step = replace(
            arguments, input=arguments.input[t : t + 1], reset=arguments.reset[t : t + 1], hx=state
        )
        one, state = step.call(ops.recurrence)
        assert torch.equal(one[0], output[t])
    assert torch.equal(state, h_n)
