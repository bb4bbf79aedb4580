"""OpenVINO, set up as its makers advise, with the model that ONNX Runtime runs."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from ..cases import Case
from .contract import Arrays, Data, Prepared, sequences_only
from .onnx_runtime import carried_states, feeds, last_states, model_of, results


class OpenVino:
    """Its sequence nodes with the latency hint, inputs and outputs in memory that is shared."""

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
        # Two requests take turns: each reads the stream's state that the other has written.
        requests = [compiled.create_infer_request() for _ in range(2)]
        inputs: dict[str, Any] = {name: ov.Tensor(x, True) for name, x in feeds(case, data).items()}
        zeros = np.zeros((1, case.B, case.H), np.float32)
        states = [
            {name: ov.Tensor(zeros.copy()) for name in carried_states(case)} for _ in requests
        ]
        for n, request in enumerate(requests):
            goes_on = {f"{name}0": tensor for name, tensor in states[1 - n].items()}
            for name, tensor in (inputs | states[n] | goes_on).items():
                request.set_tensor(name, tensor)
        turns = itertools.cycle(requests)

        def result() -> Arrays:
            for tensor in states[0].values():
                tensor.data[:] = zeros
            for request in requests:
                request.infer()
            names = itertools.chain(["Y"], *last_states(case))
            return results(case, {name: requests[1].get_tensor(name).data for name in names})

        return Prepared(lambda: next(turns).infer(), result=result, holds=(inputs, states))
