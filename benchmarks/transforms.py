"""torch.func on the recurrence: ensembles and per-sample gradients, against loops."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

import rnnext

from .cases import MODES
from .compared import Call, Numbers, Row, Suite, at_most, bar, call_of, ratio, seconds, turns

T = 100
SIZES = tuple(product(((1, 16), (4, 64), (4, 256)), (4, 16)))  # (B, H), members
SAMPLE_SIZES = tuple(product((32, 64, 256), (8, 64)))  # H, N
WAYS = ("rnn_ensemble", "vmap of functional.rnn", "vmap")
OVER_TORCH = "vmap over nn.RNN"


def one_by_one(calls: list[Call]) -> Call:
    """Calls in a row, their results put together."""
    return lambda: [torch.stack(each) for each in zip(*(call() for call in calls), strict=True)]


def in_a_row(members: list[nn.Module], x: Tensor, train: bool) -> Call:
    """Each member's own call, of its part of the input."""
    pairs = zip(members, x, strict=True)
    return one_by_one(
        [call_of(m, (part,), [*m.parameters()], train, h_n=False) for m, part in pairs]
    )


def ensemble(B: int, H: int, M: int) -> Numbers:
    """By way and mode, the times of M members as one call and as M calls."""
    theirs: list[nn.Module] = [nn.RNN(H, H) for _ in range(M)]
    ours = [rnnext.convert(copy.deepcopy(member)) for member in theirs]
    stacked, _ = stack_module_state(ours)
    x, leaves = torch.randn(M, T, B, H), list(stacked.values())

    def module(parameters: Any, x: Tensor) -> Any:
        return functional_call(ours[0], parameters, (x,))

    def function(x: Tensor, *weights: Tensor) -> Any:
        return rnnext.functional.rnn(x, None, weights)

    whole: Callable[..., Any] = rnnext.functional.rnn_ensemble
    mapped: tuple[Callable[..., Any], Any] = vmap(module), (stacked, x)
    ways: Any = ((whole, (x, None, leaves)), (vmap(function), (x, *leaves)), mapped, mapped)
    found: Numbers = {}
    for mode in MODES:
        train = mode == "train"
        own, torchs = in_a_row(ours, x, train), in_a_row(theirs, x, train)
        for name, (way, given) in zip((*WAYS, OVER_TORCH), ways, strict=True):
            call = call_of(way, given, leaves, train, h_n=False)
            both = turns(call, torchs if name == OVER_TORCH else own)()
            found |= {f"{name}, {mode}, {side}": value for side, value in both.items()}
    return found


def per_sample(H: int, N: int) -> Numbers:
    """vmap(grad), and a loop over each library's module."""
    theirs = nn.RNN(H, H)
    ours = rnnext.convert(copy.deepcopy(theirs))
    x, parameters = torch.randn(N, T, H), {n: p.detach() for n, p in ours.named_parameters()}

    def loss(parameters: Any, x: Tensor) -> Tensor:
        total: Tensor = functional_call(ours, parameters, (x,))[0].square().sum()
        return total

    way = vmap(grad(loss), in_dims=(None, 0))

    def mapped() -> list[Tensor]:
        return [*way(parameters, x).values()]

    def gradient(module: nn.Module, own: Tensor) -> list[Tensor]:
        return [*torch.autograd.grad(module(own)[0].square().sum(), [*module.parameters()])]

    found: Numbers = {}
    for other, module in (("nn.RNN", theirs), ("rnnext", ours)):
        loop = one_by_one([partial(gradient, module, own) for own in x])
        found |= {f"{other}, {side}": value for side, value in turns(mapped, loop)().items()}
    return found


def rows() -> Iterator[Row]:
    """All comparisons; each builds its modules when its turn comes."""
    torch.manual_seed(0)
    for (B, H), M in SIZES:
        yield Row(f"B={B} I=H={H}, M={M}", partial(ensemble, B, H, M))
    for H, N in SAMPLE_SIZES:
        yield Row(f"I=H={H}, N={N}", partial(per_sample, H, N))


def _both_modes(way: str, row: Numbers) -> str:
    return " / ".join(f"{ratio(row, f'{way}, {mode}, '):.2f}" for mode in MODES)


def _slower(way: str, row: Numbers) -> float:
    return max(1 / ratio(row, f"{way}, {mode}, ") for mode in MODES)


IN_A_ROW = "over the calls in a row"
BARS = (
    *(at_most(f"{way} {IN_A_ROW}", "B=4 I=H=64*", 1.2, partial(_slower, way)) for way in WAYS),
    at_most(f"rnn_ensemble {IN_A_ROW}, small", "B=1*", 1.0, partial(_slower, WAYS[0])),
    bar("vmap(grad), against nn.RNN in a loop", "I=*", 1.0, partial(ratio, of="nn.RNN, ")),
)
ENSEMBLES = {
    "`rnn_ensemble`": partial(_both_modes, WAYS[0]),
    "`vmap` of `functional.rnn`": partial(_both_modes, WAYS[1]),
    "`vmap` of the module": partial(_both_modes, WAYS[2]),
    "`vmap` of the module over `nn.RNN`": partial(_both_modes, OVER_TORCH),
}
SAMPLES = {
    "time": seconds("nn.RNN, ours"),
    "times as fast as a loop over `nn.RNN`": lambda row: f"{ratio(row, 'nn.RNN, '):.2f}",
    "over `rnnext.RNN`": lambda row: f"{ratio(row, 'rnnext, '):.2f}",
}
SUITE = Suite("transforms", rows, {"ensembles": ENSEMBLES, "per-sample": SAMPLES}, BARS)
