"""The demo program: `make demo` runs it at full size, these tests at a small one."""

import functools
import json
import multiprocessing
import random
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import text_data
import text_model
import text_report
import torch
import train_text
from tqdm import tqdm

SMALL = ["--hidden=24", "--vocab=120", "--length=12", "--batch=5", "--threads=1", "--rate=0.01"]


@pytest.fixture
def text(tmp_path) -> str:
    """A piece of the demo's own text, for speed."""
    path = tmp_path / "text.txt"
    path.write_text(text_data.python_prose()[:12_000], encoding="utf-8")
    return str(path)


def demo(text: str, out: Path, *options: str) -> int:
    return train_text.main([*SMALL, "--text", text, "--out", str(out), *options])


def demo_to_kill(*arguments: str | Path) -> None:
    """In a child process, with a lock of its own for the progress bar: all processes share tqdm's
    default, which stays locked for ever if one is killed while it holds it."""
    tqdm.set_lock(threading.RLock())
    demo(*arguments)


def checkpoint(out: Path) -> dict:
    return torch.load(out / "checkpoint.pt", weights_only=True)


def assert_same_training(a: dict, b: dict) -> None:
    """Every bit of weights, optimisers, carried state and losses; not the times."""
    assert a["step"] == b["step"]
    for name in ("torch.nn", "rnnext"):
        one, other = a["learners"][name], b["learners"][name]
        assert one["losses"] == other["losses"]
        for key in ("model", "optimizer", "state"):
            torch.testing.assert_close(one[key], other[key], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ("", 1e-4),
        ("--layers 2 --nonlinearity relu --seed 7 --dropout 0", 1e-4),
        ("--bidirectional --dtype float64", 1e-9),
        ("--dtype bfloat16", 5e-2),
        ("--cell gru --layers 2", 1e-4),
        ("--cell lstm", 1e-4),
    ],
)
def test_losses_agree_and_results_are_written(options, bound, text, tmp_path, capsys):
    assert demo(text, tmp_path, "--steps", "25", *options.split()) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["agree"] is True
    assert results["largest_relative_difference"] <= bound
    assert results["steps"] == 25
    for name in ("torch.nn", "rnnext"):
        result = results[name]
        assert result["seconds"] > 0
        assert 1 < result["held_out_perplexity"] < 150
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG\r\n")
    shown = capsys.readouterr().out
    assert "times as fast as torch.nn" in shown
    assert (tmp_path / "sample.txt").read_text().strip() in shown
    losses = checkpoint(tmp_path)["learners"]["rnnext"]["losses"]
    assert sum(losses[-5:]) < 0.97 * sum(losses[:5])  # it learns


def test_an_interrupted_run_resumes_bit_for_bit(text, tmp_path, monkeypatch, capsys):
    train, calls, options = text_model.Learner.train, [], ["--bidirectional", "--layers=2"]

    def interrupted(learner, steps):
        calls.append(steps)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        train(learner, steps)

    monkeypatch.chdir(tmp_path)
    out = train_text.options().get_default("out")
    with monkeypatch.context() as patch:
        patch.setattr(text_model.Learner, "train", interrupted)
        assert demo(text, out, "--steps=5000", *options) == 130
    step = checkpoint(out)["step"]
    assert 0 < step < 5000
    assert f"Interrupted after step {step}" in capsys.readouterr().out
    steps = f"--steps={step + 15}"
    # Options that the checkpoint holds need not be given again.
    assert train_text.main(["--resume", steps]) == 0
    assert demo(text, tmp_path / "uninterrupted", steps, *options) == 0
    assert_same_training(checkpoint(out), checkpoint(tmp_path / "uninterrupted"))


def test_a_run_that_is_killed_again_and_again_trains_to_the_same_bits(text, tmp_path, monkeypatch):
    """At random moments, as soon as it has written a checkpoint; it writes one a step."""
    never = 10**6  # steps
    monkeypatch.setattr(train_text, "SAVES_AND_EVALUATIONS", never)
    monkeypatch.setattr(train_text, "report", lambda *_: 0)  # which takes longer than all steps
    killed, whole = (tmp_path / name for name in ("killed", "whole"))
    saved = killed / "checkpoint.pt"
    assert demo(text, killed, "--steps=1") == 0
    delays = random.Random(0)
    for _ in range(8):
        step, written = checkpoint(killed)["step"], saved.stat().st_mtime_ns
        arguments = text, killed, "--resume", f"--steps={never}"
        child = multiprocessing.get_context("fork").Process(target=demo_to_kill, args=arguments)
        child.start()
        deadline = time.monotonic() + 300
        while saved.stat().st_mtime_ns == written and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(delays.uniform(0, 0.1))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert checkpoint(killed)["step"] > step
    steps = f"--steps={checkpoint(killed)['step'] + 3}"
    assert demo(text, killed, "--resume", steps) == demo(text, whole, steps) == 0
    assert_same_training(checkpoint(killed), checkpoint(whole))


