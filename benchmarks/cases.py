"""The named lists of benchmark cases, which the runner, the tables and the plots read."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Case:
    """One thing to time. RNN and cell cases use T, B, I, H; embedding cases use V, D, N.

    kind: "rnn" (a call over a sequence), "cell" (one step), "step" (one step of a stream: weights
        prepared once, each call goes on from the state of the last), "embedding", or "demo" (a
        whole training step of examples/train_text.py, with V pieces of text).
    cell: "rnn" (Elman's), "gru" or "lstm": of all kinds but embeddings and the demo.
    mode: "infer" (no autograd) or "train" (forward and the gradients of the input and of every
        parameter); for embeddings "infer" is the gather, "train" the gather and its gradient,
        "backward" the gradient alone.
    precision: torch's float32 matmul precision: "highest", "high" (TF32 on a GPU) or "medium".
    indices: "uniform" or "zipf" over the table, or "repeated": of 16 rows alone. sparse: coalesced
        sparse gradient, else dense.
    threads: 0 for every core, else that many.
    device: "cpu" or "cuda".
    tags: which table or figure the case belongs to.
    """

    kind: str
    mode: str
    T: int = 1
    B: int = 1
    I: int = 1  # noqa: E741 - the field's letter
    H: int = 1
    layers: int = 1
    bidirectional: bool = False
    packed: bool = False
    cell: str = "rnn"
    nonlinearity: str = "tanh"
    dtype: str = "float32"
    precision: str = "highest"
    V: int = 0
    D: int = 0
    N: int = 0
    indices: str = "uniform"
    sparse: bool = False
    threads: int = 0
    device: str = "cpu"
    tags: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """Unique, stable and readable: the key under which results are stored and compared."""
        if self.kind == "embedding":
            grad = "sparse" if self.sparse else "dense"
            what = {"infer": "gather", "train": grad, "backward": f"{grad}-backward"}[self.mode]
            parts = [f"embedding-V{self.V}-D{self.D}-N{self.N}", self.indices, what]
        else:
            steps = f"T{self.T}-" if self.kind in ("rnn", "demo") else ""
            parts = [f"{self.kind}-{steps}B{self.B}-I{self.I}-H{self.H}", self.mode]
            if self.cell != "rnn":
                parts[0] = f"{self.cell}-{parts[0].removeprefix('rnn-')}"
        parts += [f"{self.layers}layers"] if self.layers > 1 else []
        parts += ["bidirectional"] if self.bidirectional else []
        parts += ["packed"] if self.packed else []
        parts += [self.nonlinearity] if self.nonlinearity != "tanh" else []
        parts += [self.dtype] if self.dtype != "float32" else []
        parts += [self.precision] if self.precision != "highest" else []
        parts += [f"{self.threads}thread"] if self.threads else []
        parts += [self.device] if self.device != "cpu" else []
        return "-".join(parts)

    @property
    def gates(self) -> int:
        return {"rnn": 1, "gru": 3, "lstm": 4}[self.cell]

    @property
    def states(self) -> tuple[str, ...]:
        """The names of the last ones."""
        return ("h_n", "c_n") if self.cell == "lstm" else ("h_n",)

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def lengths(self) -> tuple[int, ...]:
        """Steps of each batch row: T, or, packed, from T down to T/4 in even strides."""
        if not self.packed or self.B == 1:
            return (self.T,) * self.B
        shortest = max(1, self.T // 4)
        return tuple(self.T - (self.T - shortest) * b // (self.B - 1) for b in range(self.B))


MODES = ("infer", "train")
GATED = ("gru", "lstm")
REPEATED_ROWS = 16

# T, B, I, H of models people run: language model, signals, pixel-by-pixel digits, and so on.
HEADLINE = (
    (35, 20, 200, 200), (100, 64, 3, 128), (784, 64, 1, 128), (256, 32, 256, 512),
    (128, 64, 1024, 1024), (100, 1, 64, 256), (100, 1, 256, 1024), (1000, 16, 16, 64),
    (100, 256, 64, 256),
)  # fmt: skip
SWEEP_H = tuple((64, 32, 64, h) for h in (16, 32, 64, 128, 256, 512, 1024, 2048))
SWEEP_B = (*((100, b, 64, 256) for b in (1, 2, 4, 8, 16, 32, 64, 128, 256)), (16, 4096, 64, 64))
SWEEP_T = tuple((t, 16, 16, 64) for t in (1, 3, 10, 30, 100, 300, 1000, 2000))
OPTIONS: tuple[dict[str, Any], ...] = (
    {"layers": 2}, {"bidirectional": True}, {"layers": 2, "bidirectional": True}, {"packed": True},
    {"packed": True, "bidirectional": True}, {"nonlinearity": "relu"},
)  # fmt: skip
PRECISIONS: tuple[dict[str, Any], ...] = (
    {"dtype": "float64"}, {"dtype": "bfloat16"}, {"precision": "medium"},
)  # fmt: skip
ONE_THREAD = ((35, 20, 200, 200), (100, 64, 3, 128), (256, 32, 256, 512), (100, 1, 64, 256))
LATENCY = (8, 64, 256, 1024)
TABLES = ((50_000, 256, 8192), (10_000, 64, 512), (250_000, 128, 32_768))
# The cases of `--quick`: one or two of every kind.
QUICK = (
    *(f"{cell}-{what}" for cell in GATED
      for what in ("T35-B20-*-infer", "T100-B32-*-train-packed", "step-B1-I256-*")),
    "rnn-T35-B20-*", "rnn-T100-B64-I64-H256-*", "rnn-T64-B32-I64-H512-*", "rnn-T100-B1-I64-H256-*",
    "rnn-T100-B32-*-train-packed", "rnn-T1-B1-*", "cell-B1-I256-*-infer", "step-B1-I256-*",
    "embedding-V50000-*-uniform-*", "demo-*",
)  # fmt: skip


def _case(
    kind: str, shape: tuple[int, int, int, int], mode: str, *tags: str, **options: Any
) -> Case:
    return Case(kind, mode, *shape, tags=frozenset(tags), **options)


def _recurrent() -> Iterator[Case]:
    plain = {"headline": HEADLINE, "sweep-H": SWEEP_H, "sweep-B": SWEEP_B, "sweep-T": SWEEP_T}
    for mode in MODES:
        for tag, shapes in plain.items():
            yield from (_case("rnn", shape, mode, tag) for shape in shapes)
        for option in OPTIONS:
            yield _case("rnn", (100, 32, 64, 256), mode, "options", **option)
        for option in PRECISIONS:
            for shape in ((256, 32, 256, 512), (100, 64, 64, 256)):
                yield _case("rnn", shape, mode, "precision", **option)
        for shape in ONE_THREAD:
            yield _case("rnn", shape, mode, "one-thread", threads=1)
    for h in (64, 256):
        yield _case("rnn", (100, 1, h, h), "infer", "options", layers=2)
    for h in LATENCY:
        for kind in ("rnn", "cell", "step"):
            yield _case(kind, (1, 1, h, h), "infer", "latency")
    for h in (256, 512):
        yield _case("cell", (1, 16, h, h), "infer", "latency")
    for h in (256, 1024):
        for b in (1, 16):
            yield _case("cell", (1, b, h, h), "train", "latency")
    yield _case("step", (1, 16, 64, 256), "infer", "latency")


def _others() -> Iterator[Case]:
    for v, d, n in TABLES:
        for indices in ("uniform", "zipf"):
            for mode, sparse in (("infer", False), ("train", False), ("train", True)):
                yield Case("embedding", mode, V=v, D=d, N=n, indices=indices, sparse=sparse,
                           tags=frozenset({"embedding"}))  # fmt: skip
    yield Case("demo", "train", T=100, B=20, I=256, H=256, V=384, tags=frozenset({"demo"}))


def _merge(cases: Iterable[Case]) -> tuple[Case, ...]:
    """One case per name: a shape listed for two figures carries both tags and is timed once."""
    merged: dict[str, Case] = {}
    for case in cases:
        tags = case.tags | (merged[case.name].tags if case.name in merged else set())
        merged[case.name] = replace(case, tags=tags)
    return tuple(merged.values())


def _gated(cases: Iterable[Case]) -> Iterator[Case]:
    """The RNN's cases with the other cells, whose nonlinearities are fixed."""
    for cell in GATED:
        for case in (case for case in cases if case.nonlinearity == "tanh"):
            yield replace(case, cell=cell, tags=case.tags | {cell})


_ELMAN = _merge(_recurrent())
CASES = (*_ELMAN, *_gated(_ELMAN), *_others())


def select(among: Iterable[Case], patterns: Iterable[str] = ()) -> list[Case]:
    """Cases whose name or one of whose tags matches a shell pattern (all if none is given).

    ValueError when a pattern matches nothing.
    """
    cases, patterns = list(among), tuple(patterns)
    for pattern in patterns:
        if not any(_matches(case, pattern) for case in cases):
            raise ValueError(f"no case matches {pattern!r}; see `python -m benchmarks cases`")
    return [c for c in cases if not patterns or any(_matches(c, p) for p in patterns)]


def _matches(case: Case, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(word, pattern) for word in (case.name, *case.tags))
