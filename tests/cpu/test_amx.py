"""The kernels of AMX tiles: on the CPU's own where it has them, and on their stand-in."""

import platform
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import rnnext
from helpers import samples
from helpers.cases import valid
from helpers.common import assert_close, case_id, pairwise, run_python, same, supported_isas
from rnnext import _C

recurrence = torch.ops.rnnext.recurrence
MODES = ["bfloat16", "medium", "high"]
CASES = [
    case
    for case in pairwise(
        mode=MODES,
        T=[1, 2, 9],
        B=[1, 2, 5, 16, 17, 32, 40],
        I=[1, 5, 32, 33, 64],
        H=[1, 9, 16, 17, 32, 64, 97, 129],
        source=["features", "ready", "table"],
        reverse=[(False,), (True,), (False, True)],
        nonlinearity=["tanh", "sigmoid"],
        hx=[True, False],
        rows=["full", "lengths", "packed"],
        leak=[None, "rate", "voltage", "blend"],
        reset=[None, "zeros", "state"],
        threads=[1, 3],
    )
    if valid(case)
]


@pytest.fixture(params=[isa for isa in supported_isas() if isa in ("amx", "amx_stand_in")])
def tiles(request):
    """Run the test on each ISA that multiplies by tiles."""
    _C.set_cpu_isa(request.param)


@pytest.fixture(autouse=True)
def _precision():
    yield
    torch.set_float32_matmul_precision("highest")


def set_mode(mode: str) -> tuple[torch.dtype, torch.dtype]:
    """The dtype of the tensors, and the one that their products are as exact as."""
    torch.set_float32_matmul_precision("highest" if mode == "bfloat16" else mode)
    dtype = torch.bfloat16 if mode == "bfloat16" else torch.float32
    return dtype, torch.float32 if mode == "high" else torch.bfloat16


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_values_and_gradients(case, tiles):
    case = dict(case)
    dtype, exactness = set_mode(case.pop("mode"))
    torch.set_num_threads(case.pop("threads"))
    arguments = samples.make(**case, dtype=dtype, requires_grad=True)
    wanted = arguments.to_double()
    result = recurrence(**vars(arguments), save=True)[:2]
    expected = wanted.expected()
    assert_close(result, expected, exactness)
    cotangents = [torch.rand_like(v) for v in result]
    torch.autograd.backward(result, cotangents)
    torch.autograd.backward(expected, [c.double() for c in cotangents])
    for a, e in zip(arguments.float_tensors(), wanted.float_tensors(), strict=True):
        if e.grad is not None:
            assert_close(a.grad, e.grad, exactness)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("source", ["features", "ready"])
