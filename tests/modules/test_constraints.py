"""Constrained recurrent weights: the recipes of docs/constraints.md, as they stand there."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import reference
import rnnext
from helpers.blocks import run_blocks
from helpers.common import assert_close, steps
from helpers.prose import ROOT

T, B, FEATURES, H = 9, 4, 3, 20
SIGN = torch.ones(H)
SIGN[16:] = -1
MASK = (torch.rand(H, H, generator=torch.Generator().manual_seed(1)) < 0.4).float()
# A constraint, and what holds of the weights, whatever the optimizer does.
HOLDS = {
    "Dale": lambda w: bool((w * SIGN >= 0).all()),
    "Masked": lambda w: bool((w[MASK == 0] == 0).all()),
    "LowRank": lambda w: int(torch.linalg.matrix_rank(w, rtol=1e-5)) <= 3,
    "both": lambda w: HOLDS["Dale"](w) and HOLDS["Masked"](w),
}
CASES = [
    ("Dale", "rate", "tanh"),
    ("Masked", "rate", "relu"),
    ("LowRank", "voltage", "relu"),
    ("both", "blend", "softplus"),
]


@pytest.fixture(scope="module")
def recipes():
    return run_blocks(ROOT / "docs" / "constraints.md")


def constrained(recipes, name, form="rate", nonlinearity="tanh"):
    rnn = rnnext.LeakyRNN(FEATURES, H, nonlinearity=nonlinearity, alpha=0.3, form=form)
    for constraint in {
        "Dale": [recipes["Dale"](SIGN)],
        "Masked": [recipes["Masked"](MASK)],
        "LowRank": [recipes["LowRank"](3)],
        "both": [recipes["Masked"](MASK), recipes["Dale"](SIGN)],
    }[name]:
        parametrize.register_parametrization(rnn, "weight_hh_l0", constraint)
    return rnn


def by_loop(rnn, x, weight_hh):
    """The output in float64, with this recurrent weight."""
    own = ([getattr(rnn, name).double()] for name in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0"))
    weight_ih, bias_ih, bias_hh = own
    alphas = [alpha.double() for alpha in rnn.alphas()]
    return reference.recurrence(
        x.double(), None, weight_ih, [weight_hh], bias_ih, bias_hh, None, None, None, None, None,
        alphas, rnn.form, rnn.nonlinearity, [False],
    )[0]  # fmt: skip


@pytest.mark.parametrize(("name", "form", "nonlinearity"), CASES)
def test_gradients_training_and_steps(recipes, name, form, nonlinearity):
    """Of the free parameters; training keeps the constraint, which a Stepper reads."""
    rnn, x = constrained(recipes, name, form, nonlinearity), torch.randn(T, B, FEATURES)
    free = rnn.parametrizations.weight_hh_l0
    if name == "LowRank":
        expected = free.original0.double() @ free.original1.double().t()
    else:
        expected = free.original.double()
        expected = expected * MASK if name in ("Masked", "both") else expected
        expected = expected.abs() * SIGN if name in ("Dale", "both") else expected
    assert_close(rnn.weight_hh_l0, expected)
    found = []
    for output in (rnn(x)[0], by_loop(rnn, x, expected)):
        gradients = torch.autograd.grad(output.square().sum(), list(rnn.parameters()))
        found.append([output, *gradients])
    assert_close(found[0], found[1])

    target, losses = torch.rand(T, B, H), []
    optimizer = torch.optim.Adam(rnn.parameters(), lr=0.01)
    for _ in range(20):
        loss = (rnn(x)[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert HOLDS[name](rnn.weight_hh_l0.detach())
    assert losses[-1] < losses[0]  # it moves
    with torch.no_grad():
        assert torch.equal(steps(rnnext.Stepper(rnn, B), x), rnn(x)[0])


def test_state_dicts_copies_and_removal(recipes):
    for name in HOLDS:
        rnn, x = constrained(recipes, name), torch.randn(T, B, FEATURES)
        other = constrained(recipes, name)
        other.load_state_dict(rnn.state_dict())
        expected = rnn(x)[0]
        for each in (other, copy.deepcopy(rnn)):
            assert torch.equal(each(x)[0], expected)
        parametrize.remove_parametrizations(rnn, "weight_hh_l0")
        assert isinstance(rnn.weight_hh_l0, nn.Parameter)
        assert torch.equal(rnn(x)[0], expected)


def test_low_rank_starts_as_the_nearest_matrix(recipes):
    rnn = rnnext.RNN(FEATURES, H)
    u, s, v = torch.linalg.svd(rnn.weight_hh_l0.detach().double())
    parametrize.register_parametrization(rnn, "weight_hh_l0", recipes["LowRank"](3))
    assert_close(rnn.weight_hh_l0.detach(), u[:, :3] * s[:3] @ v[:3])


def test_a_balanced_network_keeps_its_rates_over_500_steps(recipes):
    """Excitatory and inhibitory units, at first. Without `balanced` the rates overflow."""
    sign, mask = torch.ones(100), 1 - torch.eye(100)
    sign[80:] = -1
    rnn = rnnext.LeakyRNN(2, 100, nonlinearity="relu", form="voltage", alpha=0.2)
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(recipes["balanced"](sign, mask))
    for constraint in (recipes["Masked"](mask), recipes["Dale"](sign)):
        parametrize.register_parametrization(rnn, "weight_hh_l0", constraint)
    radius = torch.linalg.eigvals(rnn.weight_hh_l0.detach()).abs().max().item()
    assert radius == pytest.approx(0.9, rel=1e-4)
    rates, _ = rnn(1 + torch.randn(500, 32, 2))
    assert 0 < rates[-1].mean() < 10
    rates[-1].mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in rnn.parameters())
