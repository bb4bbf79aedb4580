"""Every transform of torch.func inside every other, against torch.nn or a loop."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap

import reference
import rnnext
from helpers.common import assert_close, case_id, pair, pairwise

FLOAT64 = {"dtype": torch.float64}


class Loop(nn.Module):
    """An RNN or LeakyRNN of one layer, a step at a time: vmap has no rule for torch.nn's."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        rnn = self.rnn
        leaks = isinstance(rnn, rnnext.LeakyRNN)
        weights = [rnn.weight_ih_l0], [rnn.weight_hh_l0], [rnn.bias_ih_l0], [rnn.bias_hh_l0]
        return reference.recurrence(
            x, None, *weights, None, None, None, None, None, rnn.alphas() if leaks else [],
            rnn.form if leaks else "elman", rnn.nonlinearity, [False],
        )  # fmt: skip


def made(name):
    """A module of ours, one of the same parameters that is not, and an input."""
    tokens, x = torch.tensor([[1, 0], [4, 1], [1, 3]]), torch.rand(3, 2, 2, **FLOAT64)
    if name in ("Embedding", "RNNCell"):
        theirs, ours = pair(name, *((5, 2) if name == "Embedding" else (2, 3)), **FLOAT64)
        return ours, theirs, tokens if name == "Embedding" else x[0]
    if name == "EmbeddingRNN":
        words = rnnext.EmbeddingRNN(5, 2, 3, **FLOAT64)
        table = nn.Embedding.from_pretrained(words.embedding.weight.detach(), freeze=False)
        return words, nn.Sequential(OrderedDict(embedding=table, rnn=Loop(words.rnn))), tokens
    options = {"alpha": 0.4, "learn_alpha": True, "form": name, "nonlinearity": "softplus"}
    options |= FLOAT64
    rnn = rnnext.RNN(2, 3, **FLOAT64) if name == "RNN" else rnnext.LeakyRNN(2, 3, **options)
    return rnn, Loop(rnn), x


FACTORS = torch.tensor([1.0, -0.5], **FLOAT64)
TRANSFORMS = {
    "grad": grad,
    "jvp": lambda f: lambda w: jvp(f, (w,), (w.cos(),))[1],
    "jacrev": jacrev,
    "jacfwd": jacfwd,
    "vmap": lambda f: lambda w: vmap(lambda factor: f(w * factor))(FACTORS),
}
CASES = pairwise(
    outer=list(TRANSFORMS),
    inner=list(TRANSFORMS),
    module=["RNN", "RNNCell", "Embedding", "EmbeddingRNN", "rate", "voltage", "blend"],
)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_every_transform_inside_every_other(case):
    """Of one parameter, while all need gradients: autograd records at every level."""
    ours, theirs, x = made(case["module"])
    results = []
    for module in (ours, theirs):
        path, given = next(iter(module.named_parameters()))

        def value(weight, module=module, path=path):
            result = functional_call(module, {path: weight}, (x,))
            return (result[0] if isinstance(result, tuple) else result).pow(3).sum()

        def inner(weight, value=value):
            return TRANSFORMS[case["inner"]](value)(weight).sin().sum()

        result = TRANSFORMS[case["outer"]](inner)(given)
        results.append([result])
        if results[0][0].requires_grad:  # not of a leak's tangents, which the loop gives
            of = result.sin().sum(), list(module.parameters())
            results[-1] += torch.autograd.grad(*of, materialize_grads=True)
    assert_close(*results)
