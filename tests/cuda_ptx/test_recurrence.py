"""The compiled kernels of the recurrence, in the interpreter, against float64.

Each path runs on devices small enough that groups meet several tiles and that part of the matrix
leaves the registers. How launches run is drawn from the case's number.
"""

import pytest
import torch
from torch import Tensor

from cuda_ptx.choice import COMPUTES, PATHS
from cuda_ptx.library import KernelError, Library
from cuda_ptx.recurrence import FORMS, NONLINEARITIES, Case, Run
from cuda_ptx.structs import address_of
from helpers.common import TOLERANCE, assert_close, case_id, pairwise, same
from reference.elman import ACTIVATIONS

TF32_TOLERANCE = 2e-3  # 11 bits of the factors, as a part of the largest value
TAGGED = ["cluster tagged", "grid tagged"]
EVERY_PATH = [*PATHS, *TAGGED]


def check(case: Case, *pairs: tuple[Tensor, Tensor]) -> None:
    tolerance = TF32_TOLERANCE if case.compute == "tf32" else TOLERANCE[case.dtype]
    for actual, expected in pairs:
        assert_close(actual, expected, tolerance=tolerance)


def run(case: Case, path: str, device: str, *grads: bool) -> list[Tensor]:
    """Output, h_n, and the gradients that these of both results give, as kernels have them."""
    forward = Run(case, path, device)
    results = forward.forward()
    rng = torch.Generator().manual_seed(case.seed)
    given = [
        torch.rand(t.shape, generator=rng, dtype=torch.float64).to(case.dtype).double()
        if g
        else None
        for t, g in zip(results, grads, strict=True)
    ]
    found = Run(case, path, device).backward(results[0], *given, saved=forward.saved)
    expected = case.expected_by_autograd(*given)
    check(case, *zip([*results, *found], [*expected[0], *expected[1]], strict=True))
    return [*results, *found]


FACTORS = {
    "path": EVERY_PATH,
    "compute": list(COMPUTES),
    "H": [1, 7, 17, 64, 100],
    "B": [1, 3, 13, 40],
    "T": [1, 2, 5],
    "reverse": [(False,), (True,), (False, True)],
    "nonlinearity": NONLINEARITIES,
    "source": ["ready", "table"],
    "sequence": ["full", "lengths", "packed"],
    "hx": [True, False],
    "bias": [True, False],
    "grads": [(True, True), (True, False), (False, True)],
    "device": ["small", "H100"],
    "leak": FORMS,
    "reset": [None, "zeros", "state"],
}


def fit(case: dict) -> dict:
    """Rows that are packed have no resets; and no kink that TF32 may miss."""
    case = dict(case)
    if case["sequence"] == "packed":
        case["reset"] = None
    if case["compute"] == "tf32" and ACTIVATIONS[case["nonlinearity"]].kink:
        case["nonlinearity"] = "identity"
    return case


# All pairs twice: calls of any kernel, and of the kernels of tanh and relu alone.
PLAIN = {"nonlinearity": ["tanh", "relu"], "leak": [None], "reset": [None]}
CASES = [fit(c) for c in [*pairwise(**FACTORS), *pairwise(**FACTORS | PLAIN)]]


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: case_id(CASES[n]))
def test_both_passes(lib, number):
    factors = dict(CASES[number])
    path, device, grads = (factors.pop(name) for name in ("path", "device", "grads"))
    lib.mode(number)
    run(Case(**factors, seed=number), path, device, *grads)


@pytest.mark.parametrize("compute", list(COMPUTES))
@pytest.mark.parametrize("path", ["cluster", "grid"])
def test_both_exchanges_and_every_schedule_give_the_same_bits(lib, path, compute):
    options = {} if compute in ("f64", "f16") else {"leak": "voltage", "reset": "state"}
    case = Case(compute, 4, 5, 50, (False, True), sequence="lengths", **options)
    results = []
    for seed, way in enumerate([path, path, path + " tagged", path + " tagged"]):
        lib.mode(seed)
        results.append([t.clone() for t in run(case, way, "tight", True, True)])
        lib.arena.clear()
    assert all(same(other, results[0]) for other in results[1:])


# The matrix fills the registers and part of the shared memory; vectors end inside a k-block.
LARGE = [
    ("block", "f32", 200),
    ("block", "f64", 130),
    ("block", "bf16", 250),
    ("block", "f16", 256),
]
LARGE += [("block", "tf32", 200), ("cluster", "f32", 516), ("cluster", "bf16", 516)]
LARGE += [("cluster tagged", "f64", 516), ("cluster tagged", "f16", 516), ("grid", "tf32", 516)]
LARGE += [("grid", "f32", 516), ("grid tagged", "bf16", 516), ("grid tagged", "f64", 516)]


@pytest.mark.parametrize(("path", "compute", "H"), LARGE)
def test_matrices_past_the_registers(lib, path, compute, H):
    run(Case(compute, T=2, B=2, H=H, source="table"), path, "small", True, True)


@pytest.mark.parametrize("path", EVERY_PATH)
def test_long_sequences(lib, path):
    lib.mode(1)
    options = {"leak": "blend", "reset": "zeros"}
    run(
        Case("f32", 33, 3, 30, (True, False), sequence="lengths", **options),
        path,
        "small",
        True,
        True,
    )


@pytest.mark.parametrize(("path", "compute"), [("step", "bf16"), ("block", "f16"), ("grid", "bf16"),
                                               ("cluster", "f16"), ("block", "f32")])  # fmt: skip
