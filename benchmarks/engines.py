"""Rivals outside torch: ONNX Runtime, OpenVINO and JAX, each set up as its makers advise."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .cases import Case
from .rivals import Arrays, Data, Prepared, Rival, Unsupported, array


def _stacked(data: Data, kind: str, layer: int) -> np.ndarray:
    """Parameter `kind` of one layer, its directions stacked: [D, ...]."""
    suffixes = ("", "_reverse")[: data.case.directions]
    return np.stack([array(data.state[f"{kind}_l{layer}{suffix}"]) for suffix in suffixes])


def _sequence_only(case: Case, dtypes: tuple[str, ...]) -> None:
    if case.kind not in ("rnn", "step") or case.mode != "infer":
        raise Unsupported("inference over a sequence only")
    if case.dtype not in dtypes or case.precision != "highest":
        raise Unsupported(f"no {case.dtype} at {case.precision} precision")


class OnnxRuntime:
    """A chain of ONNX RNN nodes; inputs and outputs bound once, so that a run copies nothing."""

    name = "onnxruntime"

    def prepare(self, case: Case, data: Data, threads: int) -> Prepared:
        import onnxruntime as ort

        _sequence_only(case, ("float32",))
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Its threads spin for 50 ms after a run and take the cores of whoever runs next. Stopping
        # them at the end of a run leaves them spinning within it, which costs ONNX Runtime nothing.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = ort.InferenceSession(
            self._model(case, data).SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
        )
        if case.kind == "step":
            return self._stream(ort, session, case, data)
        binding = session.io_binding()
        feeds = {"X": array(data.input)}
        if case.packed:
            feeds["lengths"] = np.array(case.lengths, np.int32)
        bound = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in feeds.items()}
        for name, value in bound.items():
            binding.bind_ortvalue_input(name, value)
        outputs = {}
        shapes: dict[str, tuple[int, ...]] = {"Y": (case.T, case.B, case.directions * case.H)}
        if case.directions == 1:
            shapes["Y"] = (case.T, 1, case.B, case.H)
        for layer in range(case.layers):
            shapes[f"H{layer}"] = (case.directions, case.B, case.H)
        for name, shape in shapes.items():
            outputs[name] = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32)
            binding.bind_ortvalue_output(name, outputs[name])

        def call() -> None:
            session.run_with_iobinding(binding)

        def result() -> Arrays:
            call()
            last = [outputs[f"H{layer}"].numpy() for layer in range(case.layers)]
            output = outputs["Y"].numpy().reshape(case.T, case.B, -1)
            return {"output": output.copy(), "h_n": np.concatenate(last)}

        return Prepared(call, result=result, holds=(bound, outputs))

    def _stream(self, ort: Any, session: Any, case: Case, data: Data) -> Prepared:
        """Two bindings take turns: what one puts out as the state the other takes in."""
        x = ort.OrtValue.ortvalue_from_numpy(array(data.input))
        zeros = np.zeros((1, case.B, case.H), np.float32)
        # Each of an array of its own, whose memory it shares.
        states = [ort.OrtValue.ortvalue_from_numpy(zeros.copy()) for _ in range(2)]
        output = ort.OrtValue.ortvalue_from_shape_and_type((1, 1, case.B, case.H), np.float32)
        bindings = [session.io_binding() for _ in states]
        for binding, before, after in zip(bindings, states, reversed(states), strict=True):
            binding.bind_ortvalue_input("X", x)
            binding.bind_ortvalue_input("H", before)
            binding.bind_ortvalue_output("Y", output)
            binding.bind_ortvalue_output("H0", after)
        turns = itertools.cycle(bindings)

        def result() -> Arrays:
            states[0].update_inplace(zeros)
            for binding in bindings:
                session.run_with_iobinding(binding)
            return {"output": output.numpy()[0, 0].copy()}

        return Prepared(
            lambda: session.run_with_iobinding(next(turns)),
            result=result,
            holds=(x, output, states),
        )

    def _model(self, case: Case, data: Data) -> Any:
        from onnx import TensorProto, helper, numpy_helper

        nodes, weights, values = [], [], []

        def constant(name: str, value: np.ndarray) -> str:
            weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
            return name

        lengths = "lengths" if case.packed else ""
        direction = "bidirectional" if case.bidirectional else "forward"
        x, directions = "X", case.directions
        for layer in range(case.layers):
            bias = [_stacked(data, f"bias_{kind}", layer) for kind in ("ih", "hh")]
            inputs = [
                x,
                constant(f"W{layer}", _stacked(data, "weight_ih", layer)),
                constant(f"R{layer}", _stacked(data, "weight_hh", layer)),
                constant(f"B{layer}", np.concatenate(bias, axis=1)),
                lengths,
                *(["H"] if case.kind == "step" else []),
            ]
            # The last output of one direction stays [T, 1, B, H]: the same bytes as [T, B, H].
            last = layer == case.layers - 1
            x = "Y" if last and directions == 1 else f"Y{layer}"
            nodes.append(
                helper.make_node(
                    "RNN",
                    inputs,
                    [x, f"H{layer}"],
                    hidden_size=case.H,
                    direction=direction,
                    activations=[case.nonlinearity.capitalize()] * directions,
                )
            )
            values.append((f"H{layer}", [directions, case.B, case.H]))
            if directions > 1:
                nodes.append(helper.make_node("Transpose", [x], [f"t{layer}"], perm=[0, 2, 1, 3]))
                x = f"t{layer}"
            if directions > 1 or not last:
                target = "Y" if last else f"x{layer}"
                shape = constant(f"s{layer}", np.array([case.T, case.B, -1], np.int64))
                nodes.append(helper.make_node("Reshape", [x, shape], [target]))
                x = target
        output = [case.T, case.B, directions * case.H]
        values.append(("Y", output if directions > 1 else [case.T, 1, case.B, case.H]))
        info = helper.make_tensor_value_info
        feeds = [info("X", TensorProto.FLOAT, [case.T, case.B, case.I])]
        if case.packed:
            feeds.append(info("lengths", TensorProto.INT32, [case.B]))
        if case.kind == "step":
            feeds.append(info("H", TensorProto.FLOAT, [1, case.B, case.H]))
        graph = helper.make_graph(
            nodes,
            "rnn",
            feeds,
            [info(name, TensorProto.FLOAT, shape) for name, shape in values],
            weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


class OpenVino:
    """RNNSequence nodes, batch first as OpenVINO wants them, with the latency hint."""

    name = "openvino"

    def prepare(self, case: Case, data: Data, threads: int) -> Prepared:
        import openvino as ov

        _sequence_only(case, ("float32", "bfloat16"))
        model, layers = self._model(case, data)
        # The default precision is the fastest the CPU has, not float32.
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "bf16" if case.dtype == "bfloat16" else "f32",
        }
        compiled = ov.Core().compile_model(model, "CPU", config)
        x = np.ascontiguousarray(array(data.input).transpose(1, 0, 2))
        if case.kind == "step":
            return self._stream(ov, compiled, case, x)
        request = compiled.create_infer_request()
        request.set_input_tensor(ov.Tensor(x, shared_memory=True))

        def result() -> Arrays:
            request.infer()
            tensors = [request.get_output_tensor(n).data.copy() for n in range(layers + 1)]
            output = tensors[0].reshape(case.B, case.T, -1).transpose(1, 0, 2)
            last = [t.transpose(1, 0, 2) for t in tensors[1:]]
            return {"output": output, "h_n": np.concatenate(last)}

        return Prepared(request.infer, result=result, holds=(x,))

    def _stream(self, ov: Any, compiled: Any, case: Case, x: np.ndarray) -> Prepared:
        """Two requests take turns: what one puts out as the state the other takes in."""
        zeros = np.zeros((case.B, 1, case.H), np.float32)
        states = [ov.Tensor(zeros.copy()) for _ in range(2)]
        requests = [compiled.create_infer_request() for _ in states]
        for request, before, after in zip(requests, states, reversed(states), strict=True):
            request.set_input_tensor(0, ov.Tensor(x, shared_memory=True))
            request.set_input_tensor(1, before)
            request.set_output_tensor(1, after)
        turns = itertools.cycle(requests)

        def result() -> Arrays:
            states[0].data[:] = zeros
            for request in requests:
                request.infer()
            return {"output": requests[1].get_output_tensor(0).data.reshape(case.B, -1).copy()}

        return Prepared(lambda: next(turns).infer(), result=result, holds=(x, states))

    def _model(self, case: Case, data: Data) -> tuple[Any, int]:
        import openvino as ov
        from openvino import opset13 as op

        parameter = op.parameter([case.B, case.T, case.I], np.float32)
        lengths = op.constant(np.array(case.lengths, np.int32))
        state = (case.B, case.directions, case.H)
        streams = case.kind == "step"
        first = op.parameter(state, np.float32) if streams else op.constant(np.zeros(state, "f4"))
        x, last = parameter.output(0), []
        for layer in range(case.layers):
            bias = _stacked(data, "bias_ih", layer) + _stacked(data, "bias_hh", layer)
            node = op.rnn_sequence(
                x,
                first,
                lengths,
                op.constant(_stacked(data, "weight_ih", layer)),
                op.constant(_stacked(data, "weight_hh", layer)),
                op.constant(bias),
                case.H,
                "bidirectional" if case.bidirectional else "forward",
                [case.nonlinearity],
            )
            last.append(node.output(1))
            x = node.output(0)  # [B, D, T, H]
            if case.directions > 1:
                x = op.transpose(x, op.constant(np.array([0, 2, 1, 3]))).output(0)
            shape = op.constant(np.array([case.B, case.T, case.directions * case.H]))
            x = op.reshape(x, shape, False).output(0)
        parameters = [parameter, first] if streams else [parameter]
        return ov.Model([x, *last], parameters), case.layers


class Jax:
    """lax.scan over the steps, jit-compiled, its input projection one matmul before."""

    name = "jax"

    def prepare(self, case: Case, data: Data, threads: int) -> Prepared:
        if case.kind == "cell" or case.sparse or case.precision != "highest":
            raise Unsupported("no sparse gradient, no single cell")
        jax = _jax()
        if case.kind == "embedding":
            return self._embedding(case, data)
        import jax.numpy as jnp

        parameters, names = {}, {}
        for name, value in data.state.items():
            # Flax keeps weights as [in, out], and the scan is faster with them so.
            values = array(value).T if name.startswith("weight") else array(value)
            parameters[name] = jnp.asarray(values, case.dtype)
            names[name] = name
        x = jnp.asarray(array(data.input), case.dtype)
        if case.kind == "step":
            return self._stream(case, parameters, x[0])
        forward = self._forward(case)
        if case.mode == "infer":
            run = jax.jit(forward)

            def infer() -> Arrays:
                output, h_n = run(parameters, x)
                return {"output": _numpy(output), "h_n": _numpy(h_n)}

            return Prepared(lambda: jax.block_until_ready(run(parameters, x)), result=infer)
        grad_output = jnp.asarray(array(data.grad_output), case.dtype)

        def step(parameters: Any, x: Any, grad_output: Any) -> Any:
            output, pullback = jax.vjp(lambda p, x: forward(p, x)[0], parameters, x)
            return output, pullback(grad_output)

        run = jax.jit(step)

        def train() -> Arrays:
            output, (grads, grad_input) = run(parameters, x, grad_output)
            arrays = {"output": _numpy(output), "grad:input": _numpy(grad_input)}
            for name, grad in grads.items():
                values = _numpy(grad)
                arrays[f"grad:{name}"] = values.T if name.startswith("weight") else values
            return arrays

        return Prepared(
            lambda: jax.block_until_ready(run(parameters, x, grad_output)), result=train
        )

    def _stream(self, case: Case, p: dict[str, Any], x: Any) -> Prepared:
        import jax.numpy as jnp

        def step(p: dict[str, Any], x: Any, h: Any) -> Any:
            bias = p["bias_ih_l0"] + p["bias_hh_l0"]
            return jnp.tanh(x @ p["weight_ih_l0"] + bias + h @ p["weight_hh_l0"])

        run = _jax().jit(step)
        h = zeros = jnp.zeros((case.B, case.H), x.dtype)

        def call() -> Any:
            nonlocal h
            h = run(p, x, h).block_until_ready()
            return h

        def result() -> Arrays:
            nonlocal h
            h = zeros
            call()
            return {"output": _numpy(call())}

        return Prepared(call, result=result)

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

    def _embedding(self, case: Case, data: Data) -> Prepared:
        import jax.numpy as jnp

        jax = _jax()
        table = jnp.asarray(array(data.state["weight"]))
        sets = [jnp.asarray(array(indices)) for indices in data.indices]
        indices = itertools.cycle(sets)

        def gather(table: Any, chosen: Any) -> Any:
            return table.at[chosen].get(mode="promise_in_bounds")

        if case.mode == "infer":
            run = jax.jit(gather)
            return Prepared(
                lambda: run(table, next(indices)).block_until_ready(),
                result=lambda: {"output": _numpy(run(table, sets[0]))},
            )
        grad_output = jnp.asarray(array(data.grad_output))

        def step(table: Any, chosen: Any, grad_output: Any) -> Any:
            output, pullback = jax.vjp(lambda t: gather(t, chosen), table)
            return output, *pullback(grad_output)

        run = jax.jit(step)

        def result() -> Arrays:
            output, grad = run(table, sets[0], grad_output)
            return {"output": _numpy(output), "grad:weight": _numpy(grad)}

        return Prepared(
            lambda: jax.block_until_ready(run(table, next(indices), grad_output)), result=result
        )


def _jax() -> Any:
    jax = importlib.import_module("jax")
    jax.config.update("jax_enable_x64", True)
    return jax


def _numpy(values: Any) -> np.ndarray:
    found: np.ndarray = np.asarray(values)
    return found if found.dtype in (np.float32, np.float64) else found.astype(np.float32)


def engines() -> Sequence[Rival]:
    """Those that are installed."""
    found: list[Rival] = []
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx"):
        found.append(OnnxRuntime())
    if importlib.util.find_spec("openvino"):
        found.append(OpenVino())
    if importlib.util.find_spec("jax"):
        found.append(Jax())
    return found
