"""The CUDA benchmark of `cuda_check`: cases, rivals, timing with device events, roofs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

OURS = "rnnext"
STEP = "rnnext, step path"
CUDNN = "nn.RNN"
COMPILED = "torch.compile"
DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A sequence (T, B, H; I = H) or an embedding (V, D, N); `train`: forward and backward."""

    kind: str
    dtype: str
    train: bool
    T: int = 0
    B: int = 0
    H: int = 0
    bidirectional: bool = False
    packed: bool = False
    V: int = 0
    D: int = 0
    N: int = 0
    repeated: bool = False  # the indices come from 16 rows of the table

    @property
    def name(self) -> str:
        if self.kind == "embedding":
            parts = [f"embedding-V{self.V}-D{self.D}-N{self.N}"] + ["repeated"] * self.repeated
        else:
            parts = [f"rnn-T{self.T}-B{self.B}-H{self.H}"]
            parts += ["bidirectional"] * self.bidirectional + ["packed"] * self.packed
        return "-".join([*parts, "train" if self.train else "infer", self.dtype])

    @property
    def compiled(self) -> bool:
        """Whether torch.compile takes part: a few cases, since it compiles for seconds each."""
        few = (self.dtype, self.B) in [("float32", 8), ("bfloat16", 8), ("float32", 2)]
        return few and self.H in (64, 256, 1024) and not (self.bidirectional or self.packed)

    @property
    def flops(self) -> float:
        """Multiplications and additions, both projections; three times as many to train."""
        directions = 1 + self.bidirectional
        return 4.0 * self.T * self.B * self.H**2 * directions * (3 if self.train else 1)

    @property
    def bytes_moved(self) -> float:
        """The fewest bytes: every input read once, every output written once."""
        size = DTYPES[self.dtype].itemsize
        if self.kind == "embedding":
            rows, table = self.N * self.D * size, self.V * self.D * size
            return table + rows if self.train else 2 * rows
        directions = 1 + self.bidirectional
        sequence = self.T * self.B * self.H * size
        weights = 2 * self.H**2 * directions * size
        passes = 3 if self.train else 1
        return passes * (sequence * (1 + directions) + weights)


@dataclasses.dataclass
class Row:
    """The seconds of one case by rival (median of the samples), or why a rival has none."""

    case: Case
    seconds: dict[str, float]
    spread: dict[str, float]  # (90th - 10th percentile) / median
    missing: dict[str, str]

    def speedup(self, rival: str) -> float | None:
        if OURS not in self.seconds or rival not in self.seconds:
            return None
        return self.seconds[rival] / self.seconds[OURS]


@dataclasses.dataclass
class Roof:
    """What the device can do: bytes/s of a large copy, FLOP/s of a large product by dtype."""

    bandwidth: float
    flops: dict[str, float]

    def share(self, row: Row) -> float | None:
        """The part of the roof that our time reaches: the larger of the two bounds over it."""
        if OURS not in row.seconds:
            return None
        floor = row.case.bytes_moved / self.bandwidth
        if row.case.kind == "rnn":
            floor = max(floor, row.case.flops / self.flops[row.case.dtype])
        return floor / row.seconds[OURS]


def all_cases(rehearsal: bool) -> list[Case]:
    """The grid of the report; a rehearsal takes a case of every kind, small."""
    T = 4 if rehearsal else 256
    sizes = [64] if rehearsal else [64, 128, 256, 512, 1024, 2048]
    batches = [2] if rehearsal else [1, 8, 32, 128]
    dtypes = ["float32", "bfloat16"] if rehearsal else list(DTYPES)
    cases = [
        Case("rnn", dtype, train, T, B, H)
        for dtype in dtypes
        for train in (False, True)
        for H in sizes
        for B in batches
    ]
    for H, B in [(40, 2)] if rehearsal else [(300, 20), (768, 16)]:
        for dtype in dtypes:
            for train in (False, True):
                cases.append(Case("rnn", dtype, train, T, B, H))
                cases.append(Case("rnn", dtype, train, T, B, H, bidirectional=True))
                cases.append(Case("rnn", dtype, train, T, B, H, packed=True))
    tables = [(100, 8, 50)] if rehearsal else [(50_000, 256, 8192), (250_000, 512, 262_144)]
    for V, D, N in tables:
        for dtype in ("float32", "bfloat16"):
            for train in (False, True):
                for repeated in (False, True):
                    kind = Case("embedding", dtype, train, V=V, D=D, N=N, repeated=repeated)
                    cases.append(kind)
    return cases


def time_calls(function: Callable[[], object], device: str, budget: float) -> list[float]:
    """Seconds a call, one sample for each batch of calls; device time, by events, on a GPU."""
    function()
    function()
    _wait(device)
    start = time.perf_counter()
    function()
    _wait(device)
    once = time.perf_counter() - start
    calls = max(1, int(budget / 12 / max(once, 1e-6)))
    samples = []
    for _ in range(9):
        if device == "cuda":
            begin, end = _event(), _event()
            begin.record()
            for _ in range(calls):
                function()
            end.record()
            end.synchronize()
            samples.append(begin.elapsed_time(end) / 1e3 / calls)
        else:
            start = time.perf_counter()
            for _ in range(calls):
                function()
            samples.append((time.perf_counter() - start) / calls)
    return samples


