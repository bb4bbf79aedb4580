"""rnnext.RNN against torch.nn.RNN: values, gradients, lengths, resets, and its results' use."""

import copy
import inspect
import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import rnn as rnn_utils

import rnnext
from helpers.common import assert_close, case_id, error_of, pair, pairwise
from helpers.modules import results

CASES = pairwise(
    nonlinearity=["tanh", "relu"],
    bias=[True, False],
    batch_first=[False, True],
    num_layers=[1, 2, 3],
    bidirectional=[False, True],
    dropout=[0.0, 0.4],
    training=[True, False],
    frozen=[False, True],
    layout=["batched", "single", "strided", "expanded", "empty", "packed", "packed_sorted"],
    with_hx=[True, False],
    dtype=[torch.float32, torch.float64],
)


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


@pytest.mark.filterwarnings("ignore:dropout option")
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_values_and_gradients(case):
    others = ("training", "frozen", "layout", "with_hx")
    options = {k: v for k, v in case.items() if k not in others}
    theirs, ours = pair("RNN", 4, 6, **options)
    states = ours.num_layers * (2 if ours.bidirectional else 1)
    hx = torch.randn(states, 3, 6, dtype=case["dtype"]) if case["with_hx"] else None
    x = torch.randn(5, 3, 4, dtype=case["dtype"])
    given = arranged(x, hx, case["batch_first"], case["layout"])
    for module in (theirs, ours):
        module.train(case["training"])
        module.weight_hh_l0.requires_grad_(not case["frozen"])
        list(module.parameters())[-1].requires_grad_(not case["frozen"])
    assert type(ours(*given)[0]) is type(theirs(*given)[0])
    assert_close(results(ours, *given), results(theirs, *given))


@pytest.mark.parametrize("layout", ["batched", "single", "packed", "lengths"])
def test_layers_without_gradients_give_the_same_bits(layout):
    for batch_first in (False, True):
        rnn = rnnext.RNN(4, 64, 3, batch_first=batch_first, dropout=0.5).eval()
        x, hx = torch.randn((2, 70, 4) if batch_first else (70, 2, 4)), torch.randn(3, 2, 64)
        given = {"input": x, "hx": hx}
        if layout == "single":
            given = {"input": x.select(0 if batch_first else 1, 0), "hx": hx[:, 0]}
        elif layout == "packed":
            packed = rnn_utils.pack_padded_sequence(x, [50, 70], batch_first, enforce_sorted=False)
            given["input"] = packed
        elif layout == "lengths":
            given["lengths"] = torch.tensor([0, 70])
        expected = rnn(**given)
        with torch.no_grad():
            result = rnn(**given)
        for a, b in zip(result, expected, strict=True):
            assert torch.equal(getattr(a, "data", a), getattr(b, "data", b))


def test_lengths_are_what_packing_gives():
    rnn = rnnext.RNN(4, 6, 2, bidirectional=True, dtype=torch.float64)
    x, lengths = torch.randn(5, 4, 4, dtype=torch.float64), torch.tensor([5, 1, 4, 2])
    output, h_n = rnn(x, lengths=lengths)
    packed = rnn_utils.pack_padded_sequence(x, lengths, enforce_sorted=False)
    expected, expected_h_n = rnn(packed)
    assert torch.equal(output, rnn_utils.pad_packed_sequence(expected)[0])
    assert torch.equal(h_n, expected_h_n)
    hx = torch.randn_like(h_n)
    output, h_n = rnn(x, hx, lengths=torch.tensor([0, 5, 0, 0]))
    assert torch.equal(h_n[:, [0, 2, 3]], hx[:, [0, 2, 3]])
    assert not output[:, [0, 2, 3]].any()
    assert output[:, 1].all()


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("grad", [True, False])
def test_a_row_of_episodes_equals_them_one_by_one(layers, grad):
    for bidirectional in (False, True):
        rnn = rnnext.RNN(4, 9, layers, bidirectional=bidirectional).requires_grad_(grad)
        nn_rnn = rnnext.revert(copy.deepcopy(rnn))
        x, reset = torch.randn(20, 3, 4), torch.rand(20, 3) < 0.2
        output, _ = rnn(x, reset=reset)
        reset[0] = True
        expected = torch.zeros_like(output)
        for b in range(3):
            starts = [*reset[:, b].nonzero().flatten().tolist(), 20]
            for start, end in itertools.pairwise(starts):
                expected[start:end, b] = nn_rnn(x[start:end, b])[0]
        assert_close(output, expected)
        assert_close(rnn(x[:, 1], reset=reset[:, 1])[0], expected[:, 1])
        rnn.batch_first = True
        assert_close(rnn(x.transpose(0, 1), reset=reset.t())[0], expected.transpose(0, 1))


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
