"""RNNModule: against torchrl's own GRUModule, by steps and by sequences, and in a collector."""

import pytest
import torch
from torch import nn

import rnnext
from helpers.common import assert_refused

pytest.importorskip("torchrl", reason="in the extra `test`")
from gymnasium.envs.classic_control import CartPoleEnv
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.collectors import Collector
from torchrl.envs import GymWrapper, InitTracker, StepCounter, TransformedEnv
from torchrl.modules import GRUModule, LSTMModule, QValueActor, set_recurrent_mode
from torchrl.objectives import DQNLoss
from torchrl.objectives.value import GAE

from rnnext.torchrl import RNNModule

KEYS = {"in_keys": ["observation", "state"], "out_keys": ["features", ("next", "state")]}
PAIR = {
    "in_keys": ["observation", "h", "c"],
    "out_keys": ["features", ("next", "h"), ("next", "c")],
}


class AsTheirs(rnnext.RNN):
    """A stand-in for the python-based GRU of torchrl's GRUModule."""

    def forward(self, x, hx, mask=None):
        return super().forward(x, hx, lengths=None if mask is None else mask.sum(1))


def modules(kind, batch_first):
    """torchrl's own module, ours with its weights, and the names of its states."""
    made, keys = (LSTMModule, PAIR) if kind == "LSTM" else (GRUModule, KEYS)
    if kind == "RNN":
        theirs = made(gru=AsTheirs(4, 5, 2, batch_first=True), **keys)
    else:
        theirs = made(4, 5, 2, python_based=True, **keys)
    rnn = getattr(rnnext, kind)(4, 5, 2, batch_first=batch_first)
    rnn.load_state_dict((theirs.lstm if kind == "LSTM" else theirs.gru).state_dict())
    return theirs, RNNModule(rnn, **keys), keys["in_keys"][1:]


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_as_torchrls_own_module(batch, recurrent, kind):
    theirs, ours, names = modules(kind, batch_first=bool(batch))
    assert (ours.in_keys, ours.out_keys) == (theirs.in_keys, theirs.out_keys)
    shape = (*batch, 7) if recurrent else batch
    begins = torch.rand(*shape, 1) < 0.3
    data = TensorDict({"observation": torch.randn(*shape, 4), "is_init": begins}, shape)
    primed, stored = data.clone(), data.clone()
    for name in names:  # the primer's zeros where it begins, or states
        stored[name] = torch.randn(*shape, 2, 5)
        primed[name] = stored[name] * ~begins[..., None]
    for given in (data, primed, stored):
        with set_recurrent_mode(recurrent):
            expected, found = theirs(given.clone()), ours(given.clone())
        torch.testing.assert_close(found["features"], expected["features"])
        last = (..., -1, slice(None), slice(None)) if recurrent else ...
        for name in names:
            new = found["next", name]
            assert new.shape == expected["next", name].shape
            torch.testing.assert_close(new[last], expected["next", name][last])
    for name in names:
        spec, other = (m.make_tensordict_primer().primers[name] for m in (ours, theirs))
        assert spec == other


def test_it_is_made_as_torchrls_own_module():
    """By sizes, and by one key: the states' are torchrl's."""
    for made, cell, kind in ((GRUModule, "gru", rnnext.GRU), (LSTMModule, "lstm", rnnext.LSTM)):
        given = {"input_size": 4, "hidden_size": 5, "in_key": "x", "out_key": "y"}
        theirs, ours = made(**given), RNNModule(cell=cell, **given)
        assert (ours.in_keys, ours.out_keys) == (theirs.in_keys, theirs.out_keys)
        assert (type(ours.rnn), ours.rnn.batch_first) == (kind, True)
        assert (ours.rnn.input_size, ours.rnn.hidden_size) == (4, 5)


