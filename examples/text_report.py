"""The demo's report at its end: agreement, times, perplexity, sampled text, a plot."""

from __future__ import annotations

import argparse
import json
import statistics
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import torch
from text_data import Subwords
from text_model import Learner
from torch import Tensor

matplotlib.use("Agg")  # a PNG needs no display
import matplotlib.pyplot as plt

COMPARED_STEPS = 200
# Bounds on the relative difference of the losses.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 5e-2}
TEMPERATURE = 0.7
SAMPLED_TOKENS = 240
SMOOTHED_STEPS = 25


def report(
    learners: list[Learner], subwords: Subwords, held_out: Tensor, config: argparse.Namespace
) -> int:
    """Prints and writes the results; returns 0, or 1 when the losses disagree."""
    theirs, ours = learners
    results: dict[str, Any] = {"steps": ours.step}
    for learner in learners:
        results[learner.name] = {
            "seconds": sum(learner.seconds),
            "median_step_ms": 1e3 * statistics.median(learner.seconds),
            "last_loss": learner.losses[-1],
            "held_out_perplexity": learner.held_out[-1][1],
        }
    compared = min(COMPARED_STEPS, ours.step)
    difference = largest_relative_difference(theirs.losses[:compared], ours.losses[:compared])
    bound = TOLERANCE[config.dtype]
    agree = difference <= bound  # false for nan too
    ratio = results["torch.nn"]["seconds"] / results["rnnext"]["seconds"]
    results |= {"largest_relative_difference": difference, "agree": agree, "speed_ratio": ratio}

    task = "perplexity of blanks" if config.bidirectional else "perplexity"
    print(f"\n{'':10}{'training':>12}{'median step':>14}{'last loss':>12}   held-out {task}")
    for learner in learners:
        result = results[learner.name]
        print(
            f"{learner.name:10}{result['seconds']:10.1f} s{result['median_step_ms']:11.1f} ms"
            f"{result['last_loss']:12.4f}   {result['held_out_perplexity']:.2f}"
        )
    print(f"rnnext trains {ratio:.2f} times as fast as torch.nn.")
    print(
        f"Largest relative difference of the losses in the first {compared} steps: "
        f"{difference:.1e} ({'within' if agree else 'BEYOND'} {bound:.0e})."
    )
    show = filled_in if config.bidirectional else sampled
    text = show(ours, subwords, held_out)
    print(f"\n{text}\n")
    plot(learners, config.out / "loss.png")
    (config.out / "sample.txt").write_text(text + "\n", encoding="utf-8")
    (config.out / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"In {config.out}: loss.png, results.json, sample.txt, checkpoint.pt")
    return 0 if agree else 1


def largest_relative_difference(a: list[float], b: list[float]) -> float:
    left, right = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    return float(((left - right).abs() / left.abs()).max())


@torch.no_grad()
def sampled(learner: Learner, subwords: Subwords, held_out: Tensor) -> str:
    """Text that the model writes by itself after the first words of the held-out text."""
    learner.model.eval()
    generator = torch.Generator().manual_seed(learner.config.seed)
    codes = held_out[:8].tolist()
    tokens, state = held_out[:8, None], None
    for _ in range(SAMPLED_TOKENS):
        scores, state = learner.model(tokens, state)
        probabilities = (scores[-1, 0].float() / TEMPERATURE).softmax(-1)
        token = torch.multinomial(probabilities, 1, generator=generator)
        codes.append(int(token))
        tokens = token[:, None]
    return "Sampled text:\n" + wrapped(subwords.decode(codes))


@torch.no_grad()
def filled_in(learner: Learner, subwords: Subwords, held_out: Tensor) -> str:
    """A held-out passage with the model's first guess for each blank."""
    learner.model.eval()
    tokens, targets = learner.task(held_out[: SAMPLED_TOKENS + 1, None], learner.config.seed)
    guesses = learner.model(tokens)[0].argmax(-1)[:, 0].tolist()
    parts, right = [], 0
    for guess, target, token in zip(
        guesses, targets[:, 0].tolist(), tokens[:, 0].tolist(), strict=True
    ):
        if target == -100:
            parts.append(subwords.pieces[token])
            continue
        right += guess == target
        parts.append("[" + subwords.pieces[guess] + ("]" if guess == target else "?]"))
    asked = int((targets != -100).sum())
    return f"Blanks filled in, {right} of {asked} right ([?] marks the wrong):\n" + wrapped(
        "".join(parts)
    )


def wrapped(text: str) -> str:
    return "\n".join(
        textwrap.fill(line, 100, initial_indent="  ", subsequent_indent="  ")
        for line in text.split("\n")
    )


def plot(learners: list[Learner], path: Path) -> None:
    """Draws training and held-out loss against the seconds spent in training."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for learner, colour in zip(learners, ("tab:gray", "tab:red"), strict=True):
        seconds = torch.tensor(learner.seconds, dtype=torch.float64).cumsum(0)
        losses = torch.tensor(learner.losses, dtype=torch.float64)
        sums = torch.cat([torch.zeros(SMOOTHED_STEPS, dtype=torch.float64), losses.cumsum(0)])
        count = torch.arange(1, len(losses) + 1).clamp(max=SMOOTHED_STEPS)
        axes.plot(
            seconds,
            (sums[SMOOTHED_STEPS:] - sums[:-SMOOTHED_STEPS]) / count,
            color=colour,
            label=f"{learner.name}, training (mean of {SMOOTHED_STEPS} steps)",
        )
        steps, perplexities = zip(*learner.held_out, strict=True)
        axes.plot(
            seconds[[step - 1 for step in steps]],
            torch.tensor(perplexities, dtype=torch.float64).log(),
            "o--",
            color=colour,
            markersize=4,
            label=f"{learner.name}, held out",
        )
    axes.set(
        xlabel="seconds of training",
        ylabel="cross-entropy per token (nats)",
        title="The same model, seed and batches",
    )
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
