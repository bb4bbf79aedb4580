"""`python -m tools.compare_builds bits|time A B`: two built source trees, on this machine."""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from benchmarks import cases, measure
from benchmarks.cases import Case

from . import build_samples

THREADS = (1, 2, 3)
# Seconds of timed calls a build and case, and the rounds A B B A that they may take.
EFFORT = measure.Effort(seconds=0.5, min_rounds=5, max_rounds=20)
SLOWER = 1.03  # a row: beyond its own spread
MEAN_SLOWER = 1.01  # of all rows

# Calls a function, with arguments, in the process that has a tree's rnnext.
Worker = Callable[..., Any]


def _import_rnnext(tree: Path, threads: int) -> None:
    """Import rnnext from the tree, which then leaves the path: all other modules are this tree's.

    The process may use `threads` cores (0: all).
    """
    count = measure.pin_threads(threads)  # before torch is imported
    sys.path.insert(0, str(tree))
    import torch

    import rnnext

    sys.path.remove(str(tree))
    found = Path(rnnext.__file__).resolve().parents[1]
    if found != tree:
        raise RuntimeError(f"rnnext was imported from {found}: is {tree} built?")
    torch.set_num_threads(count)


def _isas() -> set[str]:
    from rnnext import _C

    return set(_C.build_info()["isas_supported"])


def worker_of(tree: Path, threads: int = 0) -> Worker:
    """In a process of its own, which ends with it. BrokenProcessPool: it died, or cannot import."""
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, spawn, _import_rnnext, (tree, threads))
    return lambda function, *arguments: pool.submit(function, *arguments).result()


def compare_bits(trees: list[Path], patterns: Sequence[str]) -> bool:
    """Print each sample that differs, and by how much; True if none does."""
    wrong, runs, pair = 0, 0, [worker_of(tree) for tree in trees]
    samples = pair[0](build_samples.all_cases, patterns)
    isas = [worker(_isas) for worker in pair]
    print(f"in one build only: {sorted(isas[0] ^ isas[1]) or 'none'}")
    for isa, threads in itertools.product(sorted(isas[0] & isas[1]), THREADS):
        start, before = time.monotonic(), wrong
        for sample in samples:
            # One after the other: threads that wait for each other spin on the same cores.
            if problem := _difference(pair, sample, isa, threads):
                print(f"{build_samples.name(sample)}, {isa}, {threads} thread(s): {problem}")
                wrong += 1
        runs += len(samples)
        print(f"{isa}, {threads} thread(s): {wrong - before} of {len(samples)} differ, "
              f"{time.monotonic() - start:.0f} s", flush=True)  # fmt: skip
    print(f"{runs - wrong} of {runs} runs equal to the bit")
    return not wrong


def _difference(pair: list[Worker], sample: Any, isa: str, threads: int) -> str:
    """How results differ, empty if they do not; a sample that fails counts as different."""
    try:
        a, b = (worker(build_samples.hashes, sample, isa, threads) for worker in pair)
    except BrokenProcessPool:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if a == b:
        return ""
    x, y = (worker(build_samples.results, sample, isa, threads) for worker in pair)
    words = []
    for i, (one, other) in enumerate(zip(x, y, strict=True)):
        if a[i] == b[i]:
            continue
        apart = ""
        if one is not None and other is not None and one.shape == other.shape:
            most = (one.double() - other.double()).abs().max()
            apart = f" by {most / one.double().abs().max():.1e} of the largest value"
        words.append(f"result {i} differs{apart}")
    return ", ".join(words)


def compare_times(trees: list[Path], patterns: Sequence[str]) -> bool:
    """Print each case's ratio and their mean; True if neither a row nor the mean is slower.

    A row that seems slower is timed again in new processes, and the quieter result counts: where
    memory happens to lie differs from process to process, and may cost more than the change.
    """
    chosen = cases.select(cases.CASES, patterns)
    found = _time(trees, chosen)
    again = [case for case in chosen if case.name in found and found[case.name][0] > SLOWER]
    for name, row in _time(trees, again).items():
        found[name] = min(found[name], row, key=lambda row: row[1])
    mean = statistics.geometric_mean(middle for _, middle, _ in found.values())
    slow = [name for name, (low, _, _) in found.items() if low > SLOWER]
    print("\n".join(f"slower: {name}, {found[name][1]:.3f}" for name in slow))
    print(f"geometric mean of {len(found)} rows, B over A: {mean:.4f} (at most {MEAN_SLOWER}); "
          f"{len(slow)} rows slower by more than {SLOWER - 1:.0%} beyond their spread")  # fmt: skip
    return not slow and mean <= MEAN_SLOWER


