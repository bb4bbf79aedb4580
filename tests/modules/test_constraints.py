"""Constrained recurrent weights: the recipes of docs/constraints.md, as they stand there."""

import pytest
import torch
from torch.nn.utils import parametrize

import rnnext
from helpers.blocks import run_blocks
from helpers.common import ROOT, assert_close


@pytest.fixture(scope="module")
def recipes():
    return run_blocks(ROOT / "docs" / "constraints.md")


def test_low_rank_starts_as_the_nearest_matrix(recipes):
    rnn = rnnext.RNN(3, 20)
    u, s, v = torch.linalg.svd(rnn.weight_hh_l0.detach().double())
    parametrize.register_parametrization(rnn, "weight_hh_l0", recipes["LowRank"](3))
    assert_close(rnn.weight_hh_l0.detach(), u[:, :3] * s[:3] @ v[:3])


def test_an_excitatory_inhibitory_network_learns_over_500_steps(recipes):
    """Which of two noisy inputs is stronger. Without `balanced` its rates overflow."""
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
        optimizer.zero_grad()
        (torch.nn.functional.cross_entropy(scores, side) + 0.1 * rates.square().mean()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        right.append((scores.argmax(1) == side).float().mean().item())
    assert sum(right[-10:]) / 10 > 0.9
    free = rnn.parametrizations.weight_hh_l0.original
    assert torch.equal(rnn.weight_hh_l0, (free * mask).abs() * sign)
