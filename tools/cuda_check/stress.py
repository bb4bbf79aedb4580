"""`python -m tools.cuda_check.stress`: the same bits again and again, while the GPU is busy.

Every path is captured in a CUDA graph, forward and backward, and replayed beside matrix products
and copies on other streams. New memory is filled with NaN inside the graph, so what a kernel leaves
out shows. Then two host threads call shapes of their own.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import records

if TYPE_CHECKING:
    from torch import Tensor

REPEATS = 10_000
# T, B, H by path: small enough for thousands of replays, large enough for several blocks.
SHAPES = {"block": (40, 5, 96), "cluster": (40, 3, 200), "grid": (40, 3, 200), "step": (12, 3, 64)}


def make_call(device: str, path: str, dtype: Any, seed: int) -> Callable[[], list[Tensor]]:
    """A forward and backward pass of this path: its results and all gradients."""
    import torch

    import rnnext

    T, B, H = SHAPES[path.partition(" ")[0]]
    torch.manual_seed(seed)
    rnn = rnnext.RNN(16, H, device=device, dtype=dtype)
    x = torch.randn(T, B, 16, device=device, dtype=dtype, requires_grad=True)
    leaves = [x, *rnn.parameters()]

    def call() -> list[Tensor]:
        output, h_n = rnn(x)
        gradients = torch.autograd.grad([output, h_n], leaves, [output, h_n])
        return [output, h_n, *gradients]

    return call


class Noise:
    """Matrix products and copies on two streams, given out ahead of the work beside them."""

    def __init__(self, device: str) -> None:
        import torch

        self.cuda = device == "cuda"
        n = 2048 if self.cuda else 64
        self.a, self.b = (torch.randn(n, n, device=device) for _ in range(2))
        self.c, self.d = torch.empty_like(self.a), torch.empty_like(self.a)
        self.streams = [torch.cuda.Stream(), torch.cuda.Stream()] if self.cuda else []

    def add(self) -> None:
        import torch

        places: list[AbstractContextManager[Any]] = [nullcontext(), nullcontext()]
        if self.cuda:
            places = [torch.cuda.stream(stream) for stream in self.streams]
        with places[0]:
            torch.mm(self.a, self.b, out=self.c)
        with places[1]:
            self.d.copy_(self.b)


def poisoned(on: bool) -> None:
    """Whether torch fills new memory with NaN."""
    import torch

    torch.use_deterministic_algorithms(on, warn_only=True)
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = on


def replays(device: str, path: str, dtype: Any, seconds: float) -> dict[str, Any]:
    """Replay until the time or REPEATS is over; how often, and how often the bits differed."""
    import torch

    from helpers.device import Captured

    poisoned(True)
    try:
        captured = Captured(make_call(device, path, dtype, 0))
        captured.replay()
    finally:
        poisoned(False)
    first = [t.clone() for t in captured.results]
    unwritten = sum(not bool(torch.isfinite(t).all()) for t in first)
    noise, end = Noise(device), time.monotonic() + seconds
    differs = torch.zeros((), dtype=torch.int64, device=device)
    count = 0
    while count < REPEATS and time.monotonic() < end:
        for _ in range(50 if device == "cuda" else 2):
            if count % 8 == 0:
                noise.add()
            captured.replay()
            for a, b in zip(captured.results, first, strict=True):
                differs += (a != b).any()
            count += 1
        if device == "cuda":
            torch.cuda.current_stream().synchronize()
    return {"repeats": count, "wrong": int(differs), "unwritten": unwritten}


def two_threads(device: str, seconds: float) -> dict[str, Any]:
    """Two host threads, streams and shapes, one path each time; how often the bits differed."""
    import torch

    from helpers.device import new_stream, synchronize

    counts, errors = [0, 0], []
    calls = [make_call(device, path, torch.float32, 1) for path in ("block", "grid")]
    expected = [call() for call in calls]
    synchronize()
    end = time.monotonic() + seconds

    def work(i: int) -> None:
        with new_stream():
            while time.monotonic() < end or not counts[i]:
                if not all(map(torch.equal, calls[i](), expected[i])):
                    errors.append(i)
                counts[i] += 1

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"repeats": sum(counts), "wrong": len(errors), "unwritten": 0}


def report(out: Path) -> str:
    return records.table(
        records.read(out, "stress"),
        {
            "path": lambda r: r["path"],
            "type": lambda r: r["dtype"],
            "repeats": lambda r: r["repeats"],
            "other bits": lambda r: r["wrong"],
            "tensors not finite": lambda r: r["unwritten"],
        },
    )


def main() -> None:
    options = records.options(__doc__, 30)
    os.environ["RNNEXT_CHECK_DEVICE"] = options.device
    import torch

    from helpers.device import device_paths

    # Clusters and the grid by both exchanges.
    paths = device_paths()
    paths += [f"{path} tagged" for path in paths if path in ("cluster", "grid")]
    dtypes = ("bfloat16", "float32")
    share = options.budget / (len(paths) * len(dtypes) + 1)
    bad = 0
    for dtype in dtypes:
        for path in paths:
            words = path.partition(" ")
            os.environ["RNNEXT_CUDA_PATH"], os.environ["RNNEXT_CUDA_EXCHANGE"] = words[::2]
            found = replays(options.device, path, getattr(torch, dtype), share)
            record = records.append(options.out, "stress", path=path, dtype=dtype, **found)
            print(record, flush=True)
            bad += found["wrong"] + found["unwritten"]
    del os.environ["RNNEXT_CUDA_PATH"], os.environ["RNNEXT_CUDA_EXCHANGE"]
    found = two_threads(options.device, share)
    record = records.append(options.out, "stress", path="two threads", dtype="float32", **found)
    print(record, flush=True)
    if bad + found["wrong"]:
        sys.exit("results are not the same bits, or not all written")


if __name__ == "__main__":
    main()
