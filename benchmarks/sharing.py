"""Processes that share a machine, each with as many threads as it has cores: how much longer a call
takes than its fair share."""

from __future__ import annotations

import functools
import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from typing import Any

import torch
from torch import nn

import rnnext

from .cases import MODES
from .compared import Comparison, Numbers, Row, Suite
from .names import OURS, TORCH
from .report import Table, duration

PROCESSES = 4
SECONDS = 3.0
BATCHES = (1, 16)
T, I, H = 100, 128, 128  # noqa: E741
CLASSES: dict[str, type[nn.Module]] = {OURS: rnnext.RNN, TORCH: nn.RNN}


def name(library: str, B: int, mode: str) -> str:
    return f"{library}, B={B}, {mode}"


def rows() -> Iterator[Row]:
    for B in BATCHES:
        for mode in MODES:
            for library in CLASSES:
                yield Row(name(library, B, mode), functools.partial(_row, library, B, mode))


def _row(library: str, B: int, mode: str) -> Numbers:
    """Seconds a call: alone on the machine, and beside the other processes."""
    return {
        how: _mean_seconds(count, library, B, mode == "train")
        for how, count in (("alone", 1), ("shared", PROCESSES))
    }


def _mean_seconds(processes: int, *work: Any) -> float:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(processes)
    results: Any = context.Queue()
    children = [
        context.Process(target=_calls, args=(*work, start, results)) for _ in range(processes)
    ]
    for child in children:
        child.start()
    counts: list[int] = [results.get() for _ in children]
    for child in children:
        child.join()
    return SECONDS * processes / sum(counts)


def _calls(library: str, B: int, train: bool, start: Barrier, results: Any) -> None:
    rnn, x, grad = CLASSES[library](I, H), torch.randn(T, B, I), torch.ones(T, B, H)

    def call() -> None:
        with torch.set_grad_enabled(train):
            output, _ = rnn(x)
        if train:
            torch.autograd.backward(output, grad)

    call()
    start.wait()
    count, end = 0, time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        call()
        count += 1
    results.put(count)


def table(run: Comparison) -> Table:
    head = [f"T={T} I=H={H}"]
    for library in CLASSES:
        head += [f"{library} alone", "shared", "over its share"]
    body = []
    for B in BATCHES:
        for mode in MODES:
            line = [f"B={B}, {mode}"]
            for library in CLASSES:
                row = run.rows[name(library, B, mode)]
                over = row["shared"] / (row["alone"] * PROCESSES)
                line += [duration(row["alone"]), duration(row["shared"]), f"{over:.2f}"]
            body.append(line)
    return Table(head, body)


SUITE = Suite("sharing", rows, {"sharing": table})
