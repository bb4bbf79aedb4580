"""Constrained recurrent weights: the recipes of docs/constraints.md, as they stand there."""

import pytest
import torch
from torch.nn.utils import parametrize

import rnnext
from helpers.blocks import run_blocks
from helpers.common import ROOT, assert_close, steps

T, B, FEATURES, H = 9, 4, 3, 20
SIGN = torch.ones(H)
SIGN[16:] = -1
MASK = (torch.rand(H, H, generator=torch.Generator().manual_seed(1)) < 0.4).float()
# For each name: the recipes, how the free parameters become the weights, and what holds of those
# whatever the optimizer does.
CONSTRAINTS = {
    "Dale": (
        lambda recipes: [recipes["Dale"](SIGN)],
        lambda free: free.original.abs() * SIGN,
        lambda w: (w * SIGN >= 0).all(),
    ),
    "Masked": (
        lambda recipes: [recipes["Masked"](MASK)],
        lambda free: free.original * MASK,
        lambda w: (w[MASK == 0] == 0).all(),
    ),
    "LowRank": (
        lambda recipes: [recipes["LowRank"](3)],
        lambda free: free.original0 @ free.original1.t(),
        lambda w: torch.linalg.matrix_rank(w, rtol=1e-5) <= 3,
    ),
    "both": (
        lambda recipes: [recipes["Masked"](MASK), recipes["Dale"](SIGN)],
        lambda free: (free.original * MASK).abs() * SIGN,
        lambda w: (w * SIGN >= 0).all() and (w[MASK == 0] == 0).all(),
    ),
}


@pytest.fixture(scope="module")
def recipes():
    return run_blocks(ROOT / "docs" / "constraints.md")


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_training_keeps_the_constraint_which_a_stepper_reads(recipes, name):
    made, weight_of, holds = CONSTRAINTS[name]
    rnn, x = rnnext.LeakyRNN(FEATURES, H, alpha=0.3), torch.randn(T, B, FEATURES)
    for constraint in made(recipes):
        parametrize.register_parametrization(rnn, "weight_hh_l0", constraint)
    assert_close(rnn.weight_hh_l0, weight_of(rnn.parametrizations.weight_hh_l0))
    optimizer, target, losses = torch.optim.Adam(rnn.parameters(), lr=0.01), torch.rand(T, B, H), []
    for _ in range(20):
        loss = (rnn(x)[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert holds(rnn.weight_hh_l0.detach())
    assert losses[-1] < losses[0]  # it moves
    with torch.no_grad():
        assert torch.equal(steps(rnnext.Stepper(rnn, B), x), rnn(x)[0])


def test_low_rank_starts_as_the_nearest_matrix(recipes):
    rnn = rnnext.RNN(FEATURES, H)
    u, s, v = torch.linalg.svd(rnn.weight_hh_l0.detach().double())
    parametrize.register_parametrization(rnn, "weight_hh_l0", recipes["LowRank"](3))
    assert_close(rnn.weight_hh_l0.detach(), u[:, :3] * s[:3] @ v[:3])


def test_an_excitatory_inhibitory_network_learns_over_500_steps(recipes):
    """Which of two noisy inputs is stronger. Without `balanced` its rates overflow."""
    torch.manual_seed(0)
    sign, mask = torch.ones(100), 1 - torch.eye(100)
    sign[80:] = -1
    rnn = rnnext.LeakyRNN(2, 100, nonlinearity="relu", form="voltage", alpha=0.2)
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(recipes["balanced"](sign, mask))
    for constraint in (recipes["Masked"](mask), recipes["Dale"](sign)):
        parametrize.register_parametrization(rnn, "weight_hh_l0", constraint)
    radius = torch.linalg.eigvals(rnn.weight_hh_l0.detach()).abs().max().item()
    assert radius == pytest.approx(0.9, rel=1e-4)
    network = torch.nn.ModuleList([rnn, torch.nn.Linear(100, 2)])
    optimizer, right = torch.optim.Adam(network.parameters(), lr=2e-3), []
    for _ in range(60):
        side = torch.randint(2, (8,))
        evidence = torch.where(side == 1, 0.3, -0.3) + torch.randn(500, 8)
        rates, _ = rnn(torch.stack([1 + evidence, 1 - evidence], 2))
        scores = network[1](rates[-1])
        loss = torch.nn.functional.cross_entropy(scores, side) + 0.1 * rates.square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        right.append((scores.argmax(1) == side).float().mean().item())
    assert sum(right[-10:]) / 10 > 0.9
