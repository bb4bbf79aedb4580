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
KINKED = {"relu"}  # their derivative jumps: rounding may put a product on the other side
# Pre-activations of a hidden unit, and states of [B, H]; other cells have one.
GATES, STATES = {"gru": 3, "lstm": 4}, {"lstm": 2}


def step(cell, f, x, h, before, alpha, store):
    """Output and states after a step, from the pre-activations' two parts and the states before."""
    if cell == "gru":
        (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, 1), h.chunk(3, 1)
        n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
        output = store(n + torch.sigmoid(x_z + h_z) * (before[0] - n))
    elif cell == "lstm":
        i, f, g, o = (x + h).chunk(4, 1)
        c = store(torch.sigmoid(f) * before[1] + torch.sigmoid(i) * torch.tanh(g))
        output = store(torch.sigmoid(o) * torch.tanh(c))
        return output, [output, c]
    elif cell == "elman":
        output = store(f(x + h))
    elif cell == "rate":
        output = store((1 - alpha) * before[0] + alpha * f(x + h))
    else:
        state = (1 - alpha) * before[0] + alpha * (x + h)
        if cell == "voltage":
            return store(f(store(state))), [store(state)]
        output = store(f(state))
    return output, [output]


def recurrence(
    input, hx, weight_ih, weight_hh, bias_ih, bias_hh, index, lengths, batch_sizes, reset,
    reset_state, alpha, cell, nonlinearity, reverse, stored=None, noise=(), noise_key=None,
):  # fmt: skip
    """One layer: every direction on its own, padded, with the rows that are over kept still.

    ``stored`` is a narrower type that each state is rounded to; gradients pass the rounding.
    """

    def store(x: Tensor) -> Tensor:
        return x if stored is None else x + (x.to(stored).to(x.dtype) - x).detach()

    f, present = ACTIVATIONS[nonlinearity], None
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
        hidden = weight.size(1)
        if weight_ih:
            x = input @ weight_ih[d].t()
        else:
            width = GATES.get(cell, 1) * hidden
            x = input[..., d * width : (d + 1) * width]
            if index is not None:
                x = x[index.long()]
        if bias_ih:
            x = x + bias_ih[d]
        if noise:
            x = x + noise[d] * normals(int(noise_key), steps, batch, d, hidden)
        zeros = input.new_zeros(STATES.get(cell, 1), batch, hidden)
        # All states of a direction.
        states = zeros if hx is None else hx[d :: len(weight_hh)]
        anew = zeros if reset_state is None else reset_state[d :: len(weight_hh)]
        results = [x[..., :hidden]] * steps
        for t in reversed(range(steps)) if reverse[d] else range(steps):
            if reset is not None:
                # The boundary of two episodes that lies before step t in the direction's own time.
                mark = t + 1 if reverse[d] else t
                if mark < steps:
                    marked = reset[mark] if lengths is None else reset[mark] & (mark < lengths)
                    states = torch.where(marked.unsqueeze(1), anew, states)
            h = (store(f(states[0])) if cell == "voltage" else states[0]) @ weight.t()
            h = h + bias_hh[d] if bias_hh else h
            results[t], after = step(cell, f, x[t], h, states, alpha[d] if alpha else None, store)
            after = torch.stack(after)
            if lengths is not None:
                runs = (t < lengths).unsqueeze(1)
                after = torch.where(runs, after, states)
                results[t] = torch.where(runs, results[t], 0)
            states = after
        outputs.append(torch.stack(results) if results else x[..., :hidden])
        last.append(states)
    output = torch.cat(outputs, 2)
    return output if present is None else output[present], torch.stack(last, 1).flatten(0, 1)


def unpack(batch_sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Which ``[t, b]`` of the padded batch exist, and the packed row of each (0 where none is)."""
    present = torch.arange(int(batch_sizes[0])) < batch_sizes.unsqueeze(1)
    rows = torch.zeros(present.shape, dtype=torch.long)
    rows[present] = torch.arange(int(batch_sizes.sum()))
    return present, rows
