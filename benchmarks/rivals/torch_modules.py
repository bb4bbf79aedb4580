"""The rivals that are torch modules: torch.nn's, a compiled loop, and ours in several ways."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ..cases import Case
from ..names import COMPILED, OURS, TORCH
from .contract import Arrays, Data, Prepared, Unsupported, array, flat, layer_of, named

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@dataclass(frozen=True)
class TorchModules:
    """torch.nn's recurrent layers, cells and Embedding, or those of the package `name`."""

    name: str

    def prepare(self, case: Case, data: Data, threads: int) -> Prepared:
        modules = importlib.import_module(self.name)
        if case.kind == "demo":
            return _demo(case, data, self.name)
        if case.kind == "step":
            return _stream(case, data, modules)
        if case.kind == "embedding":
            module = modules.Embedding(case.V, case.D, sparse=case.sparse, **data.place)
        else:
            module = layer_of(modules, case, **data.place)
        module.load_state_dict(data.state)
        return {"embedding": _embedding, "cell": _cell, "rnn": _rnn}[case.kind](case, module, data)


ours, theirs = partial(TorchModules, OURS), partial(TorchModules, TORCH)


def _training(
    forward: Callable[[], Tensor], leaves: dict[str, Tensor], grad_output: Tensor, **options: Any
) -> Prepared:
    def step() -> tuple[Tensor, ...]:
        output = forward()
        return output, *torch.autograd.grad(output, tuple(leaves.values()), grad_output)

    return named(step, ("output", *(f"grad:{name}" for name in leaves)), **options)


def _cell(case: Case, module: nn.Module, data: Data) -> Prepared:
    x, hx = data.input[0], _zeros(case, data)
    if case.mode == "infer":
        return named(lambda: _output(module(x, hx)), ("output",), torch.inference_mode)
    leaves = {"input": x.detach().requires_grad_()}
    leaves |= {name: h.requires_grad_() for name, h in zip(("hx", "cx"), flat(hx), strict=False)}
    call = lambda: _output(module(leaves["input"], hx))  # noqa: E731
    return _training(call, leaves | dict(module.named_parameters()), data.grad_output[0])


def _zeros(case: Case, data: Data) -> Any:
    """A first state: a tensor, or an LSTM's pair."""
    zeros = [data.input.new_zeros(case.B, case.H) for _ in case.states]
    return tuple(zeros) if case.cell == "lstm" else zeros[0]


def _output(state: Any) -> Any:
    """h, of an LSTM's pair too."""
    return state[0] if type(state) is tuple else state


def _stream(case: Case, data: Data, modules: Any) -> Prepared:
    """rnnext.Stepper, or torch.nn's cell, which is faster than its layer, and its last state."""
    x = data.input[0]
    if modules is not nn:
        layer = layer_of(modules, case, **data.place)
        layer.load_state_dict(data.state)
        stepper = modules.Stepper(layer, case.B)
        return named(lambda: stepper(x), ("output",), torch.inference_mode, restart=stepper.reset)
    cell = layer_of(nn, replace(case, kind="cell"), **data.place)
    cell.load_state_dict({name.removesuffix("_l0"): w for name, w in data.state.items()})
    state = zeros = _zeros(case, data)

    def restart() -> None:
        nonlocal state
        state = zeros

    def step() -> Any:
        nonlocal state
        state = cell(x, state)
        return _output(state)

    return named(step, ("output",), torch.inference_mode, restart=restart)


def _demo(case: Case, data: Data, package: str) -> Prepared:
    """A whole training step of the demo, by its own code, on random tokens."""
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    text_model: Any = importlib.import_module("text_model")
    train_text: Any = importlib.import_module("train_text")
    words = ("--hidden", case.H, "--length", case.T, "--batch", case.B, "--seed", data.seed)
    config = train_text.options().parse_args(list(map(str, words)))
    learner = partial(text_model.Learner, package, config, case.V, data.tokens)

    def result() -> Arrays:
        found = learner()
        found.train(3)
        return {"losses": np.array(found.losses)}

    trained = learner()
    return Prepared(lambda: trained.train(1), result=result)


