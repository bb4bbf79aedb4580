"""Training on two processes (torchrun, gloo) has the losses of one."""

import json
from pathlib import Path

import pytest
import text_data
import text_model
import torch
import train_text

from helpers.common import SEARCH, assert_close, run_python

gloo = torch.distributed.is_gloo_available()
pytestmark = pytest.mark.skipif(not gloo, reason="torch has no gloo")


def torchrun(*command):
    return run_python(
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *command),
        PYTHONPATH=SEARCH,
        OMP_NUM_THREADS="1",
        GLOO_SOCKET_IFNAME="lo",  # or gloo looks the host's name up, which may hang
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The losses of two processes, for each way to train, and of the demo."""
    folder = tmp_path_factory.mktemp("several")
    (folder / "text.txt").write_text(text_data.python_prose()[:12_000], encoding="utf-8")
    run = torchrun(str(Path(__file__).with_name("worker.py")), str(folder), *options(folder))
    assert run.returncode == 0, run.stderr
    (folder / "shown").write_text(run.stdout)
    return folder


def options(folder):
    given = "--hidden=24 --vocab=120 --length=12 --batch=6 --threads=2 --rate=0.01"
    given += f" --dropout=0 --layers=2 --steps=20 --out={folder} --text={folder / 'text.txt'}"
    return given.split()


def test_ddp_and_fully_shard(folder):
    losses = torch.load(folder / "losses.pt")
    assert not losses.pop("logits").any()  # an alpha of 1/2 again
    alone = losses.pop("alone")
    assert alone[-1] < alone[0]
    assert losses.keys() == {"ddp", "fsdp"}
    for way in losses.values():
        assert_close(way, alone)


def test_the_demo_trains_with_the_loss_of_one_process(folder):
    shown, losses = (folder / "shown").read_text(), json.loads((folder / "losses.json").read_text())
    assert f"step 20: loss {losses[-1]:.4f}" in shown
    assert "2 processes; held-out perplexity" in shown

    config = train_text.options().parse_args(options(folder))
    prose = (folder / "text.txt").read_text(encoding="utf-8")
    cut = int(0.9 * len(prose))
    subwords = text_data.Subwords(prose[:cut], set(prose), config.vocab)
    streams = text_data.streams(subwords.encode(prose[:cut]), config.batch)
    learner = text_model.Learner("rnnext", config, len(subwords.pieces), streams)
    learner.train(config.steps)
    assert learner.losses[-1] < 0.97 * learner.losses[0]
    assert_close(torch.tensor(losses), torch.tensor(learner.losses))
