"""The ops' results without data, for meta tensors and for tracing: the fake kernels.

The checks are the kernels' own, in C++ (``csrc/ops/check.h``), which take symbols for sizes. Here
is what depends on values.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rnnext import _C


def _batch(arguments: dict[str, Any]) -> Any:
    """How many sequences a packed batch begins with: the states' size, or else batch_sizes[0]."""
    sizes = arguments["batch_sizes"]
    if sizes is None:
        return 0
    for states in (arguments["hx"], arguments.get("grad_h_n")):
        if states is not None:
            return states.shape[-2] if states.dim() > 1 else 0
    if type(sizes) is Tensor:  # beside meta tensors
        return int(sizes[0]) if sizes.dim() == 1 and len(sizes) else 0
    return torch.library.get_ctx().new_dynamic_size()


def _register(name: str) -> None:
    fake: Callable[..., Any] = getattr(_C, f"fake_{name}")
    schema = getattr(torch.ops.rnnext, name).default._schema
    names = [argument.name for argument in schema.arguments]

    @torch.library.register_fake(f"rnnext::{name}")
    def results(*arguments: Any) -> Any:
        return fake(*arguments, _batch(dict(zip(names, arguments, strict=True))))


for _fake in (name for name in dir(_C) if name.startswith("fake_")):
    _register(_fake.removeprefix("fake_"))


def _how_many_occur(indices: Tensor, num_rows: Any) -> Any:
    """A size that a tracer learns later; with meta tensors, the largest that is possible."""
    if type(indices) is Tensor:
        return min(indices.numel(), num_rows)
    return torch.library.get_ctx().new_dynamic_size()


@torch.library.register_fake("rnnext::noise")
def _noise(keys: Tensor, T: Any, B: Any, D: int, H: Any) -> Tensor:
    return keys.new_empty((*keys.shape, T, B, D * H), dtype=torch.float32)


@torch.library.register_fake("rnnext::dropout_mask")
def _dropout_mask(key: Tensor, T: Any, B: Any, H: Any, p: float, dtype: torch.dtype) -> Tensor:
    return key.new_empty((T, B, H), dtype=dtype)


@torch.library.register_fake("rnnext::occurring")
def _occurring(tokens: Tensor, num_rows: int, most: int) -> tuple[Tensor, Tensor]:
    _C.check_index_dtype(tokens)
    index = tokens.new_empty(tokens.shape, dtype=torch.int64)
    return index.new_empty((_how_many_occur(tokens, min(num_rows, most)),)), index


@torch.library.register_fake("rnnext::embedding")
def _embedding(
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    _C.check_embedding(weight, indices)
    return weight.new_empty((*indices.shape, weight.shape[1]))


@torch.library.register_fake("rnnext::embedding_backward")
def _embedding_backward(
    grad: Tensor, indices: Tensor, num_weights: int, padding_idx: int, scale_grad_by_freq: bool
) -> Tensor:
    _C.check_embedding_gradient(grad, indices)
    return grad.new_empty((num_weights, grad.shape[-1]))


@torch.library.register_fake("rnnext::embedding_sparse_backward")
def _embedding_sparse_backward(
    grad: Tensor, indices: Tensor, num_weights: int, padding_idx: int, scale_grad_by_freq: bool
) -> tuple[Tensor, Tensor]:
    _C.check_embedding_gradient(grad, indices)
    rows = _how_many_occur(indices, num_weights)
    apart = 1 if grad.device.type == "cuda" else 2  # as autograd wants them
    return (
        indices.new_empty_strided((rows,), (apart,), dtype=torch.int64),
        grad.new_empty((rows, grad.shape[-1])),
    )
