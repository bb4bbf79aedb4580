"""Processes that share a machine, each with as many threads as it has cores: how much longer a call
takes than its fair share."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.synchronize import Barrier
from typing import Any

import torch
from torch import nn

import rnnext

from . import runner
from .cases import MODES
from .compared import Columns, Numbers, Row, Suite, call_of, seconds
from .names import OURS, TORCH

PROCESSES = 4
# How many processes, and the threads that each asks for; 0: as many as there are cores.
WAYS = {"alone": (1, 0), "shared": (PROCESSES, 0), "crowded": (1, 16)}
SECONDS = 3.0
T, I, H = 100, 128, 128  # noqa: E741
CLASSES: dict[str, type[nn.Module]] = {OURS: rnnext.RNN, TORCH: nn.RNN}


def rows() -> Iterator[Row]:
    for B in (1, 16):
        for mode in MODES:
            yield Row(f"B={B}, {mode}", partial(_row, B, mode))


def _row(B: int, mode: str) -> Numbers:
    """Seconds a call of each library."""
    return {
        f"{library} {way}": _mean_seconds(count, asked, library, B, mode == "train")
        for library in CLASSES
        for way, (count, asked) in WAYS.items()
    }


def _mean_seconds(processes: int, *work: Any) -> float:
    start = multiprocessing.get_context("spawn").Barrier(processes)
    counts: list[int] = [n for _, n in runner.in_workers(processes, _calls, 0, *work, start)]
    return SECONDS * processes / sum(counts)


def _calls(
    send: Callable[[str, Any], None], threads: int, asked: int, library: str, B: int, train: bool,
    start: Barrier,
) -> None:  # fmt: skip
    """Send how many calls SECONDS are enough for."""
    torch.set_num_threads(asked or threads)
    rnn = CLASSES[library](I, H)
    call = call_of(rnn, (torch.randn(T, B, I),), [*rnn.parameters()], train)
    call()
    start.wait()
    count, end = 0, time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        call()
        count += 1
    send("calls", count)


def _over_its_share(library: str, row: Numbers) -> str:
    return f"{row[f'{library} shared'] / (row[f'{library} alone'] * PROCESSES):.2f}"


COLUMNS: Columns = {
    f"{library}, {what}": cell
    for library in CLASSES
    for what, cell in (
        ("alone", seconds(f"{library} alone")),
        (f"beside {PROCESSES - 1}", seconds(f"{library} shared")),
        ("over its share", partial(_over_its_share, library)),
        ("16 threads", seconds(f"{library} crowded")),
    )
}
SUITE = Suite("sharing", rows, {"sharing": COLUMNS})
