"""Calls of the ops that run layers or a step."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict, TypeVar

import torch
from torch import Tensor
from torch.compiler import is_compiling, is_exporting
from torch.nn.utils.rnn import PackedSequence

import rnnext.ops  # noqa: F401  registers the fake kernels
from rnnext import _C, _errors

# The same ops twice: torch.compile puts these into its graph, eager calls take _C's short way.
rnn_op: Callable[..., tuple[Tensor, list[Tensor]]] = torch.ops.rnnext.rnn.default
_rnn_cell: Callable[..., list[Tensor]] = torch.ops.rnnext.rnn_cell.default

_Sequence = TypeVar("_Sequence", Tensor, PackedSequence)
Lengths = Tensor | Sequence[int]
Pair = tuple[Tensor, Tensor]
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
CELLS = {"rnn": "elman", "gru": "gru", "lstm": "lstm"}  # as users name them


class Stack(TypedDict):
    """The attributes of an RNN module that a call reads, for functions, which have no module."""

    bias: bool
    num_layers: int
    bidirectional: bool
    batch_first: bool
    dropout: float
    training: bool


def stack_of(
    weights: Sequence[Any],
    bidirectional: bool,
    batch_first: bool,
    dropout: float,
    training: bool,
    members: int = 0,
) -> tuple[Stack, list[Tensor]]:
    """The layers that the weights of :func:`rnnext.functional.rnn` are of, and the weights.

    ``members`` is the number of dimensions that an ensemble's have more.
    """
    flat = list(weights) if isinstance(weights, Iterable) else [weights]
    for weight in flat:
        if not isinstance(weight, Tensor):
            kind = type(weight).__name__
            raise TypeError(f"weights must be one flat list of tensors, got a {kind} among them")
    bias = len(flat) > 2 and flat[2].dim() == 1 + members
    directions = 2 if bidirectional else 1
    num_layers, others = divmod(len(flat), (4 if bias else 2) * directions)
    if not flat or others:
        raise ValueError(
            "weights must hold weight_ih, weight_hh and both biases or neither for each layer and "
            f"each of {directions} directions, got {len(flat)} tensors"
        )
    attributes = Stack(
        bias=bias, num_layers=num_layers, bidirectional=bidirectional, batch_first=batch_first,
        dropout=dropout, training=training,
    )  # fmt: skip
    return attributes, flat


def as_lengths(lengths: Lengths, device: torch.device | None) -> Tensor:
    """Integers as int64; TypeError for others."""
    if not isinstance(lengths, Tensor):
        try:
            lengths = torch.as_tensor(lengths, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"lengths must be integers, got {lengths!r}: {error}") from None
    if lengths.dtype not in _INTEGERS and lengths.numel() > 0:
        raise TypeError(f"lengths must be integers, got {str(lengths.dtype)[6:]}")
    return lengths.long()


def as_integer(name: str, value: Any, advice: str = "") -> int:
    """The value of this argument as Python's int, or TypeError."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}{advice}") from None


def cell_named(cell: str) -> str:
    """The ops' name for the cell that a user gives."""
    _errors.refuse_word("cell", cell, list(CELLS))
    return CELLS[cell]


def as_states(name: str, cell: str, state: Any) -> tuple[Tensor, ...]:
    """The tensors that a state of this cell is made of: one, or (h, c) of an LSTM."""
    if cell != "lstm":
        return (state,)
    if isinstance(state, (tuple, list)) and len(state) == 2:
        return tuple(state)
    many = isinstance(state, (tuple, list))
    found = f"{len(state)} of them" if many else _errors.kind_of(name, state)
    raise TypeError(f"{name} must be a pair of tensors, (h, c), got {found}")


def both_biases(weight_hh: Tensor, bias_ih: Any, bias_hh: Any) -> list[Any]:
    """The two, zeros for one that is missing beside the other."""
    if (bias_ih is None) == (bias_hh is None):
        return [bias_ih, bias_hh]
    zeros = weight_hh.new_zeros(len(weight_hh))
    return [zeros if bias is None else bias for bias in (bias_ih, bias_hh)]


def as_given(cell: str, states: Any) -> Any:
    """The state of this cell that these tensors make: the one, or a pair."""
    return (states[0], states[1]) if cell == "lstm" else states[0]