def _embedding(case: Case, module: nn.Module, data: Data) -> Prepared:
    indices, grad = itertools.cycle(data.indices), data.grad_output
    if case.mode == "infer":
        return named(lambda: module(next(indices)), ("output",), torch.inference_mode)
    weight = module.get_parameter("weight")
    if case.mode == "backward":
        outputs = itertools.cycle([module(chosen) for chosen in data.indices])
        return named(
            lambda: torch.autograd.grad(next(outputs), weight, grad, retain_graph=True),
            ("grad:weight",),
        )

    def step() -> tuple[Tensor, ...]:
        output = module(next(indices))
        (gradient,) = torch.autograd.grad(output, weight, grad)
        if not case.sparse:
            return output, gradient
        gradient = gradient.coalesce()
        return output, gradient.indices()[0], gradient.values()

    return named(step, ("output", *(("rows",) if case.sparse else ()), "grad:weight"))


def _rnn(case: Case, module: nn.Module, data: Data) -> Prepared:
    x: Any = data.input
    grad_output = data.grad_output
    if case.packed:
        lengths = torch.tensor(case.lengths)
        x = pack_padded_sequence(x, lengths)
        grad_output = pack_padded_sequence(grad_output, lengths).data

    def padded(name: str, values: Any) -> np.ndarray:
        if case.packed and name in ("output", "grad:input"):
            values, _ = pad_packed_sequence(PackedSequence(_values(values), x.batch_sizes))
        return array(values)

    if case.mode == "infer":
        return named(lambda: module(x), ("output", *case.states), torch.inference_mode, padded)
    values = _values(x).detach().requires_grad_()
    x = PackedSequence(values, x.batch_sizes) if case.packed else values
    leaves = {"input": values} | dict(module.named_parameters())
    return _training(lambda: _values(module(x)[0]), leaves, grad_output, convert=padded)


def _values(sequence: Any) -> Tensor:
    return sequence.data if isinstance(sequence, PackedSequence) else sequence


class CompiledLoop:
    """A Python loop over a step compiled by torch.compile, its input projection one matmul before.

    The step is compiled once for each dtype and nonlinearity, with dynamic shapes: unrolling the
    whole loop compiles for minutes at a few hundred steps.
    """

    name = COMPILED

    def __init__(self) -> None:
        self.steps: dict[str, Callable[..., Tensor]] = {}

    def prepare(self, case: Case, data: Data, threads: int) -> Prepared:
        if case.kind != "rnn" or case.packed or case.T == 1 or case.layers * case.directions > 1:
            raise Unsupported("a dense sequence, one layer and direction only")
        if case.cell != "rnn" or case.dtype != "float32" or case.device != "cpu":
            raise Unsupported("Elman's cell in float32 on the CPU only")
        if case.nonlinearity not in self.steps:
            function = getattr(torch, case.nonlinearity)

            def step(pre: Tensor, h: Tensor, weight: Tensor) -> Tensor:
                return function(torch.addmm(pre, h, weight.t()))  # type: ignore[no-any-return]

            # One compilation each for a batch of one, for a first step, for gradients on and off.
            torch._dynamo.config.recompile_limit = 64
            self.steps[case.nonlinearity] = torch.compile(step, dynamic=True)
        loop = _Loop(case.I, case.H)
        loop.load_state_dict(data.state)
        loop.step = self.steps[case.nonlinearity]
        return _rnn(case, loop, data)


class _Loop(nn.RNN):
    """The layer as a Python loop over `step`."""

    step: Callable[..., Tensor]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        w_ih, w_hh, b_ih, b_hh = self.parameters()
        h = x.new_zeros(x.size(1), w_hh.size(0))
        outputs = []
        for pre in nn.functional.linear(x, w_ih, b_ih + b_hh).unbind():
            h = self.step(pre, h, w_hh)
            outputs.append(h)
        return torch.stack(outputs), h.unsqueeze(0)
