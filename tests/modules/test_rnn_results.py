"""What may be done in place to the results of an RNN, as with torch.nn's."""

import functools

import pytest
import torch
from torch.nn.utils import rnn as rnn_utils

from helpers import common
from helpers.common import assert_close, case_id, pairwise

pair = functools.partial(common.pair, "RNN")


def grads(module):
    return [p.grad for p in module.parameters()]


RESULT_LAYOUTS = pairwise(
    layout=["batched", "single", "packed"],
    batch_first=[False, True],
    num_layers=[1, 2],
    grad_mode=[True, False],
)


def results_of(rnn, layout):
    """Both results, as tensors, of a fixed random input in this layout."""
    torch.manual_seed(1)
    x = torch.randn((3, 5, 4) if rnn.batch_first else (5, 3, 4))
    if layout == "single":
        x = x.select(0 if rnn.batch_first else 1, 0)
    elif layout == "packed":
        x = rnn_utils.pack_padded_sequence(x, [1, 5, 3], rnn.batch_first, enforce_sorted=False)
    output, h_n = rnn(x)
    return getattr(output, "data", output) if layout == "packed" else output, h_n


@pytest.mark.parametrize("case", RESULT_LAYOUTS, ids=case_id)
def test_results_can_be_detached_in_place(case):
    _, ours = pair(4, 6, case["num_layers"], batch_first=case["batch_first"])
    with torch.set_grad_enabled(case["grad_mode"]):
        results = results_of(ours, case["layout"])
    assert all(v.requires_grad is case["grad_mode"] for v in results)
    for result in results:
        assert not result._is_view()
        assert not result.detach_().requires_grad


@pytest.mark.parametrize("layout", ["batched", "single", "packed"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_the_output_may_not_change_before_backward_but_h_n_may(layout, batch_first):
    theirs, ours = pair(4, 6, batch_first=batch_first)
    for module in (theirs, ours):
        (results_of(module, layout)[1].mul_(2) ** 2).sum().backward()
    assert_close(grads(ours), grads(theirs))
    output, _ = results_of(ours, layout)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.mul_(2).sum().backward()
    output, h_n = results_of(ours, layout)
    output.detach_().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        h_n.sum().backward()
