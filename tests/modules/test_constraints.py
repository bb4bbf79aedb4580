"""Constrained recurrent weights: the recipes of docs/constraints.md, as they stand there."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import rnnext
from helpers.blocks import run_blocks
from helpers.common import assert_close, steps
from helpers.prose import ROOT

T, B, FEATURES, H = 9, 4, 3, 20
SIGN = torch.ones(H)
SIGN[16:] = -1
MASK = (torch.rand(H, H, generator=torch.Generator().manual_seed(1)) < 0.4).float()
# What holds of the weights, whatever the optimizer does, and how the free ones become them.
HOLDS = {
    "Dale": lambda w: bool((w * SIGN >= 0).all()),
    "Masked": lambda w: bool((w[MASK == 0] == 0).all()),
    "LowRank": lambda w: int(torch.linalg.matrix_rank(w, rtol=1e-5)) <= 3,
    "both": lambda w: HOLDS["Dale"](w) and HOLDS["Masked"](w),
}
EXPECTED = {
    "Dale": lambda free: free.original.abs() * SIGN,
    "Masked": lambda free: free.original * MASK,
    "LowRank": lambda free: free.original0 @ free.original1.t(),
    "both": lambda free: (free.original * MASK).abs() * SIGN,
}


@pytest.fixture(scope="module")
def recipes():
    return run_blocks(ROOT / "docs" / "constraints.md")


def constrained(recipes, name):
    rnn = rnnext.LeakyRNN(FEATURES, H, alpha=0.3)
    for constraint in {
        "Dale": [recipes["Dale"](SIGN)],
        "Masked": [recipes["Masked"](MASK)],
        "LowRank": [recipes["LowRank"](3)],
        "both": [recipes["Masked"](MASK), recipes["Dale"](SIGN)],
    }[name]:
        parametrize.register_parametrization(rnn, "weight_hh_l0", constraint)
    return rnn


@pytest.mark.parametrize("name", HOLDS)
def test_training_steps_copies_and_removal(recipes, name):
    """Training keeps the constraint, which a Stepper reads."""
    rnn, x = constrained(recipes, name), torch.randn(T, B, FEATURES)
    free = rnn.parametrizations.weight_hh_l0
    assert_close(rnn.weight_hh_l0, EXPECTED[name](free))
    plain = [rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0]
    target, losses = torch.rand(T, B, H), []
    expected, _ = rnnext.functional.recurrence(x, None, *plain, alpha=0.3)
    found = [
        torch.autograd.grad(output.square().sum(), list(rnn.parameters()))
        for output in (rnn(x)[0], expected)
    ]
    assert_close(*found)
    optimizer = torch.optim.Adam(rnn.parameters(), lr=0.01)
    for _ in range(20):
        loss = (rnn(x)[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert HOLDS[name](rnn.weight_hh_l0.detach())
    assert losses[-1] < losses[0]  # it moves
    other = constrained(recipes, name)
    other.load_state_dict(rnn.state_dict())
    with torch.no_grad():
        expected = rnn(x)[0]
        assert torch.equal(steps(rnnext.Stepper(rnn, B), x), expected)
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
