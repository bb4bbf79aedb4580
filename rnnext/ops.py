"""Typed functions over ``torch.ops.rnnext``: every op that works on one layer, documented.

:mod:`rnnext.functional` and the modules are built on top. Below, T is the number of steps, B the
batch size, I the input size, H the hidden size and D, 1 or 2, the number of directions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

import rnnext._fake
import rnnext._flops  # noqa: F401  the two register: results without data, costs

__all__ = [
    "embedding",
    "embedding_backward",
    "embedding_sparse_backward",
    "occurring",
    "recurrence",
    "recurrence_backward",
    "recurrence_ensemble",
    "recurrence_ensemble_backward",
    "recurrence_stack",
]


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
    form: str = "rate",
    nonlinearity: str = "tanh",
    reverse: Sequence[bool] | None = None,
    save: bool = False,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """One layer of an Elman RNN over whole sequences, its D directions side by side.

    ``h_t = f(pre_t + bias_ih[d] + bias_hh[d] + weight_hh[d] h_{t-1})``, where ``pre_t`` comes from
    one of three sources:

    - features: ``input [T, B, I]`` and ``weight_ih[d] [H, I]``: ``pre_t = weight_ih[d] x_t``;
    - ready: ``input [T, B, D * H]`` and no ``weight_ih``: direction d reads its H columns;
    - table: ``input [V, D * H]`` and ``index [T, B]``: row ``index[t, b]``.

    With ``alpha`` the state leaks: :func:`rnnext.functional.recurrence` has the forms.

    Args:
        input: as above, float32, float64, bfloat16 or float16 (accumulated in float32).
        hx: first states ``[D, B, H]``, or ``None`` for zeros.
        weight_ih: D tensors ``[H, I]``, or none.
        weight_hh: D tensors ``[H, H]``.
        bias_ih: D tensors ``[H]``, or none. Default: none.
        bias_hh: D tensors ``[H]``, or none; given exactly when ``bias_ih`` is. Default: none.
        index: token ids of the table form, int32 or int64. Default: no table.
        lengths: int64 ``[B]``, the number of steps of each sequence, 0..T. Later steps are not
            computed, their output is 0. A reversed direction starts at the sequence's own end.
            Default: every sequence has T steps.
        batch_sizes: int64 ``[T]`` on the CPU, of a :class:`~torch.nn.utils.rnn.PackedSequence`;
            ``input`` is then ``[N, I]`` (``[N, D * H]``; ``index`` ``[N]``). Default: not packed.
        reset: bool ``[T, B]``, whether an episode begins with a step: its state starts anew. A
            direction that runs from the end starts anew where it leaves that step. Default: never.
        reset_state: ``[D, B, H]``, the state before such a step. Default: zeros.
        alpha: D tensors ``[H]``, each in (0, 1], or none: no leak. Default: none.
        form: of the leak, ``"rate"``, ``"voltage"`` or ``"blend"``. Default: ``"rate"``.
        nonlinearity: f, ``"tanh"``, ``"relu"``, ``"sigmoid"``, ``"softplus"`` or ``"identity"``.
            Default: ``"tanh"``.
        reverse: for each direction, whether it runs from the end. Default: ``[False, True][:D]``.
        save: whether what the backward pass of a leak needs is returned. (Under autograd it is
            kept, and not returned.) Default: ``False``.

    Returns:
        ``(output, h_n, saved)``: the outputs ``[T, B, D * H]``, or ``[N, D * H]`` if packed, the
        last states ``[D, B, H]``, and a list, empty or of one tensor like ``output``: f(pre) of the
        rate form, pre less the state before of the others, where pre is what f takes without the
        leak.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit together.
        ValueError: an unknown nonlinearity or form, a ``reset`` of another shape or with
            ``batch_sizes``, ``reset_state`` without it, ``lengths`` of another shape or (on the
            CPU) outside 0..T, or alpha (on the CPU) outside (0, 1].
        TypeError: ``reset`` is not bool, or ``lengths`` not int64.
        IndexError: an index is out of range.
        NotImplementedError: an unsupported dtype.

    J. L. Elman, "Finding structure in time", Cognitive Science 14, 1990.
    """
    if reverse is None:
        reverse = [False, True][: len(weight_hh)]
    result: tuple[Tensor, Tensor, list[Tensor]] = torch.ops.rnnext.recurrence(
        input, hx, weight_ih, weight_hh, bias_ih, bias_hh, index, lengths, batch_sizes,
        reset, reset_state, alpha, form, nonlinearity, reverse, save,
    )  # fmt: skip
    return result


def recurrence_stack(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Sequence[Tensor],
    weight_hh: Sequence[Tensor],
    bias_ih: Sequence[Tensor] = (),
    bias_hh: Sequence[Tensor] = (),
    *,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    reset: Tensor | None = None,
    alpha: Sequence[Tensor] = (),
    form: str = "rate",
    nonlinearity: str = "tanh",
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """L layers of one direction, each over the one before, on the CPU.

    It is one call where no gradient is wanted, and else one of :func:`recurrence` for each layer.

    Args:
        input: the first layer's features, ``[T, B, I]``.
        hx: first states ``[L, B, H]``, or ``None`` for zeros.
        weight_ih: L tensors, the first ``[H, I]``, the others ``[H, H]``.
        weight_hh: L tensors ``[H, H]``.
        bias_ih: L tensors ``[H]``, or none. Default: none.
        bias_hh: L tensors ``[H]``, or none; given exactly when ``bias_ih`` is. Default: none.
        lengths: as :func:`recurrence`'s.
        batch_sizes: as :func:`recurrence`'s.
        reset: as :func:`recurrence`'s, for all layers.
        alpha: L tensors ``[H]``, or none: no leak. Default: none.
        form: as :func:`recurrence`'s.
        nonlinearity: as :func:`recurrence`'s.
        reverse: whether all layers run from the end. Default: ``False``.

    Returns:
        ``(output, h_n)``: the last layer's states, as :func:`recurrence`'s, and each layer's last
        state, ``[L, B, H]``.

    Raises:
        NotImplementedError: the dtype is not supported, or the tensors are not on the CPU.
        RuntimeError, ValueError: as :func:`recurrence`.
    """
    output, h_n, _ = torch.ops.rnnext.recurrence_stack(
        input, hx, weight_ih, weight_hh, bias_ih, bias_hh, None, lengths, batch_sizes,
        reset, None, alpha, form, nonlinearity, [reverse], False,
    )  # fmt: skip
    return output, h_n


def recurrence_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    output: Tensor,
    saved: Sequence[Tensor],
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
    form: str = "rate",
    nonlinearity: str = "tanh",
    reverse: Sequence[bool] | None = None,
    output_mask: Sequence[bool] = (True, True, True, True, True, True),
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor], Tensor, list[Tensor]]:
    """Gradients of :func:`recurrence` from its output; autograd calls this.

    Args:
        grad_output: gradient of the output, or ``None`` for zeros.
        grad_h_n: gradient of h_n, or ``None`` for zeros.
        output: what :func:`recurrence` returned.
        saved: what it saved of a leak; the rate form needs it, the others where alpha's gradient is
            wanted. Else an empty list.
        input: as :func:`recurrence`'s, and so are the arguments up to ``reverse``.
        hx: first states, or ``None``.
        weight_ih: D tensors, or none.
        weight_hh: D tensors.
        bias_ih: D tensors, or none: only derivatives of these gradients read them, and only of a
            leak. Default: none.
        bias_hh: as ``bias_ih``. Default: none.
        index: of the table form. Default: no table.
        lengths: steps of each sequence. Default: T.
        batch_sizes: of a packed input. Default: not packed.
        reset: where episodes begin. Default: nowhere.
        reset_state: the state before them. Default: zeros.
        alpha: of the leak. Default: no leak.
        form: of the leak. Default: ``"rate"``.
        nonlinearity: f. Default: ``"tanh"``.
        reverse: for each direction. Default: ``[False, True][:D]``.
        output_mask: which gradients are wanted: of input, hx, all weights, the biases, reset_state
            and alpha. Default: all.

    Returns:
        The gradients of ``input``, ``hx``, each ``weight_ih``, each ``weight_hh``, for each
        direction of either bias, of ``reset_state``, and of each ``alpha``. What is not wanted, or
        not there, is an empty tensor or list.

    Raises:
        RuntimeError, ValueError, IndexError, NotImplementedError: as :func:`recurrence`.
    """
    if reverse is None:
        reverse = [False, True][: len(weight_hh)]
    result: tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor], Tensor, list[Tensor]]
    result = torch.ops.rnnext.recurrence_backward(
        grad_output, grad_h_n, output, saved, input, hx, weight_ih, weight_hh, bias_ih, bias_hh,
        index, lengths, batch_sizes, reset, reset_state, alpha, form, nonlinearity, reverse,
        output_mask,
    )  # fmt: skip
    return result


def recurrence_ensemble(
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
    form: str = "rate",
    nonlinearity: str = "tanh",
    reverse: Sequence[bool] | None = None,
    save: bool = False,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """:func:`recurrence` of M members, each with weights of its own, as one call.

    Every tensor but ``batch_sizes`` has a first dimension more, M. What members share is best
    expanded, which copies nothing: ``input.expand(M, -1, -1, -1)``. On the CPU each member runs on
    one thread, and as many at once as there are threads.

    Args:
        input: as :func:`recurrence`'s, and so are all arguments, each with the dimension more.
        hx: first states, ``[M, D, B, H]``, or ``None``.
        weight_ih: D tensors ``[M, H, I]``, or none.
        weight_hh: D tensors ``[M, H, H]``.
        bias_ih: D tensors ``[M, H]``, or none. Default: none.
        bias_hh: as ``bias_ih``. Default: none.
        index: ``[M, T, B]``. Default: no table.
        lengths: ``[M, B]``. Default: T.
        batch_sizes: ``[T]``, the same of all members. Default: not packed.
        reset: ``[M, T, B]``. Default: never.
        reset_state: ``[M, D, B, H]``. Default: zeros.
        alpha: D tensors ``[M, H]``, or none. Default: none.
        form: of the leak. Default: ``"rate"``.
        nonlinearity: f. Default: ``"tanh"``.
        reverse: for each direction. Default: ``[False, True][:D]``.
        save: as :func:`recurrence`'s. Default: ``False``.

    Returns:
        As :func:`recurrence`, with the dimension more: ``output [M, T, B, D * H]`` and
        ``h_n [M, D, B, H]``.

    Raises:
        RuntimeError, ValueError, TypeError, IndexError, NotImplementedError: as :func:`recurrence`;
            RuntimeError where a tensor is not of M members.
    """
    if reverse is None:
        reverse = [False, True][: len(weight_hh)]
    result: tuple[Tensor, Tensor, list[Tensor]] = torch.ops.rnnext.recurrence_ensemble(
        input, hx, weight_ih, weight_hh, bias_ih, bias_hh, index, lengths, batch_sizes,
        reset, reset_state, alpha, form, nonlinearity, reverse, save,
    )  # fmt: skip
    return result


def recurrence_ensemble_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    output: Tensor,
    saved: Sequence[Tensor],
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
    form: str = "rate",
    nonlinearity: str = "tanh",
    reverse: Sequence[bool] | None = None,
    output_mask: Sequence[bool] = (True, True, True, True, True, True),
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor], Tensor, list[Tensor]]:
    """:func:`recurrence_backward` of M members, each tensor with a first dimension more, M.

    Args:
        grad_output: as :func:`recurrence_backward`'s, and so are all arguments.
        grad_h_n: gradient of h_n, or ``None``.
        output: what :func:`recurrence_ensemble` returned.
        saved: what it saved.
        input: as :func:`recurrence_ensemble`'s, and so are the arguments up to ``reverse``.
        hx: first states, or ``None``.
        weight_ih: D tensors, or none.
        weight_hh: D tensors.
        bias_ih: D tensors, or none. Default: none.
        bias_hh: as ``bias_ih``. Default: none.
        index: of the table form. Default: no table.
        lengths: steps of each sequence. Default: T.
        batch_sizes: of a packed input. Default: not packed.
        reset: where episodes begin. Default: nowhere.
        reset_state: the state before them. Default: zeros.
        alpha: of the leak. Default: no leak.
        form: of the leak. Default: ``"rate"``.
        nonlinearity: f. Default: ``"tanh"``.
        reverse: for each direction. Default: ``[False, True][:D]``.
        output_mask: which gradients are wanted. Default: all.

    Returns:
        As :func:`recurrence_backward`, with the dimension more.

    Raises:
        RuntimeError, ValueError, IndexError, NotImplementedError: as :func:`recurrence_ensemble`.
    """
    if reverse is None:
        reverse = [False, True][: len(weight_hh)]
    result: tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor], Tensor, list[Tensor]]
    result = torch.ops.rnnext.recurrence_ensemble_backward(
        grad_output, grad_h_n, output, saved, input, hx, weight_ih, weight_hh, bias_ih, bias_hh,
        index, lengths, batch_sizes, reset, reset_state, alpha, form, nonlinearity, reverse,
        output_mask,
    )  # fmt: skip
    return result


def occurring(tokens: Tensor, num_rows: int, most: int) -> tuple[Tensor, Tensor]:
    """The rows of a table that occur among tokens, each once, on the CPU.

    It takes ``num_rows / 8`` bytes and looks at all of them.

    Args:
        tokens: int32 or int64, any shape, values in 0..num_rows-1.
        num_rows: how many rows the table has.
        most: how many are worth counting.

    Returns:
        ``(rows, index)``: the rows that occur, ascending, int64, and for each token the position of
        its row among them: ``rows[index]`` is ``tokens``. If more than ``most`` occur: no rows, and
        -1 for each token.

    Raises:
        IndexError: a token is out of range; the message names it, its position and the range.
        ValueError: ``num_rows`` is negative or 2^31 - 1 and more, or ``most`` is negative.
        RuntimeError: ``tokens`` is not int32 or int64.
    """
    result: tuple[Tensor, Tensor] = torch.ops.rnnext.occurring(tokens, num_rows, most)
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
        weight: ``[V, E]``, any strides.
        indices: int32 or int64, any shape, values in 0..V-1.
        padding_idx: a row that gets no gradient; -1: none. Default: -1.
        scale_grad_by_freq: whether each row's gradient is divided by how often it was picked.
            Default: ``False``.
        sparse: whether the gradient is a coalesced sparse COO tensor. Default: ``False``.

    Returns:
        ``[*indices.shape, E]``.

    Raises:
        IndexError: an index is out of range; the message names it, its position and the range.
        RuntimeError: wrong rank, index dtype or device, or a complex table that needs a gradient.
    """
    result: Tensor = torch.ops.rnnext.embedding(
        weight, indices, padding_idx, scale_grad_by_freq, sparse
    )
    return result