def test_rows_without_alignment_and_batch_first(lib, path, compute):
    case = Case(compute, T=3, B=5, H=22, leak="rate", reset="state", sequence="lengths")
    expected = case.expected()
    runs = [Run(case, path, "small", paired=paired) for paired in (True, False)]
    for one in runs:
        check(case, *zip(one.forward(batch_first=True), expected, strict=True))
    output = expected[0].to(case.dtype).double()
    grad = case.random(*output.shape)
    results = case.expected_by_autograd(grad, None)[1]
    actual = Run(case, path, "small", paired=False).backward(output, grad, None, runs[1].saved)
    check(case, *zip(actual, results, strict=True))


# Where an activation or its derivative bends, saturates or overflows.
EDGES = [0.0, 1e-30, 1e-6, 0.3, 1.0, 9.0, 17.0, 19.99, 20.01, 37.0, 88.0, 89.0, 104.0, 710.0, 1e30]
EDGES += [float("inf")]
EDGES = [-x for x in EDGES] + EDGES + [float("nan")]


@pytest.mark.parametrize("name", NONLINEARITIES)
@pytest.mark.parametrize("compute", ["f32", "f64"])
def test_edges_of_the_activations(lib, compute, name):
    case = Case(compute, T=1, B=1, H=len(EDGES), nonlinearity=name, bias=False, hx=False)
    case.input = torch.tensor(EDGES, dtype=torch.float64).to(case.dtype).double().view(1, 1, -1)
    pre = case.input.requires_grad_()
    expected = ACTIVATIONS[name](pre)
    (slope,) = torch.autograd.grad(expected.sum(), pre)
    close = {"rtol": 4 * torch.finfo(case.dtype).eps, "atol": 1e-38, "equal_nan": True}
    case.input = pre.detach()
    output, _ = Run(case, "block", "small").forward()
    torch.testing.assert_close(output.double(), expected.detach(), **close)
    # The slope from the stored value: as good as that says what the pre-activation was.
    grad_pre, _ = Run(case, "block", "small").backward(output, torch.ones_like(output), None)
    close["atol"] = 4 * torch.finfo(case.dtype).eps
    torch.testing.assert_close(grad_pre.double(), slope, **close)


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_nan_reaches_its_row_alone(lib, name):
    case = Case("f32", T=2, B=2, H=3, nonlinearity=name, bias=False)
    case.input[0, 1, 2] = float("nan")
    output, _ = Run(case, "block", "small").forward()
    nan = output.isnan()
    assert nan[0].nonzero().tolist() == [[1, 2]]
    assert nan[1].all(1).tolist() == nan[1].any(1).tolist() == [False, True]


@pytest.mark.parametrize("sequence", ["full", "lengths", "packed"])
@pytest.mark.parametrize("compute", ["f32", "f64", "bf16", "f16"])
def test_previous_state_gives_the_gradient_of_weight_hh(lib, compute, sequence):
    case = Case(compute, T=5, B=4, H=3, reverse=(False, True), sequence=sequence)
    output = case.expected()[0].to(case.dtype).double()
    one = Run(case, "step", "small")
    states = (lib.tensor(x.to(case.dtype)) for x in (output, case.state))
    previous = one.empty(*case.rows, case.width)
    lib.run("rnn_previous_state", address_of(one.call), *states, None, previous, COMPUTES[compute])
    # dW = dG^T previous, whatever dG is.
    grads = case.random(*case.rows, case.width)
    grad_pre, _ = case.expected_gradients(output, grads, None)
    for d, expected in enumerate(case.expected_weight_gradients(output, grads)):
        columns = slice(d * case.H, (d + 1) * case.H)
        rows = grad_pre[..., columns].reshape(-1, case.H)
        actual = rows.t() @ previous[..., columns].reshape(-1, case.H).double()
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("count", [1, 448, 449, 1000])
def test_constants_reach_the_device(lib, count):
    values = torch.randint(-(2**40), 2**40, (count,))
    to = lib.empty(count, dtype=torch.int64)
    lib.run("rnn_write_constants", to, values, count)
    assert torch.equal(to, values)


@pytest.mark.parametrize("bad", [None, -1, 7])
def test_table_rows_report_an_index_out_of_range(lib, bad):
    index = torch.arange(600) % 7
    error = lib.tensor(torch.zeros(4, dtype=torch.int64), writable=True)
    if bad is not None:
        index[300] = bad
    rows = lib.empty(600, dtype=torch.int64)
    lib.run("rnn_table_rows", lib.tensor(index), 600, 7, error, rows)
    assert torch.equal(rows, torch.where((index < 0) | (index > 6), 0, index))
    assert error[1:].tolist() == ([0, 0, 0] if bad is None else [300, bad, 7])


@pytest.mark.parametrize(("compiled", "capability"), [(75, 75), (86, 86), (90, 90), (100, 90)])
def test_a_card_counts_as_what_its_code_was_compiled_for(lib, compiled, capability):
    # Code for "8.0;8.6+PTX" on a card of 9.0 knows no clusters.
    limits = torch.zeros(7, dtype=torch.int64)
    lib.set_compiled(compiled)
    lib.run("rnn_describe", limits)
    assert limits[0] == capability
    assert (limits[3:] > 0).all() == (capability >= 90)
    lib.set_compiled(0)
    with pytest.raises(KernelError, match="error 209"):  # cudaErrorNoKernelImageForDevice
        lib.run("rnn_describe", limits)


def test_a_kernel_is_told_its_limits_once(lib: Library):
    case = Case("f32", T=1, B=1, H=200)  # more than 48 KiB of shared memory
    Run(case, "block", "H100").forward()
    before = lib.attribute_calls()
    Run(case, "block", "H100").forward()
    assert lib.attribute_calls() == before
