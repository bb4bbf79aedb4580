"""The compiled kernels of the recurrence under their binding against float64.

In the interpreter each path runs on devices small enough that groups meet several tiles and that
part of the matrix leaves the registers. How launches run is drawn from the case's number.
"""

import os
import random
from dataclasses import replace

import pytest
import torch

from cuda_ptx.choice import PATHS
from cuda_ptx.ops import forced, recurrence, recurrence_backward, run
from helpers import samples
from helpers.common import case_id, pairwise, same
from helpers.samples import HALVES, VARIANTS
from reference.cells import ACTIVATIONS, KINKED
from rnnext import _C


def fitted(case: dict) -> dict:
    """The case made valid, and smooth where rounding a product may cross a kink."""
    case = {name: value for name, value in case.items() if name != "again"}
    if case["rows"] == "packed":
        case["reset"] = None
    if case["tf32"]:
        case["dtype"] = torch.float32
    halves = case["dtype"] in HALVES and (case["source"] == "features" or case["cell"] != "elman")
    if (case["tf32"] or halves) and case["nonlinearity"] in KINKED:
        case["nonlinearity"] = "softplus"
    return case


def listed() -> list[dict]:
    """Pairs of all factors, first of plain calls, then with leaks and resets among them; and as
    many random cases as $RNNEXT_CUDA_CASES says."""
    factors = {
        "path": [None, *PATHS], "T": [1, 6], "B": [1, 5, 17, 40], "I": [1, 4],
        "H": [0, 1, 6, 7, 40, 64, 100], **VARIANTS, "device": ["small", "H100"],
        "grads": [(True, True), (True, False), (False, True)], "tf32": [False, True],
    }  # fmt: skip
    factors["reverse"] = [*VARIANTS["reverse"], (True, True)]
    factors["cell"] = ["elman", *_C.forms()]  # gated ones have no kernels there
    plain = pairwise(**factors | {"cell": ["elman"], "reset": [None]})
    cases = [*plain, *pairwise(**factors, again=[0, 1, 2, 3])]
    for number in range(int(os.environ.get("RNNEXT_CUDA_CASES", "0"))):
        choose = random.Random(number).choice
        cases.append({name: choose(values) for name, values in factors.items()})
    return [fitted(case) for case in cases]


CASES = listed()


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: case_id(CASES[n]))
def test_values_and_gradients(lib, number):
    lib.seed = number
    run(
        mask=[bool(number >> bit & 1) or number % 3 > 0 for bit in range(samples.GRADIENTS)],
        **CASES[number],
    )


@pytest.mark.parametrize("dtype", [*samples.DTYPES, "tf32"])
@pytest.mark.parametrize("path", ["cluster", "grid"])
def test_every_schedule_gives_the_same_bits(lib, path, dtype):
    case = {"T": 4, "B": 5, "H": 50, "reverse": (False, True), "rows": "lengths"}
    if dtype == "tf32":
        case["tf32"], dtype = True, torch.float32
    if dtype not in (torch.float64, torch.float16):
        case |= {"cell": "voltage", "reset": "state"}
    results = []
    for seed in range(4):
        lib.seed = seed
        torch.manual_seed(0)
        results.append([t.clone() for t in run(path, "tight", dtype=dtype, **case)])
        lib.arena.clear()
    assert all(same(other, results[0]) for other in results[1:])


# The matrix fills the registers and part of the shared memory; vectors end inside a k-block.
LARGE = [
    ("block", torch.float32, 200), ("block", torch.float64, 130), ("block", torch.bfloat16, 250),
    ("block", torch.float16, 256), ("block", "tf32", 200), ("cluster", torch.float32, 516),
    ("cluster", torch.bfloat16, 516), ("cluster", torch.float64, 501),
    ("cluster", torch.float16, 516), ("grid", "tf32", 516), ("grid", torch.float32, 516),
    ("grid", torch.bfloat16, 516), ("grid", torch.float64, 516),
]  # fmt: skip


@pytest.mark.parametrize(("path", "dtype", "H"), LARGE)
def test_matrices_past_the_registers(lib, path, dtype, H):
    case = {"dtype": dtype} if dtype != "tf32" else {"dtype": torch.float32, "tf32": True}
    run(path, T=2, B=2, H=H, source="table", **case)


@pytest.mark.parametrize("path", PATHS)
def test_long_sequences(lib, path):
    lib.seed = 1
    case = {"T": 33, "H": 30, "reverse": (True, False), "rows": "lengths", "dtype": torch.float32}
    run(path, cell="blend", reset="zeros", **case)


# Where an activation or its derivative bends, saturates or overflows.
EDGES = [0.0, 1e-30, 1e-6, 0.3, 1.0, 9.0, 17.0, 19.99, 20.01, 37.0, 88.0, 89.0, 104.0, 710.0, 1e30]
EDGES += [float("inf")]
EDGES = [-x for x in EDGES] + EDGES + [float("nan")]


def plain(name, input):
    """One layer that adds nothing to its input but the product with W_hh."""
    sizes = {"T": 1, "B": 1, "H": input.size(-1), "source": "ready", "bias": False, "hx": False}
    return replace(samples.make(**sizes, nonlinearity=name, dtype=input.dtype), input=input)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edges_of_the_activations(lib, dtype, name):
    pre = torch.tensor(EDGES, dtype=torch.float64).to(dtype).double().requires_grad_()
    expected = ACTIVATIONS[name](pre)
    (slope,) = torch.autograd.grad(expected.sum(), pre)
    close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 1e-38, "equal_nan": True}
    given = plain(name, pre.detach().to(dtype).view(1, 1, -1))
    with forced("block"):
        output, _ = given.call(recurrence)
        torch.testing.assert_close(output.double().flatten(), expected.detach(), **close)
        # The slope is as exact as the stored value, from which it is computed.
        backward = given.backward(output, torch.ones_like(output), None)
        grad_input = backward.call(recurrence_backward)[0]
    close["atol"] = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(grad_input.double().flatten(), slope, **close)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_nan_reaches_its_row_alone(lib, name):
    input = torch.rand(2, 2, 3)
    input[0, 1, 2] = float("nan")
    with forced("block"):
        nan = plain(name, input).call(recurrence)[0].isnan()
    assert nan[0].nonzero().tolist() == [[1, 2]]
    assert nan[1].all(1).tolist() == nan[1].any(1).tolist() == [False, True]


@pytest.mark.parametrize("B", [447, 448, 1000])
def test_constants_reach_the_device(lib, B):
    run(T=1, B=B, H=2, rows="packed")  # the lengths of its sequences go there as arguments
