"""An excitatory/inhibitory network learns neurogym's PerceptualDecisionMaking.

Two noisy stimuli; which one is stronger on average? A LeakyRNN in the voltage form (relu, dt and
tau, noise) with Dale's law on its recurrent weights is trained by backpropagation through time, as
in Song, Yang and Wang (2016). The choice is read from the excitatory units alone.

    python examples/perceptual_decision.py

It draws the psychometric curve, the activity of the units and the time beside a loop over time.
Exit status: 0; 1 when results differ from those of the loop; 2 when a package is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from side_by_side import (
    difference,
    draw_times,
    in_turns,
    positive,
    positive_rate,
    show,
    with_gradients,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize

import rnnext

try:
    from neurogym.envs.native.perceptualdecisionmaking import PerceptualDecisionMaking
except ImportError:
    print("perceptual_decision needs neurogym: pip install neurogym, or rnnext's extra neuro")
    sys.exit(2)

matplotlib.use("Agg")  # a PNG needs no display
import matplotlib.pyplot as plt

DT, TAU = 20, 100  # milliseconds
TIMING = {"fixation": 100, "stimulus": 800, "delay": 0, "decision": 100}  # milliseconds
COHERENCES = [0.0, 3.2, 6.4, 12.8, 25.6, 51.2]  # % of the signal
FIXATE, RIGHT, LEFT = range(3)  # classes; neurogym's choices 0 and 1 are at 0 and 180 degrees


class Dale(nn.Module):
    """Every unit excites all units that it projects to (sign 1) or inhibits them (sign -1)."""

    def __init__(self, sign: Tensor) -> None:
        super().__init__()
        self.register_buffer("sign", sign)
        self.register_buffer("others", 1 - torch.eye(len(sign)))  # no unit projects to itself

    def forward(self, weight: Tensor) -> Tensor:
        return weight.abs() * self.sign * self.others


class Network(nn.Module):
    """Dale's law by parametrization, and a choice from the excitatory units.

    Args:
        hidden: H, the number of units.
        excitatory: how many of them are.
        noise: sigma of the recurrent noise.
    """

    def __init__(self, hidden: int, excitatory: int, noise: float) -> None:
        super().__init__()
        self.rnn = rnnext.LeakyRNN(
            3, hidden, nonlinearity="relu", form="voltage", dt=DT, tau=TAU, noise_std=noise
        )
        self.excitatory = excitatory
        self.choice = nn.Linear(excitatory, 3)
        sign = torch.ones(hidden)
        sign[excitatory:] = -1
        nn.init.uniform_(self.rnn.weight_ih_l0, -0.5, 0.5)  # three inputs, not H
        with torch.no_grad():  # balanced: as much inhibition as excitation
            self.rnn.weight_hh_l0[:, :excitatory] *= (hidden - excitatory) / excitatory
        parametrize.register_parametrization(self.rnn, "weight_hh_l0", Dale(sign))

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [T, B, 3] and rates [T, B, H] of what is seen [T, B, 3]."""
        rates, _ = self.rnn(seen)
        return self.choice(rates[..., : self.excitatory]), rates


class Trials(NamedTuple):
    seen: Tensor  # [T, B, 3]: fixation and two stimuli
    target: Tensor  # [T, B] int64
    evidence: Tensor  # [B], coherence, positive for RIGHT


class Task:
    """Batches of trials of neurogym's task, all of one length."""

    def __init__(self, seed: int) -> None:
        self.environment = PerceptualDecisionMaking(dt=DT, timing=TIMING, cohs=COHERENCES)
        self.environment.seed(seed)

    def trials(self, batch: int) -> Trials:
        seen, target, evidence = [], [], []
        for _ in range(batch):
            trial = self.environment.new_trial()
            seen.append(self.environment.ob.astype(np.float32))
            target.append(self.environment.gt.astype(np.int64))
            evidence.append(trial["coh"] * (1 if trial["ground_truth"] == 0 else -1))
        rows = (torch.from_numpy(np.stack(each, axis=1)) for each in (seen, target))
        return Trials(*rows, torch.tensor(evidence, dtype=torch.float32))


