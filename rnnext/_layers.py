"""Calls of the ops that run layers or a step, and the errors of arguments that do not fit."""

import numbers
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling, is_exporting
from torch.nn.utils.rnn import PackedSequence

import rnnext.ops  # noqa: F401  registers the fake kernels
from rnnext import _C

# The same ops twice: torch.compile puts these into its graph, eager calls take _C's short way.
_rnn: Callable[..., tuple[Tensor, list[Tensor]]] = torch.ops.rnnext.rnn.default
_rnn_cell: Callable[..., list[Tensor]] = torch.ops.rnnext.rnn_cell.default

_Sequence = TypeVar("_Sequence", Tensor, PackedSequence)
Lengths = Tensor | Sequence[int]
Pair = tuple[Tensor, Tensor]
_NAMES = {"gru": "GRU", "lstm": "LSTM"}  # torch's errors say RNN for all others
_CELLS = {"rnn": "elman", "gru": "gru", "lstm": "lstm"}  # as users name them


class Stack(NamedTuple):
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
    return Stack(bias, num_layers, bidirectional, batch_first, dropout, training), flat


def as_lengths(lengths: Lengths, device: torch.device) -> Tensor:
    """Integers as int64; other numbers are left to the op to refuse."""
    if not isinstance(lengths, Tensor):
        try:
            lengths = torch.as_tensor(lengths, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"lengths must be integers, got {lengths!r}: {error}") from None
    return lengths.long() if lengths.dtype == torch.int32 or lengths.numel() == 0 else lengths


def as_integer(name: str, value: Any, advice: str = "") -> int:
    """The value of this argument as Python's int, or TypeError."""
    try:
        return operator.index(value)
    except TypeError:
        kind = type(value).__name__
        raise TypeError(f"{name} must be an integer, got {kind}{advice}") from None


def refuse_others(required: Mapping[str, Any], **optional: Any) -> None:
    """Raise TypeError for an argument that is no tensor; the optional ones may be None."""
    for name, value in {**required, **optional}.items():
        if not isinstance(value, Tensor) and (value is not None or name in required):
            raise TypeError(f"{name} must be a tensor, got {_kind_of(name, value)}") from None


def cell_named(cell: str) -> str:
    """What the ops call the cell that a user gives."""
    if cell not in _CELLS:
        raise ValueError(f"cell must be one of 'rnn', 'gru', 'lstm', got {cell!r}")
    return _CELLS[cell]


def as_states(name: str, cell: str, state: Any) -> tuple[Tensor, ...]:
    """The tensors that a state of this cell is made of: one, or (h, c) of an LSTM; of None none."""
    if state is None:
        return ()
    if cell != "lstm":
        return (state,)
    if isinstance(state, (tuple, list)) and len(state) == 2:
        return tuple(state)
    found = f"{len(state)} of them" if isinstance(state, (tuple, list)) else _kind_of(name, state)
    raise TypeError(f"{name} must be a pair of tensors, (h, c), got {found}")


def as_given(cell: str, states: Any) -> Any:
    """The state of this cell that these tensors make: the one, or a pair."""
    return (states[0], states[1]) if cell == "lstm" else states[0]


def by_name(name: str, states: Sequence[Tensor]) -> dict[str, Tensor]:
    """These tensors of a state as errors call them."""
    if len(states) == 1:
        return {name: states[0]}
    return {f"{name}[{place}]": state for place, state in enumerate(states)}


def refuse_no_number(name: str, value: object) -> None:
    """Raise TypeError unless the value of this argument is a number or a tensor."""
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, Tensor)):
        raise TypeError(f"{name} must be a number or a tensor, got {_kind_of(name, value)}")


def refuse_no_generator(value: object) -> None:
    if value is not None and not isinstance(value, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(value).__name__}")


def _kind_of(name: str, value: object) -> str:
    """Its type, and how to make a tensor of it."""
    kind = type(value)
    if kind.__module__ == "numpy":
        return f"{kind.__name__}: give torch.from_numpy({name})"
    if isinstance(value, (list, tuple)):
        if any(isinstance(each, Tensor) for each in value):
            return f"a {kind.__name__} of tensors"
        return f"{kind.__name__}: give torch.tensor({name})"
    return kind.__name__


