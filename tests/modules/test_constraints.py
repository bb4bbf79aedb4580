"""Constrained recurrent weights: the recipes of docs/constraints.md, as they stand there."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import rnnext
from helpers.blocks import run_blocks
from helpers.common import assert_close, case_id, steps
from helpers.modules import by_loop
from helpers.prose import ROOT

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


CASES = [{"kind": kind, "name": name} for kind, name in zip(MODULES, [*HOLDS, "Dale"], strict=True)]


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_gradients_training_and_steps(recipes, case):
    """Of the free parameters; training keeps the constraint, which a Stepper reads."""
    rnn, x = constrained(recipes, **case), torch.randn(T, B, FEATURES)
    free, name = rnn.parametrizations.weight_hh_l0, case["name"]
    if name == "LowRank":
        expected = free.original0.double() @ free.original1.double().t()
    else:
        expected = free.original.double()
        expected = expected * MASK if name in ("Masked", "both") else expected
        expected = expected.abs() * SIGN if name in ("Dale", "both") else expected
    assert_close(rnn.weight_hh_l0, expected)
    found = []
    for output in (rnn(x)[0], by_loop(rnn, x, weight_hh=expected)[0]):
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
        rnn, x = constrained(recipes, "voltage", name), torch.randn(T, B, FEATURES)
        other = constrained(recipes, "voltage", name)
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


def test_an_excitatory_inhibitory_network_learns_over_500_steps(recipes):
    """Which of two noisy inputs is stronger. Without `balanced` its rates overflow."""
    torch.manual_seed(0)
    units, batch, steps = 100, 32, 500
    sign, mask = torch.ones(units), 1 - torch.eye(units)
    sign[80:] = -1
    rnn = rnnext.LeakyRNN(2, units, nonlinearity="relu", form="voltage", alpha=0.2)
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(recipes["balanced"](sign, mask))
    for constraint in (recipes["Masked"](mask), recipes["Dale"](sign)):
        parametrize.register_parametrization(rnn, "weight_hh_l0", constraint)
    radius = torch.linalg.eigvals(rnn.weight_hh_l0.detach()).abs().max().item()
    assert radius == pytest.approx(0.9, rel=1e-4)
    head = nn.Linear(units, 2)
    parameters = [*rnn.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=2e-3)
    right = []
    for _ in range(60):
        side = torch.randint(2, (batch,))
        evidence = torch.where(side == 1, 0.3, -0.3) + torch.randn(steps, batch)
        rates, _ = rnn(torch.stack([1 + evidence, 1 - evidence], 2))
        scores = head(rates[-1])
        loss = nn.functional.cross_entropy(scores, side) + 0.1 * rates.square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        right.append((scores.argmax(1) == side).float().mean().item())
    assert sum(right[-10:]) / 10 > 0.9
