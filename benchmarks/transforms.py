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
from .features import Call, Row, Timed

T = 100
MEMBERS = (2, 4, 16, 64)


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
    for H, B in ((16, 1), (64, 4), (256, 4)):
        for M in MEMBERS if H < 256 else MEMBERS[:3]:
            theirs: list[nn.Module] = [nn.RNN(H, H) for _ in range(M)]
            ours = [rnnext.convert(copy.deepcopy(member)) for member in theirs]
            stacked, _ = stack_module_state(ours)
            x = torch.randn(M, T, B, H)
            names, leaves = list(stacked), list(stacked.values())
            one = copy.deepcopy(ours[0])

            def mapped(
                leaves: list[Tensor], x: Tensor = x, one: Any = one, names: Any = names
            ) -> Any:
                def call(parameters: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
                    results: tuple[Tensor, Tensor] = functional_call(one, parameters, (x,))
                    return results

                return vmap(call)(dict(zip(names, leaves, strict=True)), x)

            def direct(leaves: list[Tensor], x: Tensor = x) -> tuple[Tensor, Tensor]:
                return rnnext.functional.rnn_ensemble(x, None, leaves)

            for train in (False, True):
                size = f"M={M}, T={T} B={B} I=H={H}, {'train' if train else 'infer'}"
                for name, way in (("rnn_ensemble", direct), ("vmap", mapped)):

                    def call(way: Any = way, leaves: Any = leaves, train: bool = train) -> Any:
                        if train:
                            return gradients(lambda: way(leaves), leaves)
                        with torch.no_grad():
                            return [way(leaves)[0]]

                    group = f"{name}, H={H}"
                    what = f"{name} against the members' calls in a row, {size}"
                    yield Row(group, what, call, one_by_one(ours, x, train))
                    if name == "vmap":
                        what = f"vmap against nn.RNN in a row, {size}"
                        yield Row("nn.RNN", what, call, one_by_one(theirs, x, train))


def per_sample() -> Iterator[Row]:
    for H in (32, 64, 256):
        for N in (8, 64):
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

            size = f"N={N}, T={T} I=H={H}"
            yield Row("per sample", f"vmap(grad) against nn.RNN in a loop, {size}",
                      mapped, loop(theirs))  # fmt: skip
            yield Row("per sample, own", f"vmap(grad) against rnnext in a loop, {size}",
                      mapped, loop(ours))  # fmt: skip


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
        worst("vmap, H=64 B=4, time over the calls in a row", 1.2,
              of("vmap, H=64", "longer"), at_most=True),
        worst("rnn_ensemble, H=16 B=1, against the calls in a row", 1.0,
              of("rnn_ensemble, H=16", "faster")),
        worst("vmap(grad), against nn.RNN in a loop", 1.0, of("per sample", "faster")),
    ]  # fmt: skip
