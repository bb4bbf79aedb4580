"""The demo killed while it trains: what it leaves, and whether it goes on to the same bits.

    python tests/examples/kill_demo.py TEXT FOLDER KILLS

Each run is a child of this process and gets SIGKILL at a random moment after it has written its
first checkpoint; it writes one a step. The next run goes on from what it finds.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / "examples")]

import torch  # noqa: E402
import train_text  # noqa: E402

SMALL = ["--hidden=24", "--vocab=120", "--length=12", "--batch=5", "--threads=1", "--rate=0.01"]
NEVER = 10**6  # steps, with as many checkpoints


def begun(out: Path, *options: str) -> int:
    """The demo in a child, which says nothing."""
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        train_text.SAVES_AND_EVALUATIONS = NEVER
        train_text.report = lambda *_: 0  # which takes longer than all steps
        os._exit(train_text.main(["--out", str(out), *options]))
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def changed(path: Path, before: int) -> int:
    """When the file was written last, as soon as that is not the time before."""
    for _ in range(100_000):
        if path.exists() and (now := path.stat().st_mtime_ns) != before:
            return now
        time.sleep(0.001)
    raise TimeoutError(f"{path} was not written again")


def main(text: str, folder: str, kills: str) -> None:
    killed, whole = Path(folder) / "killed", Path(folder) / "whole"
    saved = killed / "checkpoint.pt"
    options, step, written = [*SMALL, "--text", text], 0, 0
    delays = random.Random(0)
    for _ in range(int(kills)):
        child = begun(killed, f"--steps={NEVER}", *options)
        written = changed(saved, written)
        time.sleep(delays.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL
        now = train_text.load(saved)["step"]
        assert now > step, f"step {now} after step {step}"
        step, written, options = now, saved.stat().st_mtime_ns, ["--resume"]
    assert ended(begun(killed, "--resume", f"--steps={step + 3}")) == 0
    assert ended(begun(whole, f"--steps={step + 3}", *SMALL, "--text", text)) == 0
    found, expected = (train_text.load(out / "checkpoint.pt") for out in (killed, whole))
    for learner in ("torch.nn", "rnnext"):
        for part in ("model", "optimizer", "state", "losses", "held_out"):
            pair = (each["learners"][learner][part] for each in (found, expected))
            torch.testing.assert_close(*pair, rtol=0, atol=0)
    print(f"killed {kills} times in {step} steps")


if __name__ == "__main__":
    main(*sys.argv[1:])
