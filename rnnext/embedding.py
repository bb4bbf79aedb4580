"""Embedding: torch.nn's module, computed by rnnext's ops."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rnnext import _deploy, functional

__all__ = ["Embedding"]


class Embedding(_deploy.Module, nn.Embedding):
    """Table of ``num_embeddings`` vectors, a drop-in for (and a kind of) torch.nn.Embedding.

    It differs in this: with ``sparse=True`` the gradient is coalesced, and may be scaled by
    frequency; the second derivative, too, is scaled by frequency; and an index out of range is
    named, with its position, in the IndexError.

    Args:
        num_embeddings: V, the number of rows.
        embedding_dim: E, the size of a row.
        padding_idx: the row, in -V..V-1, that starts as zeros and gets no gradient. Default: none.
        max_norm: rows looked up with a greater norm are scaled down to it in place. Default: none.
        norm_type: the p of that p-norm. Default: 2.
        scale_grad_by_freq: divide a row's gradient by its count in the input. Default: ``False``.
        sparse: whether the gradient of ``weight`` is a sparse tensor. Default: ``False``.
        device, dtype: as :class:`rnnext.RNN`'s.

    Attributes:
        weight: the table, ``[V, E]``, drawn from N(0, 1).

    Raises:
        AssertionError: ``padding_idx`` is outside -V..V-1.
    """

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> "Embedding":
        """The table for which ``emb(i)`` equals the bias-free ``linear(one_hot(i))``.

        Args:
            linear: a layer from V features to E. Its bias, if any, has no part in the table. Its
                weight ``[E, V]`` is copied; dtype, device and ``requires_grad`` follow it.

        Returns:
            An embedding of ``linear.in_features`` rows of size ``linear.out_features``.

        Raises:
            TypeError: ``linear`` is no nn.Linear.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be a torch.nn.Linear, got {type(linear).__name__}")
        table = linear.weight.detach().t().clone(memory_format=torch.contiguous_format)
        frozen = not linear.weight.requires_grad
        return cls(linear.in_features, linear.out_features, _weight=table, _freeze=frozen)

    def forward(self, input: Tensor) -> Tensor:
        """Look rows up.

        Args:
            input: the indices, int32 or int64, any shape, each in 0..V-1.

        Returns:
            The rows, ``[*input.shape, E]``.

        Raises:
            IndexError, RuntimeError: as :func:`rnnext.functional.embedding`.
        """
        if type(input) is not Tensor:
            node: Tensor | None = _deploy.leaf(self, input)
            if node is not None:
                return node
        weight: Any
        try:  # four times faster than through nn.Module.__getattr__
            weight = self._parameters["weight"]
        except KeyError:  # parametrized
            weight = self.weight
        return functional.embedding(
            input, weight, self.padding_idx, self.max_norm, self.norm_type,
            self.scale_grad_by_freq, self.sparse,
        )  # fmt: skip

    if TYPE_CHECKING:  # nn.Module's takes and gives anything
        __call__ = forward
