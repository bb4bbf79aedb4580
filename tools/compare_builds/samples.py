"""The samples whose results must be equal to the bit: described, made from a seed, and run."""

from __future__ import annotations

import fnmatch
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

Factors = dict[str, Sequence[Any]]

DTYPES = ("float32", "float64", "bfloat16", "float16", "medium")
SHAPES: Factors = {
    "T": (1, 2, 9, 33),
    "B": (1, 2, 3, 5, 13, 26),
    "I": (1, 5, 33, 64),
    "H": (1, 7, 8, 17, 64, 129, 200, 321),
}
RNN: Factors = {
    "rows": ("full", "lengths", "packed"),
    "hx": (False, True),
    "bias": (False, True),
    "nonlinearity": ("tanh", "relu"),
    "dtype": DTYPES,
}
# Drawn at random, so many of each kind that nearly all triples of values occur together.
GRID: dict[str, tuple[int, Factors]] = {
    "recurrence": (
        280,
        {
            **SHAPES,
            **RNN,
            "I": (0, *SHAPES["I"]),
            "source": ("features", "features", "ready", "table"),
            "reverse": ((False,), (True,), (False, True)),
            "layout": ("contiguous", "batch_first", "strided"),
            # Which outputs have a gradient, and which arguments want one.
            "seen": ("both", "both", "output", "h_n"),
            "wanted": ("all", "all", "input", "weight", "bias", "hx"),
        },
    ),
    "rnn": (
        90,
        {
            **SHAPES,
            **RNN,
            "layers": (1, 2, 3),
            "bidirectional": (False, False, True),
            "batch_first": (False, True),
            "train": (False, True),
        },
    ),
    "cell": (40, {k: v for k, v in (SHAPES | RNN).items() if k not in ("T", "rows")}),
    "stepper": (
        50,
        {k: v for k, v in (SHAPES | RNN).items() if k not in ("T", "rows")}
        | {"layers": (0, 1, 2, 3)},  # 0: of an RNNCell
    ),
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
    (3, 32, 64, 512),
    (2, 64, 256, 1024),
    (3, 1, 256, 1024),
    (3, 2, 64, 2048),
    (4, 20, 200, 200),
    (20, 64, 1, 128),
    (2, 600, 5, 17),
    (3, 256, 64, 256),
    (60, 16, 16, 64),
    (100, 1, 64, 256),
)


@dataclass(frozen=True)
class Sample:
    kind: str
    seed: int
    factors: dict[str, Any]

    @property
    def name(self) -> str:
        words = (f"{k}={str(v).replace(' ', '')}" for k, v in self.factors.items())
        return f"{self.kind}-{'-'.join(words)}-seed={self.seed}"

    def run(self, isa: str, threads: int) -> dict[str, str]:
        """What each result hashes to: forward, gradients, second derivatives, by name."""
        from rnnext import _C

        _C.set_cpu_isa(isa)
        torch.set_num_threads(threads)
        factors = dict(self.factors)
        medium = factors["dtype"] == "medium"
        factors["dtype"] = torch.float32 if medium else getattr(torch, factors["dtype"])
        torch.set_float32_matmul_precision("medium" if medium else "highest")
        results = RUN[self.kind](Maker(self.seed, factors["dtype"]), **factors)
        return {name: _hash(value) for name, value in results.items()}


def all_samples(patterns: Sequence[str] = ()) -> list[Sample]:
    """Those whose name matches a shell pattern, all if none is given."""
    patterns = patterns or ("*",)
    samples = [s for s in _all() if any(fnmatch.fnmatchcase(s.name, p) for p in patterns)]
    if not samples:
        raise ValueError(f"no sample matches {' '.join(patterns)}")
    return samples


def _all() -> Iterator[Sample]:
    for kind, (count, factors) in GRID.items():
        for seed in range(count):
            draw = random.Random(f"{kind} {seed}")
            yield Sample(kind, seed, {n: draw.choice(of) for n, of in factors.items()})
    fixed = {"hx": True, "bias": True, "nonlinearity": "tanh", "source": "features"}
    fixed |= {"layout": "contiguous", "seen": "both", "wanted": "all"}
    for seed, shape in enumerate(LARGE):
        for dtype in DTYPES:
            for rows, reverse in (("full", (False,)), ("lengths", (False, True))):
                sizes = dict(zip("TBIH", shape, strict=True))
                rest: dict[str, Any] = {"dtype": dtype, "rows": rows, "reverse": reverse}
                yield Sample("recurrence", 1000 + seed, sizes | fixed | rest)


