"""The factors of the cases that several files of tests cross."""

import torch

from helpers.common import supported_isas

SHAPES = {
    "H": [1, 7, 8, 17, 64, 129, 200],
    "T": [1, 2, 33],
    "B": [0, 1, 3, 12, 13],
    "I": [0, 1, 5, 33],
}
VARIANTS = {
    "source": ["features", "ready", "table"],
    "reverse": [(False,), (True,), (False, True)],
    "nonlinearity": ["tanh", "relu", "sigmoid", "softplus", "identity"],
    "bias": [True, False],
    "hx": [True, False],
    "layout": ["contiguous", "batch_first", "strided", "expanded"],
    "rows": ["full", "lengths", "packed"],
    "dtype": [torch.float32, torch.float64, torch.bfloat16, torch.float16],
    "index_dtype": [torch.int64, torch.int32],
    "leak": [None, "rate", "voltage", "blend"],
    "reset": [None, "zeros", "state"],
}
SETTINGS = {"isa": supported_isas(), "threads": [1, 3]}


def valid(case):
    """A packed sequence has no empty batch and no resets; a table needs a row for each index."""
    return case["rows"] != "packed" or (case["B"] > 0 and case.get("reset") is None)
