"""Models of libraries that people use, as they are and converted: the same results, and what time?

`make clients` installs the libraries into an environment of its own. Nothing is downloaded: the
weights are those of a seed, and data are made up.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn

import rnnext

from .compared import Columns, Numbers, Row, Suite, ratio, refuse_difference, turns

Tensors = Callable[[], list[Tensor]]


class Client(NamedTuple):
    """infer() is inference as the library does it; train() is a training step or an epoch, and
    returns its loss, and its gradients or the new parameters."""

    model: nn.Module
    infer: Tensors
    train: Tensors
    subclass: bool = False  # whether the library asks isinstance(module, nn.LSTM)


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def training(model: nn.Module, loss_of: Callable[[], Tensor]) -> Tensors:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)

    def step() -> list[Tensor]:
        optimizer.zero_grad()
        loss = loss_of()
        torch.autograd.backward(loss)
        optimizer.step()
        return [loss.detach(), *gradients(model)]

    return step


def recurrent_ppo(one_call: bool) -> Client:
    """Plays 8 games for a step, and trains an epoch of 1,024 of them; one_call: with the policy of
    docs/ppo.md."""
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.env_util import make_vec_env

    games = make_vec_env("CartPole-v1", n_envs=8)
    agent = RecurrentPPO("MlpLstmPolicy", games, n_epochs=1, seed=0, device="cpu")
    policy = agent.policy
    by_steps = policy._process_sequence

    def process(x: Tensor, states: Any, starts: Tensor, lstm: nn.LSTM) -> Any:
        if not (one_call and isinstance(lstm, rnnext.LSTM)):
            return by_steps(x, states, starts, lstm)
        n = states[0].shape[1]
        x, starts = (v.reshape(n, -1, *v.shape[1:]).transpose(0, 1) for v in (x, starts))
        output, states = lstm(x, states, reset=starts.bool())
        return output.transpose(0, 1).flatten(0, 1), states

    policy._process_sequence = process
    _, callback = agent._setup_learn(1 << 20)
    agent.collect_rollouts(agent.env, callback, agent.rollout_buffer, agent.n_steps)
    seen, starts = torch.as_tensor(agent._last_obs), torch.zeros(8)

    def infer() -> list[Tensor]:
        _, values, log_p, states = policy(seen, agent._last_lstm_states, starts, True)
        return [values, log_p, *states.pi, *states.vf]

    def train() -> list[Tensor]:
        agent.train()
        return [torch.tensor(agent.logger.name_to_value["train/loss"]), *gradients(policy)]

    return Client(policy, infer, train)


def torchrl_policy(kind: str) -> Client:
    """A step of 8 environments, and a training step on 128 of them, in which episodes begin."""
    import torchrl.modules
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule, TensorDictSequential

    module = getattr(torchrl.modules, f"{kind}Module")(16, 128, in_key="x", out_key="features")
    head = TensorDictModule(nn.Linear(128, 6), in_keys=["features"], out_keys=["logits"])
    policy = TensorDictSequential(module, head)
    states = {key: torch.zeros(8, 128, 1, 128) for key in module.in_keys if "state" in key}
    marks = {"is_init": torch.rand(8, 128, 1) < 0.02}
    data = TensorDict({"x": torch.randn(8, 128, 16), **states, **marks}, [8, 128])
    actions = torch.randint(6, (8 * 128,))

    def loss() -> Tensor:
        with torchrl.modules.set_recurrent_mode(True):
            logits = policy(data.copy())["logits"]
        return nn.functional.cross_entropy(logits.flatten(0, 1), actions)

    infer = lambda: [policy(data[:, 0])["logits"]]  # noqa: E731
    return Client(policy, infer, training(policy, loss), subclass=True)


def darts(kind: str) -> Client:
    """A forecast of 24 steps, and an epoch of windows of 96 from 1,000 steps."""
    from darts import TimeSeries
    from darts.models import RNNModel

    for name in ("darts", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    series = TimeSeries.from_values(torch.linspace(0, 150, 1000).sin().unsqueeze(1).numpy())
    quiet = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    model = RNNModel(
        input_chunk_length=48, training_length=96, model=kind, hidden_dim=64, n_rnn_layers=2,
        optimizer_cls=torch.optim.SGD, random_state=0,
        pl_trainer_kwargs={"accelerator": "cpu", **dict.fromkeys(quiet, False)},
    )  # fmt: skip
    model.fit(series[:130], epochs=1)  # makes the module

    def train() -> list[Tensor]:
        model.fit(series, epochs=1)
        weights = [p.detach().clone() for p in model.model.parameters()]
        return [model.trainer.callback_metrics["train_loss"], *weights]

    return Client(model.model, lambda: [torch.as_tensor(model.predict(24, series).values())], train)


def gluonts() -> Client:
    """20 sampled paths of 24 hours for 32 series, and a training step on them."""
    from gluonts.torch.model.deepar.module import DeepARModel

    model = DeepARModel("h", context_length=168, prediction_length=24, dropout_rate=0.0)
    shapes = {name: each.shape for name, each in model.describe_inputs(32).items()}
    batch = {name: torch.rand(shape) for name, shape in shapes.items()}
    batch["feat_static_cat"] = batch["feat_static_cat"].long()
    batch["past_observed_values"] = torch.ones(shapes["past_observed_values"])
    future = {f"future_{name}": torch.rand(32, 24) for name in ("target", "observed_values")}
    train = training(model, lambda: model.loss(**batch, **future).mean())
    return Client(model, lambda: [model(**batch, num_parallel_samples=20)], train)


def doctr() -> Client:
    """Reads 32 images of words, and a training step on them."""
    from doctr.models import crnn_mobilenet_v3_small

    model = crnn_mobilenet_v3_small(pretrained=False, pretrained_backbone=False)
    images, words = torch.rand(32, 3, 32, 128), ["recurrent"] * 32
    train = training(model, lambda: model.train()(images, words)["loss"])
    return Client(model, lambda: [model.eval()(images, return_model_output=True)["out_map"]], train)


def pytorch_forecasting() -> Numbers:
    """Its DeepAR has layers of a class of its own, which `convert` leaves alone."""
    from pytorch_forecasting.models.nn import get_rnn

    if "stays" not in rnnext.summary(get_rnn("LSTM")(8, 8)):
        raise RuntimeError("DeepAR's layers are converted by now: compare them in a row")
    return {}


def seeded(call: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    numpy.random.seed(0)  # noqa: NPY002
    return call()


def measured(build: Callable[[], Client]) -> Numbers:
    """RuntimeError where a layer is not converted, or a result differs."""
    warnings.simplefilter("ignore")
    ours, other = seeded(build), seeded(build)
    rnnext.convert(ours.model, subclass=ours.subclass)
    for name, module in ours.model.named_modules():
        if isinstance(module, nn.RNNBase) and "rnnext" not in type(module).__module__:
            raise RuntimeError(f"{name} is not converted")
    row: Numbers = {}
    for way in ("infer", "train"):
        mode = torch.set_grad_enabled(way == "train")
        one, two = (mode(getattr(client, way)) for client in (ours, other))
        for _ in range(2):  # the second time after a step of the optimizer
            refuse_difference(seeded(one), seeded(two), f"{way}: ")
        row |= {f"{way} {name}": value for name, value in turns(one, two, same=False)().items()}
    return row


CLIENTS: dict[str, Callable[[], Client]] = {
    "sb3-contrib `RecurrentPPO`": functools.partial(recurrent_ppo, False),
    "[in one call](ppo.md#sb3-contrib)": functools.partial(recurrent_ppo, True),
    **{f"torchrl `{k}Module`": functools.partial(torchrl_policy, k) for k in ("LSTM", "GRU")},
    **{f"darts `RNNModel`, {k}": functools.partial(darts, k) for k in ("RNN", "GRU", "LSTM")},
    "gluonts `DeepARModel`": gluonts,
    "docTR `crnn_mobilenet_v3_small`": doctr,
}


def rows() -> Iterator[Row]:
    for name, build in CLIENTS.items():
        yield Row(name, functools.partial(measured, build))
    yield Row("pytorch-forecasting `DeepAR`", pytorch_forecasting)


COLUMNS: Columns = {
    "inference": lambda row: f"{ratio(row, 'infer '):.2f}",
    "training": lambda row: f"{ratio(row, 'train '):.2f}",
}
SUITE = Suite("clients", rows, {"clients": COLUMNS})