def _hash(value: Tensor | None) -> str:
    if value is None:
        return "none"
    values = torch.empty(value.numel(), dtype=value.dtype).copy_(value.detach().reshape(-1))
    words = f"{value.dtype} {tuple(value.shape)} ".encode()
    return hashlib.sha256(words + values.view(torch.uint8).numpy().tobytes()).hexdigest()


class Maker:
    """Random tensors of one dtype from a seed."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.draw = random.Random(seed)
        self.dtype = dtype

    def __call__(self, *shape: int, bound: float = 1.0) -> Tensor:
        values = torch.rand(shape, dtype=torch.float64, generator=self.generator)
        return ((values * 2 - 1) * bound).to(self.dtype)

    def like(self, tensor: Tensor) -> Tensor:
        return self(*tensor.shape).requires_grad_()

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator)

    def fill(self, module: torch.nn.Module, bound: float) -> None:
        for parameter in module.parameters():
            parameter.data.copy_(self(*parameter.shape, bound=bound))


Results = dict[str, Tensor | None]


def _derivatives(
    make: Maker, outputs: dict[str, Tensor], leaves: dict[str, Tensor], twice: bool = True
) -> Results:
    """The outputs, the leaves' gradients, and the gradients of those."""
    results: Results = dict(outputs)
    values = [value for value in outputs.values() if value.requires_grad]
    if not values:
        return results
    cotangents = [make.like(value) for value in values]
    grads = torch.autograd.grad(
        values, list(leaves.values()), cotangents, create_graph=twice, allow_unused=True
    )
    results |= {f"grad {name}": grad for name, grad in zip(leaves, grads, strict=True)}
    curved = [grad for grad in grads if grad is not None and grad.requires_grad]
    if not curved:
        return results
    inputs = leaves | {f"cotangent {n}": value for n, value in enumerate(cotangents)}
    second = torch.autograd.grad(
        curved, list(inputs.values()), [make.like(grad) for grad in curved], allow_unused=True
    )
    return results | {f"second {name}": grad for name, grad in zip(inputs, second, strict=True)}


def _lengths(make: Maker, T: int, B: int, least: int) -> list[int]:
    """Of B sequences, none of fewer steps than `least`, one of all."""
    return [T, *(make.draw.randint(least, T) for _ in range(B - 1))]


def run_recurrence(
    make: Maker, T: int, B: int, I: int, H: int, rows: str, hx: bool, bias: bool,  # noqa: E741
    nonlinearity: str, dtype: torch.dtype, source: str, reverse: tuple[bool, ...], layout: str,
    seen: str, wanted: str,
) -> Results:  # fmt: skip
    """The op: arguments go by name, whose order and whose name of the state differ over builds."""
    D, scale = len(reverse), H**-0.5
    width = I if source == "features" else D * H
    lengths = batch_sizes = index = None
    shape: tuple[int, ...] = (T, B)
    if rows == "lengths":
        lengths = torch.tensor(_lengths(make, T, B, 0))
    elif rows == "packed":
        steps = _lengths(make, T, B, 1)
        batch_sizes = torch.tensor([sum(n > t for n in steps) for t in range(T)])
        shape = (sum(steps),)
    if source == "table":
        index, shape = make.integers(9, *shape), (9,)
    if layout == "batch_first" and len(shape) == 2:
        input = make(B, T, width).transpose(0, 1)
    elif layout == "strided":
        input = make(*shape, 2 * width)[..., ::2]
    else:
        input = make(*shape, width)
    weight_ih = [make(H, I, bound=scale) for _ in reverse] if source == "features" else []
    weight_hh = [make(H, H, bound=scale) for _ in reverse]
    if layout == "strided":
        weight_hh = [w.t() for w in weight_hh]
    bias_ih, bias_hh = ([make(H, bound=scale) for _ in reverse if bias] for _ in range(2))
    state = make(D, B, H) if hx else None
    arguments: dict[str, Any] = {
        "input": input,
        "index": index,
        "weight_ih": weight_ih,
        "weight_hh": weight_hh,
        "bias_ih": bias_ih,
        "bias_hh": bias_hh,
        "h0": state,
        "hx": state,
        "lengths": lengths,
        "batch_sizes": batch_sizes,
        "nonlinearity": nonlinearity,
        "reverse": list(reverse),
        "reset": None,
        "reset_state": None,
        "alpha": [],
        "form": "rate",
        "save": False,
    }
    leaves = {"input": input} | ({"hx": state} if state is not None else {})
    for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        leaves |= {f"{kind} {d}": weight for d, weight in enumerate(arguments[kind])}
    leaves = {n: v for n, v in leaves.items() if wanted == "all" or n.startswith(wanted)}
    for leaf in leaves.values():
        leaf.requires_grad_()
    op = torch.ops.rnnext.recurrence.default
    names = [
        a.name for a in op._schema.arguments if a.name in arguments or not a.has_default_value()
    ]
    output, h_n, *_ = op(**{name: arguments[name] for name in names})
    outputs = {
        name: value if seen in ("both", name) else value.detach()
        for name, value in (("output", output), ("h_n", h_n))
    }
    return _derivatives(make, outputs, leaves)


