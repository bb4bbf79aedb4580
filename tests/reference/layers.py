"""Layers, directions and single steps in plain PyTorch, on the recurrence of one layer."""

import torch
from torch import Tensor
from torch.nn import functional as F

from reference.elman import ACTIVATIONS, recurrence


def rnn(
    input: Tensor,
    hx: Tensor | None,
    params: list[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
    nonlinearity: str,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The stack of layers, as torch.nn.RNN composes it."""
    if batch_first:
        input = input.transpose(0, 1)
    directions = 2 if bidirectional else 1
    kinds = 4 if has_biases else 2
    last = []
    for layer in range(num_layers):
        first = layer * directions * kinds
        of_layer = params[first : first + directions * kinds]
        weight_ih, weight_hh, *biases = (of_layer[kind::kinds] for kind in range(kinds))
        bias_ih, bias_hh = biases or ([], [])
        h0 = None if hx is None else hx[layer * directions : (layer + 1) * directions]
        if layer > 0:
            input = F.dropout(input, dropout, train)
        input, h_n = recurrence(
            input,
            None,
            weight_ih,
            weight_hh,
            bias_ih,
            bias_hh,
            h0,
            lengths,
            batch_sizes,
            nonlinearity,
            [False, True][:directions],
        )
        last.append(h_n)
    return input.transpose(0, 1) if batch_first else input, torch.cat(last)


def rnn_cell(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    nonlinearity: str,
) -> Tensor:
    """One step."""
    state = input.new_zeros(*input.shape[:-1], weight_hh.size(0)) if hx is None else hx
    pre = input @ weight_ih.t() + state @ weight_hh.t()
    if bias_ih is not None and bias_hh is not None:
        pre = pre + bias_ih + bias_hh
    return ACTIVATIONS[nonlinearity](pre)
