"""Typed functions over ``torch.ops.rnnext``.

Everything here takes one layer; :mod:`rnnext.functional` and the modules are built on top.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

import rnnext._fake  # noqa: F401  registers the ops and what they return without data

__all__ = ["embedding", "recurrence"]


def recurrence(
    input: Tensor,
    weight_hh: Sequence[Tensor],
    weight_ih: Sequence[Tensor] = (),
    bias_ih: Sequence[Tensor] = (),
    bias_hh: Sequence[Tensor] = (),
    *,
    index: Tensor | None = None,
    h0: Tensor | None = None,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    nonlinearity: str = "tanh",
    reverse: Sequence[bool] | None = None,
) -> tuple[Tensor, Tensor]:
    """One layer of an Elman RNN over whole sequences, its D directions side by side.

    ``h_t = f(pre_t + bias_ih[d] + bias_hh[d] + weight_hh[d] h_{t-1})``, where ``pre_t`` comes from
    one of three sources:

    - features: ``input [T, B, I]`` and ``weight_ih[d] [H, I]``: ``pre_t = weight_ih[d] x_t``;
    - ready: ``input [T, B, D * H]`` and no ``weight_ih``: direction d reads its H columns;
    - table: ``input [V, D * H]`` and ``index [T, B]``, int32 or int64: row ``index[t, b]``.

    Args:
        input: as above, float32, float64, bfloat16 or float16 (accumulated in float32).
        weight_hh: D tensors ``[H, H]``, D = 1 or 2.
        weight_ih: D tensors ``[H, I]``, or none.
        bias_ih, bias_hh: D tensors ``[H]`` each, or none.
        index: token ids of the table form.
        h0: first states ``[D, B, H]``. Default: zeros.
        lengths: int64 ``[B]``, the number of steps of each sequence, 0..T. Later steps are not
            computed, their output is 0. A reversed direction starts at the sequence's own end.
        batch_sizes: int64 ``[T]`` on the CPU, of a :class:`~torch.nn.utils.rnn.PackedSequence`;
            ``input`` is then ``[N, I]`` (``[N, D * H]``; ``index`` ``[N]``).
        nonlinearity: f, ``"tanh"`` or ``"relu"``.
        reverse: for each direction, whether it runs from the end. Default: ``[False, True][:D]``.

    Returns:
        ``(output [T, B, D * H] or [N, D * H], h_n [D, B, H])``.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit together, or a length out of range.
        ValueError: unknown nonlinearity.
        IndexError: an index out of range.
        NotImplementedError: unsupported dtype.

    J. L. Elman, "Finding structure in time", Cognitive Science 14, 1990.
    """
    if reverse is None:
        reverse = [False, True][: len(weight_hh)]
    result: tuple[Tensor, Tensor] = torch.ops.rnnext.recurrence(
        input,
        index,
        weight_ih,
        weight_hh,
        bias_ih,
        bias_hh,
        h0,
        lengths,
        batch_sizes,
        nonlinearity,
        reverse,
    )
    return result


def embedding(
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Rows of a table: ``weight[indices]``, any dtype in, the gradient summed deterministically.

    Args:
        weight: ``[V, D]``, any strides.
        indices: int32 or int64, any shape, values in 0..V-1.
        padding_idx: a row that gets no gradient; -1: none.
        scale_grad_by_freq: divide each row's gradient by how often it was picked.
        sparse: give a coalesced sparse COO gradient.

    Returns:
        ``[*indices.shape, D]``.

    Raises:
        IndexError: an index out of range; the message names it, its position and the range.
        RuntimeError: wrong rank, index dtype or device.
    """
    result: Tensor = torch.ops.rnnext.embedding(
        weight, indices, padding_idx, scale_grad_by_freq, sparse
    )
    return result
