"""Constrained recurrent weights: the recipes of docs/constraints.md, as they stand there."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import rnnext
from helpers.blocks import run_blocks
from helpers.common import assert_close, same
from helpers.prose import ROOT
from reference.elman import ACTIVATIONS

T, B, H = 9, 4, 20
FEATURES = 3
MODULES = {
    "RNN": lambda: rnnext.RNN(FEATURES, H),
    "RNN of relu": lambda: rnnext.RNN(FEATURES, H, nonlinearity="relu"),
    "rate": lambda: rnnext.LeakyRNN(FEATURES, H, alpha=0.3),
    "voltage": lambda: rnnext.LeakyRNN(FEATURES, H, nonlinearity="relu", alpha=0.3, form="voltage"),
    "blend": lambda: rnnext.LeakyRNN(FEATURES, H, nonlinearity="softplus", alpha=0.3, form="blend"),
}
SIGN = torch.ones(H)
SIGN[16:] = -1
MASK = (torch.rand(H, H, generator=torch.Generator().manual_seed(1)) < 0.4).float()


@pytest.fixture(scope="module")
def recipes():
    return run_blocks(ROOT / "docs" / "constraints.md")


def constraints(recipes, name):
    return {
        "Dale": [recipes["Dale"](SIGN)],
        "Masked": [recipes["Masked"](MASK)],
        "LowRank": [recipes["LowRank"](3)],
        "both": [recipes["Masked"](MASK), recipes["Dale"](SIGN)],
    }[name]


# What holds of the weights, whatever the optimizer does.
HOLDS = {
    "Dale": lambda w: bool((w * SIGN >= 0).all()),
    "Masked": lambda w: bool((w[MASK == 0] == 0).all()),
    "LowRank": lambda w: int(torch.linalg.matrix_rank(w, rtol=1e-5)) <= 3,
    "both": lambda w: HOLDS["Dale"](w) and HOLDS["Masked"](w),
}


def constrained(recipes, kind, name):
    rnn = MODULES[kind]()
    for constraint in constraints(recipes, name):
        parametrize.register_parametrization(rnn, "weight_hh_l0", constraint)
    return rnn


def loop(rnn, x, weight_hh):
    """One layer in float64, a step at a time, with this matrix."""
    f, form = ACTIVATIONS[rnn.nonlinearity], getattr(rnn, "form", "rate")
    a = rnn.alpha.double() if hasattr(rnn, "alpha") else 1.0
    state, outputs = torch.zeros(x.shape[1], H, dtype=torch.float64), []
    drive = x.double() @ rnn.weight_ih_l0.double().t() + rnn.bias_ih_l0.double()
    for x_t in drive + rnn.bias_hh_l0.double():
        p = x_t + (f(state) if form == "voltage" else state) @ weight_hh.t()
        state = (1 - a) * state + a * (f(p) if form == "rate" else p)
        state = f(state) if form == "blend" else state
        outputs.append(f(state) if form == "voltage" else state)
    return torch.stack(outputs)


@pytest.mark.parametrize("name", list(HOLDS))
@pytest.mark.parametrize("kind", list(MODULES))
def test_values_and_gradients_of_the_free_parameters(recipes, kind, name):
    rnn, x = constrained(recipes, kind, name), torch.randn(T, B, FEATURES)
    weight_hh = rnn.weight_hh_l0
    if name == "LowRank":
        free = rnn.parametrizations.weight_hh_l0
        expected = free.original0.double() @ free.original1.double().t()
    else:
        expected = rnn.parametrizations.weight_hh_l0.original.double()
        expected = expected * MASK if name in ("Masked", "both") else expected
        expected = expected.abs() * SIGN if name in ("Dale", "both") else expected
    assert_close(weight_hh, expected)
    results = []
    for output in (rnn(x)[0], loop(rnn, x, expected)):
        gradients = torch.autograd.grad(output.square().sum(), list(rnn.parameters()))
        results.append([output, *gradients])
    assert_close(results[0], results[1])


@pytest.mark.parametrize("name", list(HOLDS))
@pytest.mark.parametrize("kind", list(MODULES))
def test_training_keeps_the_constraint_which_a_stepper_reads(recipes, kind, name):
    rnn, x = constrained(recipes, kind, name), torch.randn(T, B, FEATURES)
    target = torch.rand(T, B, H)
    optimizer = torch.optim.Adam(rnn.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        loss = (rnn(x)[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert HOLDS[name](rnn.weight_hh_l0.detach())
    assert losses[-1] < losses[0]  # it moves
    stepper = rnnext.Stepper(rnn, B)
    with torch.no_grad():
        assert same([stepper(x_t) for x_t in x], rnn(x)[0])


@pytest.mark.parametrize("name", list(HOLDS))
def test_state_dicts_copies_and_removal(recipes, name):
    rnn, x = constrained(recipes, "voltage", name), torch.randn(T, B, FEATURES)
    other = constrained(recipes, "voltage", name)
    other.load_state_dict(rnn.state_dict())
    expected = rnn(x)[0]
    for each in (other, copy.deepcopy(rnn)):
        assert torch.equal(each(x)[0], expected)
    parametrize.remove_parametrizations(rnn, "weight_hh_l0")
    assert isinstance(rnn.weight_hh_l0, nn.Parameter)
    assert torch.equal(rnn(x)[0], expected)


def test_every_weight_of_a_stack_in_both_directions(recipes):
    rnn, x = rnnext.RNN(FEATURES, H, num_layers=2, bidirectional=True), torch.randn(T, B, FEATURES)
    theirs = nn.RNN(FEATURES, H, num_layers=2, bidirectional=True)
    theirs.load_state_dict(rnn.state_dict())
    for name in ("l0", "l0_reverse", "l1", "l1_reverse"):
        for module in (rnn, theirs):
            with torch.no_grad():
                getattr(module, f"weight_hh_{name}").abs_().mul_(SIGN)
        parametrize.register_parametrization(rnn, f"weight_hh_{name}", recipes["Dale"](SIGN))
    assert_close(rnn(x), theirs(x))


def test_low_rank_starts_as_the_nearest_matrix(recipes):
    rnn = rnnext.RNN(FEATURES, H)
    u, s, v = torch.linalg.svd(rnn.weight_hh_l0.detach().double())
    parametrize.register_parametrization(rnn, "weight_hh_l0", recipes["LowRank"](3))
    assert_close(rnn.weight_hh_l0.detach(), u[:, :3] * s[:3] @ v[:3])
