"""ONNX Runtime, set up as its makers advise, and the ONNX model that OpenVINO reads too."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from ..cases import Case
from .contract import Arrays, Data, Prepared, array, sequences_only, stacked

# ONNX's order of torch's gates: a GRU's z r h of r z n, an LSTM's i o f c of i f g o.
ORDERS = {"rnn": (0,), "gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}


class OnnxRuntime:
    """A chain of ONNX nodes; inputs and outputs bound once, so that a run copies nothing."""

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
        providers = ["CPUExecutionProvider"]
        session = ort.InferenceSession(model_of(case, data), options, providers=providers)
        # Two bindings take turns: each reads the stream's state that the other has written.
        bindings = [session.io_binding() for _ in range(2)]
        own = ort.OrtValue.ortvalue_from_numpy
        tensors = {name: own(values) for name, values in feeds(case, data).items()}
        zeros, carried = np.zeros((1, case.B, case.H), np.float32), carried_states(case)
        # Each of an array of its own, whose memory it shares.
        states = [{name: own(zeros.copy()) for name in carried} for _ in bindings]
        outputs = {
            each.name: ort.OrtValue.ortvalue_from_shape_and_type(each.shape, np.float32)
            for each in session.get_outputs()
        }
        for n, binding in enumerate(bindings):
            for name, value in (tensors | states[n]).items():
                binding.bind_ortvalue_input(name, value)
            goes_on = {f"{name}0": value for name, value in states[1 - n].items()}
            for name, value in (outputs | goes_on).items():
                binding.bind_ortvalue_output(name, value)
        turns = itertools.cycle(bindings)

        def call() -> None:
            session.run_with_iobinding(next(turns))

        def result() -> Arrays:
            for value in states[0].values():
                value.update_inplace(zeros)
            for binding in bindings:
                session.run_with_iobinding(binding)
            return results(case, {name: value.numpy() for name, value in outputs.items()})

        return Prepared(call, result=result, holds=(tensors, states, outputs))


def feeds(case: Case, data: Data) -> dict[str, np.ndarray]:
    lengths = {"lengths": np.array(case.lengths, np.int32)} if case.packed else {}
    return {"X": array(data.input), **lengths}


def last_states(case: Case) -> list[list[str]]:
    """The model's names of each state's last values, a layer at a time: H0, H1, ..., C0, ..."""
    return [[f"{name[0].upper()}{n}" for n in range(case.layers)] for name in case.states]


def carried_states(case: Case) -> list[str]:
    """The states that a stream hands on, as inputs."""
    return [name[0].upper() for name in case.states] if case.kind == "step" else []


def results(case: Case, outputs: dict[str, np.ndarray]) -> Arrays:
    """Copies of the model's outputs under the names of a Prepared's."""
    output = outputs["Y"].reshape(case.T, case.B, -1).copy()
    if case.kind == "step":
        return {"output": output[0]}
    last = [np.concatenate([outputs[name] for name in names]) for names in last_states(case)]
    return {"output": output, **dict(zip(case.states, last, strict=True))}


def model_of(case: Case, data: Data) -> bytes:
    """Inputs X, and lengths or a stream's states where the case has them; outputs the last states
    and Y."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, x = [], [], "X"

    def constant(name: str, value: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    last_of, order = last_states(case), ORDERS[case.cell]
    for layer in range(case.layers):
        bias = [stacked(data, f"bias_{kind}", layer, order) for kind in ("ih", "hh")]
        inputs = [
            x,
            constant(f"W{layer}", stacked(data, "weight_ih", layer, order)),
            constant(f"R{layer}", stacked(data, "weight_hh", layer, order)),
            constant(f"B{layer}", np.concatenate(bias, axis=1)),
            "lengths" if case.packed else "",
            *carried_states(case),
        ]
        # The last output of one direction stays [T, 1, B, H]: the same bytes as [T, B, H].
        last = layer == case.layers - 1
        x = "Y" if last and case.directions == 1 else f"Y{layer}"
        options: dict[str, Any] = {
            "hidden_size": case.H,
            "direction": "bidirectional" if case.bidirectional else "forward",
        }
        if case.cell == "rnn":
            options["activations"] = [case.nonlinearity.capitalize()] * case.directions
        if case.cell == "gru":
            options["linear_before_reset"] = 1
        last_names = [names[layer] for names in last_of]
        nodes.append(helper.make_node(case.cell.upper(), inputs, [x, *last_names], **options))
        if case.directions > 1:
            nodes.append(helper.make_node("Transpose", [x], [f"t{layer}"], perm=[0, 2, 1, 3]))
            x = f"t{layer}"
        if x != "Y":
            target = "Y" if last else f"x{layer}"
            shape = constant(f"s{layer}", np.array([case.T, case.B, -1], np.int64))
            nodes.append(helper.make_node("Reshape", [x, shape], [target]))
            x = target
    info, states = helper.make_tensor_value_info, [case.directions, case.B, case.H]
    wide = [case.T, case.B, 2 * case.H]
    values = dict.fromkeys(itertools.chain(*last_of), states)
    values["Y"] = wide if case.directions > 1 else [case.T, 1, case.B, case.H]
    given = [info("X", TensorProto.FLOAT, [case.T, case.B, case.I])]
    given += [info("lengths", TensorProto.INT32, [case.B])] if case.packed else []
    given += [info(name, TensorProto.FLOAT, states) for name in carried_states(case)]
    wanted = [info(name, TensorProto.FLOAT, shape) for name, shape in values.items()]
    graph = helper.make_graph(nodes, "rnn", given, wanted, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    return model.SerializeToString()  # type: ignore[no-any-return]
