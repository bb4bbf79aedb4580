"""RNNModule: against torchrl's own GRUModule, in a collector, and in a loss."""

import pytest
import torch
from torch import nn

import rnnext

pytest.importorskip("torchrl", reason="in the extra `test`")
from gymnasium.envs.classic_control import CartPoleEnv
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.collectors import Collector
from torchrl.envs import GymWrapper, InitTracker, TransformedEnv
from torchrl.modules import GRUModule, QValueActor, set_recurrent_mode
from torchrl.objectives import DQNLoss

from rnnext.torchrl import RNNModule

KEYS = {"in_keys": ["observation", "state"], "out_keys": ["features", ("next", "state")]}


class AsTheirs(rnnext.RNN):
    """What torchrl's GRUModule takes in the place of its python-based GRU."""

    def forward(self, x, hx, mask=None):
        return super().forward(x, hx, lengths=None if mask is None else mask.sum(1))


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_as_torchrls_own_module(batch, recurrent):
    theirs = GRUModule(gru=AsTheirs(4, 5, 2, batch_first=True), **KEYS)
    rnn = rnnext.RNN(4, 5, 2, batch_first=bool(batch))
    rnn.load_state_dict(theirs.gru.state_dict())
    ours = RNNModule(rnn, **KEYS)
    assert (ours.in_keys, ours.out_keys) == (theirs.in_keys, theirs.out_keys)
    shape = (*batch, 7) if recurrent else batch
    begins = torch.rand(*shape, 1) < 0.3
    state = torch.randn(*shape, 2, 5) * ~begins[..., None]  # the primer's zeros where it begins
    data = TensorDict({"observation": torch.randn(*shape, 4), "is_init": begins}, shape)
    for given in (data, data.clone().set("state", state)):
        with set_recurrent_mode(recurrent):
            expected, found = theirs(given.clone()), ours(given.clone())
        torch.testing.assert_close(found["features"], expected["features"])
        last = (..., -1, slice(None), slice(None)) if recurrent else ...
        new = found["next", "state"]
        assert new.shape == expected["next", "state"].shape
        torch.testing.assert_close(new[last], expected["next", "state"][last])
    spec, other = (m.make_tensordict_primer().primers["state"] for m in (ours, theirs))
    assert spec == other


def policy_of(module, actions=2):
    value = TensorDictModule(nn.Linear(6, actions), ["features"], ["action_value"])
    return TensorDictSequential(
        module,
        value,
        QValueActor(nn.Identity(), in_keys=["action_value"], action_space="categorical"),
    )


@pytest.mark.parametrize("learned", [False, True])
def test_a_collector_and_a_loss_compute_the_same_values(learned):
    start = nn.Parameter(torch.randn(2, 6)) if learned else None
    rnn = rnnext.LeakyRNN(4, 6, 2, alpha=0.3, learn_alpha=True, form="voltage")
    module = RNNModule(rnn, **KEYS, reset_state=start)
    policy = policy_of(module)
    environment = TransformedEnv(
        GymWrapper(CartPoleEnv(), categorical_action_encoding=True), InitTracker()
    ).append_transform(module.make_tensordict_primer())
    collector = Collector(environment, policy, frames_per_batch=60, total_frames=60)
    (data,) = collector
    assert data["is_init"].sum() > 1
    loss = DQNLoss(policy, action_space="categorical", delay_value=True)
    with set_recurrent_mode(True):
        again = policy(data.select("observation", "state", "is_init"))
    torch.testing.assert_close(again["action_value"], data["action_value"])
    loss(data)["loss"].backward()
    for name, parameter in loss.value_network_params.items(True, True):
        assert parameter.grad is not None, name


def test_an_empty_batch():
    module = RNNModule(rnnext.RNN(4, 5, 2), **KEYS)
    marks = torch.zeros(0, 7, 1, dtype=torch.bool)
    data = TensorDict({"observation": torch.zeros(0, 7, 4), "is_init": marks}, (0, 7))
    for recurrent in (False, True):
        with set_recurrent_mode(recurrent):
            assert module(data.clone())["features"].shape == (0, 7, 5)


def test_bad_arguments_are_named():
    rnn = rnnext.RNN(4, 5)
    for arguments, error, message in (
        (
            (nn.RNN(4, 5), ["x", "h"], ["y", "z"]),
            TypeError,
            "rnn must be an rnnext.RNN .*got torch.nn.*RNN",
        ),
        ((rnn, ["x"], ["y", "z"]), ValueError, r"in_keys must be .*, got \['x'\]"),
        ((rnn, ["x", "h"], ["y"]), ValueError, r"out_keys must be .*, got \['y'\]"),
        ((rnn, ["x", "h"], ["y", "z"], torch.zeros(5)), ValueError, "reset_state must have shape"),
        ((rnn, ["x", "h"], ["y", "z"], [0.0]), TypeError, "reset_state must be a tensor, got list"),
    ):
        with pytest.raises(error, match=message):
            RNNModule(*arguments)
    module = RNNModule(rnn, ["x", "h"], ["y", "z"], default_recurrent_mode=True)
    with pytest.raises(ValueError, match=r"state's key must be \('next', 'h'\), got z"):
        module.make_tensordict_primer()
    with pytest.raises(ValueError, match="a last dimension, time"):
        module(TensorDict({"x": torch.zeros(4), "is_init": torch.zeros(1).bool()}))
    marks = torch.zeros(4, 1).bool()
    for key, wrong, message in (
        ("x", torch.zeros(4, 2, 4), r"^x must have shape \[4, 4\], got \[4, 2, 4\]"),
        ("h", torch.zeros(4, 2, 5), r"^h must have shape \[4, 1, 5\], got \[4, 2, 5\]"),
    ):
        given = TensorDict({"x": torch.zeros(4, 4), "is_init": marks, key: wrong}, 4)
        with pytest.raises(ValueError, match=message), set_recurrent_mode(False):
            module(given)
    both = RNNModule(rnnext.RNN(4, 5, bidirectional=True), ["x", "h"], ["y", "z"])
    with pytest.raises(ValueError, match="one direction outside of recurrent mode"):
        both(TensorDict({"x": torch.zeros(4), "is_init": torch.zeros(1).bool()}))
