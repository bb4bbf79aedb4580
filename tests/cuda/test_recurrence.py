"""The CUDA kernels of the recurrence, run on the CPU by the host execution layer, against float64.

Each path runs on devices small enough that groups meet several tiles and that part of the matrix
leaves the registers; threads are scheduled in an order drawn from the case's number.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from cuda_host.host import KernelError
from cuda_host.recurrence import (
    COMPUTES,
    FORMS,
    NONLINEARITIES,
    PATHS,
    Case,
    Run,
    library,
)
from cuda_host.structs import address_of
from helpers.common import TOLERANCE, assert_close, case_id, pairwise, same
from reference.elman import ACTIVATIONS

TF32_TOLERANCE = 2e-3  # 11 bits of the factors, as a part of the largest value
RESIDENT = ["block", "cluster", "grid"]
TAGGED = ["cluster tagged", "grid tagged"]


@pytest.fixture(autouse=True)
def _memory() -> Iterator[None]:
    """Gives the device memory of a test back."""
    yield
    library().free_all()


def check(case: Case, *pairs: tuple[Tensor, Tensor]) -> None:
    tolerance = TF32_TOLERANCE if case.compute == "tf32" else TOLERANCE[case.dtype]
    for actual, expected in pairs:
        assert_close(actual, expected, tolerance=tolerance)


def check_both_passes(
    case: Case, path: str, device: str, seed: int, grad_output: bool = True, grad_h_n: bool = True
) -> None:
    output, h_n = case.expected()
    check(case, *zip(Run(case, path, device, seed).forward(), (output, h_n), strict=True))
    saved = output.to(case.dtype).double()
    grads = (
        case.random(*saved.shape) if grad_output else None,
        case.random(*h_n.shape) if grad_h_n else None,
    )
    actual = Run(case, path, device, seed + 1).backward(saved, *grads)
    check(case, *zip(actual, case.expected_gradients(saved, *grads), strict=True))


FACTORS = {
    "path": list(PATHS),
    "compute": list(COMPUTES),
    "H": [1, 7, 17, 64, 100, 128],
    "B": [1, 3, 13, 40],
    "T": [1, 2, 9],
    "reverse": [(False,), (True,), (False, True)],
    "nonlinearity": NONLINEARITIES,
    "source": ["ready", "table"],
    "sequence": ["full", "lengths", "packed"],
    "hx": [True, False],
    "bias": [True, False],
    "grads": [(True, True), (True, False), (False, True)],
    "device": ["small", "H100"],
}
CASES = pairwise(**FACTORS)


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: case_id(CASES[n]))
def test_both_passes(number):
    factors = dict(CASES[number])
    path, device, grads = (factors.pop(name) for name in ("path", "device", "grads"))
    check_both_passes(Case(**factors, seed=number), path, device, number, *grads)


def fit(case: dict[str, Any]) -> dict[str, Any]:
    """The case with a leak, or resets where rows are not packed; and no kink that TF32 may miss."""
    case = dict(case)
    if case["sequence"] == "packed":
        case["reset"] = None
    if case["reset"] is None and case["leak"] is None:
        case["leak"] = "rate"
    if case["compute"] == "tf32" and case["nonlinearity"] == "relu":
        case["nonlinearity"] = "identity"
    return case


LEAKS = [fit(c) for c in pairwise(**FACTORS, leak=FORMS, reset=[None, "zeros", "state"])]


def check_leaks_and_resets(case: Case, path: str, device: str, seed: int, *grads: bool) -> None:
    run = Run(case, path, device, seed)
    output, h_n = run.forward()
    shapes = output.shape, h_n.shape
    given = [case.random(*s) if wanted else None for s, wanted in zip(shapes, grads, strict=True)]
    results, expected = case.expected_by_autograd(*given)
    check(case, (output, results[0]), (h_n, results[1]))
    actual = Run(case, path, device, seed + 1).backward(output, *given, saved=run.saved)
    check(case, *zip(actual, expected, strict=True))


@pytest.mark.parametrize("number", range(len(LEAKS)), ids=lambda n: case_id(LEAKS[n]))
def test_leaks_and_resets(number):
    factors = dict(LEAKS[number])
    path, device, grads = (factors.pop(name) for name in ("path", "device", "grads"))
    check_leaks_and_resets(Case(**factors, seed=number), path, device, number, *grads)


EXCHANGES = [
    fit(c)
    for c in pairwise(**FACTORS | {"path": TAGGED}, leak=FORMS, reset=[None, "zeros", "state"])
]


@pytest.mark.parametrize("number", range(len(EXCHANGES)), ids=lambda n: case_id(EXCHANGES[n]))
def test_the_tagged_exchange(number):
    factors = dict(EXCHANGES[number])
    path, device, grads = (factors.pop(name) for name in ("path", "device", "grads"))
    case, fenced = Case(**factors, seed=number), path.removesuffix(" tagged")
    check_leaks_and_resets(case, path, device, number, *grads)
    # The same bits as with fences.
    runs = [Run(case, way, device, number) for way in (path, fenced)]
    results = [run.forward() for run in runs]
    assert same(*results)
    output, h_n = results[0]
    given = [
        case.random(*t.shape) if g else None for t, g in zip((output, h_n), grads, strict=True)
    ]
    saved = runs[0].saved
    grads = [
        Run(case, way, device, number).backward(output, *given, saved) for way in (path, fenced)
    ]
    assert same(*grads)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", [*PATHS, *TAGGED])
def test_leaks_and_resets_over_long_sequences(path, form):
    case = Case("f32", 33, 5, 30, (True, False), sequence="lengths", leak=form, reset="state")
    check_leaks_and_resets(case, path, "tight", 7, True, True)


@pytest.mark.parametrize("compute", list(COMPUTES))
@pytest.mark.parametrize("path", [*PATHS, *TAGGED])
def test_long_sequences(path, compute):
    case = Case(compute, T=33, B=3, H=30, reverse=(True, False), sequence="lengths")
    check_both_passes(case, path, "small", seed=5)


# The matrix fills the registers and part of the shared memory; vectors end inside a k-block.
BLOCK = {"f32": 200, "f64": 130, "bf16": 250, "f16": 256, "tf32": 200}
LARGE = [("block", c, h) for c, h in BLOCK.items()]
LARGE += [(path, c, 516) for path in ("cluster", "grid", *TAGGED) for c in COMPUTES]


@pytest.mark.parametrize(("path", "compute", "H"), LARGE)
def test_matrices_past_the_registers(path, compute, H):
    check_both_passes(Case(compute, T=2, B=2, H=H, source="table"), path, "small", seed=1)


@pytest.mark.parametrize("path", [*RESIDENT, *TAGGED])
def test_every_schedule_gives_the_same_bits(path):
    for options in ({}, {"leak": "voltage", "reset": "state"}):
        case = Case("f32", 4, 5, 50, (False, True), sequence="lengths", **options)
        results = []
        for seed in range(6):
            output, h_n = Run(case, path, "tight", seed).forward()
            results.append((output.clone(), h_n.clone()))
        assert all(same(result, results[0]) for result in results)


@pytest.mark.parametrize("compute", ["bf16", "f16"])
@pytest.mark.parametrize("path", PATHS)
def test_leaks_and_resets_of_rows_without_alignment(path, compute):
    case = Case(compute, T=3, B=5, H=22, leak="rate", reset="state", sequence="lengths")
    run = Run(case, path, "small", paired=False)
    output, h_n = run.forward()
    grad = case.random(*output.shape)
    results, expected = case.expected_by_autograd(grad, None)
    check(case, (output, results[0]), (h_n, results[1]))
    actual = Run(case, path, "small", paired=False).backward(output, grad, None, run.saved)
    check(case, *zip(actual, expected, strict=True))


@pytest.mark.parametrize("compute", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("path", PATHS)
def test_rows_without_alignment_and_batch_first(path, compute):
    case = Case(compute, T=3, B=5, H=22)
    expected = case.expected()
    for paired in (True, False):
        actual = Run(case, path, "small", paired=paired).forward(batch_first=True)
        check(case, *zip(actual, expected, strict=True))
    saved = expected[0].to(case.dtype).double()
    grad = case.random(*saved.shape)
    actual = Run(case, path, "small", paired=False).backward(saved, grad, None)
    check(case, *zip(actual, case.expected_gradients(saved, grad, None), strict=True))


# Where an activation or its derivative bends, saturates or overflows.
EDGES = [0.0, 1e-30, 1e-6, 0.3, 1.0, 9.0, 17.0, 19.99, 20.01, 37.0, 88.0, 89.0, 104.0, 710.0, 1e30]
EDGES += [float("inf")]
EDGES = [-x for x in EDGES] + EDGES + [float("nan")]


@pytest.mark.parametrize("name", NONLINEARITIES)
@pytest.mark.parametrize("compute", ["f32", "f64"])
@pytest.mark.parametrize("path", ["step", "block"])
def test_edges_of_the_activations(path, compute, name):
    case = Case(compute, T=1, B=1, H=len(EDGES), nonlinearity=name, bias=False, hx=False)
    case.input = torch.tensor(EDGES, dtype=torch.float64).to(case.dtype).double().view(1, 1, -1)
    pre = case.input.requires_grad_()
    expected = ACTIVATIONS[name](pre)
    (slope,) = torch.autograd.grad(expected.sum(), pre)
    close = {"rtol": 4 * torch.finfo(case.dtype).eps, "atol": 1e-38, "equal_nan": True}
    case.input = pre.detach()
    output, _ = Run(case, path, "small").forward()
    torch.testing.assert_close(output.double(), expected.detach(), **close)
    # The slope from the stored value: as good as that says what the pre-activation was.
    grad_pre, _ = Run(case, path, "small").backward(output, torch.ones_like(output), None)
    close["atol"] = 4 * torch.finfo(case.dtype).eps
    torch.testing.assert_close(grad_pre.double(), slope, **close)


def test_nan_reaches_its_row_alone():
    for name in NONLINEARITIES:
        case = Case("f32", T=2, B=2, H=3, nonlinearity=name, bias=False)
        case.input[0, 1, 2] = float("nan")
        output, _ = Run(case, "block", "small").forward()
        nan = output.isnan()
        assert nan[0].nonzero().tolist() == [[1, 2]]
        assert nan[1].all(1).tolist() == nan[1].any(1).tolist() == [False, True]


@pytest.mark.parametrize("sequence", ["full", "lengths", "packed"])
@pytest.mark.parametrize("compute", ["f32", "f64", "bf16", "f16"])
def test_previous_state_gives_the_gradient_of_weight_hh(compute, sequence):
    case = Case(compute, T=5, B=4, H=3, reverse=(False, True), sequence=sequence)
    output = case.expected()[0].to(case.dtype).double()
    run = Run(case, "step", "small")
    states = (run.lib.tensor(x.to(case.dtype)) for x in (output, case.state))
    previous = run.empty(*case.rows, case.width)
    arguments = (address_of(run.call), *states, None, previous, COMPUTES[compute])
    run.lib.run("rnn_previous_state", *arguments)
    # dW = dG^T previous, whatever dG is.
    grads = case.random(*case.rows, case.width)
    grad_pre, _ = case.expected_gradients(output, grads, None)
    weights = case.expected_weight_gradients(output, grads)
    for d, expected in enumerate(weights):
        columns = slice(d * case.H, (d + 1) * case.H)
        rows = grad_pre[..., columns].reshape(-1, case.H)
        actual = rows.t() @ previous[..., columns].reshape(-1, case.H).double()
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("count", [1, 448, 449, 1000])
def test_constants_reach_the_device(count):
    values = torch.randint(-(2**40), 2**40, (count,))
    to = library().empty(count, dtype=torch.int64)
    library().run("rnn_write_constants", to, values, count)
    assert torch.equal(to, values)


def test_table_rows_report_an_index_out_of_range():
    lib = library()
    index = torch.arange(600) % 7
    for bad in (None, -1, 7):
        error = lib.tensor(torch.zeros(4, dtype=torch.int64), writable=True)
        if bad is not None:
            index[300] = bad
        rows = lib.empty(600, dtype=torch.int64)
        lib.run("rnn_table_rows", lib.tensor(index), 600, 7, error, rows)
        assert torch.equal(rows, torch.where((index < 0) | (index > 6), 0, index))
        assert error[1:].tolist() == ([0, 0, 0] if bad is None else [300, bad, 7])


@pytest.mark.parametrize(("compiled", "capability"), [(75, 75), (86, 86), (90, 90), (100, 90)])
def test_a_card_counts_as_what_its_code_was_compiled_for(compiled, capability):
    # Code for "8.0;8.6+PTX" on a card of 9.0 knows no clusters.
    lib, limits = library(), torch.zeros(7, dtype=torch.int64)
    lib.set_device()
    try:
        lib.set_compiled(compiled)
        lib.run("rnn_describe", limits)
        assert limits[0] == capability
        assert (limits[3:] > 0).all() == (capability >= 90)
        lib.set_compiled(0)
        with pytest.raises(KernelError):
            lib.run("rnn_describe", limits)
    finally:
        lib.set_compiled()
