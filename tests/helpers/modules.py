"""The modules in one table: how each is made, what it is called with, and torch.nn's beside it."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import rnnext
from reference.elman import ACTIVATIONS


@dataclass(frozen=True)
class Sample:
    """A module, by the name of its class and its constructor's arguments, and one input."""

    kind: str
    args: tuple[int, ...]
    given: Tensor
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def of_torch(self) -> bool:
        """Whether torch.nn has this module."""
        return hasattr(nn, self.kind)

    def make(self, library: Any = rnnext, **options: Any) -> nn.Module:
        """The module of rnnext or of torch.nn, with the same weights each time."""
        torch.manual_seed(7)
        module: nn.Module = getattr(library, self.kind)(*self.args, **self.options | options)
        return module

    def pair(self, **options: Any) -> tuple[nn.Module, nn.Module]:
        """torch.nn's module and rnnext's, with the same weights."""
        return self.make(nn, **options), self.make(**options)


_numbers = torch.Generator().manual_seed(0)
X = torch.randn(5, 2, 3, generator=_numbers)
TOKENS = torch.randint(7, (5, 2), generator=_numbers)
SAMPLES = {
    "RNN": Sample(
        "RNN", (3, 4, 2), X, {"nonlinearity": "relu", "dropout": 0.5, "bidirectional": True}
    ),
    "RNNCell": Sample("RNNCell", (3, 4), X[0]),
    "Embedding": Sample("Embedding", (7, 4), TOKENS, {"padding_idx": 1, "max_norm": 0.5}),
    "LeakyRNN": Sample(
        "LeakyRNN",
        (3, 4, 2),
        X,
        {"alpha": torch.linspace(0.2, 0.8, 4), "form": "voltage", "noise_std": 0.1},
    ),
    "learned alpha": Sample("LeakyRNN", (3, 4), X, {"alpha": 0.5, "learn_alpha": True}),
    "EmbeddingRNN": Sample("EmbeddingRNN", (9, 3, 4), TOKENS),
}
OF_TORCH = {name: sample for name, sample in SAMPLES.items() if sample.of_torch}


def weights(module: Any) -> list[Tensor]:
    """An RNN's weights in one list, as functional.rnn takes them."""
    return [weight for each in module.all_weights for weight in each]


def outputs(module: Any, *given: Any, **options: Any) -> list[Tensor]:
    """The tensors that a call gives; dropout and noise are drawn from one seed."""
    torch.manual_seed(3)
    found = [v for v in tree_leaves(module(*given, **options)) if isinstance(v, Tensor)]
    return [v if v.is_floating_point() else v.double() for v in found]  # for assert_close


def results(module: Any, *given: Any, **options: Any) -> list[Tensor]:
    """The outputs, and for fixed cotangents the gradients of all that has one."""

    def fresh(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.detach().requires_grad_(value.is_floating_point())

    given = tree_map(fresh, given)
    found = outputs(module, *given, **options)
    computed = [v for v in found if v.requires_grad]
    cotangents = [torch.linspace(-1, 1, v.numel(), dtype=v.dtype).view_as(v) for v in computed]
    leaves = [v for v in (*tree_leaves(given), *module.parameters()) if isinstance(v, Tensor)]
    leaves = [v for v in leaves if v.requires_grad]
    gradients = torch.autograd.grad(computed, leaves, cotangents, allow_unused=True)
    return [*(v.detach() for v in found), *(g for g in gradients if g is not None)]


def through_a_file(value: Any) -> Any:
    """What torch.load gives of a file, as safe."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def by_loop(
    rnn: Any, x: Tensor, hx: Tensor | None = None, weight_hh: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What an RNN or LeakyRNN computes, in float64, a step at a time, as models are published.

    ``weight_hh`` is taken in the place of each layer's.
    """
    f, form = ACTIVATIONS[rnn.nonlinearity], getattr(rnn, "form", "rate")
    directions = [1, -1] if rnn.bidirectional else [1]
    alphas = rnn.alphas() if hasattr(rnn, "alphas") else [torch.ones(())] * len(rnn.all_weights)
    layer, h_n = (x.transpose(0, 1) if rnn.batch_first else x).double(), []
    for _ in range(rnn.num_layers):
        both = []
        for direction in directions:
            place = len(h_n)
            a = alphas[place].double()
            w_ih, w_hh, *biases = map(Tensor.double, rnn.all_weights[place])
            w_hh = w_hh if weight_hh is None else weight_hh
            drive = layer @ w_ih.t() + sum(biases)
            state = torch.zeros_like(drive[0]) if hx is None else hx[place].double()
            outputs = []
            for d in list(drive)[::direction]:
                if form == "rate":
                    state = (1 - a) * state + a * f(d + state @ w_hh.t())
                elif form == "voltage":
                    state = (1 - a) * state + a * (d + f(state) @ w_hh.t())
                else:
                    state = f((1 - a) * state + a * (d + state @ w_hh.t()))
                outputs.append(f(state) if form == "voltage" else state)
            both.append(torch.stack(outputs[::direction]))
            h_n.append(state)
        layer = torch.cat(both, -1)
    return layer.transpose(0, 1) if rnn.batch_first else layer, torch.stack(h_n)
