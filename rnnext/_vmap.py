"""What :func:`torch.vmap` makes of the ops: one call of an op, whatever is mapped.

Where no weight is mapped, the mapped calls are more sequences: the batch grows. Where weights are,
they are an ensemble. Tables lie one below the other, and each call's indices are moved to its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from rnnext import _C
from rnnext._fake import Recurrence

_ops = torch.ops.rnnext
_library = torch.library.Library("rnnext", "FRAGMENT")  # type: ignore[no-untyped-call]
_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "alpha")

_Dim = int | None


def _any(dims: Any) -> bool:
    """Whether something is mapped."""
    if isinstance(dims, (list, tuple)):
        return any(map(_any, dims))
    return dims is not None


def _at(tensor: Tensor, dim: _Dim, size: int, place: int) -> Tensor:
    """The tensor with the mapped dimension at a place; expanded if it has none."""
    if dim is not None:
        return tensor.movedim(dim, place)
    shape = list(tensor.shape)
    shape.insert(place, size)
    return tensor.unsqueeze(place).expand(shape)


def _fold(tensor: Tensor | None, dim: _Dim, size: int, place: int) -> Any:
    """The mapped dimension as the inner part of another: ``[.., n, ..]`` to ``[.., n * N, ..]``."""
    if tensor is None:
        return None
    return _at(tensor, dim, size, place + 1).flatten(place, place + 1)


def _unfold(tensor: Tensor, size: int, place: int) -> Tensor:
    """The inverse; the mapped dimension is then at ``place + 1``."""
    return torch.unflatten(tensor, place, (tensor.shape[place] // size, size))


def _shifted(indices: Tensor, size: int, place: int, rows: int) -> Tensor:
    """Indices, mapped at a place, into tables of so many rows that lie one below the other."""
    shape = [1] * indices.dim()
    shape[place] = size
    return indices.long() + torch.arange(size, device=indices.device).mul(rows).view(shape)


class _Rule:
    """Calls of one op and its backward op that are mapped; ``lead``: dimensions of members."""

    def __init__(self, lead: int, size: int, dims: Sequence[Any], call: Sequence[Any]) -> None:
        self.lead, self.size = lead, size
        self.dims: Any = Recurrence(*dims)
        self.call = Recurrence(*call)
        self.rows = lead + (self.call.batch_sizes is None)  # the batch's dimension in input, output
        self.states = lead + 1  # and in hx, h_n
        self.ops = (
            (_ops.recurrence_ensemble, _ops.recurrence_ensemble_backward)
            if lead
            else (_ops.recurrence, _ops.recurrence_backward)
        )

    def maps_weights(self) -> bool:
        return any(_any(getattr(self.dims, name)) for name in _WEIGHTS)

    def of_members(self, value: Any, dim: Any) -> Any:
        """The mapped dimension as that of an ensemble's members, or as the outer part of it."""
        if isinstance(value, Tensor):
            first = _at(value, dim, self.size, 0)
            return first.flatten(0, 1) if self.lead else first
        if isinstance(value, (list, tuple)):
            return [self.of_members(*each) for each in zip(value, dim, strict=True)]
        return value

    def back(self, value: Any) -> Any:
        """A result of an ensemble, the mapped dimension at its place, 0."""
        if isinstance(value, Tensor):
            inner = value.shape[0] // self.size
            return torch.unflatten(value, 0, (self.size, inner)) if self.lead else value
        return type(value)([self.back(each) for each in value])

    def ensemble(self) -> list[Any]:
        given = {
            name: value if name == "batch_sizes" else self.of_members(value, dim)
            for (name, value), dim in zip(
                vars(self.call).items(), vars(self.dims).values(), strict=True
            )
        }
        return list(given.values())

    def batch(self) -> Recurrence:
        """The call with a batch of all calls'."""
        call, dims, size = self.call, self.dims, self.size
        index = call.index
        if index is None:
            rows = _fold(call.input, dims.input, size, self.rows)
        else:
            rows, index = call.input, _at(index, dims.index, size, self.rows + 1)
            if dims.input is not None:
                rows = rows.movedim(dims.input, self.lead)
                index = _shifted(index, size, self.rows + 1, rows.shape[self.lead + 1])
                rows = rows.flatten(self.lead, self.lead + 1)
            index = index.flatten(self.rows, self.rows + 1)
        return replace(
            call,
            input=rows,
            index=index,
            hx=_fold(call.hx, dims.hx, size, self.states),
            lengths=_fold(call.lengths, dims.lengths, size, self.lead),
            batch_sizes=None if call.batch_sizes is None else call.batch_sizes * size,
            reset=_fold(call.reset, dims.reset, size, self.states),
            reset_state=_fold(call.reset_state, dims.reset_state, size, self.states),
        )

    def forward(self, save: bool) -> tuple[Any, Any]:
        if self.maps_weights():
            return self.back(_ops.recurrence_ensemble(*self.ensemble(), save)), 0
        output, h_n, saved = self.ops[0](*vars(self.batch()).values(), save)
        results = (
            _unfold(output, self.size, self.rows),
            _unfold(h_n, self.size, self.states),
            [_unfold(each, self.size, self.rows) for each in saved],
        )
        return results, (self.rows + 1, self.states + 1, [self.rows + 1] * len(saved))

    def backward(
        self, results: Sequence[Any], dims: Sequence[Any], mask: Sequence[bool]
    ) -> tuple[Any, Any]:
        want_input, want_hx, want_weights, want_bias, want_reset_state, want_alpha = mask
        call = self.call
        each = want_weights or want_bias or (want_alpha and bool(call.alpha))
        if self.maps_weights() or each or (want_input and call.index is not None):
            several = (call.lengths, call.batch_sizes, call.reset, call.index)
            if self.maps_weights() or self.lead or call.alpha or several != (None,) * 4:
                own = [self.of_members(*pair) for pair in zip(results, dims, strict=True)]
                backward = _ops.recurrence_ensemble_backward
                return self.back(backward(*own, *self.ensemble(), mask)), 0
            return self.backward_of_each(results, dims, mask)
        rows, states, size = self.rows, self.states, self.size
        grads = self.ops[1](*self._folded(results, dims), *vars(self.batch()).values(), mask)
        grad_input, grad_hx, _, _, _, grad_reset_state, _ = grads
        out: list[Any] = [None, None, [], [], [], None, []]
        if want_input:
            grad_input, out[0] = _unfold(grad_input, size, rows), rows + 1
        if want_hx:
            grad_hx, out[1] = _unfold(grad_hx, size, states), states + 1
        if want_reset_state and call.reset is not None:
            grad_reset_state, out[5] = _unfold(grad_reset_state, size, states), states + 1
        return (grad_input, grad_hx, [], [], [], grad_reset_state, []), tuple(out)

    def _folded(self, results: Sequence[Any], dims: Sequence[Any]) -> list[Any]:
        grad_output, grad_h_n, output, saved = results
        return [
            _fold(grad_output, dims[0], self.size, self.rows),
            _fold(grad_h_n, dims[1], self.size, self.states),
            _fold(output, dims[2], self.size, self.rows),
            [_fold(*each, self.size, self.rows) for each in zip(saved, dims[3], strict=True)],
        ]

    def backward_of_each(
        self, results: Sequence[Any], dims: Sequence[Any], mask: Sequence[bool]
    ) -> tuple[Any, Any]:
        """The gradients of weights that all calls share, for each call.

        The gradients of all pre-activations come from one call of the backward op, and those of
        the weights from products over each call's own rows.
        """
        want_input, want_hx, want_weights, want_bias, _, _ = mask
        call, size = self.batch(), self.size
        grad_output, grad_h_n, output, _ = self._folded(results, dims)
        ready = replace(call, input=output, weight_ih=[])  # the input is not read
        pre, grad_hx, *_ = _ops.recurrence_backward(
            grad_output, grad_h_n, output, [], *vars(ready).values(),
            [True, want_hx, False, False, False, False],
        )  # fmt: skip
        grad_input, H = pre, call.weight_hh[0].shape[0]
        if want_input and call.weight_ih:
            grad_input = pre.matmul(torch.cat(list(call.weight_ih)))

        def product(grad: Tensor, rows: Tensor) -> Tensor:
            return torch.einsum("tbni,tbnj->nij", _unfold(grad, size, 1), _unfold(rows, size, 1))

        grads_ih, grads_hh, grads_bias = [], [], []
        for d, reverse in enumerate(call.reverse):
            own = slice(d * H, (d + 1) * H)
            grad, h = pre[..., own], output[..., own]
            if want_weights:
                start = torch.zeros_like(h[0]) if call.hx is None else call.hx[d]
                parts = [h[1:], start[None]] if reverse else [start[None], h[:-1]]
                before = torch.cat(parts) if h.shape[0] else h
                grads_hh.append(product(grad, before))
                if call.weight_ih:
                    grads_ih.append(product(grad, call.input))
            if want_bias:
                grads_bias.append(_unfold(grad, size, 1).sum((0, 1)))
        none = pre.new_empty(0)
        return (
            _unfold(grad_input, size, 1) if want_input else none,
            _unfold(grad_hx, size, 1) if want_hx else none,
            grads_ih, grads_hh, grads_bias, none, [],
        ), (
            2 if want_input else None, 2 if want_hx else None,
            [0] * len(grads_ih), [0] * len(grads_hh), [0] * len(grads_bias), None, [],
        )  # fmt: skip


