"""The recurrence in plain PyTorch: one time step at a time."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Activation(NamedTuple):
    """A nonlinearity: the function, its derivative as a function of its value, and whether that
    jumps, so that a rounded product may fall on the other side."""

    function: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    kink: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)


ACTIVATIONS = {
    "tanh": Activation(torch.tanh, lambda h: 1 - h**2),
    "relu": Activation(torch.relu, lambda h: (h > 0).to(h.dtype), kink=True),
    "sigmoid": Activation(torch.sigmoid, lambda h: h * (1 - h)),
    "softplus": Activation(
        torch.nn.functional.softplus, lambda h: torch.where(h > 20, 1, -torch.expm1(-h))
    ),
    "identity": Activation(torch.clone, torch.ones_like),
}


def recurrence(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: list[Tensor],
    weight_hh: list[Tensor],
    bias_ih: list[Tensor],
    bias_hh: list[Tensor],
    index: Tensor | None,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    reset_state: Tensor | None,
    alpha: list[Tensor],
    form: str,
    nonlinearity: str,
    reverse: list[bool],
    stored: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """One layer: every direction on its own, padded, with the rows that are over kept still.

    ``stored`` is a narrower type that each state is rounded to; gradients pass the rounding.
    """

    def store(x: Tensor) -> Tensor:
        return x if stored is None else x + (x.to(stored).to(x.dtype) - x).detach()

    f = ACTIVATIONS[nonlinearity]
    present = None
    if batch_sizes is not None:
        present, rows = unpack(batch_sizes)
        lengths = present.sum(0)
        if index is None:
            input = input[rows]
        else:
            index = index[rows]
    steps, batch = input.shape[:2] if index is None else index.shape
    outputs, last = [], []
    for d, weight in enumerate(weight_hh):
        hidden = weight.size(0)
        if weight_ih:
            pre = input @ weight_ih[d].t()
        else:
            pre = input[..., d * hidden : (d + 1) * hidden]
            if index is not None:
                pre = pre[index.long()]
        if bias_ih:
            pre = pre + bias_ih[d] + bias_hh[d]
        state = input.new_zeros(batch, hidden) if hx is None else hx[d]
        results = [state] * steps
        for t in reversed(range(steps)) if reverse[d] else range(steps):
            if reset is not None:
                # The boundary of two episodes that lies before step t in the direction's own time.
                mark = t + 1 if reverse[d] else t
                if mark < steps:
                    anew = reset[mark] if lengths is None else reset[mark] & (mark < lengths)
                    start = torch.zeros_like(state) if reset_state is None else reset_state[d]
                    state = torch.where(anew.unsqueeze(1), start, state)
            if not alpha:
                result = new = store(f(pre[t] + state @ weight.t()))
            elif form == "rate":
                drive = f(pre[t] + state @ weight.t())
                result = new = store((1 - alpha[d]) * state + alpha[d] * drive)
            elif form == "voltage":
                drive = pre[t] + store(f(state)) @ weight.t()
                new = store((1 - alpha[d]) * state + alpha[d] * drive)
                result = store(f(new))
            else:
                drive = pre[t] + state @ weight.t()
                result = new = store(f((1 - alpha[d]) * state + alpha[d] * drive))
            if lengths is None:
                results[t], state = result, new
            else:
                runs = (t < lengths).unsqueeze(1)
                state = torch.where(runs, new, state)
                results[t] = torch.where(runs, result, 0)
        outputs.append(torch.stack(results))
        last.append(state)
    output = torch.cat(outputs, 2)
    return output if present is None else output[present], torch.stack(last)


def unpack(batch_sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Which ``[t, b]`` of the padded batch exist, and the packed row of each (0 where none is)."""
    present = torch.arange(int(batch_sizes[0])) < batch_sizes.unsqueeze(1)
    rows = torch.zeros(present.shape, dtype=torch.long)
    rows[present] = torch.arange(int(batch_sizes.sum()))
    return present, rows


def recurrence_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    output: Tensor,
    input: Tensor,
    hx: Tensor | None,
    weight_ih: list[Tensor],
    weight_hh: list[Tensor],
    index: Tensor | None,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    nonlinearity: str,
    reverse: list[bool],
    output_mask: list[bool],
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor], Tensor, list[Tensor]]:
    """The gradients by hand, a step at a time, from nothing but the output; no leak, no resets."""
    directions, hidden = len(weight_hh), weight_hh[0].size(0)
    present = None
    if batch_sizes is not None:
        present, rows = unpack(batch_sizes)
        lengths = present.sum(0)
        if grad_output is not None:
            grad_output = torch.where(present.unsqueeze(2), grad_output[rows], 0)
        output = torch.where(present.unsqueeze(2), output[rows], 0)
        if index is None:
            input = torch.where(present.unsqueeze(2), input[rows], 0)
        else:
            index = index[rows]
    steps, batch = output.shape[:2]
    if grad_output is None:
        grad_output = torch.zeros_like(output)
    if hx is None:
        hx = output.new_zeros(directions, batch, hidden)
    if lengths is None:
        lengths = torch.full((batch,), steps)
    grads_pre, grads_w_ih, grads_w_hh, grads_bias, grads_hx = [], [], [], [], []
    for d, weight in enumerate(weight_hh):
        columns = slice(d * hidden, (d + 1) * hidden)
        states, grads = output[..., columns], grad_output[..., columns]
        carried = torch.zeros_like(hx[d]) if grad_h_n is None else grad_h_n[d]
        grad_pre, before = torch.zeros_like(states), torch.zeros_like(states)
        for t in range(steps) if reverse[d] else reversed(range(steps)):
            # The state before t is hx at a row's first step; a reversed row starts at its length.
            previous = t + 1 if reverse[d] else t - 1
            first = lengths == t + 1 if reverse[d] else torch.full((batch,), t == 0)
            inside = states[previous] if 0 <= previous < steps else torch.zeros_like(hx[d])
            before[t] = torch.where(first.unsqueeze(1), hx[d], inside)
            runs = (t < lengths).unsqueeze(1)
            slope = ACTIVATIONS[nonlinearity].slope(states[t])
            grad_pre[t] = torch.where(runs, (grads[t] + carried) * slope, 0)
            carried = torch.where(runs, grad_pre[t] @ weight, carried)
        grads_pre.append(grad_pre)
        grads_hx.append(carried)
        grads_w_hh.append(torch.einsum("tbi,tbj->ij", grad_pre, before))
        grads_bias.append(grad_pre.sum((0, 1)))
        if weight_ih:
            grads_w_ih.append(torch.einsum("tbi,tbj->ij", grad_pre, input))
    grad_input = torch.cat(grads_pre, 2)
    if weight_ih:
        grad_input = grad_input @ torch.cat(weight_ih)
    if index is not None:
        flat = grad_input.reshape(-1, directions * hidden)
        grad_input = torch.zeros_like(input).index_add(0, index.reshape(-1).long(), flat)
    elif present is not None:
        grad_input = grad_input[present]
    none = output.new_empty(0)
    want_input, want_hx, want_ih, want_hh, want_bias, _, _ = output_mask
    return (
        grad_input if want_input else none,
        torch.stack(grads_hx) if want_hx else none,
        grads_w_ih if want_ih else [],
        grads_w_hh if want_hh else [],
        grads_bias if want_bias else [],
        none,
        [],
    )
