"""The same samples on two builds, on every ISA and several numbers of threads: equal to the bit?"""

from __future__ import annotations

import collections
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from .samples import Sample, all_samples
from .worker import Worker

THREADS = (1, 2, 3)
MOST_SHOWN = 40


def compare(a: Path, b: Path, patterns: Sequence[str], console: Console) -> bool:
    """Print each sample that differs, and how many of a kind; True if none does."""
    samples = all_samples(patterns)
    workers = [Worker(a), Worker(b)]
    isas = _common_isas(workers, console)
    settings = [(isa, threads) for isa in isas for threads in THREADS]
    wrong: collections.Counter[str] = collections.Counter()
    results = 0
    with Progress(
        *Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    ) as bar:
        task = bar.add_task("samples", total=len(settings) * len(samples))
        for isa, threads in settings:
            start, before = time.monotonic(), wrong.total()
            for sample in samples:
                # One after the other: threads that wait for each other spin on the same cores.
                found = [_result(worker, sample, isa, threads) for worker in workers]
                results += len(found[0])
                if problem := _difference(*found):
                    wrong[sample.kind] += 1
                    if wrong.total() <= MOST_SHOWN:
                        run = f"{sample.name}, {isa}, {threads} thread(s)"
                        bar.console.print(f"{run}: {problem}", highlight=False, soft_wrap=True)
                bar.advance(task)
            bar.console.print(
                f"{isa}, {threads} thread(s): {wrong.total() - before} of {len(samples)} differ, "
                f"{time.monotonic() - start:.0f} s",
                highlight=False,
            )
    for worker in workers:
        worker.close()
    runs = len(settings) * len(samples)
    console.print(
        f"{len(samples)} samples on {', '.join(isas)} with {', '.join(map(str, THREADS))} threads: "
        f"{runs - wrong.total()} of {runs} runs equal to the bit, {results} tensors"
    )
    for kind, count in wrong.items():
        console.print(f"[red]{kind}: {count} runs differ[/red]")
    return not wrong


def _common_isas(workers: Sequence[Worker], console: Console) -> list[str]:
    a, b = (worker.call(supported_isas) for worker in workers)
    for isa in sorted(set(a) ^ set(b)):
        console.print(f"[yellow]{isa} is in one build only: not compared[/yellow]")
    return [isa for isa in a if isa in b]


def supported_isas() -> list[str]:
    from rnnext import _C

    found: list[str] = _C.build_info()["isas_supported"]
    return found


def _result(worker: Worker, sample: Sample, isa: str, threads: int) -> dict[str, str]:
    """What the sample's results hash to, or why there are none under the name "error"."""
    try:
        found: dict[str, str] = worker.call(sample.run, isa, threads)
    except RuntimeError as error:
        if not worker.alive():
            raise RuntimeError(f"{sample.name}, {isa}, {threads} thread(s): {error}") from None
        return {"error": str(error).strip().split("\n")[-1]}
    return found


def _difference(a: dict[str, str], b: dict[str, str]) -> str:
    """Empty if both have the same results; a sample that fails compares nothing, so that counts."""
    errors = [f"{which} fails: {r['error']}" for which, r in (("A", a), ("B", b)) if "error" in r]
    if errors:
        return "; ".join(errors)
    names = [name for name in a | b if a.get(name) != b.get(name)]
    return f"{', '.join(names)} differ" if names else ""
