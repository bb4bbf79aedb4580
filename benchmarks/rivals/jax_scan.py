"""JAX, set up as its makers advise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, nn

from ..cases import Case
from .contract import Data, Prepared, array, named

jax.config.update("jax_enable_x64", True)


def prepare(case: Case, data: Data) -> Prepared:
    # Flax keeps weights as [in, out], and the scan is faster with them so. (A bias stays.)
    parameters = {n: jnp.asarray(array(w).T, case.dtype) for n, w in data.state.items()}
    x = jnp.asarray(array(data.input), case.dtype)
    if case.kind == "step":
        return _stream(case, parameters, x[0])
    forward = _forward(case)
    if case.mode == "infer":
        run = jax.jit(forward)
        return _named(lambda: run(parameters, x), ("output", *case.states))
    grad_output = jnp.asarray(array(data.grad_output), case.dtype)

    def step(parameters: Any, x: Any, grad_output: Any) -> Any:
        output, pullback = jax.vjp(lambda p, x: forward(p, x)[0], parameters, x)
        grads, grad_input = pullback(grad_output)
        return output, grad_input, *grads.values()

    run = jax.jit(step)
    # JAX returns a dict's entries sorted.
    names = ("output", "grad:input", *(f"grad:{name}" for name in sorted(parameters)))
    return _named(lambda: run(parameters, x, grad_output), names)


def _stream(case: Case, p: dict[str, Any], x: Any) -> Prepared:
    run = jax.jit(lambda p, x, state: _step(case, p, "l0")(_projected(case, p, x, "l0"), state))
    state = zeros = _zeros(case, x)

    def call() -> Any:
        nonlocal state
        state = run(p, x, state)
        return state[0]

    def restart() -> None:
        nonlocal state
        state = zeros

    return _named(call, ("output",), restart)


def _forward(case: Case) -> Callable[[Any, Any], Any]:
    lengths = jnp.asarray(case.lengths)[:, None] if case.packed else None

    def direction(p: Any, x: Any, suffix: str) -> Any:
        advance = _step(case, p, suffix)

        def step(state: Any, inputs: Any) -> Any:
            t, pre_t = inputs
            new = advance(pre_t, state)
            if lengths is None:
                return new, new[0]
            alive = t < lengths
            kept = [jnp.where(alive, *both) for both in zip(new, state, strict=True)]
            return tuple(kept), jnp.where(alive, new[0], 0)

        steps = jnp.arange(case.T), _projected(case, p, x, suffix)
        return lax.scan(step, _zeros(case, x), steps, reverse=suffix.endswith("reverse"))

    def forward(p: Any, x: Any) -> Any:
        last: list[Any] = []
        for layer in range(case.layers):
            suffixes = (f"l{layer}", f"l{layer}_reverse")[: case.directions]
            states, outputs = zip(*(direction(p, x, s) for s in suffixes), strict=True)
            x = jnp.concatenate(outputs, axis=-1) if case.bidirectional else outputs[0]
            last += states
        return x, *map(jnp.stack, zip(*last, strict=True))

    return forward


def _zeros(case: Case, x: Any) -> tuple[Any, ...]:
    return tuple(jnp.zeros((case.B, case.H), x.dtype) for _ in case.states)


def _projected(case: Case, p: Any, x: Any, suffix: str) -> Any:
    """The input's part of the gates; a GRU's second bias is not added to it."""
    bias = p[f"bias_ih_{suffix}"] + (0 if case.cell == "gru" else p[f"bias_hh_{suffix}"])
    return x @ p[f"weight_ih_{suffix}"] + bias


def _step(case: Case, p: Any, suffix: str) -> Callable[[Any, Any], Any]:
    """A function from the input projection and the states to the new states."""
    function = {"tanh": jnp.tanh, "relu": nn.relu}[case.nonlinearity]
    weight, bias = (p[f"{kind}_hh_{suffix}"] for kind in ("weight", "bias"))

    def elman(pre: Any, state: Any) -> Any:
        return (function(pre + state[0] @ weight),)

    def gru(pre: Any, state: Any) -> Any:
        pre_r, pre_z, pre_n = jnp.split(pre, 3, axis=-1)
        hidden_r, hidden_z, hidden_n = jnp.split(state[0] @ weight + bias, 3, axis=-1)
        z = nn.sigmoid(pre_z + hidden_z)
        n = jnp.tanh(pre_n + nn.sigmoid(pre_r + hidden_r) * hidden_n)
        return (n + z * (state[0] - n),)

    def lstm(pre: Any, state: Any) -> Any:
        i, f, g, o = jnp.split(pre + state[0] @ weight, 4, axis=-1)
        c = nn.sigmoid(f) * state[1] + nn.sigmoid(i) * jnp.tanh(g)
        return nn.sigmoid(o) * jnp.tanh(c), c

    return {"rnn": elman, "gru": gru, "lstm": lstm}[case.cell]


def _named(
    call: Callable[[], Any], names: Sequence[str], restart: Callable[[], None] | None = None
) -> Prepared:
    """Calls that wait for their results."""
    return named(lambda: jax.block_until_ready(call()), names, convert=_numpy, restart=restart)


def _numpy(name: str, values: Any) -> np.ndarray:
    """In numpy; weights' gradients as [out, in]."""
    found: np.ndarray = np.asarray(values)
    found = found if found.dtype in (np.float32, np.float64) else found.astype(np.float32)
    return found.T if name.startswith("grad:weight_") else found
