"""Typed functions over ``torch.ops.rnnext`` and what the ops return without data (fake kernels).

Everything here takes one layer; :mod:`rnnext.functional` and the modules are built on top.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

import rnnext._C  # noqa: F401  registers the ops

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


def _check_one_device(*tensors: Tensor | None) -> None:
    """A fake kernel is also what runs when only some of the tensors are on the meta device."""
    devices = {t.device for t in tensors if t is not None}
    if len(devices) > 1:
        names = " and ".join(sorted(map(str, devices)))
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {names}")


@torch.library.register_fake("rnnext::recurrence")
def _recurrence_fake(
    input: Tensor,
    index: Tensor | None,
    weight_ih: Sequence[Tensor],
    weight_hh: Sequence[Tensor],
    bias_ih: Sequence[Tensor],
    bias_hh: Sequence[Tensor],
    h0: Tensor | None,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    nonlinearity: str,
    reverse: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    _check_one_device(input, index, h0, lengths, *weight_ih, *weight_hh, *bias_ih, *bias_hh)
    rows = input if index is None else index
    D, H = len(weight_hh), weight_hh[0].shape[0]
    if batch_sizes is None:
        shape: tuple[int, ...] = (*rows.shape[:2], D * H)
        B: int | torch.SymInt = rows.shape[1]
    else:
        shape = (rows.shape[0], D * H)
        # The batch is batch_sizes[0], a value: known only if h0 tells it.
        B = h0.shape[1] if h0 is not None else torch.library.get_ctx().new_dynamic_size()
    return weight_hh[0].new_empty(shape), weight_hh[0].new_empty((D, B, H))


@torch.library.register_fake("rnnext::recurrence_stack")
def _recurrence_stack_fake(
    input: Tensor,
    weight_ih: Sequence[Tensor],
    weight_hh: Sequence[Tensor],
    bias_ih: Sequence[Tensor],
    bias_hh: Sequence[Tensor],
    h0: Tensor | None,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    nonlinearity: str,
) -> tuple[Tensor, Tensor]:
    """L layers of one direction, each over the one before, without gradients, on the CPU.

    Arguments are those of ``recurrence``, but that the lists hold a tensor for each layer; h0 and
    h_n are ``[L, B, H]``.
    """
    output, h = _recurrence_fake(
        input, None, weight_ih, weight_hh[:1], bias_ih, bias_hh, h0, lengths, batch_sizes,
        nonlinearity, [False],
    )  # fmt: skip
    return output, h.new_empty((len(weight_hh), *h.shape[1:]))


@torch.library.register_fake("rnnext::recurrence_backward")
def _recurrence_backward_fake(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    output: Tensor,
    input: Tensor,
    index: Tensor | None,
    weight_ih: Sequence[Tensor],
    weight_hh: Sequence[Tensor],
    h0: Tensor | None,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    nonlinearity: str,
    reverse: Sequence[bool],
    output_mask: Sequence[bool],
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor], Tensor]:
    def new(like: Tensor, wanted: bool) -> Tensor:
        return output.new_empty(like.shape if wanted else (0,))

    want_input, want_weights, want_bias, want_h0 = output_mask
    grad_h0 = output.new_empty((0,))
    if want_h0:
        if h0 is None:
            raise RuntimeError("recurrence_backward: the gradient of h0 needs h0")
        grad_h0 = new(h0, True)
    return (
        new(input, want_input),
        [new(w, True) for w in weight_ih] if want_weights else [],
        [new(w, True) for w in weight_hh] if want_weights else [],
        [output.new_empty(w.shape[:1]) for w in weight_hh] if want_bias else [],
        grad_h0,
    )


@torch.library.register_fake("rnnext::embedding")
def _embedding_fake(
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    _check_one_device(weight, indices)
    return weight.new_empty((*indices.shape, weight.shape[1]))


@torch.library.register_fake("rnnext::embedding_backward")
def _embedding_backward_fake(
    grad: Tensor, indices: Tensor, num_weights: int, padding_idx: int, scale_grad_by_freq: bool
) -> Tensor:
    return grad.new_empty((num_weights, grad.shape[-1]))


@torch.library.register_fake("rnnext::embedding_sparse_backward")
def _embedding_sparse_backward_fake(
    grad: Tensor, indices: Tensor, num_weights: int, padding_idx: int, scale_grad_by_freq: bool
) -> tuple[Tensor, Tensor]:
    rows = torch.library.get_ctx().new_dynamic_size()
    return (
        indices.new_empty((rows,), dtype=torch.int64),
        grad.new_empty((rows, grad.shape[-1])),
    )
