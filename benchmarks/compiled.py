"""A compiled model with rnnext.RNN beside torch.compile of a loop over nn.RNNCell: the time of the
first call, which compiles, and of those that follow."""

from __future__ import annotations

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
from .compared import Comparison
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

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[1], H)
        outputs = []
        for step in x.unbind(0):
            h = self.cell(step, h)
            outputs.append(h)
        return torch.stack(outputs)


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = rnnext.RNN(I, H)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(x)[0]
        return output


def name(T: int, mode: str) -> str:
    return f"T={T}, {mode}"


def run(limit: float = LIMIT) -> Iterator[tuple[str, dict[str, float]]]:
    """Each row's name and seconds: "first" and "later", and the loop's unless it took too long.

    A row is a process, which is stopped at the limit.
    """
    for T in LENGTHS:
        for mode in MODES:
            yield name(T, mode), _in_process(T, mode, limit)


def _in_process(T: int, mode: str, limit: float) -> dict[str, float]:
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
    found: dict[str, float] = json.loads(lines[-1])
    return found


def _step(model: Callable[[Tensor], Tensor], x: Tensor, train: bool) -> Callable[[], Tensor]:
    def inference() -> Tensor:
        with torch.no_grad():
            return model(x)

    def training() -> Tensor:
        output = model(x)
        torch.autograd.backward(output.square().mean())
        return output.detach()

    return training if train else inference


def _seconds(call: Callable[[], Tensor]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _time(T: int, mode: str) -> None:
    """Print a row's seconds as far as they are known, a line a time. No cache of compiled code."""
    measure.pin_threads(0)
    models = Fused(), Loop()
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        ours.data.copy_(theirs.data)
    x = torch.randn(T, B, I)
    with torch._inductor.config.patch(force_disable_caches=True):
        # The compiler's own start takes seconds, once in a process, whatever is compiled.
        _step(torch.compile(nn.Linear(I, H), fullgraph=True), x, mode == "training")()
        calls = [_step(torch.compile(m, fullgraph=True), x, mode == "training") for m in models]
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
        ours = duration(row["first"]), duration(row["later"])
        if "loop later" in row:
            loop = duration(row["loop first"]), duration(row["loop later"])
            faster = f"{row['loop later'] / row['later']:.1f}"
        else:
            loop, faster = (f"> {run.stamp['limit']:g} s", ""), ""
        body.append([what, ours[0], loop[0], ours[1], loop[1], faster])
    return Table(head, body)


if __name__ == "__main__":
    _time(int(sys.argv[1]), sys.argv[2])