def train(network: Network, task: Task, config: argparse.Namespace) -> list[float]:
    """The losses, one a step."""
    optimizer = torch.optim.Adam(network.parameters(), lr=config.rate)
    losses = []
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.rate * (1 - step / config.steps)
        trials = task.trials(config.batch)
        scores, rates = network(trials.seen)
        # The few steps of the decision weigh as much as all those before them.
        by_step = cross_entropy(scores.flatten(0, 1), trials.target.flatten(), reduction="none")
        decides = trials.target.flatten() != FIXATE
        loss = by_step[decides].mean() + by_step[~decides].mean()
        (loss + 1e-4 * rates.square().mean()).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % max(1, config.steps // 10) == 0:
            print(f"step {step + 1:4}: loss {np.mean(losses[-50:]):.3f}")
    return losses


class Behaviour(NamedTuple):
    """Of trials in eval(): without recurrent noise."""

    evidence: Tensor  # [B]
    right: Tensor  # [B] bool, the choice in the last step
    rates: Tensor  # [T, B, H]

    @property
    def correct(self) -> float:
        decidable = self.evidence != 0
        return float((self.right == (self.evidence > 0))[decidable].float().mean())


@torch.no_grad()
def behave(network: Network, task: Task, batch: int) -> Behaviour:
    trials = task.trials(batch)
    network.eval()
    scores, rates = network(trials.seen)
    network.train()
    return Behaviour(trials.evidence, scores[-1, :, RIGHT] > scores[-1, :, LEFT], rates)


def looped(rnn: rnnext.LeakyRNN, seen: Tensor) -> Tensor:
    """The rates [T, B, H], by the loop over time that such models are usually written as."""
    weight_hh, alpha = rnn.weight_hh_l0, rnn.alpha
    inputs = seen @ rnn.weight_ih_l0.t() + rnn.bias_ih_l0 + rnn.bias_hh_l0
    potential = seen.new_zeros(seen.shape[1], rnn.hidden_size)
    rates = []
    for x_t in inputs:
        drive = x_t + potential.relu() @ weight_hh.t()
        potential = (1 - alpha) * potential + alpha * drive
        rates.append(potential.relu())
    return torch.stack(rates)


def compare(network: Network, trials: Trials, seconds: float) -> tuple[dict[str, float], bool]:
    """Times of the network's RNN, forward and backward, and whether all gradients agree."""
    rnn = network.rnn.eval()  # no noise: both must see the same

    def loop() -> list[Tensor]:
        return with_gradients(rnn, lambda: looped(rnn, trials.seen))

    def ours() -> list[Tensor]:
        return with_gradients(rnn, lambda: rnn(trials.seen)[0])

    error = difference(ours(), loop())
    times = in_turns(seconds, {"a loop over time": loop, "rnnext": ours})
    steps, batch, _ = trials.seen.shape
    title = f"T={steps} B={batch} H={rnn.hidden_size}: the RNN and its gradients"
    return times, show(title, times, error)


def draw(behaviour: Behaviour, network: Network, times: dict[str, float], path: Path) -> None:
    figure, ((curve, bars), (traces, raster)) = plt.subplots(
        2, 2, figsize=(10, 8), layout="constrained"
    )
    evidence, rates = behaviour.evidence.numpy(), behaviour.rates.numpy()
    levels = np.unique(evidence)
    right = [100 * behaviour.right.numpy()[evidence == level].mean() for level in levels]
    curve.plot(levels, right, "o-", color="tab:red")
    curve.axhline(50, color="tab:gray", linestyle=":")
    curve.set(xlabel="coherence, positive: right (%)", ylabel="% of choices right", ylim=(-3, 103))
    curve.set_title("psychometric curve")
    curve.grid(alpha=0.3)

    draw_times(bars, times, "the RNN, forward and backward")

    milliseconds = DT * np.arange(len(rates))
    prefers = preference(behaviour).numpy()
    unit = int(prefers[: network.excitatory].argmax())
    shades = plt.cm.coolwarm(np.linspace(1, 0, len(levels)))
    for level, shade in zip(levels, shades, strict=True):
        mean = rates[:, evidence == level, unit].mean(1)
        traces.plot(milliseconds, mean, color=shade, label=f"{level:g} %")
    traces.set(xlabel="ms", ylabel="rate", title=f"excitatory unit {unit}, by coherence")
    traces.legend(fontsize=7, ncols=2)

    E = network.excitatory
    order = np.concatenate([prefers[:E].argsort(), E + prefers[E:].argsort()])
    means = rates[:, evidence == levels[-1]].mean(1)[:, order]
    shown = raster.imshow(
        (means / means.max(0).clip(1e-6)).T,
        aspect="auto",
        interpolation="nearest",
        extent=(0, milliseconds[-1] + DT, len(order), 0),
    )
    raster.axhline(E, color="white")
    raster.set(xlabel="ms", ylabel="unit: excitatory, then inhibitory")
    raster.set_title("rates for strong evidence to the right")
    figure.colorbar(shown, ax=raster, label="of each unit's maximum")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def preference(behaviour: Behaviour) -> Tensor:
    """[H]: how much higher the last rates are in trials with the choice right than left."""
    last, right = behaviour.rates[-1], behaviour.right
    if right.all() or not right.any():
        return torch.zeros(last.shape[1])
    return last[right].mean(0) - last[~right].mean(0)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=positive, default=1000, help="of training")
    parser.add_argument("--batch", type=positive, default=32, help="trials side by side")
    parser.add_argument("--hidden", type=positive, default=100, help="units, 4 of 5 excitatory")
    parser.add_argument("--noise", type=float, default=0.1, help="sigma of recurrent noise")
    parser.add_argument("--rate", type=positive_rate, default=2e-3, help="learning rate, down to 0")
    parser.add_argument("--trials", type=positive, default=1000, help="of the psychometric curve")
    parser.add_argument(
        "--threads", type=positive, default=torch.get_num_threads(), help="of the CPU"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="to measure times for")
    parser.add_argument("--seed", type=int, default=0, help="of weights, noise and trials")
    parser.add_argument("--out", type=Path, default=Path("out/perceptual_decision"), help="folder")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = options()
    config = parser.parse_args(argv)
    if config.hidden < 2:
        parser.error("--hidden must be 2 or more: one unit excites, and one inhibits")
    config.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    network = Network(config.hidden, config.hidden * 4 // 5, config.noise)
    task = Task(config.seed)
    train(network, task, config)
    behaviour = behave(network, task, config.trials)
    print(f"\n{100 * behaviour.correct:.1f} % of the choices with evidence are correct.")
    times, agree = compare(network, task.trials(config.batch), config.seconds)
    draw(behaviour, network, times, config.out / "perceptual_decision.png")
    print(f"\nThe plot is {config.out / 'perceptual_decision.png'}.")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
