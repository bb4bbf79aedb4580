"""Batches whose padding is left out, beside the values and bits that test_paths checks."""

from dataclasses import replace

import pytest
import torch
from torch.autograd.profiler import profile

import rnnext
from cpu.test_paths import SKEWED
from helpers import samples
from helpers.common import same
from rnnext import _C
from rnnext.explain import explain

recurrence = torch.ops.rnnext.recurrence


def skewed(**case):
    arguments = samples.make(T=100, B=len(SKEWED), I=33, H=65, rows="lengths", **case)
    return replace(arguments, lengths=torch.tensor(SKEWED))


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
    arguments = replace(skewed(), input=torch.zeros(100, len(SKEWED), 0).double())
    arguments = replace(arguments, weight_ih=[torch.zeros(65, 0).double()], hx=None)
    arguments.input.requires_grad_()
    output, _ = arguments.call(recurrence)
    assert torch.autograd.grad(output.sum(), arguments.input)[0].shape == arguments.input.shape


def test_no_steps_at_all():
    arguments = replace(skewed(), lengths=torch.zeros(len(SKEWED), dtype=torch.long))
    output, h_n = arguments.call(recurrence)
    assert not output.any()
    assert torch.equal(h_n, arguments.hx)


@pytest.mark.parametrize(("H", "B"), [(16, 6), (65, 24), (700, 6)])
def test_explain_knows_what_is_packed(H, B):
    torch.set_num_threads(2)
    rnn = rnnext.RNN(33, H)
    hx = torch.zeros(1, B, H, requires_grad=True)
    output, _ = rnn(torch.rand(100, B, 33), hx, lengths=SKEWED[:B])
    with profile() as profiler:
        output.sum().backward()
    packed = any(event.name == "aten::index_copy_" for event in profiler.function_events)
    sizes = {"T": 100, "I": 33, "H": H, "dtype": torch.float32, "train": True, "threads": 2}
    plan = _C.plan(B=B, lengths=SKEWED[:B], hx=True, **sizes)
    assert plan["packed"] == packed
    text = explain(100, B, 33, H, lengths=SKEWED[:B], hx=True, train=True, threads=2)
    assert ("padding is left out" in text) == packed
    if packed:  # it is the plan of the sequences that are there
        assert plan["unit_rows"] <= sum(length > 0 for length in SKEWED[:B])
