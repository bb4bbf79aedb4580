"""torch.func on the recurrence: ensembles and per-sample gradients, against loops."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

import rnnext

from .bars.verdict import Verdict, worst
from .compared import Comparison
from .features import Call, Row, Timed
from .report import Table, duration

T = 100
ENSEMBLES = {
    f"B={B} I=H={H}": (B, H, members)
    for B, H, members in ((1, 16, (2, 4, 16, 64)), (4, 64, (2, 4, 16, 64)), (4, 256, (2, 4, 16)))
}
MODES = ("infer", "train")
FUNCTION = "vmap of functional.rnn"
SAMPLES = [(H, N) for H in (32, 64, 256) for N in (8, 64)]


def members_row(way: str, M: int, size: str, mode: str, other: str = "the members' calls") -> str:
    return f"{way} against {other} in a row, M={M}, T={T} {size}, {mode}"


def samples_row(N: int, H: int, other: str) -> str:
    return f"vmap(grad) against {other} in a loop, N={N}, T={T} I=H={H}"


class Nothing(nn.Module):
    """The parameters of another module, and no computation."""

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        for name, parameter in like.named_parameters():
            self.register_parameter(name, nn.Parameter(parameter.detach().clone()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def gradients(results: Callable[[], tuple[Tensor, Tensor]], leaves: list[Tensor]) -> list[Tensor]:
    output, _ = results()
    return [output.detach(), *torch.autograd.grad(output, leaves, torch.ones_like(output))]


def one_by_one(members: list[nn.Module], x: Tensor, train: bool) -> Call:
    """Calls of the members in a row, their results put together."""

    def call() -> list[Tensor]:
        results = []
        for member, own in zip(members, x, strict=True):
            if train:
                call_of = functools.partial(member, own)
                results.append(gradients(call_of, list(member.parameters())))
            else:
                with torch.no_grad():
                    results.append([member(own)[0]])
        return [torch.stack(each) for each in zip(*results, strict=True)]

    return call


def ensembles() -> Iterator[Row]:
    for size, (B, H, members) in ENSEMBLES.items():
        for M in members:
            theirs: list[nn.Module] = [nn.RNN(H, H) for _ in range(M)]
            ours = [rnnext.convert(copy.deepcopy(member)) for member in theirs]
            stacked, _ = stack_module_state(ours)
            x = torch.randn(M, T, B, H)
            names, leaves = list(stacked), list(stacked.values())

            def mapped(
                one: nn.Module, leaves: list[Tensor], x: Tensor = x, names: Any = names
            ) -> Any:
                def call(parameters: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
                    results: tuple[Tensor, Tensor] = functional_call(one, parameters, (x,))
                    return results

                return vmap(call)(dict(zip(names, leaves, strict=True)), x)

            def direct(leaves: list[Tensor], x: Tensor = x) -> tuple[Tensor, Tensor]:
                return rnnext.functional.rnn_ensemble(x, None, leaves)

            def of_function(leaves: list[Tensor], x: Tensor = x) -> Any:
                def call(x: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
                    return rnnext.functional.rnn(x, None, weights)

                return vmap(call)(x, *leaves)

            by_vmap = functools.partial(mapped, copy.deepcopy(ours[0]))
            nothing = functools.partial(mapped, Nothing(ours[0]))
            for mode in MODES:
                train = mode == "train"
                ways = {"rnn_ensemble": direct, FUNCTION: of_function, "vmap": by_vmap}
                for name, way in ways.items():

                    def call(way: Any = way, leaves: Any = leaves, train: bool = train) -> Any:
                        if train:
                            return gradients(lambda: way(leaves), leaves)
                        with torch.no_grad():
                            return [way(leaves)[0]]

                    yield Row(f"{name}, H={H}", members_row(name, M, size, mode),
                              call, one_by_one(ours, x, train))  # fmt: skip
                    if name == "vmap":
                        yield Row("nn.RNN", members_row(name, M, size, mode, "nn.RNN"),
                                  call, one_by_one(theirs, x, train))  # fmt: skip

            def alone(way: Any = nothing, leaves: Any = leaves) -> Any:
                with torch.no_grad():
                    return [way(leaves)[0]]

            yield Row("vmap of nothing", members_row("vmap of nothing", M, size, "infer"),
                      alone, one_by_one(ours, x, False), same=False)  # fmt: skip


def per_sample() -> Iterator[Row]:
    for H, N in SAMPLES:
        theirs = nn.RNN(H, H)
        ours = rnnext.convert(copy.deepcopy(theirs))
        x = torch.randn(N, T, H)
        parameters = {name: p.detach() for name, p in ours.named_parameters()}

        def loss(parameters: dict[str, Tensor], x: Tensor, ours: Any = ours) -> Tensor:
            total: Tensor = functional_call(ours, parameters, (x,))[0].square().sum()
            return total

        def mapped(parameters: Any = parameters, x: Tensor = x, loss: Any = loss) -> Any:
            return list(vmap(grad(loss), in_dims=(None, 0))(parameters, x).values())

        def loop(module: nn.Module, x: Tensor = x) -> Call:
            leaves = list(module.parameters())

            def call() -> list[Tensor]:
                each = [torch.autograd.grad(module(own)[0].square().sum(), leaves) for own in x]
                return [torch.stack(every) for every in zip(*each, strict=True)]

            return call

        yield Row("per sample", samples_row(N, H, "nn.RNN"), mapped, loop(theirs))
        yield Row("per sample, own", samples_row(N, H, "rnnext"), mapped, loop(ours))


def rows() -> Iterator[Row]:
    """All comparisons; each builds its modules when its turn comes."""
    yield from ensembles()
    yield from per_sample()


def verdicts(timed: list[Timed]) -> list[Verdict]:
    """An ensemble takes no longer than its members in a row, and less where they are small."""

    def of(group: str, value: str) -> dict[str, float]:
        return {t.row.what: getattr(t, value) for t in timed if t.row.group == group}

    return [
        worst("rnn_ensemble, H=64 B=4, time over the calls in a row", 1.2,
              of("rnn_ensemble, H=64", "longer"), at_most=True),
        worst(f"{FUNCTION}, H=64 B=4, time over the calls in a row", 1.2,
              of(f"{FUNCTION}, H=64", "longer"), at_most=True),
        worst("vmap of the module, H=64 B=4, time over the calls in a row", 1.2,
              of("vmap, H=64", "longer"), at_most=True),
        worst("rnn_ensemble, H=16 B=1, against the calls in a row", 1.0,
              of("rnn_ensemble, H=16", "faster")),
        worst("vmap(grad), against nn.RNN in a loop", 1.0, of("per sample", "faster")),
    ]  # fmt: skip


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
