"""What the ops return without data, for meta tensors and for tracing: the fake kernels.

They refuse what the kernels refuse, with the same errors, as far as it shows without values.
Sizes may be symbolic, so every condition goes through ``torch._check``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rnnext import _C

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_INDICES = (torch.int64, torch.int32)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _sizes(sizes: Sequence[Any]) -> str:
    return f"[{', '.join(map(str, sizes))}]"


def _check_shape(tensor: Tensor, name: str, shape: Sequence[Any]) -> None:
    def message() -> str:
        return f"{name} must have shape {_sizes(shape)}, got {_sizes(tensor.shape)}"

    torch._check(tensor.dim() == len(shape), message)
    for got, wanted in zip(tensor.shape, shape, strict=True):
        torch._check(got == wanted, message)


def _check_like(tensor: Tensor, name: str, shape: Sequence[Any], like: Tensor) -> None:
    """Same dtype and device as ``like``, a ``weight_hh``, and this shape."""
    _check_shape(tensor, name, shape)
    torch._check(
        tensor.dtype == like.dtype,
        lambda: f"{name} must have the dtype of weight_hh, {_dtype(like)}, got {_dtype(tensor)}",
    )
    torch._check(
        tensor.device == like.device,
        lambda: f"{name} must be on the device of weight_hh, {like.device}, got {tensor.device}",
    )


def _check_float(tensor: Tensor, name: str) -> None:
    torch._check_not_implemented(
        tensor.dtype in _FLOATS,
        lambda: f"{name} must be float32, float64, bfloat16 or float16, got {_dtype(tensor)}",
    )


def _check_recurrence(
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
    directions: int,
) -> tuple[list[Any], Any]:
    """Check the arguments as ``check_recurrence`` in C++.

    Returns the shape of the output and the batch size; None if only values could tell it.
    """
    D = len(weight_hh)
    torch._check(
        D in (1, 2), lambda: f"weight_hh must hold 1 or 2 tensors, one a direction, got {D}"
    )
    torch._check(
        directions == D,
        lambda: f"reverse must hold one bool a direction, {D}, got {directions}",
    )
    like = weight_hh[0]

    def square() -> str:
        return f"weight_hh must have shape [H, H] with H > 0, got {_sizes(like.shape)}"

    torch._check(like.dim() == 2, square)
    torch._check(like.shape[0] > 0, square)
    H = like.shape[0]
    torch._check(
        len(weight_ih) in (0, D),
        lambda: f"weight_ih must hold {D} tensors or none, got {len(weight_ih)}",
    )
    torch._check(
        not weight_ih or index is None, lambda: "index needs a table: weight_ih must be empty"
    )
    torch._check(
        len(bias_ih) == len(bias_hh) and len(bias_ih) in (0, D),
        lambda: (
            f"bias_ih and bias_hh must both hold {D} tensors or none, got {len(bias_ih)} and "
            f"{len(bias_hh)}"
        ),
    )

    rows, name, row_dims = (input, "input", 1) if index is None else (index, "index", 0)
    output: list[Any]
    B: Any = None
    if batch_sizes is not None:
        torch._check(lengths is None, lambda: "lengths and batch_sizes must not both be given")
        torch._check(
            batch_sizes.dim() == 1
            and batch_sizes.dtype == torch.int64
            and batch_sizes.device.type == "cpu",
            lambda: (
                f"batch_sizes must be a 1-D int64 tensor on the CPU, got {_dtype(batch_sizes)} of "
                f"shape {_sizes(batch_sizes.shape)} on {batch_sizes.device}"
            ),
        )
        torch._check(
            rows.dim() == 1 + row_dims,
            lambda: (
                f"{name} of a packed sequence must have {1 + row_dims} dimensions, got {rows.dim()}"
            ),
        )
        output = [rows.shape[0], D * H]
        if h0 is not None:
            B = h0.shape[1] if h0.dim() == 3 else None
        elif type(batch_sizes) is Tensor:  # beside meta tensors it has its values
            B = int(batch_sizes[0])
    else:
        torch._check(
            rows.dim() == 2 + row_dims,
            lambda: f"{name} must have {2 + row_dims} dimensions, got {rows.dim()}",
        )
        B = rows.shape[1]
        output = [rows.shape[0], B, D * H]

    if index is not None:
        torch._check(
            input.dim() == 2, lambda: f"the table must have 2 dimensions, got {input.dim()}"
        )
        torch._check(
            index.dtype in _INDICES, lambda: f"index must be int32 or int64, got {_dtype(index)}"
        )
        torch._check(
            index.device == like.device,
            lambda: f"index must be on {like.device}, got {index.device}",
        )
    width = input.shape[-1]
    if not weight_ih:
        torch._check(
            width == D * H,
            lambda: f"the last dimension of input must be {D * H}, got {width}",
        )
    _check_like(input, "input", input.shape, like)
    for d in range(D):
        _check_like(weight_hh[d], "weight_hh", [H, H], like)
        if weight_ih:
            _check_like(weight_ih[d], "weight_ih", [H, width], like)
        if bias_ih:
            _check_like(bias_ih[d], "bias_ih", [H], like)
            _check_like(bias_hh[d], "bias_hh", [H], like)
    if h0 is not None:
        _check_like(h0, "h0", [D, B, H], like)
    if lengths is not None:

        def needed() -> str:
            return (
                f"lengths must be an int64 tensor of shape [{B}], got {_dtype(lengths)} of shape "
                f"{_sizes(lengths.shape)}"
            )

        torch._check(lengths.dtype == torch.int64 and lengths.dim() == 1, needed)
        torch._check(lengths.shape[0] == B, needed)
        torch._check(
            lengths.device == like.device,
            lambda: f"lengths must be on {like.device}, got {lengths.device}",
        )
    _check_float(like, "weight_hh")
    torch._check_value(
        nonlinearity in _C.nonlinearities(),
        lambda: (
            f"nonlinearity must be one of {', '.join(map(repr, _C.nonlinearities()))}, got "
            f"{nonlinearity!r}"
        ),
    )
    return output, B


def _known(B: Any) -> Any:
    return torch.library.get_ctx().new_dynamic_size() if B is None else B


@torch.library.register_fake("rnnext::recurrence")
def _recurrence(
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
    output, B = _check_recurrence(
        input, index, weight_ih, weight_hh, bias_ih, bias_hh, h0, lengths, batch_sizes,
        nonlinearity, len(reverse),
    )  # fmt: skip
    D, like = len(weight_hh), weight_hh[0]
    return like.new_empty(output), like.new_empty((D, _known(B), like.shape[0]))


@torch.library.register_fake("rnnext::recurrence_stack")
def _recurrence_stack(
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
    L = len(weight_hh)
    torch._check(L > 0, lambda: "weight_hh must hold a tensor for each layer, got none")
    torch._check(
        len(weight_ih) == L,
        lambda: f"weight_ih must hold {L} tensors, one a layer, got {len(weight_ih)}",
    )
    torch._check(
        len(bias_ih) == len(bias_hh) and len(bias_ih) in (0, L),
        lambda: (
            f"bias_ih and bias_hh must both hold {L} tensors or none, got {len(bias_ih)} and "
            f"{len(bias_hh)}"
        ),
    )
    x, like, H = input, weight_hh[0], weight_hh[0].shape[0]
    for layer in range(L):
        one = slice(layer, layer + 1)
        output, B = _check_recurrence(
            x, None, weight_ih[one], weight_hh[one], bias_ih[one], bias_hh[one],
            None if h0 is None else h0[one], lengths, batch_sizes, nonlinearity, 1,
        )  # fmt: skip
        _check_like(weight_hh[layer], "weight_hh", [H, H], like)
        x = like.new_empty(output)
    h_n = [L, _known(B), H]
    if h0 is not None:
        _check_like(h0, "h0", h_n, like)
    return x, like.new_empty(h_n)


@torch.library.register_fake("rnnext::recurrence_backward")
def _recurrence_backward(
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
    shape, B = _check_recurrence(
        input, index, weight_ih, weight_hh, (), (), h0, lengths, batch_sizes, nonlinearity,
        len(reverse),
    )  # fmt: skip
    D, like = len(weight_hh), weight_hh[0]
    _check_like(output, "output", shape, like)
    if grad_output is not None:
        _check_like(grad_output, "grad_output", shape, like)
    if grad_h_n is not None:
        B = grad_h_n.shape[1] if B is None and grad_h_n.dim() == 3 else B
        _check_like(grad_h_n, "grad_h_n", [D, B, like.shape[0]], like)
    want_input, want_weights, want_bias, want_h0 = output_mask
    return (
        like.new_empty(input.shape if want_input else (0,)),
        [like.new_empty(w.shape) for w in weight_ih] if want_weights else [],
        [like.new_empty(w.shape) for w in weight_hh] if want_weights else [],
        [like.new_empty(w.shape[:1]) for w in weight_hh] if want_bias else [],
        like.new_empty((D, _known(B), like.shape[0]) if want_h0 else (0,)),
    )


def _check_indices(indices: Tensor) -> None:
    torch._check(
        indices.dtype in _INDICES, lambda: f"indices must be int32 or int64, got {_dtype(indices)}"
    )


@torch.library.register_fake("rnnext::embedding")
def _embedding(
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    torch._check(weight.dim() == 2, lambda: "'weight' must be 2-D")
    torch._check(
        indices.device == weight.device,
        lambda: f"indices must be on the device of weight, {weight.device}, got {indices.device}",
    )
    _check_indices(indices)
    return weight.new_empty((*indices.shape, weight.shape[1]))


def _check_gradient(grad: Tensor, indices: Tensor) -> None:
    _check_float(grad, "grad")
    _check_indices(indices)

    def message() -> str:
        return (
            "grad must have the shape of indices and one more dimension, got "
            f"{_sizes(grad.shape)} with indices of shape {_sizes(indices.shape)}"
        )

    torch._check(grad.dim() == indices.dim() + 1, message)
    for got, wanted in zip(grad.shape, indices.shape, strict=False):
        torch._check(got == wanted, message)


@torch.library.register_fake("rnnext::embedding_backward")
def _embedding_backward(
    grad: Tensor, indices: Tensor, num_weights: int, padding_idx: int, scale_grad_by_freq: bool
) -> Tensor:
    _check_gradient(grad, indices)
    return grad.new_empty((num_weights, grad.shape[-1]))


@torch.library.register_fake("rnnext::embedding_sparse_backward")
def _embedding_sparse_backward(
    grad: Tensor, indices: Tensor, num_weights: int, padding_idx: int, scale_grad_by_freq: bool
) -> tuple[Tensor, Tensor]:
    _check_gradient(grad, indices)
    rows = torch.library.get_ctx().new_dynamic_size()
    return (
        indices.new_empty((rows,), dtype=torch.int64),
        grad.new_empty((rows, grad.shape[-1])),
    )
