"""Processes that share a machine, each with as many threads as it has cores: how much longer a call
takes than its fair share."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from typing import Any

import torch
from torch import nn

import rnnext

PROCESSES = 4
SECONDS = 3.0
T, I, H = 100, 128, 128  # noqa: E741
CLASSES: dict[str, Callable[[int, int], nn.Module]] = {
    "rnnext.RNN": rnnext.RNN,
    "torch.nn.RNN": nn.RNN,
}


@dataclass(frozen=True)
class Shared:
    """alone: seconds a call with the machine to itself; shared: with the other processes."""

    what: str
    alone: float
    shared: float
    fair: float

    @property
    def over_fair(self) -> float:
        """The time of a call over what it would take at the process's share of the cores."""
        return self.shared / (self.alone * self.fair)


def measure() -> Iterator[Shared]:
    """Every class and mode at B=1 and B=16."""
    threads = os.cpu_count() or 1
    for B in (1, 16):
        for train in (False, True):
            for name in CLASSES:
                what = f"{name} T={T} B={B} I={I} H={H}, {'train' if train else 'infer'}"
                alone, shared = (_run(name, B, train, threads, n) for n in (1, PROCESSES))
                yield Shared(what, alone, shared, PROCESSES)


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
