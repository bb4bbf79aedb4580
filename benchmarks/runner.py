"""Runs cases in a worker process for each thread setting, and hands back rows as they finish."""

from __future__ import annotations

import math
import multiprocessing
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from . import measure, roof
from .cases import Case
from .store import Row

# ("start", name), ("row", Row), ("stamp", dict), ("roof", (thread setting, Roof)), ("edge", ...)
Event = tuple[str, Any]


def run(
    cases: Sequence[Case],
    effort: measure.Effort,
    only: Sequence[str] = (),
    budget: float = math.inf,
) -> Iterator[Event]:
    """Time the cases; `only` names the rivals to run (all if empty).

    One process a thread setting, since a runtime fixes its pool when it starts; within it all
    rivals take turns. No case is begun when `budget` seconds are over. RuntimeError if a worker
    dies.
    """
    end = time.monotonic() + budget
    for threads in sorted({case.threads for case in cases}):
        chosen = [case for case in cases if case.threads == threads]
        yield from in_worker(_time_cases, threads, threads, chosen, effort, tuple(only), end)


def in_worker(work: Callable[..., None], threads: int, *arguments: Any) -> Iterator[Event]:
    """Run work(send, threads, *arguments) in a fresh process pinned to `threads` cores (0: all)."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_worker, args=(sender, work, threads, arguments))
    process.start()
    sender.close()
    try:
        while True:
            yield receiver.recv()
    except EOFError:
        process.join()
    finally:
        if process.is_alive():
            process.terminate()
    if process.exitcode:
        raise RuntimeError(f"benchmark worker ended with exit code {process.exitcode}")


def _worker(
    sender: Connection, work: Callable[..., None], threads: int, arguments: tuple[Any, ...]
) -> None:
    count = measure.pin_threads(threads)
    import torch

    torch.set_num_threads(count)
    work(lambda kind, content: sender.send((kind, content)), count, *arguments)
    sender.close()


def _time_cases(
    send: Callable[[str, Any], None],
    threads: int,
    setting: int,
    cases: Sequence[Case],
    effort: measure.Effort,
    only: tuple[str, ...],
    end: float,
) -> None:
    from .rivals import installed

    rivals = [r for r in installed() if not only or r.name in only]
    device = cases[0].device
    send("stamp", measure.stamp(threads, device))
    measure_roof = roof.measure_cuda if device == "cuda" else partial(roof.measure, threads)
    limits = measure_roof()
    send("roof", (setting, limits))
    for case in cases:
        if time.monotonic() > end:
            break
        send("start", case.name)
        send("row", time_case(case, rivals, effort, limits))
    # Once more, hot: the roof is the better of the two.
    send("roof", (setting, measure_roof()))


def time_case(case: Case, rivals: Sequence[Any], effort: measure.Effort, limits: roof.Roof) -> Row:
    """Prepare every rival, check its result against the first one's, time those that agree."""
    row = Row(case)
    with measure.matmul_precision(case.precision):
        ready = _prepare(case, rivals, limits.threads, row)
        # A GPU is nobody else's: its limits stay.
        probe = roof.Probe(case, limits) if case.device == "cpu" else None
        start, others = time.perf_counter(), measure.Bystanders()
        synchronize = measure.synchronizer(case.device)
        timings = measure.interleave(ready, effort, 0, synchronize, probe) if ready else {}
        row.bystanders = others.cores(time.perf_counter() - start)
    row.roof = statistics.median(probe.rates) if probe and probe.rates else None
    for name, timing in timings.items():
        q1, median, q3 = timing.quartiles
        row.seconds[name] = {
            "q1": q1,
            "median": median,
            "q3": q3,
            "samples": len(timing.samples),
            "calls": timing.calls,
        }
    return row


def _prepare(
    case: Case, rivals: Sequence[Any], threads: int, row: Row
) -> dict[str, measure.Contender]:
    """The rivals whose results agree; why the others are missing goes into the row."""
    from .rivals.contract import Data, Unsupported, compare, saved_bytes

    data, expected, ready = Data(case), None, {}
    for rival in rivals:
        try:
            prepared = rival.prepare(case, data, threads)
            result = prepared.result()
            expected = result if expected is None else expected
            row.error[rival.name] = compare(case, expected, result)
            if case.mode == "train" and prepared.lives:
                row.saved_bytes[rival.name] = saved_bytes(case, prepared)
            ready[rival.name] = prepared
        except Unsupported as reason:
            row.unsupported[rival.name] = str(reason)
        except Exception as error:  # a rival's crash must not end the run; it is reported
            last = traceback.format_exception_only(error)[-1].strip()
            row.failed[rival.name] = last[:300]
    return ready


def interference(
    send: Callable[[str, Any], None], threads: int, cases: Sequence[Case], repeats: int
) -> None:
    """Send ("interference", (case name, rival, seconds alone, seconds taking turns)).

    A rival's rounds alone and everybody's rounds alternate, so that both see the same machine.
    """
    from .rivals import installed

    effort = measure.Effort(seconds=0.1, min_rounds=3, max_rounds=3)
    for case in cases:
        ready = _prepare(case, installed(), threads, Row(case))
        alone = {name: measure.Timing(1) for name in ready}
        turns = {name: measure.Timing(1) for name in ready}
        for seed in range(repeats):
            for name, contender in ready.items():
                alone[name].samples += measure.interleave({name: contender}, effort)[name].samples
            for name, timing in measure.interleave(ready, effort, seed).items():
                turns[name].samples += timing.samples
        for name in ready:
            send("interference", (case.name, name, alone[name].median, turns[name].median))
