"""A Stepper whose weights change, and copies of it. (tests/fuzz has states and resets.)"""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils._pytree import tree_leaves

import rnnext
from helpers.common import assert_refused, steps
from helpers.modules import through_a_file


def first(module):
    return next(module.parameters())


@torch.no_grad()
def doubled(parameter):
    parameter.mul_(2)


def by_an_optimizer(module, **options):
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.Adam(module.parameters(), **options).step()


def of_columns(rnn):
    rnn.weight_hh_l0 = nn.Parameter(torch.randn(6, 12)[:, :6])
    return rnn


# Modules, how each is written to, and what has changed then; torch does not count all of these.
WRITES = {
    "torch.nn's": (nn.RNN(4, 6, 2), lambda m: doubled(first(m)), "weight_ih_l0"),
    "a cell": (rnnext.RNNCell(4, 6), torch.inference_mode()(lambda m: doubled(first(m))),
        "weight_ih"),
    "inference mode": (torch.inference_mode()(lambda: rnnext.RNN(4, 6))(),
        torch.inference_mode()(lambda m: doubled(first(m))), "weight_ih_l0"),
    "a leak": (rnnext.LeakyRNN(4, 6, 2, alpha=0.3, form="voltage"),
        lambda m: m.alpha.fill_(0.25), "_alpha"),
    "a learned leak": (rnnext.LeakyRNN(4, 6, alpha=0.3, learn_alpha=True),
        lambda m: setattr(first(m), "data", first(m).data * 2), "weight_ih_l0"),
    "tokens": (rnnext.EmbeddingRNN(9, 4, 6, 2),
        lambda m: m.load_state_dict({k: v / 2 for k, v in m.state_dict().items()}),
        "embedding.weight"),
    "a parametrization": (parametrizations.weight_norm(rnnext.RNN(4, 6), "weight_hh_l0"),
        lambda m: doubled(m.parametrizations.weight_hh_l0.original0),
        "parametrizations.weight_hh_l0.original0"),
    "an optimizer": (rnnext.RNN(4, 6, 2), by_an_optimizer, "weight_ih_l0"),
    "a fused one": (rnnext.RNN(4, 6), lambda m: by_an_optimizer(m, fused=True), "weight_ih_l0"),
    "data": (of_columns(rnnext.RNN(4, 6)), lambda m: m.weight_hh_l0.data.mul_(2), "weight_hh_l0"),
    "shared memory": (rnnext.RNN(4, 6), lambda m: m.bias_ih_l0.detach().numpy().fill(3),
        "bias_ih_l0"),
}  # fmt: skip


@pytest.mark.parametrize(("module", "write", "name"), WRITES.values(), ids=WRITES)
def test_a_stale_stepper_names_what_has_changed_until_it_is_refreshed(module, write, name):
    of_tokens = isinstance(module, rnnext.EmbeddingRNN)
    x = torch.randint(9, (4, 3)) if of_tokens else torch.randn(4, 3, 4)
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


def test_rows_that_max_norm_leaves_do_not_count_as_changed():
    module, token = rnnext.EmbeddingRNN(9, 4, 6), torch.tensor([3])
    module.embedding.max_norm = 0.5
    with torch.device("meta"):  # has no say: the module is on the CPU
        stepper = rnnext.Stepper(module)
    expected = module(token[None])[0]
    rnnext.Stepper(module)
    assert torch.equal(stepper(token), expected[0])
    module.embedding.weight.data[4] = 0  # the value in the middle
    stepper.refresh()
    module.embedding.weight.untyped_storage().resize_(0)
    assert_refused(stepper, RuntimeError, "embedding.weight has changed", token)


def test_reading_weights_and_gradients_do_not_make_it_stale():
    rnn, x = rnnext.RNN(4, 6), torch.randn(3, 1, 4)
    stepper = rnnext.Stepper(rnn)
    rnn(x)[0].sum().backward()
    rnn.zero_grad()
    copy.deepcopy(rnn.state_dict())
    stepper(x[0])
    with torch.inference_mode():  # whose tensors have no versions
        rnnext.Stepper(rnnext.RNN(4, 6))(x[0])


def test_a_refresh_reads_other_parameters_and_takes_the_states_along():
    """Parameters of another dtype replace the old ones."""
    rnn, other, x = rnnext.RNN(4, 6), rnnext.RNN(4, 6).double(), torch.randn(3, 1, 4)
    stepper = rnnext.Stepper(rnn)
    stepper(x[0])
    expected = other(x[1:].double(), stepper.get_state().double())[0]
    rnn.load_state_dict(other.state_dict(), assign=True)
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
    assert_refused(stepper.refresh, RuntimeError, "state must have shape [1, 1, 7], got [1, 1, 6]")
    stepper(torch.tensor(11))
    module.rnn.double()
    assert_refused(rnnext.Stepper, RuntimeError, "table must have the dtype of weight_hh", module)


def pickled(value):
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("kind", [rnnext.RNN, rnnext.LSTM])
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled, through_a_file])
def test_a_copy_goes_on_from_the_same_state(copied, kind):
    """The copy steps the module, or the module's own copy."""
    module, x = kind(4, 6, num_layers=2), torch.randn(5, 3, 4)
    stepper = rnnext.Stepper(module, batch_size=3)
    steps(stepper, x[:2])
    own, other = (module, copied(stepper)) if copied is copy.copy else copied([module, stepper])
    assert repr(other) == repr(stepper)
    assert torch.equal(steps(other, x[2:]), steps(stepper, x[2:]))
    stepper.reset()
    assert all(part.any() for part in tree_leaves(other.get_state()))
    doubled(first(own))
    assert_refused(other, RuntimeError, "has changed", x[0])
    if own is not module:
        stepper(x[0])
