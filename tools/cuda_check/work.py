"""`python -m tools.cuda_check.work STAGE OUT`: the cases of a stage, each in a process of its own.

A case's name is printed before it runs, and its figures are kept as they come: what was kept before
is not run again. On the CPU, a rehearsal, every case runs small.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rnnext
from benchmarks import measure, rivals
from benchmarks.cases import MODES, Case
from benchmarks.names import OURS, TORCH
from benchmarks.rivals.contract import Data, compare
from helpers.device import Captured, device_paths, new_stream

from . import records
from .isolate import isolated

Cases = Iterator[tuple[str, Callable[[], dict[str, Any]]]]

CUDA = os.environ.get("RNNEXT_CHECK_DEVICE", "cuda") == "cuda"
DEVICE = "cuda" if CUDA else "cpu"
LIMIT = 60.0  # seconds for a case
LENGTHS = (128, 1024) if CUDA else (4, 12)  # what a step takes is the slope between them
TYPES = ("bfloat16", "float32")
synchronize: Callable[[], None] = torch.cuda.synchronize if CUDA else measure.nothing


def passes(
    path: str, dtype: str, sizes: tuple[int, int, int], layer: Any = rnnext.RNN, to: Any = DEVICE
) -> Callable[[], list[Tensor]]:
    """A forward and backward pass on a path: the output and all gradients. Values are of the dtype,
    and then go to a device or another dtype."""
    os.environ["RNNEXT_CUDA_PATH"] = path
    T, B, H = sizes
    torch.manual_seed(0)
    rnn = layer(16, H).to(getattr(torch, dtype)).to(to)
    x = torch.randn(T, B, 16).to(getattr(torch, dtype)).to(to).requires_grad_()
    leaves = [x, *rnn.parameters()]

    def call() -> list[Tensor]:
        output, _ = rnn(x)
        return [output.detach(), *torch.autograd.grad(output, leaves, torch.ones_like(output))]

    return call


SMALL = {"block": (40, 5, 96), "step": (12, 3, 64)}  # T, B, H; of the others:
SHARED = (40, 3, 200)


def small(path: str, dtype: str) -> Callable[[], list[Tensor]]:
    return passes(path, dtype, SMALL.get(path, SHARED))


def smoke() -> Cases:
    """Each path against the plain computation in float64 on the CPU."""
    for path, dtype in itertools.product(device_paths(), TYPES):
        yield f"{path}, {dtype}", partial(agree, path, dtype)


def agree(path: str, dtype: str) -> dict[str, Any]:
    found = small(path, dtype)()
    wanted = passes(path, dtype, SMALL.get(path, SHARED), torch.nn.RNN, torch.float64)()
    errors = [
        (a.cpu().double() - b).abs().max() / b.abs().max()
        for a, b in zip(found, wanted, strict=True)
    ]
    worst = torch.stack(errors).max().item()  # NaN, if one of them is
    if not worst < (0.1 if dtype == "bfloat16" else 1e-4):
        raise ValueError(f"off by {worst:.1e} of the largest value")
    return {"off by": worst}


def bench() -> Cases:
    """rnnext beside torch.nn, which runs on cuDNN there; what matters most first."""
    hidden, batches = ((256, 1024, 512, 2048, 64), (1, 8, 64)) if CUDA else ((32,), (2,))
    cases = []
    for dtype, mode in itertools.product(TYPES, MODES):
        place: dict[str, Any] = {"dtype": dtype, "device": DEVICE}
        for H, B, T in itertools.product(hidden, batches, LENGTHS):
            cases.append(Case("rnn", mode, T, B, H, H, **place))
        for option in ("bidirectional", "packed"):
            H, flags = hidden[-1], {option: True}
            cases.append(Case("rnn", mode, LENGTHS[0], 16, H, H, **(place | flags)))
    for V, D, N in ((50_000, 256, 8192), (250_000, 512, 262_144)) if CUDA else ((100, 8, 50),):
        for mode, indices in itertools.product(("infer", "backward"), ("uniform", "repeated")):
            cases.append(Case("embedding", mode, V=V, D=D, N=N, indices=indices, device=DEVICE))
    for case in cases:
        yield case.name, partial(beside_torch, case)


def beside_torch(case: Case) -> dict[str, Any]:
    torch.backends.cudnn.rnn.fp32_precision = "ieee"  # type: ignore[attr-defined]  # not TF32
    data = Data(case)
    ready = {r.name: r.prepare(case, data, 1) for r in (rivals.ours(), rivals.theirs())}
    compare(case, ready[TORCH].result(), ready[OURS].result())
    timings = measure.interleave(ready, measure.CUDA, synchronize)
    return {"us": {name: timing.median * 1e6 for name, timing in timings.items()}}


def paths() -> Cases:
    """The time of a step as rnnext chooses, and on every path that can be forced."""
    sizes = ((1024, 1), (256, 1), (1024, 8), (256, 8), (512, 32), (2048, 1)) if CUDA else ((40, 2),)
    for (H, B), dtype, path in itertools.product(sizes, TYPES, ["", *device_paths()]):
        yield f"{dtype} H={H} B={B}: {path or 'chosen'}", partial(step_of, dtype, H, B, path)


def step_of(dtype: str, H: int, B: int, path: str) -> dict[str, Any]:
    os.environ["RNNEXT_CUDA_PATH"] = path
    torch.manual_seed(0)
    rnn = rnnext.RNN(H, H).to(DEVICE, getattr(torch, dtype))
    seconds = []
    for T in LENGTHS:
        x = torch.randn(T, B, H).to(DEVICE, getattr(torch, dtype))
        with torch.no_grad():
            try:
                rnn(x)
            except ValueError as error:  # too large for the path
                return {"unfit": str(error)}
            call = measure.Contender(partial(rnn, x))
            seconds.append(min(measure.sample(call, 1, 0.01, synchronize) for _ in range(5)))
    return {"us": (seconds[1] - seconds[0]) / (LENGTHS[1] - LENGTHS[0]) * 1e6}


def stress() -> Cases:
    """The same bits again and again on a busy GPU; two grids that each fill the card at once."""
    if not CUDA:  # or each case's process would import what replays() needs, for a second
        import torch._inductor.config  # noqa: F401
    for path, dtype in itertools.product(device_paths(), TYPES):
        yield f"replays of {path}, {dtype}", partial(replays, path, dtype)
    if "grid" in device_paths():
        yield "two grids at once", two_at_once


def replays(path: str, dtype: str) -> dict[str, Any]:
    """Replays a CUDA graph beside products on another stream. New memory holds NaN, which shows
    what a kernel leaves out."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = True
    captured = Captured(small(path, dtype))
    captured.replay()
    first = [result.clone() for result in captured.results]
    if not all(bool(result.isfinite().all()) for result in first):
        raise ValueError("a result was not written, or is not finite")
    noise, side = torch.randn(2048 if CUDA else 64, 2048 if CUDA else 64).to(DEVICE), new_stream()
    wrong, count, end = 0, 0, time.monotonic() + (2.0 if CUDA else 0.1)
    while time.monotonic() < end:
        with side:
            noise @ noise
        captured.replay()
        count += 1
        wrong += not all(map(torch.equal, captured.results, first))
    if wrong:
        raise ValueError(f"other bits in {wrong} of {count} replays")
    return {"replays": count}


