"""A killed process of torchrun ends the others, and leaves the results of the run before."""

import text_data

from scale.test_several_processes import options, torchrun

KILLED = """
import os, signal, text_model, train_distributed
train = text_model.Learner.train
def killed(learner, steps):
    if learner.step >= 4 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    train(learner, steps)
text_model.Learner.train = killed
train_distributed.main()
"""


def test_a_process_that_is_killed_ends_the_others(tmp_path):
    (tmp_path / "text.txt").write_text(text_data.python_prose()[:12_000], encoding="utf-8")
    (tmp_path / "losses.json").write_text("of the run before")
    (tmp_path / "killed.py").write_text(KILLED)
    run = torchrun(str(tmp_path / "killed.py"), *options(tmp_path))
    assert run.returncode != 0
    assert "Signal 9 (SIGKILL)" in run.stderr
    assert (tmp_path / "losses.json").read_text() == "of the run before"