def run_rnn(
    make: Maker, T: int, B: int, I: int, H: int, rows: str, hx: bool, bias: bool,  # noqa: E741
    nonlinearity: str, dtype: torch.dtype, layers: int, bidirectional: bool, batch_first: bool,
    train: bool,
) -> Results:  # fmt: skip
    """The module; without gradients several layers of one direction are one call of the kernels."""
    import rnnext

    rnn = rnnext.RNN(
        I, H, layers, nonlinearity, bias, batch_first, bidirectional=bidirectional, dtype=dtype
    )
    make.fill(rnn, H**-0.5)
    rnn.requires_grad_(train)
    leaf = make(*((B, T, I) if batch_first else (T, B, I)))
    x: Any = leaf.requires_grad_(train)
    lengths = None
    if rows == "lengths":
        lengths = torch.tensor(_lengths(make, T, B, 0))
    elif rows == "packed":
        steps = torch.tensor(_lengths(make, T, B, 1))
        x = pack_padded_sequence(x, steps, batch_first=batch_first, enforce_sorted=False)
    state = make(layers * (1 + bidirectional), B, H).requires_grad_(train) if hx else None
    with torch.set_grad_enabled(train):
        output, h_n = rnn(x, state, lengths)
    values = output.data if isinstance(output, PackedSequence) else output
    leaves = {"input": leaf, **dict(rnn.named_parameters())}
    leaves |= {"hx": state} if state is not None else {}
    return _derivatives(make, {"output": values, "h_n": h_n}, leaves)


def run_cell(
    make: Maker, B: int, I: int, H: int, hx: bool, bias: bool, nonlinearity: str,  # noqa: E741
    dtype: torch.dtype,
) -> Results:  # fmt: skip
    import rnnext

    cell = rnnext.RNNCell(I, H, bias, nonlinearity, dtype=dtype)
    make.fill(cell, H**-0.5)
    x, state = make(B, I), make(B, H) if hx else None
    with torch.no_grad():
        quiet = cell(x, state)
    leaves = {"input": x, **dict(cell.named_parameters())}
    leaves |= {"hx": state} if state is not None else {}
    for leaf in leaves.values():
        leaf.requires_grad_()
    found = _derivatives(make, {"output": cell(x, state)}, leaves)
    return found | {"output without gradients": quiet}


def run_stepper(
    make: Maker, B: int, I: int, H: int, hx: bool, bias: bool, nonlinearity: str,  # noqa: E741
    dtype: torch.dtype, layers: int,
) -> Results:  # fmt: skip
    import rnnext

    module: rnnext.RNN | rnnext.RNNCell
    if layers:
        module = rnnext.RNN(I, H, layers, nonlinearity, bias, dtype=dtype)
    else:
        module = rnnext.RNNCell(I, H, bias, nonlinearity, dtype=dtype)
    make.fill(module, H**-0.5)
    stepper = rnnext.Stepper(module, B)
    if hx:
        stepper.set_state(make(max(layers, 1), B, H))
    found: Results = {f"step {n}": stepper(make(B, I)) for n in range(3)}
    return found | {"state": stepper.get_state()}


def run_embedding(
    make: Maker, V: int, E: int, indices: tuple[int, ...], index_dtype: str, dtype: torch.dtype,
    strided: bool, padding_idx: int | None, scale: bool, sparse: bool,
) -> Results:  # fmt: skip
    import rnnext

    table = make(E, V).t() if strided else make(V, E)
    module = rnnext.Embedding(
        V, E, padding_idx, scale_grad_by_freq=scale, sparse=sparse, _weight=table
    )
    chosen = make.integers(V, *indices).to(getattr(torch, index_dtype))
    found = _derivatives(make, {"output": module(chosen)}, {"weight": module.weight}, not sparse)
    grad = found["grad weight"]
    if grad is not None and grad.layout == torch.sparse_coo:
        found |= {"grad rows": grad._indices(), "grad weight": grad._values()}
    return found


RUN: dict[str, Callable[..., Results]] = {
    "recurrence": run_recurrence,
    "rnn": run_rnn,
    "cell": run_cell,
    "stepper": run_stepper,
    "embedding": run_embedding,
}