def test_the_default_text_is_all_of_pythons_prose(tmp_path, capsys):
    assert train_text.main([*SMALL, "--steps", "1", "--out", str(tmp_path)]) == 0
    assert f"{len(text_data.python_prose())} characters" in capsys.readouterr().out


def test_a_full_disk_leaves_the_checkpoint_before(text, tmp_path, capsys):
    assert demo(text, tmp_path, "--steps", "4") == 0
    (tmp_path / "checkpoint.part").symlink_to("/dev/full")
    assert train_text.main(["--out", str(tmp_path), "--resume", "--steps", "8"]) == 2
    error = capsys.readouterr().err
    assert f"cannot write the checkpoint {tmp_path}/checkpoint.pt: No space left on" in error
    assert checkpoint(tmp_path)["step"] == 4


def test_losses_that_disagree_fail_the_program(text, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(text_report.TOLERANCE, "float32", -1.0)
    assert demo(text, tmp_path, "--steps", "3") == 1
    assert "BEYOND" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text())["agree"] is False
    difference = text_report.largest_relative_difference
    assert difference([2.0, 4.0], [2.0, 4.004]) == pytest.approx(1e-3)
    assert not difference([2.0, 4.0], [2.0, float("nan")]) <= 1e-4
    assert not difference([2.0, float("nan")], [2.0, 4.0]) <= 1e-4


def test_bad_options_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(text_data, "python_prose", functools.cache(text_data.python_prose))
    Path("empty.txt").write_text("\n")
    Path("latin1.txt").write_bytes(b"na\xef")
    for options, message in (
        (["--hidden", "0"], "0 is not 1 or more"),
        (["--length", "x"], "invalid positive value: 'x'"),
        (["--rate", "nan"], "nan is not a positive number"),
        (["--dropout", "1"], r"1.0 is not in \[0, 1\)"),
        (["--cell=gru", "--nonlinearity=relu"], "--nonlinearity relu is for --cell rnn alone"),
        (["--vocab", "20"], r"a vocabulary of 20 is too small"),
        (["--batch", "100000"], "the text is too short"),
        (["--text", "missing.txt"], "cannot read the text .*missing.txt: No such file"),
        (["--text", "empty.txt"], "empty.txt is empty"),
        (["--text", "latin1.txt"], r"latin1.txt is not UTF-8 text \(byte 2\)"),
        (["--out", "latin1.txt"], "cannot make the folder latin1.txt"),
        (["--resume"], "there is no checkpoint .*checkpoint.pt to resume"),
    ):
        try:
            status = train_text.main(["--steps", "1", "--threads", "1", *options])
        except SystemExit as stop:  # argparse's way
            status = stop.code
        assert status == 2
        errors = capsys.readouterr().err
        assert re.search(message, errors)
        assert "Traceback" not in errors


def test_bad_resumes_are_refused(tmp_path, capsys):
    own = tmp_path / "own.txt"
    own.write_text("One line of text, not two.\n" * 100)
    assert demo(str(own), tmp_path, "--steps", "4") == 0

    def refused(*options: str) -> str:
        capsys.readouterr()
        assert train_text.main(["--out", str(tmp_path), "--resume", *options]) == 2
        return capsys.readouterr().err

    assert "--hidden 99 differs from the checkpoint's 24" in refused("--hidden", "99")
    assert "--steps 3: the checkpoint is already at step 4" in refused("--steps", "3")
    own.write_text("One line of text, not two!\n" * 100)
    assert "the text is not the one that the checkpoint was trained on" in refused()
    whole = tmp_path / "checkpoint.pt"
    whole.write_bytes(whole.read_bytes()[:-100])
    assert "cannot read the checkpoint" in refused()
    torch.save({"weight": torch.ones(1)}, whole)
    assert "checkpoint.pt is not a checkpoint of this program" in refused()


def test_text_as_subwords_in_streams():
    paragraphs = text_data.python_prose().splitlines()
    assert len(paragraphs) == len(set(paragraphs)) > 500
    for text in ("aaaa aaaaa b", "  two  spaces\n\ntab\tßé→_9 " * 3, "x"):
        for size in (20, 40):
            subwords = text_data.Subwords(text, set(text), size)
            assert subwords.decode(subwords.encode(text).tolist()) == text
            assert len(subwords.pieces) == len(set(subwords.pieces)) <= size
    subwords = text_data.Subwords("the then they; the cat", set("the then they; the cat"), 13)
    # "th" and "he" occur four times each, " t" only three times: the first word has no space.
    assert subwords.pieces[-3:] == ["th", "the", " the"]
    assert text_data.streams(torch.arange(11), 3).tolist() == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
