"""rnnext beside the loop that it replaces: the same weights and results, and the time of each."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 1e-4  # of float32, relative to the largest magnitude


def positive_rate(text: str) -> float:
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def positive(text: str) -> int:
    """An argument of a command line, a number of something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def in_turns(seconds: float, calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """The median time of a call of each, in seconds; they take turns, so all meet one machine."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = perf_counter() + seconds
    while perf_counter() < end or min(map(len, times.values())) < 3:
        for name, call in calls.items():
            start = perf_counter()
            call()
            times[name].append(perf_counter() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def with_gradients(module: nn.Module, call: Callable[[], Tensor]) -> list[Tensor]:
    """The results of the call, and the gradients of their mean square for all weights."""
    output = call()
    return [output, *torch.autograd.grad(output.square().mean(), list(module.parameters()))]


def difference(ones: Iterable[Tensor], others: Iterable[Tensor]) -> float:
    """The largest difference, relative to each pair's largest magnitude; nan if there is one."""
    worst = torch.zeros(())
    for one, other in zip(ones, others, strict=True):
        scale = other.detach().abs().max().clamp(min=1e-12)
        worst = torch.maximum(worst, (one - other).detach().abs().max() / scale)  # keeps nan
    return worst.item()


def show(title: str, times: dict[str, float], error: float) -> bool:
    """Prints the times, the last one being rnnext's; returns whether the results agree."""
    *others, ours = times
    print(f"\n{title}")
    for name, seconds in times.items():
        print(f"  {name:<28}{1e3 * seconds:9.3f} ms")
    for name in others:
        print(f"  {times[name] / times[ours]:.1f} times as fast as {name}.")
    agree = error <= TOLERANCE  # false for nan too
    print(f"  Largest relative difference: {error:.1e} ({'within' if agree else 'BEYOND'} 1e-4).")
    return agree


def draw_times(axes: Any, times: dict[str, float], title: str) -> None:
    """A bar for each, the last one rnnext's."""
    values = [1e3 * seconds for seconds in times.values()]
    colours = ["tab:gray"] * (len(times) - 1) + ["tab:red"]
    bars = axes.bar(list(times), values, color=colours, width=0.6)
    axes.bar_label(bars, [f"{value:.3g}" for value in values])
    axes.set(ylabel="milliseconds", title=title)
    axes.margins(y=0.15)
