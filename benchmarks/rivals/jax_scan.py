"""JAX, set up as its makers advise."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..cases import Case
from .contract import Data, Prepared, Unsupported, array, named


class Jax:
    """lax.scan over the steps, jit-compiled, its input projection one matmul before."""

    name = "jax"

    def prepare(self, case: Case, data: Data, threads: int) -> Prepared:
        if case.kind not in ("rnn", "step") or case.device != "cpu" or case.precision != "highest":
            raise Unsupported("sequences at full precision on the CPU only")
        jax = _jax()
        import jax.numpy as jnp

        parameters = {}
        for name, value in data.state.items():
            # Flax keeps weights as [in, out], and the scan is faster with them so.
            values = array(value).T if name.startswith("weight") else array(value)
            parameters[name] = jnp.asarray(values, case.dtype)
        x = jnp.asarray(array(data.input), case.dtype)
        if case.kind == "step":
            return self._stream(case, parameters, x[0])
        forward = self._forward(case)
        if case.mode == "infer":
            run = jax.jit(forward)
            return _named(lambda: run(parameters, x), ("output", "h_n"))
        grad_output = jnp.asarray(array(data.grad_output), case.dtype)

        def step(parameters: Any, x: Any, grad_output: Any) -> Any:
            output, pullback = jax.vjp(lambda p, x: forward(p, x)[0], parameters, x)
            grads, grad_input = pullback(grad_output)
            return output, grad_input, *grads.values()

        run = jax.jit(step)
        # A dict's entries come back sorted.
        names = ("output", "grad:input", *(f"grad:{name}" for name in sorted(parameters)))
        return _named(lambda: run(parameters, x, grad_output), names)

    def _stream(self, case: Case, p: dict[str, Any], x: Any) -> Prepared:
        import jax.numpy as jnp

        def step(p: dict[str, Any], x: Any, h: Any) -> Any:
            bias = p["bias_ih_l0"] + p["bias_hh_l0"]
            return jnp.tanh(x @ p["weight_ih_l0"] + bias + h @ p["weight_hh_l0"])

        run = _jax().jit(step)
        h = zeros = jnp.zeros((case.B, case.H), x.dtype)

        def call() -> Any:
            nonlocal h
            h = run(p, x, h)
            return h

        def restart() -> None:
            nonlocal h
            h = zeros

        return _named(call, ("output",), restart)

    def _forward(self, case: Case) -> Callable[[Any, Any], Any]:
        import jax.numpy as jnp
        from jax import lax, nn

        function = {"tanh": jnp.tanh, "relu": nn.relu}[case.nonlinearity]
        lengths = jnp.asarray(case.lengths)[:, None] if case.packed else None

        def direction(p: Any, x: Any, suffix: str) -> Any:
            weight = p[f"weight_hh_{suffix}"]
            bias = p[f"bias_ih_{suffix}"] + p[f"bias_hh_{suffix}"]
            pre = x @ p[f"weight_ih_{suffix}"] + bias
            zero = jnp.zeros((case.B, case.H), x.dtype)

            def step(h: Any, inputs: Any) -> Any:
                t, pre_t = inputs
                new = function(pre_t + h @ weight)
                if lengths is None:
                    return new, new
                alive = t < lengths
                return jnp.where(alive, new, h), jnp.where(alive, new, 0)

            return lax.scan(
                step, zero, (jnp.arange(case.T), pre), reverse=suffix.endswith("reverse")
            )

        def forward(p: Any, x: Any) -> Any:
            last: list[Any] = []
            for layer in range(case.layers):
                suffixes = (f"l{layer}", f"l{layer}_reverse")[: case.directions]
                h_n, outputs = zip(*(direction(p, x, suffix) for suffix in suffixes), strict=True)
                x = jnp.concatenate(outputs, axis=-1) if case.bidirectional else outputs[0]
                last += h_n
            return x, jnp.stack(last)

        return forward


def _jax() -> Any:
    jax = importlib.import_module("jax")
    jax.config.update("jax_enable_x64", True)
    return jax


def _named(
    call: Callable[[], Any], names: Sequence[str], restart: Callable[[], None] | None = None
) -> Prepared:
    """Calls that wait for their results."""
    jax = _jax()
    return named(lambda: jax.block_until_ready(call()), names, convert=_numpy, restart=restart)


def _numpy(name: str, values: Any) -> np.ndarray:
    """As torch has it: weights are [out, in]."""
    found: np.ndarray = np.asarray(values)
    found = found if found.dtype in (np.float32, np.float64) else found.astype(np.float32)
    return found.T if name.startswith("grad:weight_") else found
