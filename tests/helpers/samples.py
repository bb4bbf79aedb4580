"""The arguments of the recurrence's ops, by name, and samples of them made from a description."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

import reference
from helpers.common import assert_close
from rnnext import _C

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HALVES = (torch.float16, torch.bfloat16)
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
# How many gradients the backward op returns.
GRADIENTS = len(torch.ops.rnnext.recurrence_backward.default._schema.returns)
# The factors of the cases that several files of tests cross: arguments of `make`.
VARIANTS = {
    "source": ["features", "ready", "table"],
    "reverse": [(False,), (True,), (False, True)],
    "nonlinearity": _C.nonlinearities(),
    "bias": [True, False],
    "hx": [True, False],
    "layout": ["contiguous", "batch_first", "strided", "expanded"],
    "rows": ["full", "lengths", "packed"],
    "dtype": DTYPES,
    "index_dtype": [torch.int64, torch.int32],
    "cell": ["elman", *_C.forms(), *reference.GATES],
    "reset": [None, "zeros", "state"],
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Recurrence:
    """The arguments of ``torch.ops.rnnext.recurrence``, by the names of its schema."""

    input: Tensor
    hx: Tensor | None = None
    weight_ih: list[Tensor] = field(default_factory=list)
    weight_hh: list[Tensor]
    bias_ih: list[Tensor] = field(default_factory=list)
    bias_hh: list[Tensor] = field(default_factory=list)
    index: Tensor | None = None
    lengths: Tensor | None = None
    batch_sizes: Tensor | None = None
    reset: Tensor | None = None
    reset_state: Tensor | None = None
    alpha: list[Tensor] = field(default_factory=list)
    cell: str = "elman"
    noise: list[Tensor] = field(default_factory=list)
    noise_key: Tensor | None = None
    nonlinearity: str = "tanh"
    reverse: list[bool] = field(default_factory=lambda: [False])

    def call(self, op: Callable[..., Any]) -> Any:
        output, h_n, saved = op(**vars(self), save=False)
        assert saved == []
        return output, h_n

    def save(self, op: Callable[..., Any]) -> list[Tensor]:
        """The tensors that the op saves for the backward pass."""
        saved: list[Tensor] = op(**vars(self), save=True)[2]
        return saved

    def expected(self, stored: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        return reference.recurrence(**vars(self), stored=stored)

    def map(self, function: Callable[[Tensor], Tensor]) -> Recurrence:
        """The same arguments with the function applied to every tensor."""
        return replace(self, **tree_map_only(Tensor, function, vars(self)))

    def float_tensors(self) -> list[Tensor]:
        """The tensors that can have a gradient, in the order of the fields."""
        values = tree_leaves(vars(replace(self, noise=[])))
        return [v for v in values if isinstance(v, Tensor) and v.is_floating_point()]

    def with_tensors(self, tensors: Iterable[Tensor]) -> Recurrence:
        """The same arguments with these in the place of :meth:`float_tensors`."""
        following, quiet = iter(tensors), replace(self, noise=[])
        quiet = quiet.map(lambda t: next(following) if t.is_floating_point() else t)
        return replace(quiet, noise=self.noise)

    def as_function(self, op: Callable[..., Any]) -> tuple[Callable[..., Any], list[Tensor]]:
        """The call as a function of :meth:`float_tensors`, and these, which need gradients then."""
        tensors = [tensor.requires_grad_() for tensor in self.float_tensors()]
        return lambda *given: self.with_tensors(given).call(op), tensors

    def detach(self) -> Recurrence:
        """The same arguments, none of which needs a gradient."""
        return self.map(Tensor.detach)

    def to_double(self) -> Recurrence:
        """The same arguments in float64; new leaves where they need gradients."""

        def double(tensor: Tensor) -> Tensor:
            return tensor.detach().double().requires_grad_(tensor.requires_grad)

        return self.map(lambda t: double(t) if t.is_floating_point() else t)

    def backward(
        self, output, grad_output, grad_h_n, output_mask=(True,) * GRADIENTS, saved=()
    ) -> RecurrenceBackward:
        """The arguments of the backward op for this call; it reads no biases."""
        return RecurrenceBackward(
            **vars(replace(self, bias_ih=[], bias_hh=[])),
            output=output,
            saved=list(saved),
            grad_output=grad_output,
            grad_h_n=grad_h_n,
            output_mask=list(output_mask),
        )

    def backward_of(self, op: Callable[..., Any]) -> RecurrenceBackward:
        """The arguments of the backward op once the op has run, with random cotangents."""
        output, h_n = self.call(op)
        cotangents = torch.rand_like(output), torch.rand_like(h_n)
        return self.backward(output, *cotangents, saved=self.save(op))

    def stacked(self, *others: Recurrence) -> Recurrence:
        """The arguments of an ensemble whose members these calls are, as new leaves."""

        def joined(*values: Any) -> Any:
            if not isinstance(values[0], Tensor):
                return values[0]
            return torch.stack(values).detach().requires_grad_(values[0].requires_grad)

        fields = tree_map(joined, *map(vars, (self, *others)))
        return replace(self, **fields | {"batch_sizes": self.batch_sizes})

    def sequences(self, rows: slice) -> Recurrence:
        """The call for some of the sequences of an unpacked batch alone."""
        names = ["hx", "index", "reset", "reset_state"]
        if self.index is None:
            names.append("input")
        given = {name: t for name in names if (t := getattr(self, name)) is not None}
        lengths = None if self.lengths is None else self.lengths[rows]
        return replace(self, **{name: t[:, rows] for name, t in given.items()}, lengths=lengths)


@dataclass(frozen=True, kw_only=True, eq=False)
class RecurrenceBackward(Recurrence):
    """The arguments of ``torch.ops.rnnext.recurrence_backward``."""

    grad_output: Tensor | None
    grad_h_n: Tensor | None
    output: Tensor
    saved: list[Tensor]
    output_mask: list[bool]

    def call(self, op: Callable[..., Any]) -> Any:
        return op(**vars(self))


def possible(case: dict[str, Any]) -> bool:
    """Packed rows have no resets; gated cells have no noise and no nonlinearity but their own."""
    if case.get("rows") == "packed" and case.get("reset"):
        return False
    if case["cell"] in reference.GATES:
        return case.get("nonlinearity", "tanh") == "tanh" and not case.get("noise")
    return True


def make(
    T=5,
    B=3,
    I=4,  # noqa: E741
    H=6,
    source="features",
    reverse=(False,),
    nonlinearity="tanh",
    bias=True,
    hx=True,
    layout="contiguous",
    rows="full",
    dtype=torch.float64,
    index_dtype=torch.int64,
    vocabulary=9,
    cell="elman",
    reset=None,
    noise=False,
    requires_grad=False,
) -> Recurrence:
    """Random arguments of one layer.

    ``rows`` is how long the sequences are: "full", "lengths" (0 among them), or "packed".
    ``layout`` is how the input lies in memory: "contiguous", "batch_first", "strided" (no unit
    stride) or "expanded" (every sequence reads the same memory). ``reset`` is where the state
    starts from where a new episode begins, at a step in three: "zeros" or "state"; or None.
    """
    D, gates = len(reverse), reference.GATES.get(cell, 1)
    states = D * reference.STATES.get(cell, 1)
    width = I if source == "features" else D * gates * H
    scale = max(H, 1) ** -0.5

    def uniform(*shape, bound=1.0):
        return ((torch.rand(shape, dtype=torch.float64) * 2 - 1) * bound).to(dtype)

    lengths = batch_sizes = index = None
    shape = (T, B)
    if rows == "lengths":
        lengths = torch.tensor([[T, 0, T // 2 + 1][b % 3] for b in range(B)], dtype=torch.long)
    elif rows == "packed":
        batch_sizes = torch.tensor([sum(max(1, T - 2 * b) > t for b in range(B)) for t in range(T)])
        shape = (int(batch_sizes.sum()),)
    if source == "table":
        index = torch.randint(vocabulary, shape).to(index_dtype)
        shape = (vocabulary,)
    if layout == "batch_first" and len(shape) == 2:
        input = uniform(B, T, width).transpose(0, 1)
    elif layout == "strided":
        input = uniform(*shape, 2 * width)[..., ::2]
    elif layout == "expanded":
        input = uniform(*shape[:-1], 1, width).expand(*shape, width)
    else:
        input = uniform(*shape, width)
    K = gates * H
    weight_ih = [uniform(K, I, bound=scale) for _ in reverse] if source == "features" else []
    weight_hh = [uniform(K, H, bound=scale) for _ in reverse]
    bias_ih = [uniform(K, bound=scale) for _ in reverse] if bias else []
    bias_hh = [uniform(K, bound=scale) for _ in reverse] if bias else []
    if layout == "strided":
        weight_hh = [w.t().contiguous().t() for w in weight_hh]
        weight_ih = [torch.cat([w, w], 1)[:, ::2] for w in weight_ih]
    state = uniform(states, B, H) if hx else None
    if hx and layout == "expanded":
        state = uniform(states, 1, H).expand(states, B, H)
    arguments = Recurrence(
        input=input, hx=state, weight_ih=weight_ih, weight_hh=weight_hh, bias_ih=bias_ih,
        bias_hh=bias_hh, index=index, lengths=lengths, batch_sizes=batch_sizes, cell=cell,
        nonlinearity=nonlinearity, reverse=list(reverse),
        reset=torch.rand(T, B) < 1 / 3 if reset else None,
        reset_state=uniform(states, B, H) if reset == "state" else None,
        alpha=[uniform(H, bound=0.4) + 0.5 for _ in reverse] if cell in _C.forms() else [],
        noise=[uniform(H).abs() for _ in reverse] if noise else [],
        noise_key=torch.randint(2**63 - 1, ()) if noise else None,
    )  # fmt: skip
    for tensor in arguments.float_tensors():
        tensor.requires_grad_(requires_grad)
    return arguments


def check(arguments: Recurrence, exactness: torch.dtype | None = None) -> list[Tensor]:
    """Values, which are returned, and gradients of random cotangents, against a float64 reference.

    The arguments need gradients; ``exactness`` is a coarser type that products are rounded to.
    """
    wanted = arguments.to_double()
    expected = wanted.expected(stored=arguments.weight_hh[0].dtype)
    result = arguments.call(torch.ops.rnnext.recurrence)
    assert_close(result, expected, exactness)
    assert all(value.is_contiguous() for value in result)
    cotangents = [torch.rand_like(value) for value in result]
    torch.autograd.backward(result, cotangents)
    torch.autograd.backward(expected, [c.double() for c in cotangents])
    for a, e in zip(arguments.float_tensors(), wanted.float_tensors(), strict=True):
        if e.grad is None:  # the reference has none where the result does not depend on it
            assert a.grad is None or not a.grad.any()
        else:
            assert a.grad.dtype == a.dtype
            assert_close(a.grad, e.grad, exactness)
    return [value.detach() for value in result]


def make_stack(layers, **case) -> Recurrence:
    """Random arguments of ``recurrence_stack``: several layers, of one direction each."""
    first = make(**case)
    deeper = {**case, "I": first.weight_hh[0].size(1), "layout": "contiguous"}
    each = [first, *(make(**deeper) for _ in range(layers - 1))]
    lists = {
        name: [tensor for layer in each for tensor in getattr(layer, name)]
        for name in (*WEIGHTS, "alpha")
    }
    hx = None
    if first.hx is not None:
        hx = torch.stack([layer.hx for layer in each], 1).flatten(0, 1)
    return replace(first, hx=hx, **lists, noise=[], noise_key=None)
