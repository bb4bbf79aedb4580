"""A compiled model with rnnext.RNN beside torch.compile of a loop over nn.RNNCell: the time of the
first call, which compiles, and of those that follow."""

from __future__ import annotations

import functools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import torch
import torch._inductor.config
from torch import Tensor, nn

import rnnext

from . import measure
from .compared import Comparison, Numbers, Row, Suite
from .report import Table, duration

B, I, H = 20, 200, 200  # noqa: E741
LENGTHS = (32, 512)
MODES = ("inference", "training")
ROUNDS = 15
LIMIT = 600.0  # seconds for a row: the compiler may take hours over the loop


class Loop(nn.Module):
    """What is written without an RNN module: a cell, called step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(I, H)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        h = x.new_zeros(x.shape[1], H)
        outputs = []
        for step in x.unbind(0):
            h = self.cell(step, h)
            outputs.append(h)
        return (torch.stack(outputs),)


def name(T: int, mode: str) -> str:
    return f"T={T}, {mode}"


def rows() -> Iterator[Row]:
    for T in LENGTHS:
        for mode in MODES:
            yield Row(name(T, mode), functools.partial(_in_process, T, mode, LIMIT))


def _in_process(T: int, mode: str, limit: float) -> Numbers:
    """Seconds "first" and "later", and the loop's unless the process had to be stopped before."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.compiled", str(T), mode]
    with tempfile.TemporaryFile("w+") as out:
        # With the compiler's own processes in a session that ends as one.
        process = subprocess.Popen(command, stdout=out, start_new_session=True)
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        else:
            if process.returncode:
                raise RuntimeError(f"{' '.join(command)} failed with {process.returncode}")
        out.seek(0)
        lines = out.read().splitlines()
    if not lines:
        raise RuntimeError(f"{name(T, mode)}: not even rnnext.RNN was compiled in {limit:g} s")
    found: Numbers = json.loads(lines[-1])
    return found


def _seconds(call: Callable[[], Tensor]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _time(T: int, mode: str) -> None:
    """Print a row's seconds as far as they are known, a line a time. No cache of compiled code."""
    measure.pin_threads(0)
    train, x = mode == "training", torch.randn(T, B, I)

    def step(model: Callable[[Tensor], tuple[Tensor, ...]]) -> Tensor:
        with torch.set_grad_enabled(train):
            output = model(x)[0]
        if train:
            torch.autograd.backward(output.square().mean())
        return output.detach()

    models = rnnext.RNN(I, H), Loop()
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        ours.data.copy_(theirs.data)
    with torch._inductor.config.patch(force_disable_caches=True):
        # The compiler's own start takes seconds, once in a process, whatever is compiled.
        step(torch.compile(nn.Linear(I, H), fullgraph=True))
        compiled = (torch.compile(model, fullgraph=True) for model in models)
        calls = [functools.partial(step, model) for model in compiled]
        found = {"first": _seconds(calls[0])}
        found["later"] = statistics.median(_seconds(calls[0]) for _ in range(ROUNDS))
        print(json.dumps(found), flush=True)
        found["loop first"] = _seconds(calls[1])
    torch.testing.assert_close(calls[0](), calls[1](), rtol=1e-4, atol=1e-5)
    turns = [[_seconds(call) for call in calls] for _ in range(ROUNDS)]
    found["later"], found["loop later"] = map(statistics.median, zip(*turns, strict=True))
    print(json.dumps(found), flush=True)


def table(run: Comparison) -> Table:
    head = ["", "first call", "of the loop", "later", "of the loop", "times as fast"]
    body = []
    for what, row in run.rows.items():
        loop, faster = (f"> {run.stamp.get('limit', LIMIT):g} s", ""), ""
        if "loop later" in row:
            loop = duration(row["loop first"]), duration(row["loop later"])
            faster = f"{row['loop later'] / row['later']:.1f}"
        body.append(
            [what, duration(row["first"]), loop[0], duration(row["later"]), loop[1], faster]
        )
    return Table(head, body)


SUITE = Suite("compiled", rows, {"compiled": table})

if __name__ == "__main__":
    _time(int(sys.argv[1]), sys.argv[2])
