"""A recurrent policy learns to remember a cue, from rollouts that episodes end in.

The task is a T-maze in the gymnasium API: a cue says which way to turn at the end of a corridor,
and is seen in the first step only. Advantage actor-critic (A2C) trains a policy of one RNN and two
heads. Rollouts have a fixed length, so episodes end and begin within them: the actor, a Stepper, is
told by `reset(mask)`, the learner by `reset=`. An episode that is cut off for its length counts as
if it went on: the critic says what it would have brought.

    python examples/memory_policy.py
    python examples/memory_policy.py --torchrl    # and the module as torchrl's collectors see it

Exit status: 0; 1 when results differ from those of the loop; 2 when a package is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
from torch.distributions import Categorical

import rnnext

try:
    import gymnasium
    from gymnasium.vector import AutoresetMode  # since gymnasium 1.1
except ImportError:
    print("memory_policy needs gymnasium >= 1.1: pip install gymnasium, or rnnext's extra rl")
    sys.exit(2)

matplotlib.use("Agg")  # a PNG needs no display
import matplotlib.pyplot as plt

FORWARD, LEFT, RIGHT = range(3)
CORRIDOR = (3, 8)  # steps to the junction, at least and at most
DISCOUNT, TRACE = 0.95, 0.95  # of rewards, and of advantages (GAE)


class TMaze(gymnasium.Env):
    """A corridor with a junction at its end; the first observation says which way to turn there.

    Observation: cue left, cue right, in the corridor, at the junction. A turn at the junction ends
    the episode with 1 or -1; bumping into a wall costs 0.1, and so does standing still too long.

    Args:
        corridor: the shortest and the longest way to the junction.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, corridor: tuple[int, int] = CORRIDOR) -> None:
        self.corridor = corridor
        self.observation_space = gymnasium.spaces.Box(0, 1, (4,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.side = int(self.np_random.integers(LEFT, RIGHT + 1))
        self.way = int(self.np_random.integers(*self.corridor, endpoint=True))
        self.steps = 0
        return self._observe(cue=True), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        turns, arrived = action != FORWARD, self.way == 0
        if turns and arrived:
            return self._observe(), 1.0 if action == self.side else -1.0, True, False, {}
        self.way -= not turns and not arrived
        bumps = turns or arrived
        return self._observe(), -0.1 * bumps, False, self.steps >= 4 * self.corridor[1], {}

    def _observe(self, cue: bool = False) -> Any:
        junction = self.way == 0
        seen = [cue and self.side == LEFT, cue and self.side == RIGHT, not junction, junction]
        return np.array(seen, np.float32)


class Policy(nn.Module):
    """Scores of the actions and a value, after everything seen in the episode."""

    def __init__(self, features: int, actions: int, hidden: int) -> None:
        super().__init__()
        self.rnn = rnnext.RNN(features, hidden)
        self.actor, self.critic = nn.Linear(hidden, actions), nn.Linear(hidden, 1)
        nn.init.orthogonal_(self.rnn.weight_hh_l0)  # keeps what was seen, at first
        nn.init.zeros_(self.actor.weight)

    def forward(self, seen: Tensor, state: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [T, B, actions] and values [T, B] of [T, B, I], [1, B, H] and [T, B] bool."""
        states, _ = self.rnn(seen, state, reset=reset)
        return self.actor(states), self.critic(states).squeeze(-1)


class Rollout(NamedTuple):
    """T steps of B environments, and what is seen after them."""

    seen: Tensor  # [T + 1, B, I]
    reset: Tensor  # [T + 1, B] bool: an episode begins here
    state: Tensor  # [1, B, H], before the first step
    actions: Tensor  # [T, B]
    rewards: Tensor  # [T, B], plus the critic's estimate where an episode was cut off
    ends: Tensor  # [T, B] bool: an episode ended with this step
    acts: Tensor  # [T, B] bool: the action was carried out


class Step(NamedTuple):
    """The results of a step of B environments."""

    seen: Tensor  # [B, I], what the next action is chosen for
    begins: Tensor  # [B] bool: `seen` is the first of an episode
    rewards: Tensor  # [B]
    ends: Tensor  # [B] bool: the step ended an episode
    truncated: Tensor  # [B] bool: the episode was cut off
    final: Tensor  # [B, I]: the last observation of the episode
    acts: Tensor  # [B] bool: the action was carried out


class Episodes:
    """Vector environments of gymnasium that say where episodes begin, in each AutoresetMode.

    - SAME_STEP: the step that ends an episode observes the beginning of the next one.
    - NEXT_STEP, the default: it observes the end. The step after it ignores the action, and
      observes the beginning.
    - DISABLED: it observes the end, and `reset` with a mask the beginning.
    """

    def __init__(self, environments: gymnasium.vector.VectorEnv[Any, Any, Any]) -> None:
        self.environments = environments
        self.mode = environments.metadata["autoreset_mode"]
        self.ended = torch.zeros(environments.num_envs, dtype=torch.bool)

    def reset(self, seed: int) -> Tensor:
        """The first observations; every episode begins."""
        self.ended.zero_()
        return torch.from_numpy(self.environments.reset(seed=seed)[0])

    def step(self, action: Tensor) -> Step:
        seen, rewards, terminated, truncated, infos = self.environments.step(action.numpy())
        over, truncated = terminated | truncated, truncated & ~terminated  # no value after an end
        ends, acts = torch.from_numpy(over), torch.ones_like(self.ended)
        final, begins = seen, ends
        if self.mode == AutoresetMode.NEXT_STEP:
            begins, acts = self.ended, ~self.ended
        elif ends.any() and self.mode == AutoresetMode.SAME_STEP:
            final = seen.copy()
            final[over] = np.stack(infos["final_obs"][over])
        elif ends.any():
            seen, _ = self.environments.reset(options={"reset_mask": over})
        self.ended = ends
        seen, rewards, truncated, final = map(torch.from_numpy, (seen, rewards, truncated, final))
        return Step(seen, begins, rewards.float(), ends, truncated, final, acts)


class Actor:
    """Plays in B environments, step by step, with the policy's weights.

    Attributes:
        returns: the rewards with which episodes ended, so far.
    """

    def __init__(
        self,
        policy: Policy,
        batch: int,
        seed: int,
        corridor: tuple[int, int] = CORRIDOR,
        mode: AutoresetMode = AutoresetMode.NEXT_STEP,
    ) -> None:
        mazes = [lambda: TMaze(corridor)] * batch
        self.episodes = Episodes(gymnasium.vector.SyncVectorEnv(mazes, autoreset_mode=mode))
        self.policy = policy
        self.stepper = rnnext.Stepper(policy.rnn, batch)
        self.seen = self.episodes.reset(seed)
        self.begins = torch.ones(batch, dtype=torch.bool)
        self.returns: list[float] = []

    @torch.no_grad()
    def play(self, steps: int) -> Rollout:
        self.stepper.refresh()
        state = self.stepper.get_state()
        seen, reset, played = [self.seen], [self.begins], []
        for _ in range(steps):
            self.stepper.reset(self.begins)
            scores = self.policy.actor(self.stepper(self.seen))
            action = Categorical(logits=scores).sample()
            step = self.episodes.step(action)
            self.returns += step.rewards[step.ends].tolist()
            rewards = step.rewards
            if step.truncated.any():  # cut off: the critic estimates the rest
                output, _ = self.stepper.step(step.final, self.stepper.get_state())
                ahead = self.policy.critic(output).squeeze(-1)
                rewards = rewards + DISCOUNT * step.truncated * ahead
            self.seen, self.begins = step.seen, step.begins
            seen.append(self.seen)
            reset.append(self.begins)
            played.append([action, rewards, step.ends, step.acts])
        whole = map(torch.stack, (seen, reset))
        return Rollout(*whole, state, *map(torch.stack, zip(*played, strict=True)))


def loss_of(policy: Policy, rollout: Rollout, entropy: float) -> Tensor:
    """A2C's loss with generalized advantage estimates; ``entropy`` weighs the entropy bonus."""
    scores, values = policy(rollout.seen, rollout.state, rollout.reset)
    goes_on = (~rollout.ends).float()
    known = values.detach()
    errors = rollout.rewards + DISCOUNT * goes_on * known[1:] - known[:-1]
    advantages, ahead = torch.empty_like(errors), torch.zeros_like(errors[0])
    for t in reversed(range(len(errors))):
        advantages[t] = ahead = errors[t] + DISCOUNT * TRACE * goes_on[t] * ahead
    choice = Categorical(logits=scores[:-1])
    gain = choice.log_prob(rollout.actions) * (advantages / (advantages.std(correction=0) + 1e-3))
    squares = (values[:-1] - (known[:-1] + advantages)).square()
    return (0.5 * squares - gain - entropy * choice.entropy())[rollout.acts].mean()


def train(policy: Policy, actor: Actor, config: argparse.Namespace) -> list[float]:
    """The share of episodes with the right turn, by update."""
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.rate)
    successes, known = [], 0
    for update in range(config.updates):
        rollout = actor.play(config.steps)
        loss = loss_of(policy, rollout, 0.02 * (1 - update / config.updates))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
        optimizer.step()
        ended, known = actor.returns[known:], len(actor.returns)
        before = successes[-1] if successes else 0.0
        successes.append(sum(end == 1.0 for end in ended) / len(ended) if ended else before)
        if (update + 1) % max(1, config.updates // 10) == 0:
            recent = successes[-max(1, config.updates // 10) :]
            print(f"update {update + 1:4}: {100 * sum(recent) / len(recent):5.1f} % turn right")
    return successes


def looped(rnn: rnnext.RNN, seen: Tensor, state: Tensor, reset: Tensor) -> Tensor:
    """The states, by the loop over time that resets are usually written as."""
    cell = nn.RNNCell(rnn.input_size, rnn.hidden_size, device="meta")
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(cell, name, getattr(rnn, f"{name}_l0"))
    states, h = [], state[0]
    for x_t, begins in zip(seen, reset, strict=True):
        h = cell(x_t, h * (~begins).unsqueeze(1))
        states.append(h)
    return torch.stack(states)


def compare(policy: Policy, rollout: Rollout, seconds: float) -> tuple[dict[str, float], bool]:
    """Times of the learner's RNN, forward and backward, and whether all gradients agree."""
    rnn, arguments = policy.rnn, (rollout.seen, rollout.state, rollout.reset)

    def loop() -> list[Tensor]:
        return with_gradients(rnn, lambda: looped(rnn, *arguments))

    def ours() -> list[Tensor]:
        return with_gradients(rnn, lambda: rnn(*arguments[:2], reset=rollout.reset)[0])

    error = difference(ours(), loop())
    times = in_turns(seconds, {"a loop of cells": loop, "rnnext": ours})
    steps, batch = rollout.reset.shape
    begun = int(rollout.reset.sum())
    title = f"Learner, {steps} steps of {batch} rows, {begun} episodes begin: RNN and its gradients"
    return times, show(title, times, error)


def torchrl_rollout(policy: Policy, steps: int, seed: int) -> tuple[Any, Any]:
    """A rollout of one environment through torchrl, and the policy over all of it in one call.

    The policy reads observation, state and is_init, and writes scores, values and the new state.
    """
    from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModule, TensorDictSequential
    from torchrl.envs import Compose, GymWrapper, InitTracker, TransformedEnv
    from torchrl.modules import set_recurrent_mode

    from rnnext.torchrl import RNNModule

    rnn = RNNModule(policy.rnn, ["observation", "state"], ["features", ("next", "state")])
    module = TensorDictSequential(
        rnn,
        TensorDictModule(policy.actor, in_keys=["features"], out_keys=["logits"]),
        TensorDictModule(policy.critic, in_keys=["features"], out_keys=["state_value"]),
    )
    environment = TransformedEnv(
        GymWrapper(TMaze(), categorical_action_encoding=True),
        Compose(InitTracker(), rnn.make_tensordict_primer()),
    )
    environment.set_seed(seed)
    draw = ProbabilisticTensorDictModule(
        in_keys=["logits"],
        out_keys=["action"],
        distribution_class=Categorical,
        default_interaction_type="random",
    )
    with torch.no_grad():
        collected = environment.rollout(
            steps, TensorDictSequential(module, draw), break_when_any_done=False
        )
        with set_recurrent_mode(True):
            whole = module(collected.select("observation", "state", "is_init"))
    return collected, whole


def compare_torchrl(policy: Policy, steps: int, seed: int) -> bool:
    collected, whole = torchrl_rollout(policy, steps, seed)
    error = difference([whole["logits"]], [collected["logits"]])
    print(
        f"\ntorchrl: {steps} steps, is_init marks {int(collected['is_init'].sum())} episodes; "
        f"the scores of one call differ from those of the collector by {error:.1e}."
    )
    return error <= 1e-4


def draw(successes: list[float], times: dict[str, float], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    width = max(1, len(successes) // 25)
    smooth = np.convolve(successes, np.ones(width) / width, "valid")
    left.plot(np.arange(width, len(successes) + 1), 100 * smooth, color="tab:red")
    left.axhline(50, color="tab:gray", linestyle=":", label="without memory")
    left.set(xlabel="update", ylabel="% of episodes", title="right turns", ylim=(0, 102))
    left.legend()
    left.grid(alpha=0.3)
    draw_times(right, times, "the learner's RNN, forward and backward")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--updates", type=positive, default=200, help="of the weights")
    parser.add_argument("--steps", type=positive, default=64, help="of a rollout")
    parser.add_argument("--batch", type=positive, default=32, help="environments")
    parser.add_argument("--hidden", type=positive, default=64, help="units of the RNN")
    parser.add_argument(
        "--corridor", type=int, nargs=2, default=CORRIDOR, help="steps to the junction, from and to"
    )
    parser.add_argument("--rate", type=positive_rate, default=2e-3, help="learning rate")
    parser.add_argument("--threads", type=positive, default=1, help="the mazes run on one")
    parser.add_argument("--seconds", type=float, default=2.0, help="to measure times for")
    parser.add_argument("--seed", type=int, default=0, help="of weights, mazes and actions")
    parser.add_argument("--torchrl", action="store_true", help="also run it through torchrl")
    parser.add_argument("--out", type=Path, default=Path("out/memory_policy"), help="folder")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = options()
    config = parser.parse_args(argv)
    if not 1 <= config.corridor[0] <= config.corridor[1]:
        parser.error(f"--corridor must be two numbers, 1 or more, in order: {config.corridor}")
    config.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    maze = TMaze()
    policy = Policy(maze.observation_space.shape[0], int(maze.action_space.n), config.hidden)
    actor = Actor(policy, config.batch, config.seed, config.corridor)
    successes = train(policy, actor, config)
    times, agree = compare(policy, actor.play(config.steps), config.seconds)
    if config.torchrl:
        agree &= compare_torchrl(policy, 200, config.seed)
    draw(successes, times, config.out / "memory_policy.png")
    print(f"\nThe plot is {config.out / 'memory_policy.png'}.")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
