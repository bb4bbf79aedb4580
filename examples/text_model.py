"""The model of the demo, and what trains it on a library's modules."""

from __future__ import annotations

import argparse
import math
from time import perf_counter
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_map

import rnnext

HALF_LIFE = 400  # steps after which the learning rate has halved
BLANKS = 0.15  # share of tokens that a bidirectional model has to fill in
HELD_OUT_TOKENS = (
    20_000  # of the held-out text, from its beginning: enough for two digits of perplexity
)
HELD_OUT_WINDOW = 1000


class TorchEmbeddingRNN(nn.Module):
    """torch.nn's modules as rnnext.EmbeddingRNN holds rnnext's: the same names and arguments."""

    def __init__(
        self, pieces: int, features: int, hidden: int, layers: int, cell: str, **options: Any
    ) -> None:
        super().__init__()
        if cell != "rnn":
            del options["nonlinearity"]  # which is tanh
        self.embedding = nn.Embedding(pieces, features)
        self.rnn = getattr(nn, cell.upper())(features, hidden, layers, **options)

    def forward(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        output, state = self.rnn(self.embedding(tokens), state)
        return output, state


# Swapping the module is the whole change.
LIBRARIES: dict[str, type[nn.Module]] = {
    "torch.nn": TorchEmbeddingRNN,
    "rnnext": rnnext.EmbeddingRNN,
}


class SequenceDropout(nn.Module):
    """Dropout of the same features at every time step (Gal and Ghahramani, 2016).

    It regularises as well as nn.Dropout here, and needs T times fewer random numbers: drawing
    those would take a third of a training step.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """x [T, B, H]; in training with some features zero and the others scaled up."""
        if not self.training or self.p == 0:
            return x
        return x * nn.functional.dropout(torch.ones_like(x[0]), self.p)


class TextModel(nn.Module):
    """Embedding, RNN and score layer, with dropout between the last two.

    Not between layers of the RNN, where rnnext draws other masks than torch.nn from the same seed.

    Args:
        embedding_rnn: one of LIBRARIES, or a class with its arguments.
        pieces: how many tokens there are; a bidirectional model reads one more, the blank.
        config: cell, hidden, layers, nonlinearity, dropout, bidirectional.
    """

    def __init__(
        self, embedding_rnn: type[nn.Module], pieces: int, config: argparse.Namespace
    ) -> None:
        super().__init__()
        self.rnn = embedding_rnn(
            pieces + config.bidirectional,
            config.hidden,
            config.hidden,
            config.layers,
            cell=config.cell,
            nonlinearity=config.nonlinearity,
            bidirectional=config.bidirectional,
        )
        self.dropout = SequenceDropout(config.dropout)
        self.score = nn.Linear(config.hidden * (1 + config.bidirectional), pieces)

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Scores [T, B, pieces] and the new state for tokens [T, B] (int64).

        The state is [layers * directions, B, hidden], of an LSTM two of these; None is zeros.
        """
        output, state = self.rnn(tokens, state)
        return self.score(self.dropout(output)), state


class Learner:
    """One library's model with its optimiser, its place in the text and its record.

    Every random draw of a step comes from the seed and the number of the step. So both libraries
    draw the same, whoever trains first, and a resumed run needs no state of a generator.

    Args:
        name: a key of LIBRARIES.
        config: the options of the program.
        pieces: how many different tokens there are.
        streams: the training tokens [L, B] int64.
    """

    def __init__(self, name: str, config: argparse.Namespace, pieces: int, streams: Tensor) -> None:
        self.name = name
        self.config = config
        self.blank = pieces
        self.streams = streams
        torch.manual_seed(config.seed)
        self.model = TextModel(LIBRARIES[name], pieces, config).to(getattr(torch, config.dtype))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.rate)
        self.state: Any = None
        self.losses: list[float] = []  # of each step
        self.seconds: list[float] = []  # of each step
        self.held_out: list[tuple[int, float]] = []  # step and perplexity

    @property
    def step(self) -> int:
        return len(self.losses)

    def count_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def train(self, steps: int) -> None:
        """Trains `steps` steps, each on the next window of the text."""
        self.model.train()
        for _ in range(steps):
            seed = self.config.seed * 1_000_003 + self.step
            windows = (len(self.streams) - 1) // self.config.length
            begin = self.step % windows * self.config.length
            window = self.streams[begin : begin + self.config.length + 1]
            tokens, targets = self.task(window, seed)
            torch.manual_seed(seed)
            if begin == 0 or self.config.bidirectional:
                self.state = (
                    None  # the text begins anew; a window read backwards follows on nothing
                )
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.rate * 0.5 ** (self.step / HALF_LIFE)

            start = perf_counter()
            scores, state = self.model(tokens, self.state)
            loss = cross_entropy(scores.flatten(0, 1), targets.flatten())
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            value = loss.item()
            self.seconds.append(perf_counter() - start)
            self.state = tree_map(Tensor.detach, state)
            self.losses.append(value)

    def task(self, window: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a window [T + 1, B]; target -100: nothing is asked."""
        if not self.config.bidirectional:
            return window[:-1], window[1:]
        tokens = window[:-1]
        asked = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed)) < BLANKS
        asked[0] |= ~asked.any(0)  # a loss over nothing would be nan
        return tokens.masked_fill(asked, self.blank), tokens.masked_fill(~asked, -100)

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "state": self.state,
            "losses": self.losses,
            "seconds": self.seconds,
            "held_out": self.held_out,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.state = saved["state"]
        self.losses = saved["losses"]
        self.seconds = saved["seconds"]
        self.held_out = saved["held_out"]


@torch.no_grad()
def perplexity(learner: Learner, codes: Tensor) -> float:
    """exp of the mean loss on the tokens [N] asked for, read from the beginning in one stream."""
    learner.model.eval()
    state, total, count = None, 0.0, 0
    for seed, window in enumerate(codes[:HELD_OUT_TOKENS].split(HELD_OUT_WINDOW)):
        begin = seed * HELD_OUT_WINDOW
        window = codes[begin : begin + len(window) + 1, None]
        if len(window) < 2:
            break
        tokens, targets = learner.task(window, seed)
        scores, state = learner.model(tokens, None if learner.config.bidirectional else state)
        total += cross_entropy(
            scores.flatten(0, 1).float(), targets.flatten(), reduction="sum"
        ).item()
        count += int((targets != -100).sum())
    return math.exp(total / count)
