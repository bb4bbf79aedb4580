"""rnnext.RNN against torch.nn.RNN: values, gradients, lengths, resets, and its results' use."""

import inspect

import pytest
import torch
from torch import nn
from torch.nn.utils import rnn as rnn_utils

import rnnext
from helpers.common import assert_close, error_of, pair


def arranged(x, hx, batch_first, layout):
    """An input [T, B, I] and a state in one of the layouts."""
    if layout == "single":
        return x[:, 0], None if hx is None else hx[:, 0]
    if layout == "strided":
        x = x.repeat_interleave(2, 2)[..., ::2]
        hx = None if hx is None else hx.transpose(0, 2).contiguous().transpose(0, 2)
    elif layout == "expanded":
        x, hx = x[:, :1].expand_as(x), None if hx is None else hx[:, :1].expand_as(hx)
    elif layout == "empty":
        x, hx = x[:, :0], None if hx is None else hx[:, :0]
    if layout.startswith("packed"):
        ordered = layout == "packed_sorted"
        lengths = [5, 3, 1] if ordered else [1, 5, 3]
        return rnn_utils.pack_padded_sequence(x, lengths, enforce_sorted=ordered), hx
    return (x.transpose(0, 1) if batch_first else x), hx


def test_constructor_takes_the_documented_arguments():
    names = list(inspect.signature(rnnext.RNN).parameters)
    documented = nn.RNN.__doc__.split("(", 1)[1].split(")", 1)[0].split(",")
    assert names[:-1] == [part.split("=")[0] for part in documented]
    rnn = rnnext.RNN(4, 6, device="meta", dtype=torch.float16)
    assert (rnn.weight_hh_l0.device.type, rnn.weight_hh_l0.dtype) == ("meta", torch.float16)
    with pytest.warns(UserWarning, match="non-zero dropout expects num_layers greater than 1"):
        rnnext.RNN(4, 6, dropout=0.5)


def test_the_mode_decides_which_nonlinearity_as_in_torch():
    x = torch.randn(5, 3, 4)
    for edits in (
        {"mode": "RNN_RELU"},
        {"nonlinearity": "relu"},
        {"mode": "RNN_RELU", "nonlinearity": "relu"},
    ):
        theirs, ours = pair("RNN", 4, 6)
        for module in (theirs, ours):
            vars(module).update(edits)
        assert_close(ours(x), theirs(x))
    theirs.mode = ours.mode = "GRU"
    assert error_of(lambda: ours(x)) == error_of(lambda: theirs(x))


@pytest.mark.parametrize("layout", ["batched", "single", "packed"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_what_may_be_done_in_place_to_results(layout, batch_first):
    """Not to the output before backward, unlike torch.nn's; to h_n, and detaching."""
    x, found = torch.randn(5, 3, 4), []

    def call(module):
        output, h_n = module(*arranged(x, None, batch_first, layout))
        return getattr(output, "data", output) if layout == "packed" else output, h_n

    for module in pair("RNN", 4, 6, 2, batch_first=batch_first):
        (call(module)[1].mul_(2) ** 2).sum().backward()
        found.append([p.grad for p in module.parameters()])
    assert_close(found[1], found[0])
    output, _ = call(module)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.mul_(2).sum().backward()
    output, h_n = call(module)
    output.detach_().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        h_n.sum().backward()
    for grad_mode in (True, False):
        with torch.set_grad_enabled(grad_mode):
            for result in call(module):
                assert result.requires_grad is grad_mode
                assert not result._is_view()
                assert not result.detach_().requires_grad
