"""The contract of all rivals: the data they get, the results they give, and how far these agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..cases import REPEATED_ROWS, Case
from ..measure import Contender

# Embedding calls cycle through this many index sets, so that the rows of one call have left the
# caches when they are read again, as in training.
INDEX_SETS = 8
Arrays = dict[str, np.ndarray]


class Unsupported(Exception):
    """The rival cannot run this case; the message says why."""


@dataclass
class Prepared(Contender):
    """A contender and result(), which runs it once: named arrays, padded, in torch's layout.

    Names: "output", "h_n" and an LSTM's "c_n" for infer ("output" alone for one step, the second
    from zeros of a stream); "output" and "grad:<parameter>" for train, where the layer's
    input counts as parameter "input"; "rows" and "grad:weight" for a sparse gradient; "losses" of
    the first steps for the demo.
    holds: what must outlive the contender because a runtime keeps only its address.
    """

    result: Callable[[], Arrays] = field(kw_only=True)
    holds: tuple[Any, ...] = ()


def named(
    call: Callable[[], Any],
    names: Sequence[str],
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    convert: Callable[[str, Any], np.ndarray] = lambda name, value: array(value),
    restart: Callable[[], None] | None = None,
) -> Prepared:
    """A Prepared whose call gives the values of these names: for a stream, those of the second call
    after a restart."""

    def result() -> Arrays:
        with context():
            if restart:
                restart()
                call()
            values = flat(call())
        return {name: convert(name, v) for name, v in zip(names, values, strict=True)}

    return Prepared(call, context, result=result)


def flat(values: Any) -> list[Any]:
    """Tuples and lists laid open; a PackedSequence, which is a tuple too, stays whole."""
    if type(values) not in (tuple, list):
        return [values]
    return [leaf for value in values for leaf in flat(value)]


def layer_of(modules: Any, case: Case, **options: Any) -> Any:
    """The case's layer or cell of a package: its RNN, GRU, LSTM, RNNCell, ..."""
    name = case.cell.upper()
    if case.kind == "cell":
        return getattr(modules, f"{name}Cell")(case.I, case.H, **options)
    if name == "RNN":
        options["nonlinearity"] = case.nonlinearity
    layer = getattr(modules, name)
    return layer(case.I, case.H, case.layers, bidirectional=case.bidirectional, **options)


class Rival(Protocol):
    @property
    def name(self) -> str: ...

    def prepare(self, case: Case, data: Data, threads: int) -> Prepared: ...


@dataclass(frozen=True)
class Data:
    """The same inputs, weights and output gradients for every rival, from one seed."""

    case: Case
    seed: int = 0

    def _rng(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream])

    def _normal(self, stream: int, *shape: int) -> Tensor:
        values = self._rng(stream).standard_normal(shape, dtype=np.float32)
        return torch.from_numpy(values).to(**self.place)

    @property
    def place(self) -> dict[str, Any]:
        """The arguments device and dtype."""
        return {"device": self.case.device, "dtype": getattr(torch, self.case.dtype)}

    @cached_property
    def input(self) -> Tensor:
        """[T, B, I], zero beyond each row's length."""
        return self._normal(0, self.case.T, self.case.B, self.case.I) * self.mask

    @cached_property
    def grad_output(self) -> Tensor:
        """[T, B, directions * H], zero beyond each row's length; [N, D] for an embedding."""
        case = self.case
        if case.kind == "embedding":
            return self._normal(1, case.N, case.D)
        return self._normal(1, case.T, case.B, case.directions * case.H) * self.mask

    @cached_property
    def mask(self) -> Tensor:
        """[T, B, 1], one where t < length."""
        steps = torch.arange(self.case.T)[:, None]
        return (steps < torch.tensor(self.case.lengths))[..., None].to(**self.place)

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The state dict of torch.nn's module: float32 values, rounded to the dtype."""
        case = self.case
        if case.kind == "embedding":
            return {"weight": self._normal(2, case.V, case.D)}
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            module = layer_of(nn, case)
        return {name: value.to(**self.place) for name, value in module.state_dict().items()}

    @cached_property
    def indices(self) -> list[Tensor]:
        """INDEX_SETS of [N] int64; Zipf ranks (exponent 1) are dealt to random rows."""
        case, rng = self.case, self._rng(3)
        if case.indices == "uniform":
            draws = rng.integers(case.V, size=(INDEX_SETS, case.N))
        elif case.indices == "repeated":
            few = rng.permutation(case.V)[:REPEATED_ROWS]
            draws = few[rng.integers(len(few), size=(INDEX_SETS, case.N))]
        else:
            weight = 1 / np.arange(1, case.V + 1)
            ranks = rng.choice(case.V, size=(INDEX_SETS, case.N), p=weight / weight.sum())
            draws = rng.permutation(case.V)[ranks]
        return list(torch.from_numpy(draws.astype(np.int64)).to(case.device))

    @cached_property
    def tokens(self) -> Tensor:
        """[8 T + 1, B] int64: a text of eight windows."""
        case = self.case
        draws = self._rng(4).integers(case.V, size=(8 * case.T + 1, case.B))
        return torch.from_numpy(draws.astype(np.int64))