def two_at_once() -> dict[str, Any]:
    """Streams differ in priority: two grids that are resident in part would wait for ever."""
    call = passes("grid", "float32", (200, 4, 1024) if CUDA else SHARED)
    wanted, found = call(), []
    synchronize()
    for n in range(40 if CUDA else 2):
        with torch.cuda.stream(torch.cuda.Stream(priority=-(n % 2)) if CUDA else None):
            found.append(call())
    synchronize()
    wrong = sum(not all(map(torch.equal, wanted, results)) for results in found)
    if wrong:
        raise ValueError(f"other bits in {wrong} of {len(found)} calls")
    return {"calls": len(found)}


STAGES = {"smoke": smoke, "bench": bench, "paths": paths, "stress": stress}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--budget", type=float, default=600, help="seconds")
    options = parser.parse_args()
    end, failed = time.monotonic() + options.budget, 0
    known = records.read(options.out, options.stage)
    cases = list(STAGES[options.stage]())
    for name, call in cases:
        if name in known and "error" not in known[name]:
            continue
        if time.monotonic() > end:
            print(f"no time from {name} on")
            return 1
        print(name, flush=True)
        error, figures = isolated(call, min(LIMIT, max(5.0, end - time.monotonic())))
        figures = {"error": error} if error else figures
        records.append(options.out, options.stage, name, **figures)
        print(f"  {figures}", flush=True)
        failed += bool(error)
    return int(failed > 0 or not cases)


if __name__ == "__main__":
    sys.exit(main())