@pytest.mark.parametrize("H", [7, 64, 129])
def test_the_same_bits_for_any_batch_and_threads(mode, source, H, tiles):
    """On vectors, in tiles of few and of many rows, alone and where threads share a sequence."""
    dtype, _ = set_mode(mode)
    arguments = samples.make(
        T=5, B=48, I=H // 2, H=H, source=source, reverse=(False, True), dtype=dtype, rows="lengths"
    )
    torch.set_num_threads(1)
    output, h_n = arguments.call(recurrence)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        for first, last in [(0, 48), (0, 1), (3, 5), (5, 21), (5, 22), (1, 33)]:
            rows = slice(first, last)
            result = arguments.sequences(rows).call(recurrence)
            assert same(result, (output[:, rows], h_n[:, rows]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("B", "H"), [(1, 33), (3, 64), (16, 64), (20, 97)])
def test_the_same_bits_step_by_step(mode, B, H, tiles):
    dtype, _ = set_mode(mode)
    rnn = rnnext.RNN(19, H, num_layers=2, dtype=dtype)
    inputs = torch.randn(6, B, 19, dtype=dtype)
    stepper = rnnext.Stepper(rnn, batch_size=B)
    with torch.no_grad():
        output, state = rnn(inputs)
        hx = None
        for x, expected in zip(inputs, output, strict=True):
            assert torch.equal(stepper(x), expected)
            one, hx = rnn(x.unsqueeze(0), hx)
            assert torch.equal(one[0], expected)
    assert torch.equal(hx, state)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_do_not_depend_on_what_lies_beside_them(mode, tiles):
    """Rows and columns that fill no tile are nobody's: the gradients of a wider, padded RNN."""
    dtype, exactness = set_mode(mode)
    arguments = samples.make(T=3, B=18, I=20, H=40, dtype=dtype, requires_grad=True)
    inputs = arguments.float_tensors()
    result = arguments.call(recurrence)
    gradients = torch.autograd.grad(result[0].sum(), inputs)

    def wider(tensor, *sizes):
        padded = torch.zeros(sizes, dtype=dtype)
        padded[tuple(slice(n) for n in tensor.shape)] = tensor.detach()
        return padded.requires_grad_()

    wide = replace(
        arguments,
        input=wider(arguments.input, 3, 18, 64),
        hx=wider(arguments.hx, 1, 18, 96),
        weight_ih=[wider(arguments.weight_ih[0], 96, 64)],
        weight_hh=[wider(arguments.weight_hh[0], 96, 96)],
        bias_ih=[wider(arguments.bias_ih[0], 96)],
        bias_hh=[wider(arguments.bias_hh[0], 96)],
    )
    output = wide.call(recurrence)[0]
    assert torch.equal(output[..., :40], result[0])
    padded = torch.autograd.grad(output[..., :40].sum(), wide.float_tensors())
    for a, e in zip(padded, gradients, strict=True):
        assert_close(a[tuple(slice(n) for n in e.shape)], e, exactness)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("H", [7, 32, 33])
def test_nan_stays_in_its_row(mode, H, tiles):
    dtype, _ = set_mode(mode)
    arguments = samples.make(T=4, B=19, I=5, H=H, nonlinearity="relu", dtype=dtype)
    arguments.input[1, 17] = float("nan")
    output, _ = arguments.call(recurrence)
    others = [b for b in range(19) if b != 17]
    assert output[1:, 17].isnan().all()
    assert not output[:, others].isnan().any()
    assert not output[0].isnan().any()


def rms_error(K: int, B: int = 16) -> float:
    """Of one product with [K, K] weights, against float64, relative to the result's rms."""
    torch.manual_seed(0)
    weight, hx = torch.randn(K, K), torch.rand(1, B, K) * 2 - 1
    input = torch.zeros(2, B, K)
    call = samples.Recurrence(input=input, hx=hx, weight_hh=[weight], nonlinearity="identity")
    exact = hx[0].double() @ weight.double().t()
    error = call.call(recurrence)[0][0] - exact
    return (error.square().mean() / exact.square().mean()).sqrt().item()


@pytest.mark.parametrize("K", [64, 128, 256, 512, 1024, 2048])
def test_the_error_of_each_precision(K, tiles):
    """docs/numerics.md has these numbers."""
    errors = {}
    for mode in ("highest", "high", "medium"):
        torch.set_float32_matmul_precision(mode)
        errors[mode] = rms_error(K)
    print(K, errors)
    assert errors["highest"] < 2**-20 < errors["high"] < 2**-17 < 2**-10 < errors["medium"] < 2**-8


def chosen(code: str = "", **environment: str) -> str:
    """The ISA that a process of its own chooses, once `code` has run."""
    found = run_python("-c", f"{code}\nimport rnnext; print(rnnext._C.cpu_isa())", **environment)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def has_amx() -> bool:
    """Whether Linux says so of the CPU."""
    flags = Path("/proc/cpuinfo").read_text().split()
    return {"amx_tile", "amx_bf16", "avx512_bf16"} <= set(flags)


def test_tiles_are_chosen_where_the_cpu_has_them_and_the_stand_in_never():
    assert ("amx" in supported_isas()) == has_amx()
    isa = chosen(RNNEXT_CPU_ISA="")
    assert isa != "amx_stand_in"
    assert (isa == "amx") == has_amx()


# Linux answers EPERM to arch_prctl(ARCH_REQ_XCOMP_PERM, ..): a filter of system calls.
REFUSED = """
import ctypes, struct
arch_prctl, request, load, equal, give = 158, 0x1023, 0x20, 0x15, 0x06
program = b"".join(struct.pack("HBBI", *line) for line in [
    (load, 0, 0, 0), (equal, 0, 3, arch_prctl), (load, 0, 0, 16), (equal, 0, 1, request),
    (give, 0, 0, 0x00050001), (give, 0, 0, 0x7FFF0000)])
lines = ctypes.create_string_buffer(program)
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("lines", ctypes.c_void_p)]
prctl = ctypes.CDLL(None, use_errno=True).prctl
assert prctl(38, 1, 0, 0, 0) == 0
assert prctl(22, 2, ctypes.byref(Filter(6, ctypes.addressof(lines))), 0, 0) == 0
import torch
assert ctypes.CDLL(None).syscall(arch_prctl, request, 18) == -1
import rnnext
assert "amx" not in rnnext._C.build_info()["isas_supported"]
rnn = rnnext.RNN(8, 16, dtype=torch.bfloat16)
assert rnn(torch.randn(3, 4, 8, dtype=torch.bfloat16))[0].isfinite().all()
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the filter is of x86's system calls")
def test_where_linux_refuses_tiles_the_next_isa_is_used():
    below = [isa for isa in supported_isas() if isa not in ("amx", "amx_stand_in")]
    assert chosen(REFUSED, RNNEXT_CPU_ISA="") in below
