"""OpenVINO, set up as its makers advise, with the model that ONNX Runtime runs."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from ..cases import Case
from .contract import Arrays, Data, Prepared, sequences_only
from .onnx_runtime import feeds, model_of


class OpenVino:
    """Its RNNSequence nodes with the latency hint, inputs and outputs in memory that is shared."""

    name = "openvino"

    def prepare(self, case: Case, data: Data, threads: int) -> Prepared:
        import openvino as ov

        sequences_only(case, ("float32", "bfloat16"))
        core = ov.Core()
        # The default precision is the fastest the CPU has, not float32.
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "bf16" if case.dtype == "bfloat16" else "f32",
        }
        compiled = core.compile_model(core.read_model(model_of(case, data)), "CPU", config)
        # Two requests take turns: what one puts out as the state of a stream the other takes in.
        requests = [compiled.create_infer_request() for _ in range(2)]
        inputs: dict[str, Any] = {name: ov.Tensor(x, True) for name, x in feeds(case, data).items()}
        zeros = np.zeros((1, case.B, case.H), np.float32)
        states = [ov.Tensor(zeros.copy()) for _ in requests] if case.kind == "step" else []
        for n, request in enumerate(requests):
            for name, tensor in (inputs | ({"H": states[n]} if states else {})).items():
                request.set_tensor(name, tensor)
            if states:
                request.set_tensor("H0", states[1 - n])
        turns = itertools.cycle(requests)

        def result() -> Arrays:
            if states:
                states[0].data[:] = zeros
            for request in requests:
                request.infer()
            output = requests[1].get_tensor("Y").data.reshape(case.T, case.B, -1).copy()
            if states:
                return {"output": output[0]}
            last = [requests[1].get_tensor(f"H{layer}").data for layer in range(case.layers)]
            return {"output": output, "h_n": np.concatenate(last)}

        return Prepared(lambda: next(turns).infer(), result=result, holds=(inputs, states))