@pytest.mark.parametrize("batch_first", [False, True])
def test_marked_steps_start_from_the_stored_or_learned_state(batch_first):
    start, state = nn.Parameter(torch.randn(1, 5)), torch.randn(2, 6, 1, 5)
    rnn = rnnext.RNN(4, 5, batch_first=batch_first)
    module = RNNModule(rnn, **KEYS, reset_state=start, default_recurrent_mode=True)
    begins = torch.tensor([[1, 0, 1, 0, 1, 0], [0, 0, 0, 1, 0, 1]], dtype=torch.bool).unsqueeze(-1)
    state[0, 2] = state[1, 5] = 0
    data = {"observation": torch.randn(2, 6, 4), "is_init": begins, "state": state}
    data = TensorDict(data, (2, 6))
    found, h = module(data.clone()), [None, None]
    for row in range(2):
        for t in range(6):
            if t == 0 or begins[row, t]:
                h[row] = state[row, t] if state[row, t].any() else start
            y, h[row] = module.rnn(data["observation"][row, t : t + 1], h[row])
            torch.testing.assert_close(found["features"][row, t], y[0])
    torch.testing.assert_close(found["next", "state"][:, -1], torch.stack(h))
    compiled = torch.compile(RNNModule(rnn, **KEYS), backend="eager", fullgraph=True)
    assert compiled(data[:, 0])["features"].shape == (2, 5)
    found["features"].sum().backward()
    assert start.grad.any()


@pytest.mark.parametrize("names", ["h", "hc"])
def test_steps_equal_the_sequence_with_a_learned_reset_state(names):
    starts, rnn = [nn.Parameter(torch.randn(2, 5)) for _ in names], rnnext.LSTM(4, 5, 2)
    if names == "h":
        rnn = rnnext.LeakyRNN(4, 5, 2, alpha=0.3, learn_alpha=True, form="voltage")
    new, start = [("next", name) for name in names], starts if names == "hc" else starts[0]
    module = RNNModule(rnn, ["x", *names, "begins"], ["y", *new], reset_state=start)
    data = TensorDict({"x": torch.randn(3, 7, 4), "begins": torch.rand(3, 7, 1) < 0.3}, (3, 7))
    with set_recurrent_mode(True):
        whole = module(data.clone())
    state = dict.fromkeys(names, torch.zeros(3, 2, 5))
    for t in range(7):
        step = module(data[:, t].update(state))
        torch.testing.assert_close(step["y"], whole["y"][:, t])
        state = {name: step["next", name] for name in names}
    for name in names:
        torch.testing.assert_close(state[name], whole["next", name][:, -1])
    whole["y"].sum().backward()
    assert {name for name, p in module.named_parameters() if p.grad is None} == set()
    assert all(start.grad.any() for start in starts)


def test_a_collector_and_a_loss_compute_the_same_values():
    module = RNNModule(rnnext.RNN(4, 6, 2), **KEYS)
    policy = TensorDictSequential(
        module,
        TensorDictModule(nn.Linear(6, 2), ["features"], ["action_value"]),
        QValueActor(nn.Identity(), in_keys=["action_value"], action_space="categorical"),
    )
    environment = TransformedEnv(
        GymWrapper(CartPoleEnv(), categorical_action_encoding=True), InitTracker()
    ).append_transform(module.make_tensordict_primer())
    (data,) = Collector(environment, policy, frames_per_batch=60, total_frames=60)
    assert data["is_init"].sum() > 1
    loss = DQNLoss(policy, action_space="categorical", delay_value=True)
    with set_recurrent_mode(True):
        again = policy(data.select("observation", "state", "is_init"))
    torch.testing.assert_close(again["action_value"], data["action_value"])
    loss(data)["loss"].backward()
    assert all(p.grad is not None for p in loss.value_network_params.values(True, True))


