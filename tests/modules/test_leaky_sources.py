"""LeakyRNN against the updates of those whom docs/leaky.md names, their noise included.

Each is written as its source writes it (the page links to the lines), with the same normal numbers.
"""

import math

import pytest
import torch

import rnnext
from helpers.common import assert_close
from helpers.prose import ROOT, text

T, B, FEATURES, H = 12, 5, 3, 16
SIGMA = 0.3


def softplus(x):
    return torch.nn.functional.softplus(x)


# From a state, a function of a rate that gives the input and the recurrent drive, a, and n from
# N(0, 1): the next state, and what is read of it.
def pycog(v, drive, a, n):
    v = (1 - a) * v + a * (drive(v.relu()) + math.sqrt(2 / a) * SIGMA * n)
    return v, v.relu()


def psychrnn(v, drive, a, n):
    v = (1 - a) * v + a * drive(v.relu()) + math.sqrt(2 * a * SIGMA * SIGMA) * n
    return v, v.relu()


def nn_brain_ei(v, drive, a, n):
    v = v * (1 - a) + drive(v.relu()) * a
    v = v + math.sqrt(2 * a) * SIGMA * n
    return v, v.relu()


def nn4n(v, drive, a, n):
    v = (1 - a) * v + a * drive(v.relu())
    v = v + a * SIGMA * n
    return v, v.relu()


def yang(h, drive, a, n):
    h = (1 - a) * h + a * softplus(drive(h) + math.sqrt(2 / a) * SIGMA * n)
    return h, h


def masse(h, drive, a, n):
    h = (h * (1 - a) + a * drive(h) + math.sqrt(2 * a) * SIGMA * n).relu()
    return h, h


def neuralrnn_pre_activation(h, drive, a, n):
    h = (1 - a) * h + a * (drive(h) + math.sqrt(2 * a * SIGMA**2) * n).tanh()
    return h, h


def neuralrnn_rate(z, drive, a, n):
    z = (1 - a) * z + a * (drive(z.tanh()) + math.sqrt(2 * a * SIGMA**2) * n)
    return z, z.tanh()


def neuralrnn_post_blend(h, drive, a, n):
    h = ((1 - a) * h + a * (drive(h) + SIGMA * n)).tanh()
    return h, h


# The update, and by which name docs/leaky.md lists its source as which form.
SOURCES = [
    (pycog, "pycog", "voltage", "relu", "sqrt_2_over_alpha"),
    (psychrnn, "PsychRNN", "voltage", "relu", "sqrt_2_over_alpha"),
    (nn_brain_ei, "EI_RNN", "voltage", "relu", "sqrt_2_over_alpha"),
    (nn4n, "nn4n", "voltage", "relu", "none"),
    (yang, "multitask", "rate", "softplus", "sqrt_2_over_alpha"),
    (masse, "Masse et al. 2019", "blend", "relu", "sqrt_2_over_alpha"),
    (neuralrnn_pre_activation, '"pre_activation"', "rate", "tanh", "sqrt_2_alpha"),
    (neuralrnn_rate, 'neuralrnn `"rate"`', "voltage", "tanh", "sqrt_2_alpha"),
    (neuralrnn_post_blend, '"post_blend"', "blend", "tanh", "none"),
]
PAGE = [x.split("|") for x in text(ROOT / "docs" / "leaky.md").split("\n") if x.startswith("|")]


@pytest.mark.parametrize(
    ("update", "name", "form", "nonlinearity", "scale"), SOURCES, ids=[x[1] for x in SOURCES]
)
def test_the_published_update_with_its_noise(update, name, form, nonlinearity, scale):
    a = 0.2
    rnn = rnnext.LeakyRNN(
        FEATURES, H, nonlinearity=nonlinearity, form=form, dt=20, tau=100, noise_std=SIGMA,
        noise_scale=scale,
    )  # fmt: skip
    x = torch.randn(T, B, FEATURES)
    parameters = list(rnn.parameters())
    w_ih, w_hh, b_ih, b_hh = (p.double() for p in parameters)
    torch.manual_seed(11)
    keys = torch.randint(2**63 - 1, (1,))  # one a layer
    normal = rnnext.ops.noise(keys, T, B, 1, H)[0].double()
    state, outputs = torch.zeros(B, H, dtype=torch.float64), []
    for x_t, n in zip(x.double(), normal, strict=True):
        inputs = x_t @ w_ih.t() + b_ih + b_hh
        state, output = update(state, lambda rate, given=inputs: given + rate @ w_hh.t(), a, n)
        outputs.append(output)
    expected = [torch.stack(outputs), state.unsqueeze(0)]

    torch.manual_seed(11)
    actual = list(rnn(x))
    for results in (actual, expected):
        results += torch.autograd.grad(results[0].square().sum() + results[1].sum(), parameters)
    assert_close(actual, expected)
    assert next(row for row in PAGE if name in row[1])[2].strip() == form
