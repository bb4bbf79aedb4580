import functools
import inspect

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import tree_leaves

import rnnext
from helpers.common import assert_close, assert_refused, pair, same
from rnnext import functional

of_layers = pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])


def total(state):
    """The sum of a state, which of an LSTM is a pair."""
    return sum(h.sum() for h in tree_leaves(state))


@of_layers
def test_constructor_takes_the_documented_arguments(kind):
    names = list(inspect.signature(getattr(rnnext, kind)).parameters)
    documented = getattr(nn, kind).__doc__.split("(", 1)[1].split(")", 1)[0].split(",")
    assert [name for name in names if name != "kwargs"] == [p.split("=")[0] for p in documented]


def test_the_mode_decides_which_nonlinearity_as_in_torch():
    x = torch.randn(5, 3, 4)
    mode, kind = {"mode": "RNN_RELU"}, {"nonlinearity": "relu"}
    for edits in (mode, kind, mode | kind):
        theirs, ours = pair("RNN", 4, 6)
        for module in (theirs, ours):
            vars(module).update(edits)
        assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("p", [0.01, 0.9, 1.0])
@pytest.mark.parametrize("packed", [False, True])
def test_dropout_keeps_its_share_of_the_first_layers_outputs(p, packed):
    """The first layer gives ones and the second copies: the output is dropout of ones."""
    rnn = rnnext.RNN(1, 50, 2, nonlinearity="relu", dropout=p, dtype=torch.float64)
    for parameter in rnn.parameters():
        nn.init.zeros_(parameter)
    nn.init.ones_(rnn.bias_ih_l0)
    nn.init.eye_(rnn.weight_ih_l1)
    x = torch.zeros(20, 100, 1, dtype=torch.float64)
    x = pack_sequence(list(x.unbind(1))) if packed else x

    def call(threads=2):
        torch.set_num_threads(threads)
        output, _ = rnn(x)
        return output.data if packed else output

    torch.manual_seed(1)
    outputs = call(), call()
    torch.manual_seed(1)
    assert torch.equal(call(threads=1), outputs[0])
    kept = outputs[0] != 0
    n = kept.numel()
    assert abs(kept.sum() - n * (1 - p)) <= 5 * (n * p * (1 - p)) ** 0.5
    assert p == 1 or not torch.equal(*outputs)  # each call has its own mask
    assert p == 1 or not torch.equal(*kept.flatten(0, -2).chunk(2))  # and each step
    expected = kept.double() / max(1 - p, 1e-9)
    assert_close(outputs[0], expected)
    (grad,) = torch.autograd.grad(outputs[0].sum(), rnn.bias_ih_l0)
    assert_close(grad, expected.flatten(0, -2).sum(0))
    rnn.eval()
    assert (call() == 1).all()


@of_layers
@pytest.mark.parametrize("layout", ["batched", "single", "packed"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_results_may_be_detached_in_place_and_states_changed(kind, layout, batch_first):
    """(The error's message is in tests/modules/test_errors.py.)"""
    x, found = torch.randn(5, 3, 4), []
    packed = pack_sequence([x[:3, 0], x[:, 1]], False)
    given = {"batched": x, "single": x[:, 0], "packed": packed}[layout]
    for module in pair(kind, 4, 6, 2, batch_first=batch_first):
        states = tree_leaves(module(given)[1])
        if isinstance(module, nn.LSTM):  # whose c is a view
            states = [h.clone() for h in states]
        sum((h.mul_(2) ** 2).sum() for h in states).backward()
        found.append([p.grad for p in module.parameters()])
    assert_close(found[1], found[0])
    for grad_mode in (True, False):
        with torch.set_grad_enabled(grad_mode):
            output, state = module(given)
        for result in (output.data if layout == "packed" else output, *tree_leaves(state)):
            assert result.requires_grad is grad_mode
            assert not result._is_view()  # or torch would refuse:
            assert not result.detach_().requires_grad
    output, state = module(given)
    (output.data if layout == "packed" else output).detach_().zero_()
    assert_refused(total(state).backward, RuntimeError, "modified by an inplace operation")


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2}, None])
def test_a_write_to_one_state_of_an_lstm_is_none_to_the_other(options, which):
    """As to c where an episode ends, after a head has read h. (None: a cell.)"""
    of_cell, found = options is None, []
    x = torch.randn(3, 4) if of_cell else torch.randn(5, 3, 4)
    for module in pair("LSTMCell" if of_cell else "LSTM", 4, 6, **options or {}):
        states = tree_leaves(module(x))[-2:]
        read = (states[1 - which] ** 2).sum()
        states[which].mul_(0.5)
        (read + states[which].sum()).backward()
        found.append([p.grad for p in module.parameters()])
    assert_close(found[1], found[0])
    stepper = rnnext.Stepper(rnnext.LSTM(4, 6))
    with torch.no_grad():
        results = module(x), stepper.step(torch.zeros(4), stepper.get_state()), stepper.get_state()
    for result in results:
        states = tree_leaves(result)[-2:]
        states[which].zero_()
        assert states[1 - which]._version == 0


