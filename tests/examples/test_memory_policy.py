"""The example of a recurrent policy, at a small size."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("gymnasium")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import memory_policy
import side_by_side
from memory_policy import FORWARD, LEFT, RIGHT, Actor, Policy, TMaze

SMALL = ["--updates=3", "--steps=24", "--batch=4", "--hidden=16", "--seconds=0", "--threads=1"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Calls this small wait for each other on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture
def policy():
    policy = Policy(4, 3, 16)
    torch.nn.init.normal_(policy.actor.weight, std=0.1)  # so that memory shows in the scores
    return policy


def test_runs_and_agrees_with_the_loop(tmp_path, capsys):
    assert memory_policy.main([*SMALL, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "times as fast as a loop of cells" in shown
    assert "within 1e-4" in shown
    assert (tmp_path / "memory_policy.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_a_difference_fails_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(side_by_side, "TOLERANCE", -1.0)
    assert memory_policy.main([*SMALL, "--out", str(tmp_path)]) == 1
    assert "BEYOND" in capsys.readouterr().out


def test_the_maze_is_an_environment_of_gymnasium():
    from gymnasium.utils.env_checker import check_env

    check_env(TMaze(), skip_render_check=True)


@pytest.mark.parametrize(("turn", "reward"), [(True, 1.0), (False, -1.0)])
def test_only_the_first_observation_says_where_to_turn(turn, reward):
    maze = TMaze((2, 5))
    seen, _ = maze.reset(seed=3)
    side = LEFT if seen[0] else RIGHT
    for _ in range(maze.way):
        assert seen[2] == 1
        seen, gained, terminated, truncated, _ = maze.step(FORWARD)
        assert not seen[:2].any()
        assert (gained, terminated, truncated) == (0.0, False, False)
    assert seen.tolist() == [0, 0, 0, 1]
    _, gained, terminated, _, _ = maze.step(side if turn else LEFT + RIGHT - side)
    assert (gained, terminated) == (reward, True)


def test_a_maze_that_is_not_left_is_cut_off():
    maze = TMaze((1, 2))
    maze.reset(seed=0)
    ends = [maze.step(LEFT if maze.way else FORWARD)[2:4] for _ in range(8)]
    assert ends == [(False, False)] * 7 + [(False, True)]


def test_the_learner_computes_the_states_of_the_actor(policy):
    """Over rollouts whose borders lie within episodes."""
    torch.manual_seed(1)
    actor = Actor(policy, batch=5, seed=0)
    for _ in range(2):
        rollout = actor.play(30)
        assert rollout.reset[1:].any()
        with torch.no_grad():
            states, last = policy.rnn(rollout.seen[:-1], rollout.state, reset=rollout.reset[:-1])
            looped = memory_policy.looped(policy.rnn, rollout.seen, rollout.state, rollout.reset)
        assert torch.equal(actor.stepper.get_state(), last)
        torch.testing.assert_close(states, looped[:-1])


def test_the_policy_learns_the_way_of_short_corridors():
    torch.manual_seed(0)
    config = memory_policy.options().parse_args(["--updates=50", "--steps=16", "--rate=5e-3"])
    policy = Policy(4, 3, 32)
    successes = memory_policy.train(policy, Actor(policy, 16, 0, corridor=(1, 1)), config)
    assert sum(successes[-10:]) / 10 > 0.8  # without memory: 0.5


def test_torchrl_collects_and_replays_the_same_scores(policy):
    pytest.importorskip("torchrl")
    collected, whole = memory_policy.torchrl_rollout(policy, steps=80, seed=0)
    is_init = collected["is_init"].squeeze(-1)
    assert is_init[0]
    assert is_init.sum() > 2
    # is_init is the mask of the ends, a step later.
    done = collected["next", "done"].squeeze(-1)
    assert torch.equal(is_init[1:], done[:-1])
    for key in ("logits", "state_value"):
        torch.testing.assert_close(whole[key], collected[key])
    torch.testing.assert_close(whole["next", "state"], collected["next", "state"])
    # The same as one call with reset.
    with torch.no_grad():
        states, _ = policy.rnn(collected["observation"].float(), reset=is_init)
    torch.testing.assert_close(states, whole["next", "state"])
