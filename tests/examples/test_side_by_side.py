"""The examples that stand beside the loop that they replace, at a small size."""

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.blocks import run_blocks
from helpers.common import ROOT, run_python

pytest.importorskip("gymnasium", "1.1")  # else the examples stop, and with them the collection


class PerceptualDecisionMaking:
    """A stand-in for neurogym's task, which needs older packages than the rest."""

    def __init__(self, dt, timing, cohs):
        self.fixation, self.stimulus, _, self.decision = (ms // dt for ms in timing.values())
        self.cohs = cohs

    def seed(self, seed):
        self.random = np.random.default_rng(seed)

    def new_trial(self):
        side, coh = self.random.integers(2), self.random.choice(self.cohs)
        T, end = self.fixation + self.stimulus + self.decision, -self.decision
        self.ob, self.gt = np.zeros((T, 3)), np.zeros(T)
        self.ob[:end, 0] = 1
        stimuli = self.ob[self.fixation : end, 1:]
        stimuli += self.random.normal(0.5, 0.1, stimuli.shape)
        stimuli[:, side] += coh / 200
        self.gt[end:] = 1 + side
        return {"coh": coh, "ground_truth": side}


task = ModuleType("neurogym.envs.native.perceptualdecisionmaking")
task.PerceptualDecisionMaking = PerceptualDecisionMaking
with pytest.MonkeyPatch.context() as patch:
    patch.setitem(sys.modules, task.__name__, task)
    import perceptual_decision

import gymnasium  # noqa: E402
import memory_policy  # noqa: E402
import side_by_side  # noqa: E402
from gymnasium.vector import AutoresetMode  # noqa: E402
from memory_policy import Actor, Policy  # noqa: E402

SMALL = {
    "memory_policy": "--updates=3 --steps=24 --batch=4 --hidden=16",
    "perceptual_decision": "--steps=3 --batch=4 --hidden=20 --trials=40",
    "sample_text": "--steps=5 --hidden=16 --vocab=60 --length=10 --batch=4 --tokens=12 --timed=5 "
    "--prompt=say --rate=0.01 --text=text.txt",
}


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    """With one thread: calls this small wait for each other on a busy machine."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("say what you saw, say what you heard.\n" * 60)


@pytest.mark.parametrize("name", SMALL)
def test_runs_and_agrees_with_the_loop_or_fails(name, monkeypatch, capsys):
    program = importlib.import_module(name)
    given = [*SMALL[name].split(), "--seconds=0", "--threads=1", "--out=out"]
    assert program.main(given) == 0
    shown = capsys.readouterr().out
    assert "times as fast as" in shown
    assert "within 1e-4" in shown
    assert Path(f"out/{name}.png").read_bytes().startswith(b"\x89PNG\r\n")
    if name == "sample_text":
        samples = Path("out/sample.txt").read_text()
        assert samples.strip() in shown
        assert samples.count("say") >= 2  # each begins with the prompt
    monkeypatch.setattr(side_by_side, "TOLERANCE", -1.0)
    assert program.main(given) == 1
    assert "BEYOND" in capsys.readouterr().out


@pytest.fixture
def policy():
    policy = Policy(4, 3, 16)
    torch.nn.init.normal_(policy.actor.weight, std=0.1)  # so that memory shows in the scores
    return policy


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_the_learner_computes_the_states_of_the_actor(policy, mode):
    """Over rollouts whose borders lie within episodes, which begin where a cue is seen."""
    actor = Actor(policy, batch=5, seed=0, mode=mode)
    for _ in range(2):
        rollout = actor.play(30)
        assert rollout.reset[1:].any()
        assert torch.equal(rollout.reset, rollout.seen[..., :2].any(-1))
        # NEXT_STEP sees the last observation, too, and ignores the action that follows it.
        late = int(mode == AutoresetMode.NEXT_STEP)
        assert torch.equal(rollout.reset[1 + late :], rollout.ends[: 30 - late])
        assert torch.equal(~rollout.acts[1:], rollout.ends[:-1] & bool(late))
        with torch.no_grad():
            states, last = policy.rnn(rollout.seen[:-1], rollout.state, reset=rollout.reset[:-1])
            looped = memory_policy.looped(policy.rnn, rollout.seen, rollout.state, rollout.reset)
        assert torch.equal(actor.stepper.get_state(), last)
        torch.testing.assert_close(states, looped[:-1])


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_the_page_marks_first_observations(mode, monkeypatch):
    mazes = [lambda: memory_policy.TMaze((1, 1))] * 3
    made = gymnasium.vector.SyncVectorEnv(mazes, autoreset_mode=mode)
    made.action_space.seed(0)
    monkeypatch.setattr(gymnasium, "make_vec", lambda *_, **__: made)
    rows = run_blocks(ROOT / "docs" / "episodes.md")["rows"]
    x, reset = map(torch.stack, zip(*rows, strict=True))
    assert reset[1:].any()
    assert torch.equal(reset, x[..., :2].any(-1))  # where the cue is seen


def test_an_end_at_the_limit_is_no_truncation():
    both, options = np.array([True]), {"autoreset_mode": AutoresetMode.NEXT_STEP}
    made = SimpleNamespace(metadata=options, num_envs=1, step=lambda _: (*[both] * 4, {}))
    step = memory_policy.Episodes(made).step(torch.zeros(1))
    assert (step.ends.item(), step.truncated.item()) == (True, False)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_truncated_episode_keeps_its_value(policy, mode, batch):
    """Of a policy that waits at the junction until it is cut off."""
    torch.nn.init.zeros_(policy.actor.weight)
    with torch.no_grad():
        policy.actor.bias.copy_(torch.tensor([50.0, 0.0, 0.0]))
    actor = Actor(policy, batch, seed=0, corridor=(1, 2), mode=mode)
    rollout = actor.play(9)
    assert rollout.ends[7].all()
    last = torch.tensor([[0.0, 0.0, 0.0, 1.0]]).expand(1, batch, 4)  # at the junction
    with torch.no_grad():
        states, _ = policy.rnn(torch.cat([rollout.seen[:8], last]))
        ahead = policy.critic(states[-1]).squeeze(-1)
    torch.testing.assert_close(rollout.rewards[7], -0.1 + memory_policy.DISCOUNT * ahead)
    assert actor.returns == pytest.approx([-0.1] * batch)


def test_the_policy_learns_the_way_of_short_corridors():
    config = memory_policy.options().parse_args(["--updates=50", "--steps=16", "--rate=5e-3"])
    policy = Policy(4, 3, 32)
    successes = memory_policy.train(policy, Actor(policy, 16, 0, corridor=(1, 1)), config)
    assert sum(successes[-10:]) / 10 > 0.8  # without memory: 0.5


def test_torchrl_collects_and_replays_the_same_scores(policy):
    pytest.importorskip("torchrl")
    collected, whole = memory_policy.torchrl_rollout(policy, steps=80, seed=0)
    assert collected["is_init"].sum() > 2
    for key in ("logits", "state_value"):
        torch.testing.assert_close(whole[key], collected[key])


def test_an_older_gymnasium_skips_this_file_alone(tmp_path):
    (tmp_path / "gymnasium.py").write_text('__version__ = "1.0.0"')
    options = ["-rs", "-p", "no:cacheprovider", __file__]
    found = run_python("-m", "pytest", *options, PYTHONPATH=f"{tmp_path}:{ROOT}").stdout
    assert "1 skipped" in found, found
    assert "has __version__ '1.0.0', required is: '1.1'" in found


def test_training_keeps_dales_law_and_learns():
    network, task = perceptual_decision.Network(40, 32, noise=0.1), perceptual_decision.Task(0)
    config = perceptual_decision.options().parse_args(["--steps=60", "--batch=16"])
    losses = perceptual_decision.train(network, task, config)
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    weight = network.rnn.weight_hh_l0
    assert (weight[:, :32] >= 0).all()
    assert (weight[:, 32:] <= 0).all()
    assert (weight.diagonal() == 0).all()


def test_a_corridor_out_of_order_is_refused(capsys):
    with pytest.raises(SystemExit):
        memory_policy.main(["--corridor", "8", "3"])
    assert "--corridor must be two numbers, 1 or more, in order: [8, 3]" in capsys.readouterr().err