def array(values: Tensor) -> np.ndarray:
    """A copy as numpy; bfloat16, which numpy lacks, as float32."""
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy().copy()


# Largest difference allowed, relative to the largest value of the expected array: of a result, of a
# result and gradients. Rivals sum in different orders, on a GPU within one product too.
TOLERANCE = {
    ("float32", "cpu"): (1e-5, 1e-4),
    ("float64", "cpu"): (1e-12, 1e-11),
    ("bfloat16", "cpu"): (0.05, 0.1),
    ("float32", "cuda"): (1e-3, 1e-3),
    ("bfloat16", "cuda"): (0.1, 0.1),
    ("float16", "cuda"): (0.1, 0.1),
}


def compare(case: Case, expected: Arrays, actual: Arrays) -> float:
    """Largest difference, relative to the largest value of its array.

    ValueError, naming the array, where it passes the tolerance or shapes or names differ.
    """
    if case.mode != "infer" or "h_n" not in actual:
        expected = {name: values for name, values in expected.items() if name not in case.states}
    if expected.keys() != actual.keys():
        raise ValueError(f"results {sorted(actual)}, expected {sorted(expected)}")
    dtype = case.dtype if case.precision == "highest" else "bfloat16"
    allowed, worst = TOLERANCE[dtype, case.device][case.mode != "infer"], 0.0
    for name, values in expected.items():
        if values.shape != actual[name].shape:
            raise ValueError(f"{name} has shape {actual[name].shape}, expected {values.shape}")
        difference = float(np.abs(values - actual[name]).max())
        relative = difference / max(float(np.abs(values).max()), 1e-30)
        if not relative <= allowed:
            raise ValueError(f"{name} is off by {relative:.1e} of its largest value")
        worst = max(worst, relative)
    return worst


def stacked(data: Data, kind: str, layer: int, gates: Sequence[int]) -> np.ndarray:
    """Parameter `kind` of one layer, its gates in that order, its directions stacked: [D, ...]."""
    suffixes = ("", "_reverse")[: data.case.directions]
    values = [array(data.state[f"{kind}_l{layer}{suffix}"]) for suffix in suffixes]
    return np.stack([np.concatenate([np.split(v, len(gates))[g] for g in gates]) for v in values])


def sequences_only(case: Case, dtypes: tuple[str, ...]) -> None:
    if case.kind not in ("rnn", "step") or case.mode != "infer" or case.device != "cpu":
        raise Unsupported("inference over a sequence on the CPU only")
    if case.dtype not in dtypes or case.precision != "highest":
        raise Unsupported(f"no {case.dtype} at {case.precision} precision")
