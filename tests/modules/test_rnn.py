"""rnnext.RNN and RNNCell against torch.nn's: constructors, lengths, what may be done to results."""

import inspect

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import rnnext
from helpers.common import assert_close, error_of, pair, same
from helpers.modules import weights
from rnnext import functional


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


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("packed", [False, True])
def test_dropout_keeps_its_share_of_the_first_layers_outputs(p, packed):
    """Layers that give ones, and what they are given: the output is what dropout makes of ones."""
    rnn = rnnext.RNN(1, 50, 2, nonlinearity="relu", dropout=p, dtype=torch.float64)
    for parameter in rnn.parameters():
        nn.init.zeros_(parameter)
    nn.init.ones_(rnn.bias_ih_l0)
    nn.init.eye_(rnn.weight_ih_l1)
    x = torch.zeros(20, 100, 1, dtype=torch.float64)
    x = pack_sequence(list(x.unbind(1))) if packed else x

    def call(seed, threads=2):
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        output = rnn(x)[0]
        return output.data if packed else output

    output = call(1)
    kept = output != 0
    assert_close(output[kept], torch.full_like(output[kept], 1 / max(1 - p, 1e-9)))
    n = output.numel()
    assert abs(kept.sum() - n * (1 - p)) <= 5 * (n * p * (1 - p)) ** 0.5
    assert torch.equal(output, call(1, threads=1))
    assert p == 1 or not torch.equal(output, call(2))
    first, second = kept.flatten(0, -2).chunk(2)
    assert p == 1 or not torch.equal(first, second)  # each step has its own
    (grad,) = torch.autograd.grad(output.sum(), rnn.bias_ih_l0)
    assert torch.equal((grad * (1 - p)).round(), kept.flatten(0, -2).sum(0))
    ones = torch.ones(20, 100, 50, dtype=torch.float64)
    assert torch.equal(rnn.eval()(ones[..., :1] * 0)[0], ones)


@pytest.mark.parametrize("layout", ["batched", "single", "packed"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_what_may_be_done_in_place_to_results(layout, batch_first):
    """Not to the output before backward, unlike torch.nn's; to h_n, and detaching."""
    x, found = torch.randn(5, 3, 4), []

    given = {"batched": x, "single": x[:, 0], "packed": pack_sequence([x[:3, 0], x[:, 1]], False)}

    def call(module):
        output, h_n = module(given[layout])
        return output.data if layout == "packed" else output, h_n

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


def test_a_loop_of_steps_is_the_recurrence():
    rnn, cell = rnnext.RNN(4, 6), rnnext.RNNCell(4, 6)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in rnn.state_dict().items()})
    x = torch.randn(7, 3, 4)
    state, states = None, []
    for step in x:
        state = cell(step, state)
        states.append(state)
    assert torch.equal(torch.stack(states), rnn(x)[0])


@pytest.mark.parametrize("shape", [(3, 4), (4,)])
def test_a_step_is_one_node_and_does_not_read_its_result(shape):
    x, found = torch.randn(shape), []
    for cell in pair("RNNCell", 4, 5):
        state = cell(x, cell(x))
        doubled = state if type(cell) is rnnext.RNNCell else state.clone()
        doubled *= 2
        doubled.sum().backward()
        found.append([p.grad for p in cell.parameters()])
    biases = [cell.bias_ih, cell.bias_hh]
    own = torch.autograd.grad(cell(x).sum(), biases)
    own[0].mul_(3)
    assert_close(own[0], 3 * own[1])  # each is a tensor of its own
    names = [f.name() for f, _ in cell(x, cell(x)).grad_fn.next_functions if f]
    assert names == ["RnnCellBackward"] + 4 * ["torch::autograd::AccumulateGrad"]
    assert_close(found[1], found[0])


@pytest.mark.parametrize("shape", [(3, 4), (4,)])
def test_the_state_can_be_detached_in_place(shape):
    """Truncated backpropagation through time: h.detach_() between pieces of a sequence."""
    x, found = torch.randn(5, *shape), []
    for cell in pair("RNNCell", 4, 6):
        state, loss, own = None, 0.0, type(cell) is rnnext.RNNCell
        for step, x_t in enumerate(x):
            state = cell(x_t, state)
            loss = loss + (state * (step + 1)).sum()
            if step == 2:  # torch.nn keeps the state for backward, or gives a view of it
                state = state.detach_() if own else state.detach()
        loss.backward()
        found.append([loss, *(p.grad for p in cell.parameters())])
    assert_close(found[1], found[0])
    with torch.no_grad():
        assert not cell(x[0])._is_view()


X, TOKENS, STEPS = torch.randn(5, 2, 3), torch.randint(7, (5, 2)), [5, 3]
LENGTHS = [
    STEPS,
    tuple(STEPS),
    list(torch.tensor(STEPS)),
    torch.tensor(STEPS, dtype=torch.int32),
    np.array(STEPS),
    np.array(STEPS, dtype=np.int32),
]
REFUSED = [
    ([5.0, 3.0], TypeError),
    ("53", TypeError),
    ([[5], [3]], ValueError),
    ([5, 3, 1], ValueError),
    ([5, 6], ValueError),
    (torch.tensor([5.0, 3.0]), TypeError),
]
RNN = rnnext.RNN(3, 4, batch_first=True)
CALLS = {
    "RNN": lambda n: RNN(X.transpose(0, 1), lengths=n),
    "LeakyRNN": lambda n: rnnext.LeakyRNN(3, 4, alpha=0.5, noise_std=1)(X, lengths=n),
    "EmbeddingRNN": lambda n: rnnext.EmbeddingRNN(7, 3, 4)(TOKENS, lengths=n),
    "functional.rnn": lambda n: functional.rnn(X, None, weights(RNN), lengths=n),
    "functional.recurrence": lambda n: functional.recurrence(X, None, *weights(RNN), lengths=n),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_lengths_are_any_integers(call):
    def drawn(lengths):
        torch.manual_seed(0)
        return call(lengths)

    expected = drawn(torch.tensor(STEPS))
    assert not torch.equal(expected[1], drawn(None)[1])
    for given in LENGTHS:
        assert same(drawn(given), expected), given
    for given, error in REFUSED:
        with pytest.raises(error, match=r"^lengths\b"):
            call(given)


def test_lengths_of_an_empty_batch_may_be_an_empty_list():
    output, h_n = rnnext.RNN(3, 4)(torch.zeros(5, 0, 3), lengths=[])
    assert (output.shape, h_n.shape) == ((5, 0, 4), (1, 0, 4))
