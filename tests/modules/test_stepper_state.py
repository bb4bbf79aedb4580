"""A Stepper between its steps: states, sequences that end, weights that change, copies."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import rnnext
from helpers.common import same, steps

KINDS = {
    "RNN": lambda: rnnext.RNN(4, 6, num_layers=2),
    "torch": lambda: nn.RNN(4, 6, num_layers=2),
    "cell": lambda: rnnext.RNNCell(4, 6),
    "leak": lambda: rnnext.LeakyRNN(4, 6, num_layers=2, alpha=0.3, form="voltage"),
    "learned": lambda: rnnext.LeakyRNN(4, 6, alpha=0.3, learn_alpha=True),
    "tokens": lambda: rnnext.EmbeddingRNN(9, 4, 6, num_layers=2),
    "normed": lambda: parametrizations.weight_norm(rnnext.RNN(4, 6), "weight_hh_l0"),
}


@pytest.fixture(params=[kind for kind in KINDS if kind != "normed"])  # which torch cannot pickle
def module(request):
    return KINDS[request.param]()


def inputs(module, T, B):
    if isinstance(module, rnnext.EmbeddingRNN):
        return torch.randint(9, (T, B))
    return torch.randn(T, B, 4)


def test_rows_of_a_bounded_norm_that_stay_do_not_count_as_changed():
    module, token = rnnext.EmbeddingRNN(9, 4, 6), torch.tensor([3])
    module.embedding.max_norm = 0.5
    with torch.device("meta"):  # has no say: the module is on the CPU
        stepper = rnnext.Stepper(module)
    expected = module(token[None])[0]
    rnnext.Stepper(module)
    assert torch.equal(stepper(token), expected[0])


def by_an_optimizer(module):
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.Adam(module.parameters()).step()


def first(module):
    return next(module.parameters())


@torch.no_grad()
def doubled(parameter):
    parameter.mul_(2)


WRITES = {
    "RNN": (by_an_optimizer, "weight_ih_l0"),
    "torch": (lambda m: doubled(first(m)), "weight_ih_l0"),
    "cell": (torch.inference_mode()(lambda m: doubled(first(m))), "weight_ih"),
    "leak": (lambda m: m.alpha.fill_(0.25), "alpha"),
    "learned": (lambda m: setattr(first(m), "data", first(m).data * 2), "weight_ih_l0"),
    "tokens": (
        lambda m: m.load_state_dict({k: v / 2 for k, v in m.state_dict().items()}),
        "embedding.weight",
    ),
    "normed": (
        lambda m: doubled(m.parametrizations.weight_hh_l0.original0),
        "parametrizations.weight_hh_l0.original0",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_stale_stepper_names_what_has_changed_until_it_is_refreshed(kind):
    module, (write, name) = KINDS[kind](), WRITES[kind]
    x = inputs(module, 4, 3)
    stepper = rnnext.Stepper(module, 3)
    steps(stepper, x[:2])
    state = stepper.get_state()
    write(module)
    for call in (lambda: stepper(x[2]), lambda: stepper.step(x[2], state)):
        with pytest.raises(RuntimeError, match=rf"^{name} has changed since .* call refresh\(\)"):
            call()
    assert torch.equal(stepper.get_state(), state)
    stepper.refresh()
    fresh = rnnext.Stepper(module, 3)
    fresh.set_state(state)
    assert torch.equal(steps(stepper, x[2:]), steps(fresh, x[2:]))


def by_a_fused_optimizer(rnn):
    rnn(torch.ones(3, 1, 4))[0].sum().backward()
    torch.optim.Adam(rnn.parameters(), fused=True).step()


def through_data(rnn):
    rnn.weight_hh_l0.data.mul_(2)


def in_shared_memory(rnn):
    rnn.bias_ih_l0.detach().numpy().fill(3)


@pytest.mark.parametrize("write", [by_a_fused_optimizer, through_data, in_shared_memory])
def test_writes_that_torch_does_not_count_are_noticed(write):
    rnn, x = rnnext.RNN(4, 6), torch.randn(4)
    stepper = rnnext.Stepper(rnn)
    stepper(x)
    write(rnn)
    with pytest.raises(RuntimeError, match="has changed"):
        stepper(x)
    stepper.refresh()
    stepper(x)


def test_a_refresh_reads_other_parameters_in_the_place_of_the_old():
    rnn, other, x = rnnext.RNN(4, 6), rnnext.RNN(4, 6), torch.randn(3, 1, 4)
    stepper = rnnext.Stepper(rnn)
    rnn.load_state_dict(other.state_dict(), assign=True)  # which nothing tells it
    stepper.refresh()
    assert torch.equal(steps(stepper, x), steps(rnnext.Stepper(other), x))


def test_a_refresh_after_a_change_of_dtype_takes_the_states_along():
    rnn, x = rnnext.RNN(4, 6), torch.randn(3, 1, 4)
    stepper = rnnext.Stepper(rnn)
    stepper(x[0])
    expected = rnn.double()(x[1:].double(), stepper.get_state().double())[0]
    stepper.refresh()
    assert torch.equal(steps(stepper, x[1:].double()), expected)


def test_a_refresh_after_a_change_of_size():
    """A table may grow; a state of another size does not fit, and the Stepper stays as it was."""
    module, score = rnnext.EmbeddingRNN(9, 4, 6), nn.Linear(6, 12)
    stepper = rnnext.Stepper(module)
    module.embedding = rnnext.Embedding(12, 4)
    stepper.refresh()
    stepper(torch.tensor(11))
    assert stepper.generate(score, 2).shape == (2, 1)
    module.rnn = rnnext.RNN(4, 7)
    with pytest.raises(RuntimeError, match=r"state must have shape \[1, 1, 7\], got \[1, 1, 6\]"):
        stepper.refresh()
    stepper(torch.tensor(11))


def test_reading_weights_and_gradients_do_not_make_it_stale():
    rnn, x = rnnext.RNN(4, 6), torch.randn(3, 1, 4)
    stepper = rnnext.Stepper(rnn)
    rnn(x)[0].sum().backward()
    rnn.zero_grad()
    copy.deepcopy(rnn.state_dict())
    stepper(x[0])
    with torch.inference_mode():  # whose tensors have no versions
        inside = rnnext.RNN(4, 6)
        stepper = rnnext.Stepper(inside)
        stepper(x[0])


def test_a_copy_goes_on_from_the_same_state(module):
    x = inputs(module, 5, 3)
    stepper = rnnext.Stepper(module, batch_size=3)
    for copied in (lambda s: pickle.loads(pickle.dumps(s)), copy.deepcopy, copy.copy):
        steps(stepper, x[:2])
        other = copied(stepper)
        assert repr(other) == repr(stepper)
        found = steps(other, x[2:])
        assert torch.equal(steps(stepper, x[2:]), found)
        stepper.reset()
        assert not torch.equal(other.get_state(), stepper.get_state())
        doubled(first(module))
        if copied is copy.copy:
            with pytest.raises(RuntimeError, match="has changed"):
                other(x[0])
        else:  # its module is its own
            other(x[0])
        stepper.refresh()


def test_what_holds_both_is_copied_with_both():
    rnn = rnnext.RNN(4, 6)
    held = {"rnn": rnn, "stepper": rnnext.Stepper(rnn)}
    other = copy.deepcopy(held)
    doubled(first(other["rnn"]))
    held["stepper"](torch.zeros(4))
    other["stepper"].refresh()
    x = torch.randn(3, 1, 4)
    with torch.no_grad():
        expected = [each["rnn"](x)[0] for each in (held, other)]
    held["stepper"].reset()
    assert same([steps(each["stepper"], x) for each in (held, other)], expected)
