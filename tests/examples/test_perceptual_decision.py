"""The example of an excitatory/inhibitory network, at a small size."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("neurogym")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import perceptual_decision
import side_by_side
from perceptual_decision import FIXATE, LEFT, RIGHT, Network, Task

SMALL = ["--steps=3", "--batch=4", "--hidden=20", "--trials=40", "--seconds=0", "--threads=1"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Calls this small wait for each other on a busy machine."""
    torch.set_num_threads(1)


def test_runs_and_agrees_with_the_loop(tmp_path, capsys):
    assert perceptual_decision.main([*SMALL, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "times as fast as a loop over time" in shown
    assert "within 1e-4" in shown
    assert (tmp_path / "perceptual_decision.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_a_difference_fails_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(side_by_side, "TOLERANCE", -1.0)
    assert perceptual_decision.main([*SMALL, "--out", str(tmp_path)]) == 1
    assert "BEYOND" in capsys.readouterr().out


def test_trials_are_those_of_the_task():
    trials = Task(0).trials(60)
    T = sum(perceptual_decision.TIMING.values()) // perceptual_decision.DT
    assert trials.seen.shape == (T, 60, 3)
    assert (trials.target[:-5] == FIXATE).all()
    strong = trials.evidence > 50
    assert (trials.target[-1, strong] == RIGHT).all()
    assert (trials.target[-1, trials.evidence < -50] == LEFT).all()
    stimuli = trials.seen[5:-5, strong, 1:].mean((0, 1))
    assert stimuli[0] > stimuli[1]


def test_training_keeps_dales_law_and_learns():
    torch.manual_seed(0)
    network, task = Network(40, 32, noise=0.1), Task(0)
    config = perceptual_decision.options().parse_args(["--steps=120", "--batch=16"])
    losses = perceptual_decision.train(network, task, config)
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    weight = network.rnn.weight_hh_l0
    assert (weight[:, :32] >= 0).all()
    assert (weight[:, 32:] <= 0).all()
    assert (weight.diagonal() == 0).all()