@pytest.mark.parametrize("shifted", [False, True])
def test_advantages_are_those_with_torchrls_own_module(shifted):
    """``GAE`` marks the first of the next steps, whose state is not that of a first one."""
    theirs = GRUModule(gru=AsTheirs(4, 6, batch_first=True), **KEYS)
    ours = RNNModule(rnnext.RNN(4, 6), **KEYS)
    ours.rnn.load_state_dict(theirs.gru.state_dict())
    environment = TransformedEnv(
        GymWrapper(CartPoleEnv(), categorical_action_encoding=True), InitTracker()
    ).append_transform(theirs.make_tensordict_primer())
    environment = environment.append_transform(StepCounter(max_steps=8))
    head = nn.Linear(6, 1)
    act = TensorDictModule(lambda y: (y[..., 0] > 0).long(), ["features"], ["action"])
    policy = TensorDictSequential(theirs, act)
    (data,) = Collector(environment, policy, frames_per_batch=60, total_frames=60)
    assert (data["next", "done"] & ~data["next", "terminated"]).sum() > 2
    found = []
    for module in (theirs, ours):
        value = TensorDictSequential(module, TensorDictModule(head, ["features"], ["state_value"]))
        options = {"gamma": 0.9, "lmbda": 0.9, "shifted": shifted, "deactivate_vmap": True}
        advantage = GAE(value_network=value, **options)
        with set_recurrent_mode(True):
            found.append(advantage(data.clone()))
    for key in ("advantage", "state_value", ("next", "state_value")):
        torch.testing.assert_close(found[1][key], found[0][key], rtol=0, atol=1e-6)


def test_an_empty_batch():
    module = RNNModule(rnnext.RNN(4, 5, 2), **KEYS)
    marks = torch.zeros(0, 7, 1, dtype=torch.bool)
    data = TensorDict({"observation": torch.zeros(0, 7, 4), "is_init": marks}, (0, 7))
    for recurrent in (False, True):
        with set_recurrent_mode(recurrent):
            assert module(data.clone())["features"].shape == (0, 7, 5)


RNN, OF_X = rnnext.RNN(4, 5), (["x", "h"], ["y", "z"])
STEPS, WHOLE = RNNModule(RNN, *OF_X), RNNModule(RNN, *OF_X, default_recurrent_mode=True)
BOTH = RNNModule(rnnext.RNN(4, 5, bidirectional=True), *OF_X)
OF_LSTM = RNNModule(rnnext.LSTM(4, 5), ["x", "h", "c"], ["y", "z", "w"])


def data(*batch, **tensors):
    marks = torch.zeros(*batch, 1, dtype=torch.bool)
    return TensorDict({"x": torch.zeros(*batch, 4), "is_init": marks} | tensors, batch)


REFUSED = [
    (lambda: RNNModule(nn.RNN(4, 5), *OF_X), TypeError, "rnn must be an rnnext.RNN, GRU, LSTM or"),
    (lambda: RNNModule(RNN, ["x"], ["y", "z"]), ValueError, "in_keys must be of features, state"),
    (lambda: RNNModule(RNN, ["x", "h"], ["y"]), ValueError, "out_keys must be of the output and"),
    (lambda: RNNModule(RNN, *OF_X, torch.zeros(5)), ValueError, "reset_state must have shape [1"),
    (lambda: RNNModule(RNN, *OF_X, [0.0]), TypeError, "reset_state must be a tensor, got list"),
    (lambda: RNNModule(RNN, *OF_X, in_key="x"), ValueError, "in_keys must be given, or in_key, an"),
    (lambda: RNNModule(RNN, in_key="x"), ValueError, "out_keys must be given, or out_key, and not"),
    (lambda: RNNModule(RNN, *OF_X, hidden_size=5), TypeError, "hidden_size must not be given with"),
    (lambda: RNNModule(RNN, *OF_X, cell="gru"), TypeError, "cell must not be given with rnn"),
    (lambda: RNNModule(None, *OF_X), TypeError, "input_size and hidden_size must be given"),
    (lambda: RNNModule(None, *OF_X, cell="GRU"), ValueError, "cell must be one of 'rnn', 'gru'"),
    (WHOLE.make_tensordict_primer, ValueError, "state's key must be ('next', 'h'), got z"),
    (lambda: WHOLE(data()), ValueError, "tensordict must have a last dimension, time"),
    (lambda: STEPS(data(4, x=torch.zeros(4, 2, 4))), ValueError, "x must have shape [4, 4], got"),
    (lambda: STEPS(data(4, h=torch.zeros(4, 2, 5))), ValueError, "h must have shape [4, 1, 5]"),
    (lambda: OF_LSTM(data(h=torch.zeros(1, 5))), KeyError, "c is missing beside the other state"),
    (lambda: BOTH(data()), ValueError, "rnn must have one direction outside of recurrent mode"),
]  # fmt: skip


def test_bad_arguments_are_named():
    for row in REFUSED:
        assert_refused(*row)
