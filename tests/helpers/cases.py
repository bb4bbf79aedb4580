"""The factors of the cases that several files of tests cross."""

import random

import torch

from helpers.common import pairwise
from reference.elman import ACTIVATIONS
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


def valid(case):
    """A packed sequence has no empty batch and no resets; a table needs a row for each index."""
    return case["rows"] != "packed" or (case["B"] > 0 and case.get("reset") is None)


HALVES = (torch.float16, torch.bfloat16)


def fits(case):
    """Valid, and with gradients of which something can be said: an alpha's sums changes of the
    state, which 16 bits round, over steps and sequences."""
    summed = case["leak"] and case["dtype"] in HALVES
    return valid(case) and not (summed and case["T"] * case["B"] > 30)


CUDA_SHAPES = {"T": [1, 6], "B": [1, 5, 17], "I": [1, 4], "H": [0, 1, 6, 7, 40, 64]}


def cuda_cases(paths, drawn=0, **more):
    """What the CUDA half is tested on: every variant of the CPU's list, on every path (None: as it
    is chosen), and more factors. First plain calls, then those with leaks and resets among them;
    then so many that are drawn at random."""

    def fitted(case):
        """Where a rounded product may fall on the other side of a kink, smooth nonlinearities."""
        case = {name: value for name, value in case.items() if name != "again"}
        if case["rows"] == "packed":
            case["reset"] = None
        rounded = case["dtype"] in HALVES and (case["source"] == "features" or case["leak"])
        if rounded and ACTIVATIONS[case["nonlinearity"]].kink:
            case["nonlinearity"] = "softplus"
        return case

    any_call = {"path": [None, *paths], **CUDA_SHAPES, **VARIANTS, **more}
    any_call["reverse"] = [*VARIANTS["reverse"], (True, True)]
    plain = {**any_call, "leak": [None], "reset": [None]}
    cases = [*pairwise(**plain), *pairwise(**any_call, again=[0, 1, 2, 3])]
    for number in range(drawn):
        choose = random.Random(number).choice
        cases.append({name: choose(values) for name, values in any_call.items()})
    return [fitted(case) for case in cases]
