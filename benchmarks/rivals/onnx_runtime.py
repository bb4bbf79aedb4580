"""ONNX Runtime, set up as its makers advise."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from ..cases import Case
from .contract import Arrays, Data, Prepared, array, sequences_only, stacked


class OnnxRuntime:
    """A chain of ONNX RNN nodes; inputs and outputs bound once, so that a run copies nothing."""

    name = "onnxruntime"

    def prepare(self, case: Case, data: Data, threads: int) -> Prepared:
        import onnxruntime as ort

        sequences_only(case, ("float32",))
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
            bias = [stacked(data, f"bias_{kind}", layer) for kind in ("ih", "hh")]
            inputs = [
                x,
                constant(f"W{layer}", stacked(data, "weight_ih", layer)),
                constant(f"R{layer}", stacked(data, "weight_hh", layer)),
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
