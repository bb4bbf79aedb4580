"""Typed functions over ``torch.ops.rnnext``: the ops that work on one layer, documented.

:mod:`rnnext.functional` and the modules are built on top. Below, T is the number of steps, B the
batch size, I the input size, H the hidden size and D, 1 or 2, the number of directions. G, S and K
are the cell's numbers of gates, states and saved rows: 1, 1, 0 of ``"elman"``; 1, 1, 1 of
``"rate"``, ``"voltage"`` and ``"blend"``; 3, 1, 4 of ``"gru"``; 4, 2, 5 of ``"lstm"``.

The other ops have no function here. Four take what :func:`recurrence` takes, in the same order:

- ``torch.ops.rnnext.recurrence_backward(grad_output, grad_h_n, output, saved, ..., output_mask)``
  returns the gradients of ``input``, ``hx``, each ``weight_ih``, ``weight_hh``, ``bias_ih`` and
  ``bias_hh``, ``reset_state`` and each ``alpha``; the mask says which are wanted, and the others
  are empty. A gradient of None is zeros; ``saved`` is what the forward op saved. The biases are
  read only where these gradients are differentiated, and the cell is not Elman's.
- ``recurrence_ensemble`` and ``recurrence_ensemble_backward`` are calls of M members at once, each
  with weights of its own: every tensor but ``batch_sizes`` has a first dimension more, M. What
  members share is best expanded, which copies nothing. On the CPU as many members run at once as
  there are threads, each on one; those left over may run in turn, on all.
- ``recurrence_stack`` is L layers of one direction, on the CPU, each over the output of the one
  before: the lists hold a tensor for each layer, and ``hx`` is ``[S * L, B, H]``. It is one call
  where no gradient is wanted, and else one of ``recurrence`` for each layer.

The rest is what :func:`rnnext.functional.embedding` and EmbeddingRNN call. A ``padding_idx`` of -1
is none, and an index out of range raises an IndexError that names it:

- ``embedding(weight, indices, padding_idx, scale_grad_by_freq, sparse)``: ``weight[indices]``.
- ``embedding_backward(grad, indices, num_weights, padding_idx, scale_grad_by_freq)``: the gradient
  ``[num_weights, E]`` of the table, of the gradient ``[*indices.shape, E]`` of its rows.
- ``embedding_sparse_backward``, of the same arguments: ``(rows, values)``, the numbers of the rows
  that were read, int64, ascending, each once, and their gradients ``[len(rows), E]``.
- ``occurring(tokens, num_rows, most)``, on the CPU: ``(rows, index)``, the rows of a table that
  occur among the tokens, as above, and each token's position among them. If more than ``most``
  occur, there are no rows, and -1 for each token.

``dropout_mask(key, T, B, H, p, dtype)``, on the CPU, is what dropout between layers multiplies
with: 0 with probability p, else 1 / (1 - p), each from the key and its place.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

import rnnext._fake
import rnnext._flops  # noqa: F401  the two register: results without data, costs

__all__ = ["noise", "recurrence"]


def recurrence(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Sequence[Tensor],
    weight_hh: Sequence[Tensor],
    bias_ih: Sequence[Tensor] = (),
    bias_hh: Sequence[Tensor] = (),
    *,
    index: Tensor | None = None,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    alpha: Sequence[Tensor] = (),
    cell: str = "elman",
    noise: Sequence[Tensor] = (),
    noise_key: Tensor | None = None,
    nonlinearity: str = "tanh",
    reverse: Sequence[bool] | None = None,
    save: bool = False,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """One layer of an RNN over whole sequences, its D directions side by side.

    ``h_t = f(pre_t + bias_ih[d] + bias_hh[d] + weight_hh[d] h_{t-1})``, where ``pre_t`` comes from
    one of three sources:

    - features: ``input [T, B, I]`` and ``weight_ih[d] [G * H, I]``: ``pre_t = weight_ih[d] x_t``;
    - precomputed: ``input [T, B, D * G * H]`` and no ``weight_ih``: direction d reads its columns;
    - table: ``input [V, D * G * H]`` and ``index [T, B]``: row ``index[t, b]``.

    That is the cell ``"elman"``. ``"rate"``, ``"voltage"`` and ``"blend"`` leak, as
    :func:`rnnext.functional.recurrence` says; ``"gru"`` and ``"lstm"`` are :class:`torch.nn.GRU`
    and :class:`torch.nn.LSTM`, their gates in torch's order.

    Args:
        input: as above, float32, float64, bfloat16 or float16 (accumulated in float32).
        hx: first states ``[S * D, B, H]``, h of each direction, then c; ``None`` for zeros.
        weight_ih: D tensors ``[G * H, I]``, or none.
        weight_hh: D tensors ``[G * H, H]``.
        bias_ih, bias_hh: D tensors ``[G * H]`` each, or none of either. Default: none.
        index: token ids of the table form, int32 or int64. Default: no table.
        lengths: int64 ``[B]``, the number of steps of each sequence, 0..T. Later steps are not
            computed, their output is 0. A reversed direction starts at the sequence's own end.
            Default: every sequence has T steps.
        batch_sizes: int64 ``[T]`` on the CPU, of a :class:`~torch.nn.utils.rnn.PackedSequence`;
            ``input`` is then ``[N, I]`` (``[N, D * G * H]``; ``index`` ``[N]``).
            Default: not packed.
        reset: bool ``[T, B]``, whether an episode begins with a step: its state starts anew. A
            direction that runs from the end starts anew where it leaves that step. Default: never.
        reset_state: ``[S * D, B, H]``, the states before such a step. Default: zeros.
        alpha: D tensors ``[H]``, each in (0, 1], given exactly for a cell that leaks.
            Default: none.
        cell: as above. Default: ``"elman"``.
        noise: D tensors ``[H]``, the standard deviations of the noise that is added to what f, or
            the leak, takes, on the CPU; no gradient reaches them. Not for ``"gru"`` and
            ``"lstm"``. Default: no noise.
        noise_key: int64 ``[]`` on the CPU, given exactly when ``noise`` is: :func:`noise` of it is
            what ``noise`` multiplies. Default: none.
        nonlinearity: f, as :func:`rnnext.functional.rnn`'s; ``"tanh"`` for ``"gru"`` and
            ``"lstm"``. Default: ``"tanh"``.
        reverse: for each direction, whether it runs from the end. Default: ``[False, True][:D]``.
        save: whether what the backward pass needs besides is returned. Default: ``False``.

    Returns:
        ``(output, h_n, saved)``: the outputs ``[T, B, D * H]``, or ``[N, D * H]`` if packed, the
        last states ``[S * D, B, H]``, and a list, empty or of one tensor ``[T, B, D * K * H]``:
        f(pre) of ``"rate"``, pre less the state before of the other leaks, where pre is what f
        takes without the leak; r, z, W_hn h + b_hn and n of ``"gru"``; i, f, g, o and f c of
        ``"lstm"``.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit together.
        ValueError: an unknown nonlinearity or cell, one that does not go with the other or with
            ``alpha`` or ``noise``, a ``reset`` of another shape or with ``batch_sizes``,
            ``reset_state`` without it, ``lengths`` of another shape or (on the CPU) outside 0..T,
            or alpha (on the CPU) outside (0, 1].
        TypeError: ``reset`` is not bool, or ``lengths`` not int64.
        IndexError: an index is out of range.
        NotImplementedError: an unsupported dtype.
    """
    if reverse is None:
        reverse = [False, True][: len(weight_hh)]
    result: tuple[Tensor, Tensor, list[Tensor]] = torch.ops.rnnext.recurrence(
        input, hx, weight_ih, weight_hh, bias_ih, bias_hh, index, lengths, batch_sizes,
        reset, reset_state, alpha, cell, noise, noise_key, nonlinearity, reverse, save,
    )  # fmt: skip
    return result


def noise(keys: Tensor, T: int, B: int, D: int, H: int) -> Tensor:
    """The noise of :func:`recurrence`: standard normal numbers, each from the key and its place.

    A number is the same on every CPU, on any number of threads and beside whatever other steps,
    sequences and units: Philox 4x32-7 (Salmon et al., "Parallel random numbers: as easy as 1, 2,
    3", SC 2011) of the key and its place, and Box and Muller's transform.

    Args:
        keys: int64, any shape, on the CPU. A key for each layer's call.
        T, B, D, H: the numbers of steps, sequences, directions and hidden units.

    Returns:
        float32 ``[*keys.shape, T, B, D * H]``.

    Raises:
        RuntimeError: the keys are not int64, or a size is negative.
    """
    result: Tensor = torch.ops.rnnext.noise(keys, T, B, D, H)
    return result