@of_layers
def test_a_loop_of_steps_is_the_recurrence(kind):
    rnn, cell = getattr(rnnext, kind)(4, 6), getattr(rnnext, f"{kind}Cell")(4, 6)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in rnn.state_dict().items()})
    x, state, steps = torch.randn(7, 3, 4), None, []
    for step in x:
        state = cell(step, state)
        steps.append(tree_leaves(state)[0])
    outputs, last = rnn(x)
    expected = [outputs, *(h[0] for h in tree_leaves(last))]
    assert same([torch.stack(steps), *tree_leaves(state)], expected)


@pytest.mark.parametrize("kind", ["RNNCell", "GRUCell", "LSTMCell"])
@pytest.mark.parametrize("shape", [(3, 4), (4,)])
def test_a_step_is_one_node_and_its_result_may_be_changed_or_detached(kind, shape):
    x, found = torch.randn(shape), []
    for cell in pair(kind, 4, 5):
        states = tree_leaves(cell(x, cell(x)))
        if not type(cell).__module__.startswith("rnnext"):
            states = [h.clone() for h in states]
        for h in states:
            h *= 2
        total(states).backward()
        found.append([p.grad for p in cell.parameters()])
    assert_close(found[1], found[0])
    own = torch.autograd.grad(total(cell(x)), [cell.bias_ih, cell.bias_hh])
    before = own[1].clone()
    own[0].mul_(3)
    assert torch.equal(own[1], before)  # each is a tensor of its own
    states = tree_leaves(cell(x, cell(x)))
    if kind == "RNNCell":
        names = [f.name() for f, _ in states[0].grad_fn.next_functions if f]
        assert names == ["RnnCellBackward"] + 4 * ["torch::autograd::AccumulateGrad"]
    for h in states:
        assert not h.detach_().requires_grad  # as before each piece of a sequence


LENGTHS = [
    *(
        [5, 3],
        (5, 3),
        list(torch.tensor([5, 3])),
        np.array([5, 3]),
        np.array([5, 3], dtype=np.int32),
    ),
    *(torch.tensor([5, 3], dtype=dtype) for dtype in (torch.int32, torch.int16, torch.uint8)),
]
REFUSED = [
    ([5.0, 3.0], TypeError),
    ("53", TypeError),
    ([[5], [3]], ValueError),
    (torch.tensor([5.0, 3.0]), TypeError),
]


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "LeakyRNN"])
def test_an_attribute_may_be_a_property_of_a_subclass(kind):
    base = getattr(rnnext, kind)

    class Layer(base):
        @property
        def batch_first(self):
            return self.batch_is_first

        @batch_first.setter
        def batch_first(self, value):
            self.batch_is_first = value

    options = {"alpha": 0.5} if kind == "LeakyRNN" else {}
    layer, plain = (made(3, 4, batch_first=True, **options) for made in (Layer, base))
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 5, 3)
    assert same(tree_leaves(layer(x)), tree_leaves(plain(x)))


def test_lengths_are_any_integers():
    rnn, gru, x = rnnext.RNN(3, 4), rnnext.GRU(3, 4), torch.randn(5, 2, 3)
    for call in (
        functools.partial(rnn, x),
        functools.partial(gru, x),
        functools.partial(functional.recurrence, x, None, *rnn.all_weights[0]),
    ):
        expected = call(lengths=torch.tensor([5, 3]))
        assert not torch.equal(expected[1], call(lengths=None)[1])
        for given in LENGTHS:
            assert same(call(lengths=given), expected), given
        for given, error in REFUSED:
            with pytest.raises(error, match=r"^lengths\b"):
                call(lengths=given)
    output, h_n = rnn(torch.zeros(5, 0, 3), lengths=[])
    assert (output.shape, h_n.shape) == ((5, 0, 4), (1, 0, 4))
    rnn.weight_ih_l0 = None
    assert_refused(rnn, TypeError, "expected Tensor as element 0", x, None, [5, 3])
