"""torch.func on the recurrence: ensembles and per-sample gradients, against loops."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

import rnnext

from .cases import MODES
from .compared import Bar, Call, Comparison, Row, Suite, turns
from .report import Table, duration

T = 100
ENSEMBLES = {
    f"B={B} I=H={H}": (B, H, members)
    for B, H, members in ((1, 16, (2, 4, 16, 64)), (4, 64, (2, 4, 16, 64)), (4, 256, (2, 4, 16)))
}
FUNCTION = "vmap of functional.rnn"
SAMPLES = [(H, N) for H in (32, 64, 256) for N in (8, 64)]
Way = Callable[[], tuple[Tensor, Tensor]]


def members_row(way: str, M: int, size: str, mode: str, other: str = "the members' calls") -> str:
    return f"{way} against {other} in a row, M={M}, T={T} {size}, {mode}"


def samples_row(N: int, H: int, other: str) -> str:
    return f"vmap(grad) against {other} in a loop, N={N}, T={T} I=H={H}"


class Nothing(nn.Module):
    """Holds the parameters of an RNN and computes nothing: what vmap itself costs."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def call_of(way: Way, leaves: list[Tensor], train: bool) -> Call:
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


def _mapped(
    one: nn.Module, x: Tensor, names: list[str], leaves: list[Tensor]
) -> tuple[Tensor, Tensor]:
    def call(parameters: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = functional_call(one, parameters, (x,))
        return found

    results: tuple[Tensor, Tensor] = vmap(call)(dict(zip(names, leaves, strict=True)), x)
    return results


def ensembles() -> Iterator[Row]:
    for size, (B, H, members) in ENSEMBLES.items():
        for M in members:
            theirs: list[nn.Module] = [nn.RNN(H, H) for _ in range(M)]
            ours = [rnnext.convert(copy.deepcopy(member)) for member in theirs]
            stacked, _ = stack_module_state(ours)
            x = torch.randn(M, T, B, H)
            names, leaves = list(stacked), list(stacked.values())
            function = vmap(lambda x, *weights: rnnext.functional.rnn(x, None, weights))
            nothing = Nothing()
            for name, parameter in ours[0].named_parameters():
                nothing.register_parameter(name, parameter)
            ways: dict[str, Way] = {
                "rnn_ensemble": functools.partial(rnnext.functional.rnn_ensemble, x, None, leaves),
                FUNCTION: functools.partial(function, x, *leaves),
                "vmap": functools.partial(_mapped, ours[0], x, names, leaves),
            }
            for mode in MODES:
                train = mode == "train"
                loops = [
                    one_by_one(
                        [
                            call_of(functools.partial(member, own), [*member.parameters()], train)
                            for member, own in zip(modules, x, strict=True)
                        ]
                    )
                    for modules in (ours, theirs)
                ]
                for name, way in ways.items():
                    call = call_of(way, leaves, train)
                    what = members_row(name, M, size, mode)
                    yield Row(what, turns(call, loops[0]), f"{name}, H={H}")
                    if name == "vmap":
                        what = members_row(name, M, size, mode, "nn.RNN")
                        yield Row(what, turns(call, loops[1]))
                if not train:
                    alone = functools.partial(_mapped, nothing, x, names, leaves)
                    what, call = (
                        members_row("vmap of nothing", M, size, mode),
                        call_of(alone, [], False),
                    )
                    yield Row(what, turns(call, loops[0], same=False))


def per_sample() -> Iterator[Row]:
    for H, N in SAMPLES:
        theirs = nn.RNN(H, H)
        ours = rnnext.convert(copy.deepcopy(theirs))
        x = torch.randn(N, T, H)
        parameters = {name: p.detach() for name, p in ours.named_parameters()}

        def loss(parameters: dict[str, Tensor], x: Tensor, ours: nn.Module = ours) -> Tensor:
            total: Tensor = functional_call(ours, parameters, (x,))[0].square().sum()
            return total

        gradients = vmap(grad(loss), in_dims=(None, 0))
        mapped = lambda of=gradients, p=parameters, x=x: [*of(p, x).values()]  # noqa: E731

        def loop(module: nn.Module, x: Tensor = x) -> Call:
            leaves = list(module.parameters())

            def gradient(own: Tensor) -> list[Tensor]:
                return [*torch.autograd.grad(module(own)[0].square().sum(), leaves)]

            return one_by_one([functools.partial(gradient, own) for own in x])

        for other, module, group in (("nn.RNN", theirs, "per sample"), ("rnnext", ours, "")):
            yield Row(samples_row(N, H, other), turns(mapped, loop(module)), group)


def rows() -> Iterator[Row]:
    """All comparisons; each builds its modules when its turn comes."""
    torch.manual_seed(0)
    yield from ensembles()
    yield from per_sample()


def ensembles_table(run: Comparison) -> Table:
    def modes(way: str, M: int, size: str, *other: str) -> str:
        return " / ".join(run.faster(members_row(way, M, size, mode, *other)) for mode in MODES)

    head = ["", "members", "`rnn_ensemble`", "`vmap` of `functional.rnn`", "`vmap` of the module",
            "`vmap` of nothing, infer", "`vmap` of the module over `nn.RNN`"]  # fmt: skip
    body = [
        [
            size,
            str(M),
            *(modes(way, M, size) for way in ("rnn_ensemble", FUNCTION, "vmap")),
            run.faster(members_row("vmap of nothing", M, size, "infer")),
            modes("vmap", M, size, "nn.RNN"),
        ]
        for size, (_, _, members) in ENSEMBLES.items()
        for M in members
    ]
    return Table(head, body)


def samples_table(run: Comparison) -> Table:
    body = []
    for H, N in SAMPLES:
        theirs, own = (samples_row(N, H, other) for other in ("nn.RNN", "rnnext"))
        seconds = duration(run.rows[theirs]["ours"])
        body.append([f"I=H={H}", str(N), seconds, run.faster(theirs), run.faster(own)])
    head = ["", "samples", "time", "times as fast as a loop over `nn.RNN`", "over `rnnext.RNN`"]
    return Table(head, body)


def _bar(what: str, group: str) -> Bar:
    return Bar(f"{what}, H=64 B=4, time over the calls in a row", group, 1.2, at_most=True)


SUITE = Suite(
    "transforms",
    rows,
    {"ensembles": ensembles_table, "per-sample": samples_table},
    (
        _bar("rnn_ensemble", "rnn_ensemble, H=64"),
        _bar(FUNCTION, f"{FUNCTION}, H=64"),
        _bar("vmap of the module", "vmap, H=64"),
        Bar("rnn_ensemble, H=16 B=1, against the calls in a row", "rnn_ensemble, H=16", 1.0),
        Bar("vmap(grad), against nn.RNN in a loop", "per sample", 1.0),
    ),
)