def _time(trees: list[Path], chosen: Sequence[Case]) -> dict[str, tuple[float, float, float]]:
    """The quartiles of B's time over A's, by case."""
    found = {}
    # One pair of processes a thread setting, since a runtime fixes its pool when it starts.
    for threads in sorted({case.threads for case in chosen}):
        a, b = (worker_of(tree, threads) for tree in trees)
        for case in (case for case in chosen if case.threads == threads):
            try:
                seconds, ratios = _take_turns(case, a, b)
            except AttributeError as error:
                print(f"{case.name}: not in both builds: {error}", flush=True)
                continue
            low, middle, high = found[case.name] = ratios.quartiles
            print(f"{case.name:55} {seconds * 1e6:11.1f} us  B/A {middle:.3f} ({low:.3f} to "
                  f"{high:.3f} in {len(ratios.samples)} rounds)", flush=True)  # fmt: skip
    return found


def _take_turns(case: Case, a: Worker, b: Worker) -> tuple[float, measure.Timing]:
    """A's seconds, and B's over A's in rounds of A B B A, where a steady drift cancels out."""
    once = min(worker(prepare, case) for worker in (a, b))
    calls = max(1, round(EFFORT.sample_seconds / once))
    fit = int(EFFORT.seconds / (2 * once * calls))
    rounds = spare = min(max(fit, EFFORT.min_rounds), EFFORT.max_rounds)
    seconds, ratios = measure.Timing(calls), measure.Timing(calls)
    while len(ratios.samples) < rounds:
        start, others = time.perf_counter(), measure.Bystanders()
        turns = [worker(sample, calls) for worker in (a, b, b, a)]
        ours = sum(cpu_seconds for _, cpu_seconds in turns)
        if others.cores(time.perf_counter() - start, ours) > measure.DISTURBED_CORES and spare:
            spare -= 1
            continue
        (a1, _), (b1, _), (b2, _), (a2, _) = turns
        ratios.samples.append((b1 + b2) / (a1 + a2))
        seconds.samples.append((a1 + a2) / 2)
    return seconds.median, ratios


# The rest runs in a worker: rnnext is its tree's, benchmarks this one's.
_prepared: Any = None


def prepare(case: Case) -> float:
    """Make the case ready in this worker; seconds of a call."""
    global _prepared
    import torch

    from benchmarks.rivals import ours
    from benchmarks.rivals.contract import Data

    torch.set_float32_matmul_precision(case.precision)
    _prepared = ours().prepare(case, Data(case), torch.get_num_threads())
    return min(sample(1)[0] for _ in range(3))


def sample(calls: int) -> tuple[float, float]:
    """Seconds a call of the case made ready, and the CPU seconds that this took altogether."""
    cpu = time.process_time()
    seconds = measure.sample(_prepared, calls, EFFORT.warm_seconds)
    return seconds, time.process_time() - cpu


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 equal, or no slower; 1 not; 2 wrong usage, or a worker died."""
    parser = argparse.ArgumentParser(prog="python -m tools.compare_builds", description=__doc__)
    parser.add_argument("command", choices=("bits", "time"), help="results to the bit, or times")
    parser.add_argument("a", type=Path, metavar="A", help="the tree to compare with")
    parser.add_argument("b", type=Path, metavar="B", help="the tree in question")
    parser.add_argument("patterns", nargs="*", help="of samples, or of the benchmark's cases")
    options = parser.parse_args(arguments)
    compare = compare_bits if options.command == "bits" else compare_times
    trees = [options.a.resolve(), options.b.resolve()]
    try:
        return 0 if compare(trees, options.patterns) else 1
    except (ValueError, RuntimeError) as error:
        print(f"compare_builds: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
