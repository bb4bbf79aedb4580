"""What compare_builds compares to the bit: samples described, made from a seed, and run."""

from __future__ import annotations

import fnmatch
import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

Factors = dict[str, Sequence[Any]]
Results = dict[str, Tensor | None]

DTYPES = ("float32", "float64", "bfloat16", "float16", "medium")
ONE_STEP: Factors = {
    "B": (1, 2, 3, 5, 13, 26),
    "I": (1, 5, 33, 64),
    "H": (1, 7, 8, 17, 64, 129, 200, 321),
    "hx": (False, True),
    "bias": (False, True),
    "nonlinearity": ("tanh", "relu"),
    "dtype": DTYPES,
}
SEQUENCES: Factors = ONE_STEP | {
    "T": (1, 2, 9, 33),
    "rows": ("full", "lengths", "packed", "reset"),
    "form": (None, None, "rate", "voltage", "blend"),
    "tokens": (0, 0, 9),
    "layers": (1, 1, 2, 3),
    "bidirectional": (False, False, True),
    "batch_first": (False, True),
    "train": (False, True, True),
    "seen": ("both", "both", "output", "h_n"),
    "wanted": ("", "", "weight", "input", "hx"),
}
# Drawn at random, so many of each kind that nearly all pairs of values occur together.
KINDS: dict[str, tuple[int, Factors]] = {
    "rnn": (400, SEQUENCES),
    "cell": (40, ONE_STEP),
    "stepper": (50, ONE_STEP | {"layers": (0, 1, 2, 3)}),  # 0: of an RNNCell
    "embedding": (
        60,
        {
            "V": (1, 3, 1000),
            "E": (1, 7, 8, 17, 64, 129),
            "indices": ((), (0, 2), (40,), (5, 7), (700,)),
            "index_dtype": ("int64", "int32"),
            "dtype": DTYPES[:-1],
            "strided": (False, True),
            "padding_idx": (None, 0),
            "scale": (False, True),
            "sparse": (False, True),
        },
    ),
}
# T, B, I, H past the grid: every memory level's weights, many rows, few rows, long sequences.
LARGE = (
    (3, 32, 64, 512), (2, 64, 256, 1024), (3, 1, 256, 1024), (3, 2, 64, 2048), (4, 20, 200, 200),
    (20, 64, 1, 128), (2, 600, 5, 17), (3, 256, 64, 256), (60, 16, 16, 64), (100, 1, 64, 256),
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    kind: str
    seed: int
    factors: dict[str, Any]

    @property
    def name(self) -> str:
        words = (f"{k}={str(v).replace(' ', '')}" for k, v in self.factors.items())
        return f"{self.kind}-{'-'.join(words)}-seed={self.seed}"

    def results(self, isa: str, threads: int) -> Results:
        """Forward and gradients, by name."""
        from rnnext import _C

        _C.set_cpu_isa(isa)
        torch.set_num_threads(threads)
        medium = self.factors["dtype"] == "medium"
        torch.set_float32_matmul_precision("medium" if medium else "highest")
        make = Maker(self.seed, "float32" if medium else self.factors["dtype"])
        found = RUN[self.kind](make, **{k: v for k, v in self.factors.items() if k != "dtype"})
        return {name: value if value is None else value.detach() for name, value in found.items()}

    def run(self, isa: str, threads: int) -> dict[str, str]:
        """What each result hashes to."""
        return {name: _hash(value) for name, value in self.results(isa, threads).items()}


def all_samples(patterns: Sequence[str]) -> list[Sample]:
    """Those whose name matches a shell pattern, all if none is given."""
    samples = []
    for kind, (count, factors) in KINDS.items():
        for seed in range(count):
            draw = random.Random(f"{kind} {seed}")
            samples.append(Sample(kind, seed, {n: draw.choice(of) for n, of in factors.items()}))
    plain = {name: values[-1] for name, values in SEQUENCES.items()}
    plain |= {"form": None, "tokens": 0, "layers": 1, "seen": "both", "wanted": "", "bias": True}
    for seed, shape in enumerate(LARGE):
        for dtype in DTYPES:
            for rows, both in (("full", False), ("lengths", True)):
                own = {"dtype": dtype, "rows": rows, "bidirectional": both, "nonlinearity": "tanh"}
                sizes = dict(zip("TBIH", shape, strict=True))
                samples.append(Sample("rnn", 1000 + seed, plain | own | sizes))
    chosen = [s for s in samples if any(fnmatch.fnmatchcase(s.name, p) for p in patterns or "*")]
    if not chosen:
        raise ValueError(f"no sample matches {' '.join(patterns)}")
    return chosen


def _hash(value: Tensor | None) -> str:
    if value is None:
        return "none"
    values = torch.empty(value.numel(), dtype=value.dtype).copy_(value.detach().reshape(-1))
    words = f"{value.dtype} {tuple(value.shape)} ".encode()
    return hashlib.sha256(words + values.view(torch.uint8).numpy().tobytes()).hexdigest()


class Maker:
    """Random tensors of one dtype from a seed."""

    def __init__(self, seed: int, dtype: str) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype: torch.dtype = getattr(torch, dtype)

    def __call__(self, *shape: int, bound: float = 1.0) -> Tensor:
        values = torch.rand(shape, dtype=torch.float64, generator=self.generator)
        return ((values * 2 - 1) * bound).to(self.dtype)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator)

    def filled(self, module: nn.Module, H: int) -> Any:
        for parameter in module.parameters():
            parameter.data.copy_(self(*parameter.shape, bound=H**-0.5))
        return module


