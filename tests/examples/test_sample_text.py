"""The example that samples text, at a small size."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import sample_text
import side_by_side

SMALL = ["--steps=5", "--hidden=16", "--vocab=60", "--length=10", "--batch=4", "--tokens=12"]
SMALL += ["--timed=5", "--seconds=0", "--threads=1", "--prompt=say ", "--rate=0.01"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Calls this small wait for each other on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("say what you saw, say what you heard.\n" * 60)
    return str(path)


def test_runs_and_agrees_with_the_loop(text, tmp_path, capsys):
    assert sample_text.main([*SMALL, "--text", text, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "times as fast as torch.nn in a loop" in shown
    assert "is the same" in shown
    samples = (tmp_path / "sample.txt").read_text()
    assert samples.strip() in shown
    assert samples.count("say ") >= 2  # each begins with the prompt
    assert (tmp_path / "sample_text.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_a_difference_fails_it(text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(side_by_side, "TOLERANCE", -1.0)
    assert sample_text.main([*SMALL, "--text", text, "--out", str(tmp_path)]) == 1
    assert "BEYOND" in capsys.readouterr().out


def test_it_learns_one_sentence(text, tmp_path):
    options = [*SMALL, "--steps=150", "--temperature=0", "--tokens=40", "--hidden=32"]
    assert sample_text.main([*options, "--text", text, "--out", str(tmp_path)]) == 0
    assert "say what you" in (tmp_path / "sample.txt").read_text()[4:]


def draw(probabilities, count):
    """As Stepper.generate draws: one float64 a row, by the distribution function."""
    assert count == 1
    number = torch.rand(len(probabilities), 1, dtype=torch.float64)
    return (probabilities.double().cumsum(-1) <= number).sum(-1, keepdim=True)


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_the_loop_and_the_stepper_draw_from_the_same_scores(temperature, monkeypatch):
    """With the same random numbers, the same tokens."""
    monkeypatch.setattr(torch, "multinomial", draw)
    model = sample_text.Model(30, 24)
    reference, prompt = sample_text.reference_of(model), torch.randint(30, (6,))
    stepper = sample_text.prompted(model, prompt, batch=3)
    torch.manual_seed(5)
    ours = stepper.generate(model.score, 20, temperature)
    torch.manual_seed(5)
    theirs, _ = sample_text.looped(reference, prompt, 20, temperature, 3)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text", "missing.txt"], "cannot read the text missing.txt"),
        (["--vocab", "5"], "a vocabulary of 5 is too small"),
        (["--prompt", ""], "the prompt is empty"),
        (["--batch", "100000"], "too short"),
    ],
)
def test_bad_options_are_refused(options, message, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sample_text.main([*SMALL, "--text", text, *options]) == 2
    assert message in capsys.readouterr().err