def refuse_shape(
    name: str, tensor: Tensor, *shapes: Sequence[int], error: type[Exception] = ValueError
) -> None:
    """Raise unless the tensor has one of these shapes."""
    if tuple(tensor.shape) not in shapes:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise error(f"{name} must have shape {expected}, got {list(tensor.shape)}")


def refuse_word(name: str, value: str, known: Sequence[str]) -> None:
    """Raise ValueError unless the argument is one of these."""
    if value not in known:
        names = ", ".join(map(repr, known))
        raise ValueError(f"{name} must be one of {names}, got {value!r}")


def refuse_devices(weight: Tensor, **arguments: Tensor | None) -> None:
    """Raise where a tensor is sparse or not on the weights' device, before a kernel is chosen."""
    for name, value in arguments.items():
        if value is not None and value.device != weight.device:
            raise RuntimeError(
                f"{name} must be on the device of the weights, {weight.device}, got {value.device}"
            ) from None
        if value is not None and value.layout is not torch.strided:
            raise RuntimeError(f"{name} must be a dense tensor, got {value.layout}") from None


def run(
    of: Stack | nn.RNNBase,
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
) -> tuple[_Sequence, Any]:
    """:func:`rnnext.functional.rnn` where all that it infers is known; the weights are flat.

    cell: as the ops call it; of an LSTM, states are pairs. alpha and noise: ``[H]`` for each layer
    and direction, or none. table: ``[V, I]``; input then says which of its rows each step reads.
    noise_keys: of each layer; by default torch's generator gives them.

    Nothing is checked here: the op refuses what is wrong, and only then is the input examined
    again, to raise the error that torch.nn raises for it.
    """
    batch_sizes = None
    states: tuple[Tensor, ...] = () if hx is None else (hx,)
    starts: tuple[Tensor, ...] = () if reset_state is None else (reset_state,)
    if cell == "lstm":
        states, starts = as_states("hx", cell, hx), as_states("reset_state", cell, reset_state)
    if type(input) is not Tensor and isinstance(input, PackedSequence):  # isinstance is slower
        data, batch_sizes, sorted_indices, unsorted_indices = input
        if is_exporting():
            raise NotImplementedError(
                "torch.export cannot follow a PackedSequence, whose sizes are data: give the "
                "padded input, and lengths= beside it"
            )
        if states and sorted_indices is not None:
            refuse_others({"input": data, **by_name("hx", states)})
            if all(h.shape[1:2] == sorted_indices.shape for h in states):  # else the op refuses it
                states = tuple(h.index_select(1, sorted_indices) for h in states)
    else:
        data = input
    if lengths is not None:
        lengths = as_lengths(lengths, weights[0].device)
    try:
        output, h_n = (_rnn if is_compiling() else _C.rnn)(
            data if table is None else table,
            states,
            weights,
            of.bias,
            of.num_layers,
            of.bidirectional,
            of.batch_first,
            of.dropout,
            of.training,
            None if table is None else data,
            lengths,
            batch_sizes,
            reset,
            starts,
            alpha,
            cell,
            noise,
            noise_keys,
            nonlinearity,
        )
    except (RuntimeError, ValueError):
        given = by_name("hx", states) | by_name("reset_state", starts)
        refuse_others({"input": data, **given}, reset=reset)
        if table is None:
            directions = 2 if of.bidirectional else 1
            n = of.num_layers * directions
            _raise_torchs(cell, data, states, weights, batch_sizes, n, of.batch_first)
        for place, weight in enumerate(weights):
            if not isinstance(weight, Tensor):
                raise TypeError(
                    f"expected Tensor as element {place} in argument 2, but got "
                    f"{type(weight).__name__}"
                ) from None
        raise
    if batch_sizes is None:
        return output, h_n[0] if cell != "lstm" else as_given(cell, h_n)  # saves a call
    if unsorted_indices is not None:
        h_n = [h.index_select(1, unsorted_indices) for h in h_n]
    packed = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
    return packed, as_given(cell, h_n)


