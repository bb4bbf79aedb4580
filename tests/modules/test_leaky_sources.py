"""LeakyRNN against the updates of those whom docs/leaky.md names, their noise included.

Each is written as its source writes it (the page links to the lines), with the same normal numbers.
"""

import math

import pytest
import torch
from torch.nn.functional import softplus

import rnnext
from helpers.common import ROOT, assert_close

T, B, FEATURES, H = 12, 5, 3, 16
SIGMA = 0.3

# By the name under which docs/leaky.md lists its source: our form, nonlinearity and noise scale;
# and the update from a state, a function of a rate that gives the drive, a, and n from N(0, 1).
SOURCES = {
    "pycog": ("voltage", "relu", "sqrt_2_over_alpha", lambda v, drive, a, n:
        (1 - a) * v + a * (drive(v.relu()) + math.sqrt(2 / a) * SIGMA * n)),
    "PsychRNN": ("voltage", "relu", "sqrt_2_over_alpha", lambda v, drive, a, n:
        (1 - a) * v + a * drive(v.relu()) + math.sqrt(2 * a * SIGMA * SIGMA) * n),
    "EI_RNN": ("voltage", "relu", "sqrt_2_over_alpha", lambda v, drive, a, n:
        v * (1 - a) + drive(v.relu()) * a + math.sqrt(2 * a) * SIGMA * n),
    "nn4n": ("voltage", "relu", "none", lambda v, drive, a, n:
        (1 - a) * v + a * drive(v.relu()) + a * SIGMA * n),
    "multitask": ("rate", "softplus", "sqrt_2_over_alpha", lambda h, drive, a, n:
        (1 - a) * h + a * softplus(drive(h) + math.sqrt(2 / a) * SIGMA * n)),
    "Masse et al. 2019": ("blend", "relu", "sqrt_2_over_alpha", lambda h, drive, a, n:
        (h * (1 - a) + a * drive(h) + math.sqrt(2 * a) * SIGMA * n).relu()),
    '"pre_activation"': ("rate", "tanh", "sqrt_2_alpha", lambda h, drive, a, n:
        (1 - a) * h + a * (drive(h) + math.sqrt(2 * a * SIGMA**2) * n).tanh()),
    'neuralrnn `"rate"`': ("voltage", "tanh", "sqrt_2_alpha", lambda z, drive, a, n:
        (1 - a) * z + a * (drive(z.tanh()) + math.sqrt(2 * a * SIGMA**2) * n)),
    '"post_blend"': ("blend", "tanh", "none", lambda h, drive, a, n:
        ((1 - a) * h + a * (drive(h) + SIGMA * n)).tanh()),
}  # fmt: skip
PAGE = (ROOT / "docs" / "leaky.md").read_text(encoding="utf-8").splitlines()
ROWS = [line.split("|") for line in PAGE if line.startswith("|")]


@pytest.mark.parametrize("name", SOURCES)
def test_the_published_update_with_its_noise(name):
    (form, nonlinearity, scale, update), a = SOURCES[name], 0.2
    rnn = rnnext.LeakyRNN(
        FEATURES, H, nonlinearity=nonlinearity, form=form, dt=20, tau=100, noise_std=SIGMA,
        noise_scale=scale,
    )  # fmt: skip
    x, parameters = torch.randn(T, B, FEATURES), list(rnn.parameters())
    w_ih, w_hh, b_ih, b_hh = (p.double() for p in parameters)
    torch.manual_seed(11)
    normal = rnnext.ops.noise(torch.randint(2**63 - 1, (1,)), T, B, 1, H)[0].double()  # one key
    state, outputs = torch.zeros(B, H, dtype=torch.float64), []
    for x_t, n in zip(x.double(), normal, strict=True):
        inputs = x_t @ w_ih.t() + b_ih + b_hh
        state = update(state, lambda rate, given=inputs: given + rate @ w_hh.t(), a, n)
        outputs.append(getattr(torch, nonlinearity)(state) if form == "voltage" else state)
    expected = [torch.stack(outputs), state.unsqueeze(0)]
    torch.manual_seed(11)
    actual = list(rnn(x))
    for results in (actual, expected):
        results += torch.autograd.grad(results[0].square().sum() + results[1].sum(), parameters)
    assert_close(actual, expected)
    assert next(row for row in ROWS if name in row[1])[2].strip() == form
