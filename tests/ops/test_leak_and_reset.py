"""Leaks and resets: what calls with them have in common with other calls, to the bit."""

import itertools
from dataclasses import replace

import pytest
import torch

from helpers import samples
from helpers.cases import SETTINGS, VARIANTS
from helpers.common import assert_close, cover, same

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


@cover(leak=VARIANTS["leak"], dtype=VARIANTS["dtype"], **SETTINGS)
def test_the_same_bits_step_by_step(leak, dtype, isa, threads):
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


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.0001, float("nan"), float("inf")])
def test_alpha_out_of_range_is_named(alpha):
    arguments = samples.make(leak="rate")
    arguments.alpha[0][4] = alpha
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\], got .* at 4"):
        arguments.call(ops.recurrence)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"form": "cubic"}, ValueError, "form must be one of 'rate', .*, 'blend', got 'cubic'"),
        ({"reset": torch.zeros(5, 3)}, TypeError, "reset must be a bool tensor, got float32"),
        ({"reset": torch.ones(3, 5) > 0}, ValueError, r"reset .* \[5, 3\], got \[3, 5\]"),
        ({"reset_state": torch.zeros(1, 3, 6)}, ValueError, "reset_state needs a reset"),
        ({"alpha": [torch.ones(6)]}, RuntimeError, "alpha must have the dtype of weight_hh"),
        ({"alpha": [torch.ones(5).double()]}, RuntimeError, r"alpha .* \[6\], got \[5\]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        replace(samples.make(), **changes).call(ops.recurrence)
