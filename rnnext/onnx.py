"""rnnext's ops in ONNX's standard operators, for ``torch.onnx.export(..., dynamo=True)``.

The recurrence becomes the operator RNN, GRU or LSTM, one a layer, and the embedding Gather. Needs
onnxscript, as that exporter does.
"""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from onnxscript import ir
from onnxscript import opset18 as op

import rnnext.ops  # noqa: F401  registers the ops
from rnnext import _C

__all__ = ["translation_table"]

_ACTIVATIONS = {name: name.capitalize() for name in _C.nonlinearities()} | {"identity": "Affine"}
# A cell's operator, and the places of its gates among torch's: z r h of r z n, i o f c of i f g o.
_OPERATORS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "elman": (op.RNN, (0,)),
    "gru": (op.GRU, (1, 0, 2)),
    "lstm": (op.LSTM, (0, 3, 1, 2)),
}


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The table that torch.onnx.export takes as ``custom_translation_table``.

    Returns:
        For each of rnnext's ops a function that builds what it is in ONNX. What ONNX cannot say,
        they refuse with a NotImplementedError that names it: a leak, noise, resets, packed input,
        bfloat16, dropout while training. (The exporter shows it as the cause of its own error.)

    Example::

        import rnnext.onnx

        program = torch.onnx.export(
            model, (x,), dynamo=True, custom_translation_table=rnnext.onnx.translation_table()
        )
    """
    ops = torch.ops.rnnext
    return {
        ops.rnn.default: _rnn,
        ops.rnn_cell.default: _rnn_cell,
        ops.recurrence.default: _recurrence,
        ops.embedding.default: _embedding,
    }


def _refuse(what: str) -> NoReturn:
    raise NotImplementedError(f"ONNX's operators RNN, GRU and LSTM have no {what}")


def _refuse_extras(cell: Any, noise: Any, reset: Any, batch_sizes: Any) -> None:
    for is_given, what in (
        (cell in _C.forms(), "leak (alpha)"),
        (bool(noise), "noise"),
        (reset is not None, "reset"),
        (batch_sizes is not None, "packed input: pad it, and give lengths"),
    ):
        if is_given:
            _refuse(what)


def _constant(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def _each(operator: Any, tensors: Sequence[Any], *places: int) -> list[Any]:
    """Squeeze or Unsqueeze of each tensor."""
    return [operator(tensor, _constant(*places)) for tensor in tensors]


def _joined(tensors: Sequence[Any]) -> Any:
    return op.Concat(*tensors, axis=0) if len(tensors) > 1 else tensors[0]


def _stacked(tensors: Sequence[Any]) -> Any:
    """Tensors as the rows of one, a row a direction."""
    return _joined(_each(op.Unsqueeze, tensors, 0))


def _layer(
    x: Any,
    hx: Sequence[Any],
    weights: Sequence[Sequence[Any]],
    lengths: Any,
    cell: str,
    nonlinearity: str,
    direction: str,
) -> tuple[Any, list[Any]]:
    """One layer: ``x [T, B, I]`` to ``[T, B, D * H]``, and the last states, each ``[D, B, H]``.

    weights: weight_ih, weight_hh, bias_ih and bias_hh, of each one for each direction or none.
    """
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    D, (rows, H) = len(weight_hh), weight_hh[0].shape
    dtype = weight_hh[0].dtype
    operator, order = _OPERATORS[cell]
    if dtype == ir.DataType.BFLOAT16:
        _refuse("bfloat16")
    if not weight_ih:  # precomputed input: direction d reads its columns
        columns: list[Any] = [
            ir.tensor(np.eye(rows, D * rows, k=d * rows, dtype=dtype.numpy())) for d in range(D)
        ]
        weight_ih = [op.Constant(value=eye) for eye in columns]
    steps: Any = None if lengths is None else op.Cast(lengths, to=ir.DataType.INT32)
    options: dict[str, Any] = {"direction": direction, "hidden_size": H}
    if cell == "elman":
        options["activations"] = [_ACTIVATIONS[nonlinearity]] * D
        if nonlinearity == "identity":
            options |= {"activation_alpha": [1.0] * D, "activation_beta": [0.0] * D}
    elif cell == "gru":
        options["linear_before_reset"] = 1
    gates = np.concatenate([np.arange(gate * H, (gate + 1) * H) for gate in order])

    def in_order(weights: Sequence[Any]) -> list[Any]:
        if len(order) == 1:
            return list(weights)
        return [op.Gather(w, _constant(*gates.tolist()), axis=0) for w in weights]

    bias = None
    if bias_ih:
        pairs = zip(in_order(bias_ih), in_order(bias_hh), strict=True)
        bias = _stacked([op.Concat(*pair, axis=0) for pair in pairs])
    output, *h_n = operator(
        x, _stacked(in_order(weight_ih)), _stacked(in_order(weight_hh)), bias, steps, *hx, **options
    )  # output: [T, D, B, H]
    if hx and lengths is not None:  # onnxruntime gives zeros for a row without steps
        no_steps = op.Unsqueeze(op.Equal(lengths, _constant(0)), _constant(0, 2))
        h_n = [op.Where(no_steps, *pair) for pair in zip(hx, h_n, strict=True)]
    if D == 1:
        return op.Squeeze(output, _constant(1)), h_n
    return op.Reshape(op.Transpose(output, perm=[0, 2, 1, 3]), _constant(0, 0, D * H)), h_n


def _rnn(
    input: Any, hx: Any, weights: Any, has_biases: Any, num_layers: Any, bidirectional: Any,
    batch_first: Any, dropout: Any, training: Any, index: Any, lengths: Any, batch_sizes: Any,
    reset: Any, reset_state: Any, alpha: Any, cell: Any, noise: Any, noise_keys: Any,
    nonlinearity: Any,
) -> Any:  # fmt: skip
    hx = hx or []  # an empty list comes as None
    _refuse_extras(cell, noise, reset, batch_sizes)
    if training and dropout > 0 and num_layers > 1:
        _refuse("dropout between layers: call model.eval() first")
    x = input if index is None else op.Gather(input, index)
    unbatched = len(x.shape if index is None else index.shape) == 2 - (index is not None)
    if unbatched:
        x, hx = op.Unsqueeze(x, _constant(1)), _each(op.Unsqueeze, hx, 1)
    elif batch_first:
        x = op.Transpose(x, perm=[1, 0, 2])
    D, size = 2 if bidirectional else 1, 4 if has_biases else 2
    direction = "bidirectional" if bidirectional else "forward"
    states = []
    for layer in range(num_layers):
        own = weights[layer * D * size : (layer + 1) * D * size]
        lists = [own[k::size] if k < size else [] for k in range(4)]
        starts = hx
        if num_layers > 1:
            ends = _constant(layer * D), _constant((layer + 1) * D)
            starts = [op.Slice(state, *ends, _constant(0)) for state in hx]
        x, h = _layer(x, starts, lists, lengths, cell, nonlinearity, direction)
        states.append(h)
    last = [_joined(each) for each in zip(*states, strict=True)]
    if unbatched:
        return op.Squeeze(x, _constant(1)), op.SequenceConstruct(*_each(op.Squeeze, last, 1))
    return op.Transpose(x, perm=[1, 0, 2]) if batch_first else x, op.SequenceConstruct(*last)


def _listed(tensors: Sequence[Any]) -> Sequence[Any]:
    """The list; traced calls pass an empty one as one tensor of six dimensions."""
    return [] if len(tensors) == 1 and len(tensors[0].shape) == 6 else tensors


def _recurrence(
    input: Any, hx: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any, bias_hh: Any, index: Any,
    lengths: Any, batch_sizes: Any, reset: Any, reset_state: Any, alpha: Any, cell: Any,
    noise: Any, noise_key: Any, nonlinearity: Any, reverse: Any, save: Any,
) -> Any:  # fmt: skip
    weights = [*map(_listed, (weight_ih, weight_hh, bias_ih, bias_hh))]
    noise = _listed(noise)
    _refuse_extras(cell, noise, reset, batch_sizes)
    directions = {(False,): "forward", (True,): "reverse", (False, True): "bidirectional"}
    if tuple(reverse) not in directions:
        _refuse(f"directions such as reverse={list(reverse)}")
    x = input if index is None else op.Gather(input, index)
    direction, D = directions[tuple(reverse)], len(reverse)
    starts = [] if hx is None else [hx]
    if starts and cell == "lstm":  # (h of each direction, c of each)
        ends = _constant(0), _constant(D), _constant(2 * D)
        starts = [op.Slice(hx, ends[k], ends[k + 1], _constant(0)) for k in range(2)]
    output, h_n = _layer(x, starts, weights, lengths, cell, nonlinearity, direction)
    last = _joined(h_n)
    return output, last, op.Identity(last)  # for the empty list `saved`


def _rnn_cell(
    input: Any, hx: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any, bias_hh: Any, cell: Any,
    nonlinearity: Any,
) -> Any:  # fmt: skip
    lead = (0,) if len(input.shape) == 2 else (0, 1)
    if bias_ih is None and bias_hh is not None:  # a bias that is missing beside the other is zeros
        bias_ih = op.Sub(bias_hh, bias_hh)
    if bias_hh is None and bias_ih is not None:
        bias_hh = op.Sub(bias_ih, bias_ih)
    x, *starts = _each(op.Unsqueeze, [input, *(hx or [])], *lead)
    lists = [[] if w is None else [w] for w in (weight_ih, weight_hh, bias_ih, bias_hh)]
    _, h = _layer(x, starts, lists, None, cell, nonlinearity, "forward")
    return _each(op.Squeeze, h, *lead)


def _embedding(
    weight: Any, indices: Any, padding_idx: Any = -1, scale_grad_by_freq: Any = False,
    sparse: Any = False,
) -> Any:  # fmt: skip
    return op.Gather(weight, indices)
