"""rnnext's ops in ONNX's standard operators, for ``torch.onnx.export(..., dynamo=True)``.

The recurrence becomes the operator RNN, one a layer, and the embedding Gather. Needs onnxscript, as
that exporter does.
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

_ACTIVATIONS = dict(zip(_C.nonlinearities(), _C.onnx_nonlinearities(), strict=True))


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
    raise NotImplementedError(f"ONNX's operator RNN has no {what}")


def _refuse_extras(cell: Any, noise: Any, reset: Any, batch_sizes: Any) -> None:
    for is_given, what in (
        (cell in _C.forms(), "leak (alpha)"),
        (cell in ("gru", "lstm"), f"cell {cell}"),
        (bool(noise), "noise"),
        (reset is not None, "reset"),
        (batch_sizes is not None, "packed input: pad it, and give lengths"),
    ):
        if is_given:
            _refuse(what)


def _constant(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def _stacked(tensors: Sequence[Any]) -> Any:
    """Tensors as the rows of one, a row a direction."""
    rows = [op.Unsqueeze(tensor, _constant(0)) for tensor in tensors]
    return op.Concat(*rows, axis=0) if len(rows) > 1 else rows[0]


def _layer(
    x: Any,
    hx: Any,
    weight_ih: Sequence[Any],
    weight_hh: Sequence[Any],
    bias_ih: Sequence[Any],
    bias_hh: Sequence[Any],
    lengths: Any,
    nonlinearity: str,
    direction: str,
) -> tuple[Any, Any]:
    """One layer: ``x [T, B, I]`` to ``[T, B, D * H]``, and the last states ``[D, B, H]``."""
    D, H = len(weight_hh), weight_hh[0].shape[0]
    dtype = weight_hh[0].dtype
    if dtype == ir.DataType.BFLOAT16:
        _refuse("bfloat16")
    if not weight_ih:  # precomputed input: direction d reads its H columns
        columns: list[Any] = [
            ir.tensor(np.eye(H, D * H, k=d * H, dtype=dtype.numpy())) for d in range(D)
        ]
        weight_ih = [op.Constant(value=eye) for eye in columns]
    steps: Any = None if lengths is None else op.Cast(lengths, to=ir.DataType.INT32)
    if not _ACTIVATIONS[nonlinearity]:
        _refuse(f"activation {nonlinearity}")
    bias = None
    if bias_ih:
        bias = _stacked([op.Concat(*pair, axis=0) for pair in zip(bias_ih, bias_hh, strict=True)])
    output, h_n = op.RNN(
        x,
        _stacked(weight_ih),
        _stacked(weight_hh),
        bias,
        steps,
        hx,
        activations=[_ACTIVATIONS[nonlinearity]] * D,
        activation_alpha=[1.0] * D if nonlinearity == "identity" else None,
        activation_beta=[0.0] * D if nonlinearity == "identity" else None,
        direction=direction,
        hidden_size=H,
    )  # output: [T, D, B, H]
    if hx is not None and lengths is not None:  # onnxruntime gives zeros for a row without steps
        no_steps = op.Equal(lengths, _constant(0))
        h_n = op.Where(op.Unsqueeze(no_steps, _constant(0, 2)), hx, h_n)
    if D == 1:
        return op.Squeeze(output, _constant(1)), h_n
    return op.Reshape(op.Transpose(output, perm=[0, 2, 1, 3]), _constant(0, 0, D * H)), h_n


def _rnn(
    input: Any, hx: Any, weights: Any, has_biases: Any, num_layers: Any, bidirectional: Any,
    batch_first: Any, dropout: Any, training: Any, index: Any, lengths: Any, batch_sizes: Any,
    reset: Any, reset_state: Any, alpha: Any, cell: Any, noise: Any, nonlinearity: Any,
) -> Any:  # fmt: skip
    hx = hx[0] if hx else None
    _refuse_extras(cell, noise, reset, batch_sizes)
    if training and dropout > 0 and num_layers > 1:
        _refuse("dropout between layers: call model.eval() first")
    x = input if index is None else op.Gather(input, index)
    unbatched = len(x.shape if index is None else index.shape) == 2 - (index is not None)
    if unbatched:
        x = op.Unsqueeze(x, _constant(1))
        hx = None if hx is None else op.Unsqueeze(hx, _constant(1))
    elif batch_first:
        x = op.Transpose(x, perm=[1, 0, 2])
    D, size = 2 if bidirectional else 1, 4 if has_biases else 2
    states = []
    for layer in range(num_layers):
        sets = [weights[(layer * D + d) * size : (layer * D + d + 1) * size] for d in range(D)]
        weight_ih, weight_hh, bias_ih, bias_hh = (
            [each[k] for each in sets if k < size] for k in range(4)
        )
        start = hx
        if hx is not None and num_layers > 1:
            start = op.Slice(hx, _constant(layer * D), _constant((layer + 1) * D), _constant(0))
        direction = "bidirectional" if bidirectional else "forward"
        x, h = _layer(
            x, start, weight_ih, weight_hh, bias_ih, bias_hh, lengths, nonlinearity, direction
        )
        states.append(h)
    h_n = op.Concat(*states, axis=0) if num_layers > 1 else states[0]
    if unbatched:
        return op.Squeeze(x, _constant(1)), [op.Squeeze(h_n, _constant(1))]
    return op.Transpose(x, perm=[1, 0, 2]) if batch_first else x, [h_n]


def _listed(tensors: Sequence[Any]) -> Sequence[Any]:
    """In a traced call a list of one tensor of six dimensions stands for an empty list."""
    return [] if len(tensors) == 1 and len(tensors[0].shape) == 6 else tensors


def _recurrence(
    input: Any, hx: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any, bias_hh: Any, index: Any,
    lengths: Any, batch_sizes: Any, reset: Any, reset_state: Any, alpha: Any, cell: Any,
    noise: Any, noise_key: Any, nonlinearity: Any, reverse: Any, save: Any,
) -> Any:  # fmt: skip
    weight_ih, bias_ih, bias_hh, noise = map(_listed, (weight_ih, bias_ih, bias_hh, noise))
    _refuse_extras(cell, noise, reset, batch_sizes)
    directions = {(False,): "forward", (True,): "reverse", (False, True): "bidirectional"}
    if tuple(reverse) not in directions:
        _refuse(f"directions such as reverse={list(reverse)}")
    x = input if index is None else op.Gather(input, index)
    direction = directions[tuple(reverse)]
    output, h_n = _layer(
        x, hx, weight_ih, weight_hh, bias_ih, bias_hh, lengths, nonlinearity, direction
    )
    return output, h_n, op.Identity(h_n)  # for the empty list `saved`


def _rnn_cell(
    input: Any, hx: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any, bias_hh: Any,
    cell: Any, nonlinearity: Any,
) -> Any:  # fmt: skip
    _refuse_extras(cell, noise=None, reset=None, batch_sizes=None)
    lead = (0,) if len(input.shape) == 2 else (0, 1)
    if bias_ih is None and bias_hh is not None:  # one that is missing beside the other is zeros
        bias_ih = op.Sub(bias_hh, bias_hh)
    if bias_hh is None and bias_ih is not None:
        bias_hh = op.Sub(bias_ih, bias_ih)
    _, h = _layer(
        op.Unsqueeze(input, _constant(*lead)),
        op.Unsqueeze(hx[0], _constant(*lead)) if hx else None,
        [weight_ih],
        [weight_hh],
        [] if bias_ih is None else [bias_ih],
        [] if bias_hh is None else [bias_hh],
        None,
        nonlinearity,
        "forward",
    )
    return [op.Squeeze(h, _constant(*lead))]


def _embedding(
    weight: Any, indices: Any, padding_idx: Any = -1, scale_grad_by_freq: Any = False,
    sparse: Any = False,
) -> Any:  # fmt: skip
    return op.Gather(weight, indices)