def run(
    of: Mapping[str, Any],
    weights: Sequence[Tensor],
    input: _Sequence,
    hx: Any,
    lengths: Lengths | None,
    reset: Tensor | None,
    reset_state: Any,
    cell: str,
    nonlinearity: str = "tanh",
    alpha: Sequence[Tensor] = (),
    noise: Sequence[Tensor] = (),
    table: Tensor | None = None,
    noise_keys: Tensor | None = None,
    refused: list[Exception] | None = None,
) -> tuple[_Sequence, Any]:
    """:func:`rnnext.functional.rnn` where all that it infers is known; the weights are flat.

    of: a :class:`Stack`. cell: as the ops call it; of an LSTM, states are pairs. alpha and noise:
    ``[H]`` for each layer and direction, or none. table: ``[V, I]``; input then says which of its
    rows each step reads. noise_keys: of each layer, by default torch's generator's. refused: what
    the op has raised.

    Nothing is checked here: the op refuses what is wrong, and only then is the input examined
    again, to raise the error that torch.nn raises for it.
    """
    batch_sizes = None
    states = () if hx is None else as_states("hx", cell, hx)
    starts = () if reset_state is None else as_states("reset_state", cell, reset_state)
    if type(input) is not Tensor and isinstance(input, PackedSequence):  # isinstance is slower
        data, batch_sizes, sorted_indices, unsorted_indices = input
        if is_exporting():
            raise NotImplementedError(
                "torch.export cannot follow a PackedSequence, whose sizes are data: give the "
                "padded input, and lengths= beside it"
            )
        if states and sorted_indices is not None:
            _errors.refuse_others({"input": data, **_errors.by_name("hx", states)})
            if all(h.shape[1:2] == sorted_indices.shape for h in states):
                states = tuple(h.index_select(1, sorted_indices) for h in states)
            else:
                n, found = len(sorted_indices), [list(h.shape) for h in states]
                must = f"hx must have {n} rows, as sorted_indices has, got {found}"
                refused = [RuntimeError(must)]
    else:
        data = input
    if lengths is not None:
        lengths = as_lengths(lengths, getattr(weights[0], "device", None))
    try:
        if refused:
            raise refused.pop()  # in a local, it would hold this frame, and so the input
        output, h_n = (rnn_op if is_compiling() else _C.rnn)(
            data if table is None else table, states, weights, of["bias"], of["num_layers"],
            of["bidirectional"], of["batch_first"], of["dropout"], of["training"],
            None if table is None else data, lengths, batch_sizes, reset, starts, alpha, cell,
            noise, noise_keys, nonlinearity,
        )  # fmt: skip
    except (RuntimeError, ValueError):
        given = _errors.by_name("hx", states) | _errors.by_name("reset_state", starts)
        _errors.refuse_others({"input": data, **given}, reset=reset)
        if table is None:
            D = 2 if of["bidirectional"] else 1
            sizes = of["num_layers"], D, of["batch_first"], of.get("hidden_size")
            _errors.raise_of_layers(cell, data, states, weights, batch_sizes, *sizes)
        for place, weight in enumerate(weights):
            if not isinstance(weight, Tensor):
                found = f"element {place} in argument 2, but got {type(weight).__name__}"
                raise TypeError(f"expected Tensor as {found}") from None
        raise
    if batch_sizes is None:
        return output, h_n[0] if cell != "lstm" else tuple(h_n)
    if unsorted_indices is not None:
        h_n = [h.index_select(1, unsorted_indices) for h in h_n]
    packed = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
    return packed, as_given(cell, h_n)


def step(
    cell: str,
    input: Tensor,
    hx: Any,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    nonlinearity: str = "tanh",
) -> Any:
    """:func:`rnnext.functional.rnn_cell` of any cell; of an LSTM, states are pairs."""
    states = () if hx is None else as_states("hx", cell, hx)
    try:
        found = (_rnn_cell if is_compiling() else _C.rnn_cell)(
            input, states, weight_ih, weight_hh, bias_ih, bias_hh, cell, nonlinearity
        )
    except (RuntimeError, ValueError):
        _errors.raise_of_a_cell(cell, input, states, weight_ih, weight_hh, bias_ih, bias_hh)
        raise
    return found[0] if cell != "lstm" else tuple(found)
