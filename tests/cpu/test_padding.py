"""Batches whose padding is left out: the values, bits and gradients of sequences one by one."""

from dataclasses import replace

import pytest
import torch
from torch.autograd.profiler import profile

import rnnext
from helpers import samples
from helpers.common import ISAS, cover, same
from rnnext import _C
from rnnext.explain import explain

recurrence = torch.ops.rnnext.recurrence
LENGTHS = [100, 0, 3, 40, 7, 1, 60, 22, 5, 0, 12, 9, 33, 2, 4, 50, 8, 1, 17, 6, 3, 2, 90, 11]


def skewed(**case):
    """A batch of which a quarter exists, large enough for its padding to be left out."""
    arguments = samples.make(T=100, B=len(LENGTHS), I=33, H=65, rows="lengths", **case)
    return replace(arguments, lengths=torch.tensor(LENGTHS))


@cover(
    "case",
    # (The gradient of an alpha sums changes of the state, which 16 bits round.)
    lambda case: not (case["leak"] and case["dtype"] == torch.bfloat16),
    source=["features", "ready", "table"],
    reverse=[(False,), (True,), (False, True)],
    layout=["contiguous", "batch_first", "strided"],
    hx=[True, False],
    bias=[True, False],
    leak=[None, "rate", "voltage", "blend"],
    dtype=[torch.float32, torch.float64, torch.bfloat16],
    isa=ISAS,
    threads=[1, 3],
)
def test_values_gradients_and_bits(case, isa, threads):
    arguments = skewed(**case, requires_grad=True)
    samples.check(arguments)
    output, h_n = arguments.call(recurrence)
    past = torch.arange(100).unsqueeze(1) >= arguments.lengths
    assert not output[past].any()
    for b in (0, 2, 5, 6, 23):
        alone = replace(arguments.detach().sequences(slice(b, b + 1)), lengths=None)
        if arguments.index is None:
            alone = replace(alone, input=alone.input[: LENGTHS[b]])
        else:
            alone = replace(alone, index=alone.index[: LENGTHS[b]])
        assert same(alone.call(recurrence), (output[: LENGTHS[b], b : b + 1], h_n[:, b : b + 1]))


def test_what_lies_past_the_end_is_not_read():
    arguments = skewed(requires_grad=True)
    tensors = arguments.float_tensors()
    past = torch.arange(100).unsqueeze(1) >= arguments.lengths
    cotangent = torch.rand_like(arguments.call(recurrence)[0])
    results = []
    for filling in (0.0, float("nan")):
        with torch.no_grad():
            arguments.input[past] = filling
            cotangent[past] = filling
        output, _ = arguments.call(recurrence)
        results.append([output, *torch.autograd.grad(output, tensors, cotangent)])
    assert same(*results)


def test_features_of_no_width():
    arguments = replace(skewed(), input=torch.zeros(100, len(LENGTHS), 0).double())
    arguments = replace(arguments, weight_ih=[torch.zeros(65, 0).double()], hx=None)
    arguments.input.requires_grad_()
    output, _ = arguments.call(recurrence)
    assert torch.autograd.grad(output.sum(), arguments.input)[0].shape == arguments.input.shape


def test_no_steps_at_all():
    arguments = replace(skewed(), lengths=torch.zeros(len(LENGTHS), dtype=torch.long))
    output, h_n = arguments.call(recurrence)
    assert not output.any()
    assert torch.equal(h_n, arguments.hx)


@pytest.mark.parametrize(("H", "B"), [(16, 6), (65, 24), (700, 6)])
def test_explain_knows_what_is_packed(H, B):
    torch.set_num_threads(2)
    rnn = rnnext.RNN(33, H)
    hx = torch.zeros(1, B, H, requires_grad=True)
    output, _ = rnn(torch.rand(100, B, 33), hx, lengths=LENGTHS[:B])
    with profile() as profiler:
        output.sum().backward()
    packed = any(event.name == "aten::index_copy_" for event in profiler.function_events)
    sizes = {"T": 100, "I": 33, "H": H, "dtype": torch.float32, "train": True, "threads": 2}
    plan = _C.plan(B=B, lengths=LENGTHS[:B], hx=True, **sizes)
    assert plan["packed"] == packed
    text = explain(100, B, 33, H, lengths=LENGTHS[:B], hx=True, train=True, threads=2)
    assert ("padding is left out" in text) == packed
    if packed:  # it is the plan of the sequences that are there
        assert plan["unit_rows"] <= sum(length > 0 for length in LENGTHS[:B])
