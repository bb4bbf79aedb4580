"""The factors of the cases that several files of tests cross."""

import torch

from rnnext import _C

VARIANTS = {
    "source": ["features", "ready", "table"],
    "reverse": [(False,), (True,), (False, True)],
    "nonlinearity": _C.nonlinearities(),
    "bias": [True, False],
    "hx": [True, False],
    "layout": ["contiguous", "batch_first", "strided", "expanded"],
    "rows": ["full", "lengths", "packed"],
    "dtype": [torch.float32, torch.float64, torch.bfloat16, torch.float16],
    "index_dtype": [torch.int64, torch.int32],
    "leak": [None, "rate", "voltage", "blend"],
    "reset": [None, "zeros", "state"],
}

HALVES = (torch.float16, torch.bfloat16)