def _event() -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return event


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@contextlib.contextmanager
def matmul_precision(dtype: str) -> Iterator[None]:
    """TF32 for the cases called so, full float32 for the others."""
    allow = dtype == "tf32"
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allow
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextlib.contextmanager
def forced_path(path: str | None) -> Iterator[None]:
    before = os.environ.pop("RNNEXT_CUDA_PATH", None)
    if path is not None:
        os.environ["RNNEXT_CUDA_PATH"] = path
    try:
        yield
    finally:
        os.environ.pop("RNNEXT_CUDA_PATH", None)
        if before is not None:
            os.environ["RNNEXT_CUDA_PATH"] = before


def measure_roof(device: str) -> Roof:
    """Rates of a large copy and of a large product, measured with random data."""
    size = 2**28 if device == "cuda" else 2**22
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    seconds = min(time_calls(lambda: target.copy_(source), device, 0.2))
    flops = {}
    n = 8192 if device == "cuda" else 256
    for name, dtype in DTYPES.items():
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        with matmul_precision(name):
            flops[name] = 2 * n**3 / min(time_calls(functools.partial(torch.mm, a, b), device, 0.2))
    return Roof(2 * size / seconds, flops)


def run_case(case: Case, device: str) -> Row:
    """Time every rival that can run the case; each must agree with nn.RNN or F.embedding first."""
    rivals = (
        embedding_rivals(case, device) if case.kind == "embedding" else rnn_rivals(case, device)
    )
    row = Row(case, {}, {}, {})
    expected: Tensor | None = None
    with matmul_precision(case.dtype):
        for name, function in rivals.items():
            with forced_path("step" if name == STEP else None):
                try:
                    result = function().double()
                    if expected is not None:
                        check(name, result, expected, case)
                    expected = result if expected is None else expected
                    samples = sorted(time_calls(function, device, 0.05 if case.train else 0.03))
                except (RuntimeError, ValueError, NotImplementedError) as error:
                    row.missing[name] = str(error).split("\n")[0][:200]
                    continue
            median = statistics.median(samples)
            row.seconds[name] = median
            row.spread[name] = (samples[-1] - samples[0]) / median
    return row


def check(name: str, actual: Tensor, expected: Tensor, case: Case) -> None:
    """Rivals round in different orders over T steps: gross errors alone count here."""
    error = ((actual - expected).norm() / expected.norm().clamp(min=1e-30)).item()
    limit = 1e-3 if case.dtype == "float32" else 0.1
    if not error <= limit:
        raise RuntimeError(f"{name} differs from {CUDNN}: relative error {error:.1e}")


def rnn_rivals(case: Case, device: str) -> dict[str, Callable[[], Tensor]]:
    import rnnext

    torch.manual_seed(0)
    options: dict[str, Any] = {"bidirectional": case.bidirectional, "device": device}
    theirs = nn.RNN(case.H, case.H, dtype=DTYPES[case.dtype], **options)
    ours = rnnext.RNN(case.H, case.H, dtype=DTYPES[case.dtype], **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(case.T, case.B, case.H, device=device).to(DTYPES[case.dtype])
    x.requires_grad_(case.train)
    packed = None
    if case.packed:
        lengths = torch.linspace(case.T, case.T // 2, case.B).long()
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths)

    def of(module: Callable[[Any], Any]) -> Callable[[], Tensor]:
        def call() -> Tensor:
            output = module(x if packed is None else packed)[0]
            values: Tensor = output if packed is None else output.data
            if not case.train:
                return values
            parameters = [p for p in theirs_or_ours(module) if p.requires_grad]
            grads = torch.autograd.grad(values, [x, *parameters], values, retain_graph=True)
            return grads[1]

        def inference() -> Tensor:
            with torch.inference_mode():
                return call()

        return call if case.train else inference

    def theirs_or_ours(module: Any) -> list[Tensor]:
        return list((theirs if module is loop else module).parameters())

    weights = [p for name, p in theirs.named_parameters() if not name.endswith("_reverse")]

    def loop(x: Tensor) -> tuple[Tensor]:
        weight_ih, weight_hh, bias_ih, bias_hh = weights
        step, h, outputs = compiled_step(), x.new_zeros(case.B, case.H), []
        for pre in nn.functional.linear(x, weight_ih, bias_ih + bias_hh).unbind():
            h = step(pre, h, weight_hh)
            outputs.append(h)
        return (torch.stack(outputs),)

    rivals = {CUDNN: of(theirs), OURS: of(ours), STEP: of(ours)}
    if case.compiled:
        rivals[COMPILED] = of(loop)
    return rivals


@functools.cache
def compiled_step() -> Callable[..., Tensor]:
    """One step of a Python loop; unrolling hundreds of them would compile for minutes."""
    torch._dynamo.config.recompile_limit = 64

    def step(pre: Tensor, h: Tensor, weight: Tensor) -> Tensor:
        return torch.tanh(torch.addmm(pre, h, weight.t()))

    compiled: Callable[..., Tensor] = torch.compile(step, dynamic=True)
    return compiled


def embedding_rivals(case: Case, device: str) -> dict[str, Callable[[], Tensor]]:
    import rnnext

    torch.manual_seed(0)
    weight = torch.randn(case.V, case.D, device=device).to(DTYPES[case.dtype])
    indices = torch.randint(0, 16 if case.repeated else case.V, (case.N,), device=device)
    grad = torch.randn(case.N, case.D, device=device).to(DTYPES[case.dtype])
    if case.train:
        theirs, ours = torch.ops.aten.embedding_dense_backward, torch.ops.rnnext.embedding_backward
        return {
            CUDNN: lambda: theirs(grad, indices, case.V, -1, False),
            OURS: lambda: ours(grad, indices, case.V, -1, False),
        }
    return {
        CUDNN: lambda: nn.functional.embedding(indices, weight),
        OURS: lambda: rnnext.functional.embedding(indices, weight),
    }
