"""How many operations the ops count in torch.utils.flop_counter: those of their matrix products."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

_ops = torch.ops.rnnext


def _products(weights: Sequence[Sequence[int]], rows: int) -> int:
    """The operations of products of so many rows with each of the weights."""
    return sum(2 * rows * math.prod(shape[-2:]) for shape in weights)


def _state_weights(input: Any, hx: Any, weight_hh: Any, others: Any) -> Any:
    """The weights that multiply a state.

    torch.nn counts the zeros that it multiplies, and so do we, but not where a step from zeros is a
    linear layer: the rows of an EmbeddingRNN's table times W_ih.
    """
    linear = len(input) == 3 and input[0] == 1 and hx is None and "identity" in others
    return [] if linear else weight_hh


@register_flop_formula([_ops.recurrence, _ops.recurrence_stack, _ops.recurrence_ensemble])
def _forward(
    input: Any, hx: Any, weight_ih: Any, weight_hh: Any, *others: Any, out_shape: Any
) -> int:
    rows = math.prod(out_shape[0][:-1])
    return _products([*weight_ih, *_state_weights(input, hx, weight_hh, others)], rows)


@register_flop_formula([_ops.recurrence_backward, _ops.recurrence_ensemble_backward])
def _backward(
    grad_output: Any, grad_h_n: Any, output: Any, saved: Any, input: Any, hx: Any, weight_ih: Any,
    weight_hh: Any, *others: Any, out_shape: Any,
) -> int:  # fmt: skip
    want_input, _, want_ih, want_hh, *_ = others[-1]
    rows = math.prod(output[:-1])
    of_state = _products(_state_weights(input, hx, weight_hh, others), rows)
    # W_hh^T takes the gradient through time, whatever is wanted.
    return int((1 + want_hh) * of_state + (want_input + want_ih) * _products(weight_ih, rows))
