"""Leaks and resets: values and gradients of every form against the loop in float64."""

import itertools
from dataclasses import replace

import pytest
import torch

from helpers import samples
from helpers.cases import HALVES, SETTINGS, SHAPES, VARIANTS
from helpers.common import assert_close, case_id, pairwise, same
from rnnext import _C

ops = torch.ops.rnnext
FORMS = ["rate", "voltage", "blend"]


def fit(case):
    """The case, with resets only where rows are not packed, and a leak or resets at least.

    An alpha's gradient sums what steps changed, which is stored as the state is: in 16 bits, few
    sequences.
    """
    case = dict(case)
    if case["rows"] == "packed":
        case["reset"] = None
        case["B"] = max(case["B"], 1)
    if case["reset"] is None and case["leak"] is None:
        case["leak"] = "rate"
    if case["leak"] and case.get("dtype") in HALVES:
        case["B"] = min(case["B"], 3)
    return case


CASES = [fit(case) for case in pairwise(**SHAPES, **VARIANTS, **SETTINGS, again=[0, 1, 2, 3, 4])]


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_values_and_gradients(case):
    case = dict(case)
    case.pop("again")
    _C.set_cpu_isa(case.pop("isa"))
    torch.set_num_threads(case.pop("threads"))
    arguments = samples.make(**case, requires_grad=True)
    wanted = arguments.to_double()
    result = arguments.call(ops.recurrence)
    expected = wanted.expected(stored=case["dtype"])
    assert_close(result, expected)
    cotangents = [torch.rand_like(v) for v in result]
    torch.autograd.backward(result, cotangents)
    torch.autograd.backward(expected, [c.double() for c in cotangents])
    for a, e in zip(arguments.float_tensors(), wanted.float_tensors(), strict=True):
        if e.grad is not None:
            assert a.grad.dtype == a.dtype
            assert_close(a.grad, e.grad)


FEW = {k: VARIANTS[k] for k in ("source", "reverse", "nonlinearity", "bias", "hx", "rows")}
FEW |= {k: VARIANTS[k] for k in ("leak", "reset")}
GRADIENT_CASES = [fit({**case, "B": 2}) for case in pairwise(**FEW)]


@pytest.mark.parametrize("case", GRADIENT_CASES, ids=case_id)
def test_gradcheck_and_gradgradcheck(case):
    arguments = samples.make(
        **{"T": 4, "I": 2, "H": 3, "vocabulary": 3, **case}, requires_grad=True
    )
    tensors = arguments.float_tensors()

    def call(*tensors):
        return arguments.with_tensors(tensors).call(ops.recurrence)

    assert torch.autograd.gradcheck(call, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)


@pytest.mark.parametrize("name", ["input", "hx", "weight_hh", "bias_ih", "reset_state", "alpha"])
@pytest.mark.parametrize("form", FORMS)
def test_each_gradient_alone(form, name):
    arguments = samples.make(T=7, B=5, H=19, leak=form, reset="state", reverse=(False, True))
    wanted = getattr(arguments, name)
    for tensor in wanted if isinstance(wanted, list) else [wanted]:
        tensor.requires_grad_()
    exact = arguments.to_double()
    for outputs in (arguments.call(ops.recurrence), exact.expected()):
        sum(v.square().sum() for v in outputs).backward()
    for a, e in zip(arguments.float_tensors(), exact.float_tensors(), strict=True):
        assert (a.grad is None) == (e.grad is None)
        if e.grad is not None:
            assert_close(a.grad, e.grad)


@pytest.mark.parametrize("reverse", [(False,), (True,), (False, True)])
@pytest.mark.parametrize("leak", [None, *FORMS])
def test_a_batch_of_rollouts_equals_its_episodes_one_by_one(leak, reverse):
    arguments = samples.make(
        T=23, B=4, H=17, leak=leak, reset="zeros", reverse=reverse, hx=False, requires_grad=True
    )
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


@pytest.mark.parametrize("form", ["rate", "blend"])
def test_a_leak_of_one_is_no_leak_to_the_bit(form, isa, threads):
    arguments = samples.make(T=9, B=13, I=19, H=33, leak=form, dtype=torch.float32)
    arguments.alpha[0].fill_(1)
    plain = replace(arguments, alpha=[])
    assert same(arguments.call(ops.recurrence), plain.call(ops.recurrence))


@pytest.mark.parametrize("dtype", VARIANTS["dtype"])
@pytest.mark.parametrize("leak", [None, *FORMS])
def test_the_same_bits_for_any_batch_and_step_by_step(leak, dtype, isa, threads):
    arguments = samples.make(T=9, B=26, I=19, H=65, leak=leak, reset="state", dtype=dtype)
    output, h_n = arguments.call(ops.recurrence)
    for rows in (slice(0, 1), slice(3, 6), slice(5, 17), slice(0, 13)):
        expected = output[:, rows], h_n[:, rows]
        assert same(arguments.sequences(rows).call(ops.recurrence), expected)
    state = arguments.hx
    for t in range(9):
        step = replace(
            arguments, input=arguments.input[t : t + 1], reset=arguments.reset[t : t + 1], hx=state
        )
        one, state = step.call(ops.recurrence)
        assert torch.equal(one[0], output[t])
    assert torch.equal(state, h_n)


@pytest.mark.parametrize("form", FORMS)
def test_only_what_the_backward_pass_needs_is_saved(form):
    arguments = samples.make(B=40, leak=form, reverse=(False, True))
    arguments.input.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda v: kept.append(v) or v, lambda v: v):
        output, _ = arguments.call(ops.recurrence)
    size = output.numel()
    assert sum(v.numel() == size for v in kept) == (2 if form == "rate" else 1)


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
