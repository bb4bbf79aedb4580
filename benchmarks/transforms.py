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
from .compared import Bar, Call, Comparison, Row, Suite, turns
from .report import Table, duration

T = 100
ENSEMBLES = tuple(product(((1, 16), (4, 64), (4, 256)), (4, 16)))  # (B, H), members
SAMPLES = tuple(product((32, 64, 256), (8, 64)))  # H, N
FUNCTION = "vmap of functional.rnn"
WAYS = ("rnn_ensemble", FUNCTION, "vmap")


def members_row(
    way: str, size: tuple[int, int], M: int, mode: str, other: str = "the members' calls"
) -> str:
    return f"{way} against {other} in a row, M={M}, T={T} B={size[0]} I=H={size[1]}, {mode}"


def samples_row(N: int, H: int, other: str) -> str:
    return f"vmap(grad) against {other} in a loop, N={N}, T={T} I=H={H}"


def call_of(way: Callable[[], Any], leaves: list[Tensor], train: bool) -> Call:
    """The output, and in training the gradients of the leaves."""

    def call() -> list[Tensor]:
        with torch.set_grad_enabled(train):
            output, _ = way()
        if not train:
            return [output]
        return [output.detach(), *torch.autograd.grad(output, leaves, torch.ones_like(output))]

    return call


def one_by_one(calls: list[Call]) -> Call:
    """Calls in a row, their results put together."""
    return lambda: [torch.stack(each) for each in zip(*(call() for call in calls), strict=True)]


def ensembles() -> Iterator[Row]:
    for (B, H), M in ENSEMBLES:
        theirs: list[nn.Module] = [nn.RNN(H, H) for _ in range(M)]
        ours = [rnnext.convert(copy.deepcopy(member)) for member in theirs]
        stacked, _ = stack_module_state(ours)
        x, leaves = torch.randn(M, T, B, H), list(stacked.values())

        def module(parameters: Any, x: Tensor, one: nn.Module = ours[0]) -> Any:
            return functional_call(one, parameters, (x,))

        def function(x: Tensor, *weights: Tensor) -> Any:
            return rnnext.functional.rnn(x, None, weights)

        ways: dict[str, Callable[[], Any]] = {
            "rnn_ensemble": partial(rnnext.functional.rnn_ensemble, x, None, leaves),
            FUNCTION: partial(vmap(function), x, *leaves),
            "vmap": partial(vmap(module), stacked, x),
        }
        for mode in MODES:
            train = mode == "train"
            own, torchs = (
                one_by_one(
                    [
                        call_of(partial(member, part), [*member.parameters()], train)
                        for member, part in zip(modules, x, strict=True)
                    ]
                )
                for modules in (ours, theirs)
            )
            calls = {name: call_of(way, leaves, train) for name, way in ways.items()}
            for name, call in calls.items():
                what = members_row(name, (B, H), M, mode)
                yield Row(what, turns(call, own), f"{name}, H={H}")
            yield Row(members_row("vmap", (B, H), M, mode, "nn.RNN"), turns(calls["vmap"], torchs))


def _values(way: Callable[..., dict[str, Tensor]], *arguments: Any) -> list[Tensor]:
    return [*way(*arguments).values()]


def per_sample() -> Iterator[Row]:
    for H, N in SAMPLES:
        theirs = nn.RNN(H, H)
        ours = rnnext.convert(copy.deepcopy(theirs))
        x, parameters = torch.randn(N, T, H), {n: p.detach() for n, p in ours.named_parameters()}

        def loss(parameters: Any, x: Tensor, ours: nn.Module = ours) -> Tensor:
            total: Tensor = functional_call(ours, parameters, (x,))[0].square().sum()
            return total

        way = vmap(grad(loss), in_dims=(None, 0))
        mapped = partial(_values, way, parameters, x)

        def gradient(module: nn.Module, own: Tensor) -> list[Tensor]:
            return [*torch.autograd.grad(module(own)[0].square().sum(), [*module.parameters()])]

        for other, module, group in (("nn.RNN", theirs, "per sample"), ("rnnext", ours, "")):
            loop = one_by_one([partial(gradient, module, own) for own in x])
            yield Row(samples_row(N, H, other), turns(mapped, loop), group)


def rows() -> Iterator[Row]:
    """All comparisons; each builds its modules when its turn comes."""
    torch.manual_seed(0)
    yield from ensembles()
    yield from per_sample()


def ensembles_table(run: Comparison) -> Table:
    head = ["", "members", "`rnn_ensemble`", "`vmap` of `functional.rnn`", "`vmap` of the module",
            "`vmap` of the module over `nn.RNN`"]  # fmt: skip
    body = []
    for size, M in ENSEMBLES:
        line = [f"B={size[0]} I=H={size[1]}", str(M)]
        for way, *other in (*((way,) for way in WAYS), ("vmap", "nn.RNN")):
            ratios = (run.faster(members_row(way, size, M, mode, *other)) for mode in MODES)
            line.append(" / ".join(ratios))
        body.append(line)
    return Table(head, body)


def samples_table(run: Comparison) -> Table:
    body = []
    for H, N in SAMPLES:
        theirs, own = (samples_row(N, H, other) for other in ("nn.RNN", "rnnext"))
        seconds = duration(run.rows[theirs]["ours"])
        body.append([f"I=H={H}", str(N), seconds, run.faster(theirs), run.faster(own)])
    head = ["", "samples", "time", "times as fast as a loop over `nn.RNN`", "over `rnnext.RNN`"]
    return Table(head, body)


SUITE = Suite(
    "transforms",
    rows,
    {"ensembles": ensembles_table, "per-sample": samples_table},
    (
        *(Bar(f"{way}, H=64 B=4, over the calls in a row", f"{way}, H=64", 1.2, at_most=True)
          for way in WAYS),
        Bar("rnn_ensemble, H=16 B=1, against the calls in a row", "rnn_ensemble, H=16", 1.0),
        Bar("vmap(grad), against nn.RNN in a loop", "per sample", 1.0),
    ),
)  # fmt: skip