def embedding_backward(
    grad: Tensor,
    indices: Tensor,
    num_weights: int,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
) -> Tensor:
    """The gradient of :func:`embedding`'s table: each row sums those of the rows it was read as.

    Args:
        grad: gradient of the rows, ``[*indices.shape, E]``.
        indices: as :func:`embedding`'s.
        num_weights: V.
        padding_idx: as :func:`embedding`'s. Default: -1.
        scale_grad_by_freq: as :func:`embedding`'s. Default: ``False``.

    Returns:
        ``[V, E]``.

    Raises:
        IndexError: an index is out of range.
        NotImplementedError: ``grad`` is of an unsupported dtype.
        RuntimeError: shapes that do not fit together, or a wrong index dtype.
    """
    result: Tensor = torch.ops.rnnext.embedding_backward(
        grad, indices, num_weights, padding_idx, scale_grad_by_freq
    )
    return result


def embedding_sparse_backward(
    grad: Tensor,
    indices: Tensor,
    num_weights: int,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
) -> tuple[Tensor, Tensor]:
    """:func:`embedding_backward`, of the rows that were read alone.

    Args:
        grad: as :func:`embedding_backward`'s, and so are all arguments.
        indices: the indices.
        num_weights: V.
        padding_idx: a row without a gradient. Default: -1.
        scale_grad_by_freq: whether to divide by frequency. Default: ``False``.

    Returns:
        ``(rows, values)``: the numbers of the rows, int64, ascending, each once; their gradients
        ``[len(rows), E]``.

    Raises:
        IndexError, NotImplementedError, RuntimeError: as :func:`embedding_backward`.
    """
    result: tuple[Tensor, Tensor] = torch.ops.rnnext.embedding_sparse_backward(
        grad, indices, num_weights, padding_idx, scale_grad_by_freq
    )
    return result
