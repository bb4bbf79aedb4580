"""Trains the same next-token model on English text with torch.nn and with rnnext, and compares.

Both start from the same seed and see the same batches and the same dropout. The program prints how
closely the losses agree, the time of each, held-out perplexity and sampled text, and draws loss
against wall-clock time.

    python examples/train_text.py                       # the text is Python's own documentation
    python examples/train_text.py --text book.txt --layers 2 --hidden 384
    python examples/train_text.py --resume              # goes on, bit for bit as if never stopped

Exit status: 0; 1 when the losses disagree; 2 for bad options; 130 when interrupted, with the
checkpoint written.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from side_by_side import positive, positive_rate
from text_data import Subwords, read_text, streams
from text_model import LIBRARIES, Learner, perplexity
from text_report import report
from tqdm import tqdm

CHUNK = 10  # steps until the other library takes over: both then meet the same machine
SAVES_AND_EVALUATIONS = 10  # a run, evenly spaced
# Options that a resumed run may change; everything else comes from its checkpoint.
FREE_ON_RESUME = {"out", "resume", "steps"}


class Failure(Exception):
    """Something the user can correct; the message says how."""


def absolute(text: str) -> Path:
    return Path(text).resolve()  # so that a run can be resumed from another folder


def probability(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not in [0, 1)")
    return value


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--text", type=absolute, help="a UTF-8 file to train on; Python's own docs if not given"
    )
    parser.add_argument(
        "--steps", type=positive, default=1000, help="training steps of each library"
    )
    parser.add_argument(
        "--hidden", type=positive, default=256, help="size of embedding and hidden state"
    )
    parser.add_argument("--cell", choices=("rnn", "gru", "lstm"), default="rnn", help="of the RNN")
    parser.add_argument("--layers", type=positive, default=1, help="layers of the RNN")
    parser.add_argument(
        "--nonlinearity", choices=("tanh", "relu"), default="tanh", help="of the RNN"
    )
    parser.add_argument(
        "--bidirectional",
        action="store_true",
        help="read both ways. The backward direction has then read the next token already, so "
        "the model learns to fill in tokens that are blanked out instead",
    )
    parser.add_argument("--vocab", type=positive, default=384, help="subword pieces")
    parser.add_argument(
        "--length", type=positive, default=100, help="time steps of a training window"
    )
    parser.add_argument("--batch", type=positive, default=20, help="windows side by side")
    parser.add_argument("--dropout", type=probability, default=0.2, help="of the RNN's output")
    parser.add_argument(
        "--rate", type=positive_rate, default=3e-3, help="learning rate; halves every 400 steps"
    )
    parser.add_argument("--dtype", choices=("float32", "float64", "bfloat16"), default="float32")
    parser.add_argument(
        "--threads", type=positive, default=torch.get_num_threads(), help="CPU threads"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, dropout and sampling")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for all results")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    return parser


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, Any] | None]:
    """The options, and the checkpoint to go on from if any.

    On --resume every option but those in FREE_ON_RESUME is the checkpoint's; one that is given and
    differs is an error, because the run would not be the same run.
    """
    parser = options()
    config = parser.parse_args(argv)
    if not config.resume:
        return config, None
    saved = load(config.out / "checkpoint.pt")
    given = argparse.Namespace(**dict.fromkeys(vars(config)))
    parser.parse_args(argv, given)  # leaves None where the command line says nothing
    for name, value in saved["options"].items():
        asked = getattr(given, name)
        value = Path(value) if name in ("text", "out") and value is not None else value
        if name in FREE_ON_RESUME:
            setattr(config, name, value if asked is None else asked)
            continue
        if asked is not None and asked != value:
            raise Failure(
                f"--{name} {asked} differs from the checkpoint's {value}: leave it out to resume"
            )
        setattr(config, name, value)
    if config.steps < saved["step"]:
        raise Failure(f"--steps {config.steps}: the checkpoint is already at step {saved['step']}")
    return config, saved


def load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise Failure(f"there is no checkpoint {path} to resume")
    try:
        saved: dict[str, Any] = torch.load(path, weights_only=True)
    except Exception as error:  # torch.load raises many types on a damaged file
        raise Failure(f"cannot read the checkpoint {path}: {error}") from error
    if not isinstance(saved, dict) or "learners" not in saved:
        raise Failure(f"{path} is not a checkpoint of this program")
    return saved


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint so that the file is always whole, whenever the program is stopped."""
    part, data = path.with_suffix(".part"), io.BytesIO()
    torch.save(state, data)  # not to the file itself: on a full disk torch's error names no reason
    try:
        with part.open("wb") as file:
            file.write(data.getbuffer())
            os.fsync(file.fileno())  # or a machine that stops may keep the name without the bytes
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise Failure(f"cannot write the checkpoint {path}: {error.strerror}") from error


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in the list it yields; a second one ends the program at once."""
    caught: list[int] = []

    def catch(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(argv: Sequence[str] | None) -> int:
    config, saved = parse(argv)
    if config.cell != "rnn" and config.nonlinearity != "tanh":
        raise Failure(f"--nonlinearity {config.nonlinearity} is for --cell rnn alone")
    torch.set_num_threads(config.threads)
    try:
        text = read_text(config.text)
        cut = int(0.9 * len(text))
        cut = text.rfind("\n", 0, cut) + 1 or cut  # where a line begins, if there is one
        subwords = Subwords(text[:cut], set(text), config.vocab)
    except ValueError as error:
        raise Failure(str(error)) from error
    train = streams(subwords.encode(text[:cut]), config.batch)
    held_out = subwords.encode(text[cut:])
    if len(train) <= config.length or len(held_out) <= 1:
        raise Failure(
            f"the text is too short: its {config.batch} streams of {len(train)} tokens do not hold "
            f"one window of {config.length}; lower --batch or --length"
        )
    digest = hashlib.sha256(text.encode()).hexdigest()
    if saved is not None and saved["text"] != digest:
        raise Failure("the text is not the one that the checkpoint was trained on")
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"cannot make the folder {config.out}: {error.strerror}") from error

    learners = [Learner(name, config, len(subwords.pieces), train) for name in LIBRARIES]
    if saved is not None:
        for learner in learners:
            learner.load_state_dict(saved["learners"][learner.name])
    print(
        f"{len(text)} characters as {train.numel() + len(held_out)} tokens of "
        f"{len(subwords.pieces)} pieces; {learners[0].count_parameters()} parameters, "
        f"{config.dtype}, {config.threads} threads",
        flush=True,
    )

    def checkpoint() -> None:
        chosen = {k: str(v) if isinstance(v, Path) else v for k, v in vars(config).items()}
        state = {
            "options": chosen,
            "text": digest,
            "pieces": subwords.pieces,
            "step": learners[0].step,
            "learners": {learner.name: learner.state_dict() for learner in learners},
        }
        save(config.out / "checkpoint.pt", state)

    if interrupted := train_all(learners, config.steps, held_out, checkpoint):
        print(
            f"\nInterrupted after step {learners[0].step}, which {config.out / 'checkpoint.pt'} "
            "holds. Go on with the same command and --resume."
        )
        return 128 + interrupted
    return report(learners, subwords, held_out, config)


def train_all(learners: list[Learner], steps: int, held_out: torch.Tensor, checkpoint: Any) -> int:
    """Trains in turns up to `steps`; returns the signal that ended it early, or 0."""
    every = max(1, steps // SAVES_AND_EVALUATIONS)
    columns, rows = shutil.get_terminal_size()  # not 0, with which tqdm would show nothing
    bar = tqdm(total=steps, initial=learners[0].step, unit="step", ncols=columns, nrows=rows)
    with interrupts() as caught, bar:
        while (begin := learners[0].step) < steps:
            end = min(steps, begin + CHUNK, begin - begin % every + every)
            # Which goes first alternates: neither always finds the cache as the other left it.
            for learner in learners if begin // CHUNK % 2 else reversed(learners):
                learner.train(end - begin)
            bar.update(end - begin)
            bar.set_postfix_str("loss " + " / ".join(f"{each.losses[-1]:.4f}" for each in learners))
            if end % every == 0 or end == steps:
                for learner in learners:
                    learner.held_out.append((end, perplexity(learner, held_out)))
            if end % every == 0 or end == steps or caught:
                checkpoint()
            if caught:
                return caught[0]
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return run(argv)
    except Failure as failure:
        print(f"train_text: error: {failure}", file=sys.stderr)
        return 2
    except OSError as error:  # of the results; the checkpoint holds what was trained
        print(f"train_text: error: cannot write the results: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the first step or after the last
        return 130


if __name__ == "__main__":
    sys.exit(main())
