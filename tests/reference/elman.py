"""The recurrence in plain PyTorch: one time step at a time."""

import torch
from torch import Tensor

from reference.philox import normals

ACTIVATIONS = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "softplus": torch.nn.functional.softplus,
    "identity": torch.clone,
}
KINKED = {"relu"}  # whose derivative jumps, so that a rounded product may fall on the other side


def recurrence(
    input, hx, weight_ih, weight_hh, bias_ih, bias_hh, index, lengths, batch_sizes, reset,
    reset_state, alpha, cell, nonlinearity, reverse, stored=None, noise=(), noise_key=None,
):  # fmt: skip
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
        if noise:
            pre = pre + noise[d] * normals(int(noise_key), steps, batch, d, hidden)
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
            elif cell == "rate":
                drive = f(pre[t] + state @ weight.t())
                result = new = store((1 - alpha[d]) * state + alpha[d] * drive)
            elif cell == "voltage":
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
        outputs.append(torch.stack(results) if results else pre)
        last.append(state)
    output = torch.cat(outputs, 2)
    return output if present is None else output[present], torch.stack(last)


def unpack(batch_sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Which ``[t, b]`` of the padded batch exist, and the packed row of each (0 where none is)."""
    present = torch.arange(int(batch_sizes[0])) < batch_sizes.unsqueeze(1)
    rows = torch.zeros(present.shape, dtype=torch.long)
    rows[present] = torch.arange(int(batch_sizes.sum()))
    return present, rows