def _raise_torchs(
    cell: str,
    data: Tensor,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    states: int,
    batch_first: bool,
) -> None:
    """Raise torch.nn's error for these arguments of the op, or return if it has none for them.

    ``states`` is layers times directions.
    """
    dims, module = data.dim(), _NAMES.get(cell, "RNN")
    if batch_sizes is None:
        if dims not in (2, 3):
            found = f"{dims}D" if cell in _NAMES else f"{dims}D tensor"
            raise ValueError(
                f"{module}: Expected input to be 2D or 3D, got {found} instead"
            ) from None
        if any(h.dim() != dims for h in hx):
            kind = "unbatched 2-D" if dims == 2 else "batched 3-D"
            which, found = "hx", f"{hx[0].dim()}-D tensor"
            if len(hx) == 2:
                which, found = "hx and cx", f"({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
            raise RuntimeError(
                f"For {kind} input, {which} should also be {dims}-D but got {found}"
            ) from None
    if len(weights) < 2 or any(not isinstance(w, Tensor) or w.dim() != 2 for w in weights[:2]):
        return
    refuse_devices(weights[0], input=data, **by_name("hx", hx))
    dtype = weights[0].dtype
    if data.dtype != dtype and not torch._C._is_any_autocast_enabled():
        raise ValueError(
            f"RNN input dtype ({data.dtype}) does not match weight dtype ({dtype}). "
            f"Convert input: input.to({dtype}), or convert model: model.to({data.dtype})"
        ) from None
    if batch_sizes is not None and dims != 2:
        raise RuntimeError(f"input must have 2 dimensions, got {dims}") from None
    if data.size(-1) != weights[0].size(-1):
        raise RuntimeError(
            "input.size(-1) must be equal to input_size. "
            f"Expected {weights[0].size(-1)}, got {data.size(-1)}"
        ) from None
    for name, h in by_name("hidden", hx).items():
        got = list(h.size())
        if batch_sizes is not None:
            batch = int(batch_sizes[0])
        elif dims == 2:
            batch = 1
            got.insert(1, 1)
        else:
            batch = data.size(0 if batch_first else 1)
        expected = (states, batch, weights[1].size(-1))
        if got != list(expected):
            raise RuntimeError(f"Expected {name} size {expected}, got {got}") from None


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
        raise_of_a_cell(cell, input, states, weight_ih, weight_hh, bias_ih, bias_hh)
        raise
    return as_given(cell, found)


def raise_of_a_cell(
    cell: str,
    input: Tensor,
    hx: Sequence[Tensor],
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> None:
    """Raise the error of torch.nn's cell for these arguments, or return if it has none for them."""
    weights = {"weight_ih": weight_ih, "weight_hh": weight_hh}
    refuse_others(
        {"input": input, **weights, **by_name("hx", hx)}, bias_ih=bias_ih, bias_hh=bias_hh
    )
    refuse_devices(weight_hh, input=input, **by_name("hx", hx))
    module = f"{_NAMES.get(cell, 'RNN')}Cell"
    if input.dim() not in (1, 2):
        raise ValueError(
            f"{module}: Expected input to be 1D or 2D, got {input.dim()}D instead"
        ) from None
    for name, h in by_name("hx" if len(hx) == 2 else "hidden", hx).items():
        if h.dim() not in (1, 2):
            raise ValueError(
                f"{module}: Expected {name} to be 1D or 2D, got {h.dim()}D instead"
            ) from None
    if input.size(-1) != weight_ih.size(-1):
        raise RuntimeError(
            f"input has inconsistent input_size: got {input.size(-1)} expected {weight_ih.size(-1)}"
        ) from None
    rows = input.size(0) if input.dim() == 2 else 1
    for place, h in enumerate(hx):
        batch = h if input.dim() == 2 else h.unsqueeze(0)
        if batch.size(0) != rows:
            raise RuntimeError(
                f"Input batch size {rows} doesn't match hidden{place} batch size {batch.size(0)}"
            ) from None
        if batch.size(1) != weight_hh.size(-1):
            raise RuntimeError(
                f"hidden{place} has inconsistent hidden_size: got {batch.size(1)}, expected "
                f"{weight_hh.size(-1)}"
            ) from None
