"""The modules in one table: how each is made, what it is called with, and torch.nn's beside it."""

import io
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

import rnnext


@dataclass(frozen=True)
class Sample:
    """A module, by the name of its class and its constructor's arguments, and one input."""

    kind: str
    args: tuple[int, ...]
    given: Tensor
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def of_torch(self) -> bool:
        return hasattr(nn, self.kind)

    @property
    def weight(self) -> str:
        other = {"Embedding": "weight", "EmbeddingRNN": "embedding.weight"}
        return other.get(self.kind, "weight_ih" if self.kind.endswith("Cell") else "weight_hh_l0")

    @property
    def is_layer(self) -> bool:
        """Whether it takes whole sequences of features or tokens, with lengths and resets."""
        return self.kind.endswith(("RNN", "GRU", "LSTM"))

    @property
    def longer(self) -> Tensor:
        """Three times as long, with other tokens."""
        both = self.given, self.given if self.given.is_floating_point() else 6 - self.given
        return torch.cat([*both, self.given])

    def make(self, library: Any = rnnext, **options: Any) -> nn.Module:
        """The module of rnnext or of torch.nn, with the same weights each time."""
        torch.manual_seed(7)
        module: nn.Module = getattr(library, self.kind)(*self.args, **self.options | options)
        return module

    def pair(self, **options: Any) -> tuple[nn.Module, nn.Module]:
        """torch.nn's module and rnnext's, with the same weights, without dropout: masks differ."""
        if "dropout" in self.options:
            options = {"dropout": 0.0, **options}
        return self.make(nn, **options), self.make(**options)


_numbers = torch.Generator().manual_seed(0)
X = torch.randn(5, 2, 3, generator=_numbers)
TOKENS = torch.randint(7, (5, 2), generator=_numbers)
SAMPLES = {
    "RNN": Sample(
        "RNN", (3, 4, 2), X, {"nonlinearity": "relu", "dropout": 0.5, "bidirectional": True}
    ),
    "GRU": Sample("GRU", (3, 4), X, {"bidirectional": True}),
    "LSTM": Sample("LSTM", (3, 4, 2), X, {"dropout": 0.5}),
    "RNNCell": Sample("RNNCell", (3, 4), X[0]),
    "GRUCell": Sample("GRUCell", (3, 4), X[0]),
    "LSTMCell": Sample("LSTMCell", (3, 4), X[0]),
    "Embedding": Sample("Embedding", (7, 4), TOKENS, {"padding_idx": 1, "max_norm": 0.5}),
    "LeakyRNN": Sample(
        "LeakyRNN",
        (3, 4, 2),
        X,
        {"alpha": torch.linspace(0.2, 0.8, 4), "form": "voltage", "noise_std": 0.1},
    ),
    "LeakyRNNCell": Sample("LeakyRNNCell", (3, 4), X[0], {"dt": 1, "tau": 4.0, "noise_std": 0.1}),
    "learned alpha": Sample("LeakyRNN", (3, 4), X, {"alpha": 0.5, "learn_alpha": True}),
    "EmbeddingRNN": Sample("EmbeddingRNN", (9, 3, 4), TOKENS % 3),
    "EmbeddingRNN of an LSTM": Sample("EmbeddingRNN", (9, 3, 4), TOKENS % 3, {"cell": "lstm"}),
}
OF_TORCH = {name: sample for name, sample in SAMPLES.items() if sample.of_torch}


def outputs(module: Any, *given: Any, **options: Any) -> list[Tensor]:
    """The tensors that a call gives; dropout and noise are drawn from one seed."""
    torch.manual_seed(3)
    found = [v for v in tree_leaves(module(*given, **options)) if isinstance(v, Tensor)]
    return [v if v.is_floating_point() else v.double() for v in found]  # for assert_close


def results(module: Any, *given: Any, **options: Any) -> list[Tensor]:
    """The outputs, and for fixed cotangents the gradients of all that has one."""
    given = tree_map_only(Tensor, lambda v: v.detach().requires_grad_(v.is_floating_point()), given)
    found = outputs(module, *given, **options)
    computed = [v for v in found if v.requires_grad]
    cotangents = [torch.linspace(-1, 1, v.numel(), dtype=v.dtype).view_as(v) for v in computed]
    leaves = [v for v in (*tree_leaves(given), *module.parameters()) if isinstance(v, Tensor)]
    leaves = [v for v in leaves if v.requires_grad]
    gradients = torch.autograd.grad(computed, leaves, cotangents, allow_unused=True)
    return [*(v.detach() for v in found), *(g for g in gradients if g is not None)]


def through_a_file(value: Any) -> Any:
    """The value, saved and loaded again as safe."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
