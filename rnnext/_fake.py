"""What the ops return without data, for meta tensors and for tracing: the fake kernels.

They refuse what the kernels refuse, with the same errors, as far as it shows without values.
Sizes may be symbolic, so every condition goes through ``torch._check``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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


def _check(condition: Any, message: str) -> None:
    torch._check(condition, lambda: message)


def _check_biases(bias_ih: Sequence[Tensor], bias_hh: Sequence[Tensor], count: int) -> None:
    _check(
        len(bias_ih) == len(bias_hh) and len(bias_ih) in (0, count),
        f"bias_ih and bias_hh must both hold {count} tensors or none, got {len(bias_ih)} and "
        f"{len(bias_hh)}",
    )


def _check_shape(tensor: Tensor, name: str, shape: Sequence[Any]) -> None:
    message = f"{name} must have shape {_sizes(shape)}, got {_sizes(tensor.shape)}"
    _check(tensor.dim() == len(shape), message)
    for got, wanted in zip(tensor.shape, shape, strict=True):
        _check(got == wanted, message)


def _check_like(tensor: Tensor, name: str, shape: Sequence[Any], like: Tensor) -> None:
    """Same dtype and device as ``like``, a ``weight_hh``, and this shape."""
    _check_shape(tensor, name, shape)
    _check(
        tensor.dtype == like.dtype,
        f"{name} must have the dtype of weight_hh, {_dtype(like)}, got {_dtype(tensor)}",
    )
    _check(
        tensor.device == like.device,
        f"{name} must be on the device of weight_hh, {like.device}, got {tensor.device}",
    )


def _member_of(tensor: Tensor, M: Any) -> Tensor:
    """The first member's part of one tensor of an ensemble's."""
    message = (
        f"each tensor of an ensemble must be of {M} members, as weight_hh is, got shape "
        f"{_sizes(tensor.shape)}"
    )
    _check(tensor.dim() > 0, message)
    _check(tensor.shape[0] == M, message)
    return tensor[0]


def _check_name(name: str, value: str, known: Sequence[str]) -> None:
    torch._check_value(
        value in known,
        lambda: f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}",
    )


def _check_float(tensor: Tensor, name: str) -> None:
    torch._check_not_implemented(
        tensor.dtype in _FLOATS,
        lambda: f"{name} must be float32, float64, bfloat16 or float16, got {_dtype(tensor)}",
    )


@dataclass(frozen=True)
class Recurrence:
    """The arguments of a call of the recurrence, in the order of its schema."""

    input: Tensor
    hx: Tensor | None
    weight_ih: Sequence[Tensor]
    weight_hh: Sequence[Tensor]
    bias_ih: Sequence[Tensor]
    bias_hh: Sequence[Tensor]
    index: Tensor | None
    lengths: Tensor | None
    batch_sizes: Tensor | None
    reset: Tensor | None
    reset_state: Tensor | None
    alpha: Sequence[Tensor]
    form: str
    nonlinearity: str
    reverse: Sequence[bool]

    @property
    def like(self) -> Tensor:
        return self.weight_hh[0]

    def check(self) -> tuple[list[Any], Any]:
        """Check everything, in the order of ``check_recurrence`` in C++.

        Returns the shape of the output and the batch size; None if only values could tell it.
        """
        D = len(self.weight_hh)
        _check(D in (1, 2), f"weight_hh must hold 1 or 2 tensors, one a direction, got {D}")
        _check(
            len(self.reverse) == D,
            f"reverse must hold one bool a direction, {D}, got {len(self.reverse)}",
        )
        like = self.like
        _check(like.dim() == 2, f"weight_hh must have shape [H, H], got {_sizes(like.shape)}")
        H = like.shape[0]
        _check(
            len(self.weight_ih) in (0, D),
            f"weight_ih must hold {D} tensors or none, got {len(self.weight_ih)}",
        )
        _check(
            not self.weight_ih or self.index is None,
            "index needs a table: weight_ih must be empty",
        )
        _check_biases(self.bias_ih, self.bias_hh, D)
        output, B = self._check_rows(D * H)
        width = self.input.shape[-1]
        if self.weight_ih and self.weight_ih[0].dim() == 2:
            features = self.weight_ih[0].shape[1]
            _check(
                width == features,
                f"input must have {features} features, as many as weight_ih, got {width}",
            )
        if not self.weight_ih:
            _check(width == D * H, f"the last dimension of input must be {D * H}, got {width}")
        _check_like(self.input, "input", self.input.shape, like)
        for d in range(D):
            _check_like(self.weight_hh[d], "weight_hh", [H, H], like)
            if self.weight_ih:
                _check_like(self.weight_ih[d], "weight_ih", [H, width], like)
            if self.bias_ih:
                _check_like(self.bias_ih[d], "bias_ih", [H], like)
                _check_like(self.bias_hh[d], "bias_hh", [H], like)
        if self.hx is not None:
            _check_like(self.hx, "hx", [D, B, H], like)
        if self.lengths is not None:
            self._check_lengths(self.lengths, B)
        T = output[0] if self.batch_sizes is None else None
        self._check_reset(D, T, B, H)
        _check(
            len(self.alpha) in (0, D),
            f"alpha must hold {D} tensors or none, got {len(self.alpha)}",
        )
        for alpha in self.alpha:
            _check_like(alpha, "alpha", [H], like)
        _check_float(like, "weight_hh")
        _check_name("nonlinearity", self.nonlinearity, _C.nonlinearities())
        _check_name("form", self.form, _C.forms())
        return output, B

    def _check_reset(self, D: int, T: Any, B: Any, H: Any) -> None:
        reset = self.reset
        if reset is not None:
            torch._check_value(
                self.batch_sizes is None, lambda: "reset must not be given with a packed input"
            )
            torch._check_type(
                reset.dtype == torch.bool,
                lambda: f"reset must be a bool tensor, got {_dtype(reset)}",
            )

            def message() -> str:
                return f"reset must have shape {_sizes([T, B])}, got {_sizes(reset.shape)}"

            torch._check_value(reset.dim() == 2, message)
            torch._check_value(reset.shape[0] == T, message)
            torch._check_value(reset.shape[1] == B, message)
            _check(
                reset.device == self.like.device,
                f"reset must be on {self.like.device}, got {reset.device}",
            )
        if self.reset_state is not None:
            torch._check_value(reset is not None, lambda: "reset_state needs a reset")
            _check_like(self.reset_state, "reset_state", [D, B, H], self.like)

    def _check_rows(self, width: Any) -> tuple[list[Any], Any]:
        rows, name, dims = self.input, "input", 1
        if self.index is not None:
            rows, name, dims = self.index, "index", 0
        if self.batch_sizes is None:
            _check(
                rows.dim() == 2 + dims, f"{name} must have {2 + dims} dimensions, got {rows.dim()}"
            )
            B = rows.shape[1]
            output = [rows.shape[0], B, width]
        else:
            B = self._check_batch_sizes(self.batch_sizes)
            _check(
                rows.dim() == 1 + dims,
                f"{name} of a packed sequence must have {1 + dims} dimensions, got {rows.dim()}",
            )
            output = [rows.shape[0], width]
        if self.index is not None:
            table, index = self.input, self.index
            _check(table.dim() == 2, f"the table must have 2 dimensions, got {table.dim()}")
            _check(index.dtype in _INDICES, f"index must be int32 or int64, got {_dtype(index)}")
            _check(
                index.device == self.like.device,
                f"index must be on {self.like.device}, got {index.device}",
            )
        return output, B

    def _check_batch_sizes(self, sizes: Tensor) -> Any:
        """The batch is batch_sizes[0], a value: beside meta tensors known, or hx tells it."""
        _check(self.lengths is None, "lengths and batch_sizes must not both be given")
        _check(
            sizes.dim() == 1 and sizes.dtype == torch.int64 and sizes.device.type == "cpu",
            f"batch_sizes must be a 1-D int64 tensor on the CPU, got {_dtype(sizes)} of shape "
            f"{_sizes(sizes.shape)} on {sizes.device}",
        )
        if self.hx is not None:
            return self.hx.shape[1] if self.hx.dim() == 3 else None
        return int(sizes[0]) if type(sizes) is Tensor else None

    def _check_lengths(self, lengths: Tensor, B: Any) -> None:
        torch._check_type(
            lengths.dtype == torch.int64,
            lambda: f"lengths must be an int64 tensor, got {_dtype(lengths)}",
        )

        def message() -> str:
            return f"lengths must have shape [{B}], got {_sizes(lengths.shape)}"

        torch._check_value(lengths.dim() == 1, message)
        torch._check_value(lengths.shape[0] == B, message)
        _check(
            lengths.device == self.like.device,
            f"lengths must be on {self.like.device}, got {lengths.device}",
        )

    def member(self) -> "Recurrence":
        """The first member's call of an ensemble's, once all tensors are of as many members."""
        weights = self.weight_hh
        shape = "none" if not weights else f"shape {_sizes(weights[0].shape)}"
        _check(
            bool(weights) and weights[0].dim() == 3,
            "weight_hh of an ensemble must hold tensors of shape [M, H, H] with M > 0, got "
            f"{shape}",
        )
        M = self.like.shape[0]

        def first(value: Any) -> Any:
            if isinstance(value, Tensor):
                return _member_of(value, M)
            return [first(each) for each in value] if isinstance(value, (list, tuple)) else value

        own = {name: first(value) for name, value in vars(self).items() if name != "batch_sizes"}
        return replace(self, **own)

    def state(self, B: Any) -> tuple[Any, ...]:
        """The shape of hx and h_n."""
        B = torch.library.get_ctx().new_dynamic_size() if B is None else B
        return len(self.weight_hh), B, self.like.shape[0]


@torch.library.register_fake("rnnext::recurrence")
def _recurrence(*arguments: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    *call_arguments, save = arguments
    call = Recurrence(*call_arguments)
    output, B = call.check()
    saved = [call.like.new_empty(output)] if save and call.alpha else []
    return call.like.new_empty(output), call.like.new_empty(call.state(B)), saved


@torch.library.register_fake("rnnext::recurrence_stack")
def _recurrence_stack(*arguments: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    *call_arguments, save = arguments
    _check(not save, "recurrence_stack saves nothing: it has no gradient")
    call = Recurrence(*call_arguments)
    L = len(call.weight_hh)
    _check(L > 0, "weight_hh must hold a tensor for each layer, got none")
    _check(
        len(call.weight_ih) == L,
        f"weight_ih must hold {L} tensors, one a layer, got {len(call.weight_ih)}",
    )
    _check_biases(call.bias_ih, call.bias_hh, L)
    _check(
        len(call.alpha) in (0, L),
        f"alpha must hold {L} tensors, one a layer, or none, got {len(call.alpha)}",
    )
    output, like = call.input, call.like
    for layer in range(L):
        one = slice(layer, layer + 1)
        shape, B = replace(
            call,
            input=output,
            hx=None if call.hx is None or call.batch_sizes is None else call.hx[one],
            weight_ih=call.weight_ih[one],
            weight_hh=call.weight_hh[one],
            bias_ih=call.bias_ih[one],
            bias_hh=call.bias_hh[one],
            alpha=call.alpha[one],
        ).check()
        _check_like(call.weight_hh[layer], "weight_hh", like.shape, like)
        output = like.new_empty(shape)
    state = call.state(B)
    if call.hx is not None:
        _check_like(call.hx, "hx", state, like)
    return output, like.new_empty(state), []


def _of_members(value: Any, M: Any) -> Any:
    """The results of one member as those of all."""
    if isinstance(value, Tensor):
        return value.new_empty((M, *value.shape))
    return type(value)([_of_members(each, M) for each in value])


@torch.library.register_fake("rnnext::recurrence_ensemble")
def _recurrence_ensemble(*arguments: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    *call_arguments, save = arguments
    call = Recurrence(*call_arguments)
    one = call.member()
    results: tuple[Tensor, Tensor, list[Tensor]]
    results = _of_members(_recurrence(*vars(one).values(), save), call.like.shape[0])
    return results


@torch.library.register_fake("rnnext::recurrence_ensemble_backward")
def _recurrence_ensemble_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    output: Tensor,
    saved: Sequence[Tensor],
    *arguments: Any,
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor], Tensor, list[Tensor]]:
    *forward, output_mask = arguments
    call = Recurrence(*forward)
    one, M = call.member(), call.like.shape[0]
    results: tuple[
        Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor], Tensor, list[Tensor]
    ] = _of_members(
        _recurrence_backward(
            None if grad_output is None else _member_of(grad_output, M),
            None if grad_h_n is None else _member_of(grad_h_n, M),
            _member_of(output, M),
            [_member_of(each, M) for each in saved],
            *vars(one).values(),
            output_mask,
        ),
        M,
    )
    return results


@torch.library.register_fake("rnnext::recurrence_backward")
def _recurrence_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    output: Tensor,
    saved: Sequence[Tensor],
    *arguments: Any,
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor], Tensor, list[Tensor]]:
    *forward, output_mask = arguments
    call = Recurrence(*forward)
    like = call.like
    shape, B = call.check()
    _check_like(output, "output", shape, like)
    if grad_output is not None:
        _check_like(grad_output, "grad_output", shape, like)
    if grad_h_n is not None:
        B = grad_h_n.shape[1] if B is None and grad_h_n.dim() == 3 else B
        _check_like(grad_h_n, "grad_h_n", [len(call.weight_hh), B, like.shape[0]], like)
    want_input, want_hx, want_weights, want_bias, want_reset_state, want_alpha = output_mask
    _check(len(saved) <= 1, f"saved must hold a tensor or none, got {len(saved)}")
    for tensor in saved:
        _check_like(tensor, "saved", shape, like)
    reads = bool(call.alpha) and (call.form == "rate" or want_alpha)
    _check(not reads or bool(saved), "saved must be what the forward pass saved, got none")
    return (
        like.new_empty(call.input.shape if want_input else (0,)),
        like.new_empty(call.state(B) if want_hx else (0,)),
        [like.new_empty(w.shape) for w in call.weight_ih] if want_weights else [],
        [like.new_empty(w.shape) for w in call.weight_hh] if want_weights else [],
        [like.new_empty(w.shape[:1]) for w in call.weight_hh] if want_bias else [],
        like.new_empty(call.state(B) if want_reset_state and call.reset is not None else (0,)),
        [like.new_empty(a.shape) for a in call.alpha] if want_alpha else [],
    )


def _how_many_occur(indices: Tensor, num_rows: Any) -> Any:
    """Of so many rows; of meta tensors, which no tracer follows, as many as can."""
    if type(indices) is Tensor:
        return min(indices.numel(), num_rows)
    return torch.library.get_ctx().new_dynamic_size()


def _check_indices(indices: Tensor) -> None:
    torch._check(
        indices.dtype in _INDICES,
        lambda: (
            "Expected tensor for argument #1 'indices' to have one of the following scalar types: "
            f"Long, Int; but got {indices.type()} instead (while checking arguments for embedding)"
        ),
    )


@torch.library.register_fake("rnnext::occurring")
def _occurring(tokens: Tensor, num_rows: int, most: int) -> tuple[Tensor, Tensor]:
    _check_indices(tokens)
    rows = _how_many_occur(tokens, min(num_rows, most))
    return tokens.new_empty((rows,), dtype=torch.int64), tokens.new_empty(
        tokens.shape, dtype=torch.int64
    )


@torch.library.register_fake("rnnext::embedding")
def _embedding(
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    _check(weight.dim() == 2, "'weight' must be 2-D")
    _check(
        indices.device == weight.device,
        f"indices must be on the device of weight, {weight.device}, got {indices.device}",
    )
    _check_indices(indices)
    return weight.new_empty((*indices.shape, weight.shape[1]))


def _check_gradient(grad: Tensor, indices: Tensor) -> None:
    _check_float(grad, "grad")
    _check_indices(indices)
    message = (
        "grad must have the shape of indices and one more dimension, got "
        f"{_sizes(grad.shape)} with indices of shape {_sizes(indices.shape)}"
    )
    _check(grad.dim() == indices.dim() + 1, message)
    for got, wanted in zip(grad.shape, indices.shape, strict=False):
        _check(got == wanted, message)


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
    rows = _how_many_occur(indices, num_weights)
    apart = 1 if grad.device.type == "cuda" else 2  # as autograd wants them
    return (
        indices.new_empty_strided((rows,), (apart,), dtype=torch.int64),
        grad.new_empty((rows, grad.shape[-1])),
    )
