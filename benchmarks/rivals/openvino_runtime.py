"""OpenVINO, set up as its makers advise."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from ..cases import Case
from .contract import Arrays, Data, Prepared, array, sequences_only, stacked


class OpenVino:
    """RNNSequence nodes, batch first as OpenVINO wants them, with the latency hint."""

    name = "openvino"

    def prepare(self, case: Case, data: Data, threads: int) -> Prepared:
        import openvino as ov

        sequences_only(case, ("float32", "bfloat16"))
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
            bias = stacked(data, "bias_ih", layer) + stacked(data, "bias_hh", layer)
            node = op.rnn_sequence(
                x,
                first,
                lengths,
                op.constant(stacked(data, "weight_ih", layer)),
                op.constant(stacked(data, "weight_hh", layer)),
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
