"""Runs cases in a worker process for each thread setting, and hands back rows as they finish."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Lock
from typing import Any

from . import measure, roof
from .cases import Case
from .store import Row

# ("start", name), ("row", Row), ("stamp", dict), ("roof", (thread setting, Roof)), ...
Event = tuple[str, Any]


def run(cases: Sequence[Case], effort: measure.Effort, only: Sequence[str] = ()) -> Iterator[Event]:
    """Time the cases; `only` names the rivals to run (all if empty).

    One process a thread setting, since a runtime fixes its pool when it starts; within it all
    rivals take turns. RuntimeError if a worker dies.
    """
    for threads in sorted({case.threads for case in cases}):
        chosen = [case for case in cases if case.threads == threads]
        yield from in_workers(1, _time_cases, threads, chosen, effort, only)


def in_workers(
    count: int, work: Callable[..., None], threads: int, *arguments: Any
) -> Iterator[Event]:
    """Run work(send, threads, *arguments) in fresh processes, all at once, pinned to `threads`
    cores (0: all).

    They share a pipe, and write to it one at a time.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    given = sender, context.Lock(), work, threads, arguments
    processes = [context.Process(target=_worker, args=given) for _ in range(count)]
    for process in processes:
        process.start()
    sender.close()
    try:
        with suppress(EOFError):  # when all have ended
            while True:
                yield receiver.recv()
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()
    for process in processes:
        if process.exitcode:
            raise RuntimeError(f"benchmark worker ended with exit code {process.exitcode}")


def _worker(
    sender: Connection, turn: Lock, work: Callable[..., None], threads: int,
    arguments: tuple[Any, ...],
) -> None:  # fmt: skip
    count = measure.pin_threads(threads)
    import torch

    def send(kind: str, content: Any) -> None:
        with turn:
            sender.send((kind, content))

    torch.set_num_threads(count)
    work(send, count, *arguments)
    sender.close()


def _time_cases(
    send: Callable[[str, Any], None], threads: int, cases: Sequence[Case], effort: measure.Effort,
    only: Sequence[str],
) -> None:  # fmt: skip
    from .rivals import installed

    setting = cases[0].threads  # as all of them have it
    rivals = [r for r in installed() if not only or r.name in only]
    send("stamp", measure.stamp(threads))
    send("roof", (setting, roof.measure(threads)))
    for case in cases:
        send("start", case.name)
        send("row", time_case(case, rivals, effort, threads))
    # Once more, hot: the roof is the better of the two.
    send("roof", (setting, roof.measure(threads)))


def time_case(case: Case, rivals: Sequence[Any], effort: measure.Effort, threads: int) -> Row:
    """Prepare every rival, check its result against the first one's, time those that agree."""
    import torch

    torch.set_float32_matmul_precision(case.precision)
    row = Row(case)
    ready = _prepare(case, rivals, threads, row)
    start, others = time.perf_counter(), measure.Bystanders()
    timings = measure.interleave(ready, effort) if ready else {}
    row.bystanders = others.cores(time.perf_counter() - start)
    for name, timing in timings.items():
        row.seconds[name] = dict(zip(("q1", "median", "q3"), timing.quartiles, strict=True))
        row.seconds[name] |= {"samples": len(timing.samples), "calls": timing.calls}
    return row


def _prepare(
    case: Case, rivals: Sequence[Any], threads: int, row: Row
) -> dict[str, measure.Contender]:
    """The rivals whose results agree; why the others are missing goes into the row."""
    from .rivals.contract import Data, Unsupported, compare

    data, expected, ready = Data(case), None, {}
    for rival in rivals:
        try:
            prepared = rival.prepare(case, data, threads)
            result = prepared.result()
            expected = result if expected is None else expected
            compare(case, expected, result)
            ready[rival.name] = prepared
        except Unsupported:
            continue
        except Exception as error:  # a rival's crash must not end the run; it is reported
            row.failed[rival.name] = traceback.format_exception_only(error)[-1].strip()[:300]
    return ready