def _rules(lead: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def forward(info: Any, dims: Sequence[Any], *arguments: Any) -> tuple[Any, Any]:
        return _Rule(lead, info.batch_size, dims[:-1], arguments[:-1]).forward(arguments[-1])

    def backward(info: Any, dims: Sequence[Any], *arguments: Any) -> tuple[Any, Any]:
        rule = _Rule(lead, info.batch_size, dims[4:-1], arguments[4:-1])
        return rule.backward(arguments[:4], dims[:4], arguments[-1])

    return forward, backward


class _Info(NamedTuple):
    batch_size: int


def _register(name: str, rule: Callable[..., tuple[Any, Any]]) -> None:
    """Use a rule for torch.func's vmap, and for that of ``is_grads_batched=True``."""
    torch.library.register_vmap(f"rnnext::{name}", rule)

    def of_grads_batched(*arguments: Any) -> Any:
        leaves, spec = tree_flatten(arguments)
        found = [_C.grads_batched(leaf) if isinstance(leaf, Tensor) else None for leaf in leaves]
        level = max(each[1] for each in found if each is not None)
        here = [each if each is not None and each[1] == level else None for each in found]
        values = [
            leaf if each is None else each[0] for leaf, each in zip(leaves, here, strict=True)
        ]
        dims = [None if each is None else each[2] for each in here]
        size = next(
            value.shape[dim] for value, dim in zip(values, dims, strict=True) if dim is not None
        )
        results, places = rule(
            _Info(size), tree_unflatten(dims, spec), *tree_unflatten(values, spec)
        )
        leaves, spec = tree_flatten(results)
        if isinstance(places, int):
            places = [places] * len(leaves)
        else:
            places = tree_leaves(places, is_leaf=lambda place: place is None)
        wrapped = [
            # First in memory too, or torch could not lay a tangent out as what it belongs to.
            leaf
            if place is None
            else torch._add_batch_dim(leaf.movedim(place, 0).contiguous(), 0, level)
            for leaf, place in zip(leaves, places, strict=True)
        ]
        return tree_unflatten(wrapped, spec)

    _library.impl(name, of_grads_batched, "Batched")  # type: ignore[no-untyped-call]


def _embedding(
    info: Any,
    dims: Sequence[Any],
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> tuple[Tensor, int]:
    indices = _at(indices, dims[1], info.batch_size, 0)
    if dims[0] is None:
        return _ops.embedding(weight, indices, padding_idx, scale_grad_by_freq, sparse), 0
    tables = weight.movedim(dims[0], 0)
    index = _shifted(indices, info.batch_size, 0, tables.shape[1])
    # The gradient is that of a part of a tensor, so it is not sparse.
    rows = _ops.embedding(tables.flatten(0, 1), index, -1, scale_grad_by_freq, False)
    if padding_idx >= 0:
        rows = torch.where((indices == padding_idx).unsqueeze(-1), rows.detach(), rows)
    return rows, 0


def _embedding_backward(
    info: Any,
    dims: Sequence[Any],
    grad: Tensor,
    indices: Tensor,
    num_weights: int,
    padding_idx: int,
    scale_grad_by_freq: bool,
) -> tuple[Tensor, int]:
    size = info.batch_size
    if dims[1] is None:
        # Rows as wide as all of them: the indices are followed once.
        wide = _at(grad, dims[0], size, grad.dim() - 2).flatten(-2)
        sums = _ops.embedding_backward(wide, indices, num_weights, padding_idx, scale_grad_by_freq)
        return torch.unflatten(sums, 1, (size, -1)), 1
    index = _shifted(indices.movedim(dims[1], 0), size, 0, num_weights)
    grad = _at(grad, dims[0], size, 0)
    sums = _ops.embedding_backward(grad, index, num_weights * size, -1, scale_grad_by_freq)
    sums = torch.unflatten(sums, 0, (size, num_weights))
    if padding_idx >= 0:
        sums = sums.index_fill(1, torch.tensor([padding_idx], device=sums.device), 0)
    return sums, 0


def _embedding_sparse_backward(*arguments: Any) -> tuple[Any, Any]:
    raise NotImplementedError(
        "vmap cannot map a sparse embedding gradient, which has as many rows as occur: use "
        "sparse=False"
    )


for _lead, _name in enumerate(("recurrence", "recurrence_ensemble")):
    _forward, _backward = _rules(_lead)
    _register(_name, _forward)
    _register(f"{_name}_backward", _backward)
_register("embedding", _embedding)
_register("embedding_backward", _embedding_backward)
_register("embedding_sparse_backward", _embedding_sparse_backward)
