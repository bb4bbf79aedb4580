"""Calls of the op that runs all layers: how weights may be given, and torch.nn's errors."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn.utils.rnn import PackedSequence

import rnnext.ops  # noqa: F401  registers the fake kernels
from rnnext import _C

# The same op twice: torch.compile puts this into its graph, eager calls take _C's short way.
_rnn: Callable[..., tuple[Tensor, Tensor]] = torch.ops.rnnext.rnn.default
_ensemble: Callable[..., tuple[Tensor, Tensor, list[Tensor]]]
_ensemble = torch.ops.rnnext.recurrence_ensemble.default

_Sequence = TypeVar("_Sequence", Tensor, PackedSequence)
Lengths = Tensor | Sequence[int]


def as_lengths(lengths: Lengths, device: torch.device) -> Tensor:
    """Integers as int64; other numbers are left to the op to refuse."""
    if not isinstance(lengths, Tensor):
        try:
            lengths = torch.as_tensor(lengths, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"lengths must be integers, got {lengths!r}: {error}") from None
    return lengths.long() if lengths.dtype == torch.int32 or lengths.numel() == 0 else lengths


def refuse_others(input: Any, **optional: Any) -> None:
    """Raise TypeError for an argument that is no tensor, nor, where it may be, None."""
    for name, value in {"input": input, **optional}.items():
        if isinstance(value, Tensor) or (value is None and name != "input"):
            continue
        kind = type(value)
        message = f"{name} must be a tensor, got {kind.__name__}"
        if value is not None:
            made = "from_numpy" if kind.__module__ == "numpy" else "tensor"
            message += f": give torch.{made}({name})"
        raise TypeError(message) from None


def refuse_devices(weight: Tensor, **arguments: Tensor | None) -> None:
    """Raise for a tensor beside a weight on another device, which may have no kernel that would."""
    for name, value in arguments.items():
        if value is not None and value.device != weight.device:
            raise RuntimeError(
                f"{name} must be on the device of the weights, {weight.device}, got {value.device}"
            ) from None


def run(
    input: _Sequence,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    dropout: float,
    training: bool,
    lengths: Lengths | None,
    nonlinearity: str,
    reset: Tensor | None = None,
    alpha: Sequence[Tensor] = (),
    form: str = "rate",
    noise: Sequence[Tensor] = (),
    table: Tensor | None = None,
) -> tuple[_Sequence, Tensor]:
    """:func:`rnnext.functional.rnn` where all that it infers is known; the weights are flat.

    alpha and noise: ``[H]`` for each layer and direction, or none. table: ``[V, I]``; input then
    says which of its rows each step reads.

    Nothing is checked here: the op refuses what is wrong, and only then is the input examined
    again, to raise the error that torch.nn raises for it.
    """
    batch_sizes = None
    if type(input) is not Tensor and isinstance(input, PackedSequence):  # the slower of the two
        data, batch_sizes, sorted_indices, unsorted_indices = input
        if hx is not None and sorted_indices is not None:
            refuse_others(data, hx=hx)
            hx = hx.index_select(1, sorted_indices)
    else:
        data = input
    if lengths is not None:
        lengths = as_lengths(lengths, weights[0].device)
    try:
        output, h_n = (_rnn if is_compiling() else _C.rnn)(
            data if table is None else table,
            hx,
            weights,
            has_biases,
            num_layers,
            bidirectional,
            batch_first,
            dropout,
            training,
            None if table is None else data,
            lengths,
            batch_sizes,
            reset,
            alpha,
            form,
            noise,
            nonlinearity,
        )
    except (RuntimeError, ValueError):
        refuse_others(data, hx=hx, reset=reset)
        states = num_layers * (2 if bidirectional else 1)
        if table is None:
            _raise_torchs(data, hx, weights, batch_sizes, states, batch_first)
        for place, weight in enumerate(weights):
            if not isinstance(weight, Tensor):
                raise TypeError(
                    f"expected Tensor as element {place} in argument 2, but got "
                    f"{type(weight).__name__}"
                ) from None
        raise
    if batch_sizes is None:
        return output, h_n
    if unsorted_indices is not None:
        h_n = h_n.index_select(1, unsorted_indices)
    return PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices), h_n


def run_ensemble(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    dropout: float,
    training: bool,
    lengths: Tensor | None,
    nonlinearity: str,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """:func:`rnnext.functional.rnn_ensemble` where all that it infers is known."""
    M = weights[0].shape[0]
    if input.dim() not in (3, 4):
        raise ValueError(f"input must have 3 or 4 dimensions, got {input.dim()}")
    if hx is not None and hx.dim() != 4:
        raise ValueError(f"hx must have 4 dimensions, [M, L * D, B, H], got {hx.dim()}")
    if reset is not None and reset.dim() not in (2, 3):
        raise ValueError(f"reset must have 2 or 3 dimensions, got {reset.dim()}")

    def of_each(tensor: Tensor, dims: int) -> Tensor:
        return tensor.expand(M, *tensor.shape) if tensor.dim() < dims else tensor

    x = of_each(input, 4)
    if lengths is not None:
        lengths = of_each(lengths, 2)
    if reset is not None:
        reset = of_each(reset, 3)
    if batch_first:
        x = x.transpose(1, 2)
        reset = None if reset is None else reset.transpose(1, 2)
    if x.shape[1] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    directions = 2 if bidirectional else 1
    size = (4 if has_biases else 2) * directions
    h_n = []
    for layer in range(num_layers):
        own = weights[layer * size : (layer + 1) * size]
        lists = [own[i :: size // directions] for i in range(size // directions)]
        first = layer * directions
        x, h, _ = _ensemble(
            x,
            None if hx is None else hx[:, first : first + directions],
            lists[0],
            lists[1],
            lists[2] if has_biases else [],
            lists[3] if has_biases else [],
            None,
            lengths,
            None,
            reset,
            None,
            [],
            "rate",
            nonlinearity,
            [False, True][:directions],
            False,
        )
        h_n.append(h)
        if dropout > 0 and training and layer + 1 < num_layers:
            x = torch.dropout(x, dropout, training)
    states = h_n[0] if num_layers == 1 else torch.cat(h_n, 1)
    return x.transpose(1, 2) if batch_first else x, states


def _raise_torchs(
    data: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    states: int,
    batch_first: bool,
) -> None:
    """Raise torch.nn.RNN's error for these arguments of the op, or return if it has none for them.

    ``states`` is layers times directions.
    """
    if batch_sizes is None:
        if data.dim() not in (2, 3):
            raise ValueError(
                f"RNN: Expected input to be 2D or 3D, got {data.dim()}D tensor instead"
            ) from None
        if hx is not None and hx.dim() != data.dim():
            kind = "unbatched 2-D" if data.dim() == 2 else "batched 3-D"
            raise RuntimeError(
                f"For {kind} input, hx should also be {data.dim()}-D but got {hx.dim()}-D tensor"
            ) from None
    if len(weights) < 2 or any(not isinstance(w, Tensor) or w.dim() != 2 for w in weights[:2]):
        return
    refuse_devices(weights[0], input=data, hx=hx)
    dtype = weights[0].dtype
    if data.dtype != dtype and not torch._C._is_any_autocast_enabled():
        raise ValueError(
            f"RNN input dtype ({data.dtype}) does not match weight dtype ({dtype}). "
            f"Convert input: input.to({dtype}), or convert model: model.to({data.dtype})"
        ) from None
    if batch_sizes is not None and data.dim() != 2:
        raise RuntimeError(f"input must have 2 dimensions, got {data.dim()}") from None
    if data.size(-1) != weights[0].size(-1):
        raise RuntimeError(
            "input.size(-1) must be equal to input_size. "
            f"Expected {weights[0].size(-1)}, got {data.size(-1)}"
        ) from None
    if hx is not None:
        got = list(hx.size())
        if batch_sizes is not None:
            batch = int(batch_sizes[0])
        elif data.dim() == 2:
            batch = 1
            got.insert(1, 1)
        else:
            batch = data.size(0 if batch_first else 1)
        expected = (states, batch, weights[1].size(-1))
        if got != list(expected):
            raise RuntimeError(f"Expected hidden size {expected}, got {got}") from None
    if batch_sizes is None and data.size(1 if batch_first and data.dim() == 3 else 0) == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN") from None


class Layers(NamedTuple):
    """Weights, flat, and what their number and shapes say."""

    weights: list[Tensor]
    has_biases: bool
    num_layers: int
    bidirectional: bool


def infer(weights: Sequence[Any], bidirectional: bool | None, members: int = 0) -> Layers:
    """Weights that are flat, one list a set, or nested by layer and direction; see functional.rnn.

    ``members`` is the number of dimensions that an ensemble's have more.

    Raises ValueError where they are none of these, or leave open how many directions they are of.
    """
    groups = list(weights)
    if groups and all(isinstance(each, Tensor) for each in groups):
        size = 4 if len(groups) > 2 and groups[2].dim() == 1 + members else 2
        sets = [groups[i : i + size] for i in range(0, len(groups), size)]
    else:
        groups = [_listed(group) for group in groups]
        sets = groups
        if groups and not any(isinstance(each, Tensor) for group in groups for each in group):
            sets = [_listed(each) for layer in groups for each in layer]
            bidirectional = _nested_directions(groups, bidirectional)
    if not sets or any(len(each) not in (2, 4) or len(each) != len(sets[0]) for each in sets):
        raise ValueError(
            "weights must hold weight_ih, weight_hh and both biases or none for each layer and "
            f"direction, got sets of {[len(each) for each in sets]} tensors"
        )
    for each in sets:
        for weight in each:
            if not isinstance(weight, Tensor):
                raise ValueError(f"weights must hold tensors, got a {type(weight).__name__}")
    if bidirectional is None:
        bidirectional = _looks_bidirectional(sets)
    if bidirectional and len(sets) % 2:
        raise ValueError(f"weights must hold two sets a layer if bidirectional, got {len(sets)}")
    return Layers(
        [weight for each in sets for weight in each],
        len(sets[0]) == 4,
        len(sets) // (2 if bidirectional else 1),
        bidirectional,
    )


def _listed(group: Any) -> list[Any]:
    if isinstance(group, Tensor) or not hasattr(group, "__iter__"):
        raise ValueError(
            "weights must be tensors, lists of each set's tensors, or lists of layers of lists of "
            f"directions of them, got a {type(group).__name__} among them"
        )
    return list(group)


def _nested_directions(layers: list[list[Any]], bidirectional: bool | None) -> bool:
    counts = {len(layer) for layer in layers}
    wanted = {1, 2} if bidirectional is None else {1 + bidirectional}
    if len(counts) != 1 or not counts <= wanted:
        raise ValueError(
            f"each layer's weights must be of {' or '.join(map(str, sorted(wanted)))} directions, "
            f"and of as many in each layer, got {[len(layer) for layer in layers]}"
        )
    return counts == {2}


def _looks_bidirectional(sets: list[list[Tensor]]) -> bool:
    """By the width of what a set reads: I in the first layer, then H, or 2 H if bidirectional."""
    if len(sets) % 2:
        return False
    features, hidden = sets[0][0].shape[-1:], sets[0][1].shape[-1:]
    if len(sets) > 2:
        return sets[2][0].shape[-1:] != hidden
    width = sets[1][0].shape[-1:]
    if width == features == hidden:
        raise ValueError(
            "weights are of two layers or of two directions, which look the same where input_size "
            "is hidden_size: give bidirectional, or nest the weights by layer and direction"
        )
    return width == features
