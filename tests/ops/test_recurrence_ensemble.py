"""Members with weights of their own in one call: the bits of each alone."""

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

import rnnext
from helpers import samples
from helpers.common import assert_close, cover, same
from helpers.samples import HALVES, VARIANTS
from rnnext import _C

ops = torch.ops.rnnext


def fits(case):
    """Alpha's gradient sums changes of the state: in 16 bits it is too inexact to compare."""
    summed = case["cell"] in _C.forms() and case["dtype"] in HALVES and case["T"] * case["B"] > 30
    return samples.possible(case) and not summed


@cover(
    "case",
    fits,
    T=[1, 7, 33],
    B=[1, 4, 13],
    H=[1, 17, 129],
    M=[1, 2, 3, 7],
    **{**VARIANTS, "nonlinearity": ["tanh", "softplus"], "layout": ["contiguous", "expanded"]},
    threads=[1, 3],
)
def test_each_member_is_what_it_is_alone(case, threads):
    calls = [samples.make(**case, requires_grad=True) for _ in range(case.pop("M"))]
    many = calls[0].stacked(*calls[1:])
    result, each = many.call(ops.recurrence_ensemble), [call.call(ops.recurrence) for call in calls]
    assert same(result, [torch.stack(values) for values in zip(*each, strict=True)])
    cotangents = [torch.rand_like(value) for value in result]
    grads = torch.autograd.grad(result, many.float_tensors(), cotangents)
    for m, call in enumerate(calls):
        given = [cotangent[m] for cotangent in cotangents]
        own = torch.autograd.grad(each[m], call.float_tensors(), given)
        assert_close([grad[m] for grad in grads], own)


@pytest.mark.parametrize("cell", ["elman", "voltage", "gru", "lstm"])
def test_gradcheck_and_gradgradcheck(cell):
    case = {"T": 3, "B": 2, "I": 2, "H": 3, "cell": cell, "reset": "state", "rows": "lengths"}
    many = samples.make(**case).stacked(samples.make(**case))
    function, tensors = many.as_function(ops.recurrence_ensemble)
    modes = {"fast_mode": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(function, tensors, check_forward_ad=True, **modes)
    assert torch.autograd.gradgradcheck(function, tensors, check_fwd_over_rev=True, **modes)


def test_what_members_share_is_not_copied():
    one = samples.make(B=40, T=50, H=64, I=64, dtype=torch.float32)
    many = one.map(lambda tensor: tensor.expand(8, *tensor.shape))
    with torch.profiler.profile(profile_memory=True) as profile:
        output, h_n = many.call(ops.recurrence_ensemble)
    assert same([output, h_n], [each.expand(8, *each.shape) for each in one.call(ops.recurrence)])
    made = sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages())
    most = output.nbytes + h_n.nbytes + 4 * 2**20  # of workspaces
    assert made < most < one.input.nbytes * 8 + output.nbytes * 2


@pytest.mark.parametrize(
    "options",
    [
        {"num_layers": 3, "nonlinearity": "relu"},
        {"bidirectional": True, "batch_first": True},
        {"cell": "gru", "bidirectional": True},
        {"cell": "lstm", "num_layers": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("shared", [True, False])
def test_rnn_ensemble_is_an_rnn_for_each_member(options, shared):
    """Of one input, lengths and resets, or of each its own; reset_state of all rows, or of each."""
    cell = options.get("cell", "rnn")
    layers = {name: value for name, value in options.items() if name != "cell"}
    members = [getattr(rnnext, cell.upper())(4, 6, **layers) for _ in range(2)]
    weights = [torch.stack(each) for each in zip(*(m.parameters() for m in members), strict=True)]
    x, reset = torch.rand(2, 5, 3, 4), torch.rand(2, 5, 3) < 0.3
    lengths = torch.tensor([[5, 3, 0], [2, 5, 1]])
    hx = torch.rand(2, members[0].num_layers * (1 + members[0].bidirectional), 3, 6)
    hx = (hx, hx + 1) if cell == "lstm" else hx
    start = tree_map(lambda h: h[:, :, 0] / 2 if shared else h / 2, hx)
    if members[0].batch_first:
        x, reset = x.transpose(1, 2), reset.transpose(1, 2)
    given = x, lengths, reset
    own = [[each[0 if shared else m] for each in given] for m in range(2)]
    x, lengths, reset = own[0] if shared else given
    named = {name: value for name, value in options.items() if name != "num_layers"}
    named |= {"lengths": lengths, "reset": reset, "reset_state": start}
    result = rnnext.functional.rnn_ensemble(x, hx, weights, **named)
    for m, member in enumerate(members):
        states = [tree_map(lambda h, m=m: h[m], state) for state in (hx, start)]
        expected = tree_leaves(member(own[m][0], states[0], *own[m][1:], states[1]))
        assert same([each[m] for each in tree_leaves(result)], expected)


def test_rnn_ensemble_draws_dropout_for_each_member():
    weights = [torch.rand(2, *w.shape) for w in rnnext.RNN(4, 6, 2).parameters()]
    x = torch.rand(5, 3, 4)
    still, _ = rnnext.functional.rnn_ensemble(x, None, weights, dropout=0.5)
    assert torch.equal(still, rnnext.functional.rnn_ensemble(x, None, weights)[0])
    weights = [w[:1].expand(2, *w.shape[1:]) for w in weights]
    drawn, _ = rnnext.functional.rnn_ensemble(x, None, weights, dropout=0.5, training=True)
    assert not torch.equal(drawn[0], drawn[1])


def test_ensembles_follow_autocast():
    weights = [torch.rand(2, *w.shape) for w in rnnext.RNN(4, 6).parameters()]
    x = torch.rand(5, 3, 4)

    def call(*weights):
        return rnnext.functional.rnn(x, None, weights)[0]

    with torch.autocast("cpu", torch.bfloat16):
        results = [
            torch.vmap(call)(*weights),
            rnnext.functional.rnn_ensemble(x, None, weights)[0],
            rnnext.functional.rnn_ensemble(x.bfloat16(), None, weights)[0],
        ]
    assert [result.dtype for result in results] == [torch.bfloat16] * 3
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
