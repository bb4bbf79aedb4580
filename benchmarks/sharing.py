"""Processes that share a machine, each with as many threads as it has cores: how much longer a call
takes than its fair share."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from typing import Any

import torch
from torch import nn

import rnnext

from .compared import Comparison
from .names import OURS, TORCH
from .report import Table, duration

PROCESSES = 4
SECONDS = 3.0
BATCHES = (1, 16)
MODES = ("infer", "train")
T, I, H = 100, 128, 128  # noqa: E741
CLASSES: dict[str, Callable[[int, int], nn.Module]] = {OURS: rnnext.RNN, TORCH: nn.RNN}


def name(library: str, B: int, mode: str) -> str:
    return f"{library}, B={B}, {mode}"


def run() -> Iterator[tuple[str, dict[str, float]]]:
    """Each row's name and seconds a call: alone on the machine, and beside the other processes."""
    threads = os.cpu_count() or 1
    for B in BATCHES:
        for mode in MODES:
            for library in CLASSES:
                counts = {"alone": 1, "shared": PROCESSES}
                yield (
                    name(library, B, mode),
                    {
                        how: _run(library, B, mode == "train", threads, count)
                        for how, count in counts.items()
                    },
                )


def over_fair(row: dict[str, float]) -> float:
    """The time of a call over what it would take at the process's share of the cores."""
    return row["shared"] / (row["alone"] * PROCESSES)


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
                line += [duration(row["alone"]), duration(row["shared"]), f"{over_fair(row):.2f}"]
            body.append(line)
    return Table(head, body)


def _run(name: str, B: int, train: bool, threads: int, processes: int) -> float:
    """Mean seconds a call of all processes at once."""
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(processes)
    results: Any = context.Queue()
    work = (name, B, train, threads, start, results)
    children = [context.Process(target=_calls, args=work) for _ in range(processes)]
    for child in children:
        child.start()
    counts: list[int] = [results.get() for _ in children]
    for child in children:
        child.join()
    return SECONDS * processes / sum(counts)


def _calls(name: str, B: int, train: bool, threads: int, start: Barrier, results: Any) -> None:
    torch.set_num_threads(threads)
    rnn, x, grad = CLASSES[name](I, H), torch.randn(T, B, I), torch.ones(T, B, H)

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