def _derivatives(make: Maker, outputs: Results, leaves: dict[str, Tensor]) -> Results:
    """The outputs and the leaves' gradients."""
    values = [value for value in outputs.values() if value is not None and value.requires_grad]
    if not values or not leaves:
        return outputs
    cotangents = [make(*value.shape) for value in values]
    grads = torch.autograd.grad(values, list(leaves.values()), cotangents, allow_unused=True)
    return outputs | {f"grad {n}": grad for n, grad in zip(leaves, grads, strict=True)}


def run_rnn(
    make: Maker, T: int, B: int, I: int, H: int, rows: str, hx: bool, bias: bool,  # noqa: E741
    nonlinearity: str, form: str | None, tokens: int, layers: int, bidirectional: bool,
    batch_first: bool, train: bool, seen: str, wanted: str,
) -> Results:  # fmt: skip
    """RNN, LeakyRNN where there is a form, EmbeddingRNN where there are tokens."""
    import rnnext

    sizes = (H, layers, nonlinearity, bias, batch_first, 0.0, bidirectional)
    if tokens:
        module: nn.Module = rnnext.EmbeddingRNN(tokens, I, *sizes, dtype=make.dtype)
    elif form:
        module = rnnext.LeakyRNN(I, *sizes, alpha=0.3, form=form, dtype=make.dtype)
    else:
        module = rnnext.RNN(I, *sizes, dtype=make.dtype)
    module = make.filled(module, H).requires_grad_(train)
    shape = (B, T) if batch_first else (T, B)
    leaf = make.integers(0, tokens, *shape) if tokens else make(*shape, I).requires_grad_(train)
    x, options = leaf, {}
    steps = make.integers(1, T + 1, B)
    if rows == "packed":
        x = pack_padded_sequence(leaf, steps, batch_first, enforce_sorted=False)  # type: ignore[assignment]
    elif rows == "lengths":
        options["lengths"] = steps - make.integers(0, 2, B)  # some have none
    elif rows == "reset":
        options["reset"] = make.integers(0, 4, *shape) == 0
    state = make(layers * (1 + bidirectional), B, H).requires_grad_(train) if hx else None
    with torch.set_grad_enabled(train):
        output, h_n = module(x, state, **options)
    values = output.data if isinstance(output, PackedSequence) else output
    outputs = {
        name: value if seen in ("both", name) else value.detach()
        for name, value in (("output", values), ("h_n", h_n))
    }
    leaves = dict(module.named_parameters()) | ({} if tokens else {"input": leaf})
    leaves |= {"hx": state} if state is not None else {}
    return _derivatives(make, outputs, {n: v for n, v in leaves.items() if wanted in n})


def run_cell(
    make: Maker, B: int, I: int, H: int, hx: bool, bias: bool, nonlinearity: str,  # noqa: E741
) -> Results:  # fmt: skip
    import rnnext

    cell = make.filled(rnnext.RNNCell(I, H, bias, nonlinearity, dtype=make.dtype), H)
    x, state = make(B, I), make(B, H) if hx else None
    with torch.no_grad():
        quiet = cell(x, state)
    leaves = dict(cell.named_parameters()) | {"input": x.requires_grad_()}
    leaves |= {"hx": state.requires_grad_()} if state is not None else {}
    found = _derivatives(make, {"output": cell(x, state)}, leaves)
    return found | {"output without gradients": quiet}


def run_stepper(
    make: Maker, B: int, I: int, H: int, hx: bool, bias: bool, nonlinearity: str,  # noqa: E741
    layers: int,
) -> Results:  # fmt: skip
    import rnnext

    if layers:
        module: nn.Module = rnnext.RNN(I, H, layers, nonlinearity, bias, dtype=make.dtype)
    else:
        module = rnnext.RNNCell(I, H, bias, nonlinearity, dtype=make.dtype)
    stepper = rnnext.Stepper(make.filled(module, H), B)
    if hx:
        stepper.set_state(make(max(layers, 1), B, H))
    found: Results = {f"step {n}": stepper(make(B, I)) for n in range(3)}
    return found | {"state": stepper.get_state()}


def run_embedding(
    make: Maker, V: int, E: int, indices: tuple[int, ...], index_dtype: str, strided: bool,
    padding_idx: int | None, scale: bool, sparse: bool,
) -> Results:  # fmt: skip
    import rnnext

    table = make(E, V).t() if strided else make(V, E)
    module = rnnext.Embedding(
        V, E, padding_idx, scale_grad_by_freq=scale, sparse=sparse, _weight=table
    )
    chosen = make.integers(0, V, *indices).to(getattr(torch, index_dtype))
    output: Results = {"output": module(chosen)}
    found = _derivatives(make, output, {"weight": module.weight})
    grad = found["grad weight"]
    if grad is not None and grad.layout == torch.sparse_coo:
        found |= {"grad rows": grad._indices(), "grad weight": grad._values()}
    return found


RUN: dict[str, Callable[..., Results]] = {
    "rnn": run_rnn,
    "cell": run_cell,
    "stepper": run_stepper,
    "embedding": run_embedding,
}
