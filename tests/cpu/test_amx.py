"""The kernels of AMX tiles: on the CPU's own where it has them, and on their stand-in."""

import platform
from pathlib import Path

import pytest
import torch

import rnnext
from helpers import samples
from helpers.common import ISAS, run_python, steps
from rnnext import _C

recurrence = torch.ops.rnnext.recurrence


@pytest.fixture(params=[isa for isa in ISAS if isa in ("amx", "amx_stand_in")])
def tiles(request):
    _C.set_cpu_isa(request.param)


def of_tiles(a, b):
    """a b as Intel's manual says of TDPBF16PS: blocks of 32 along k, even and odd values apart."""
    a, b, sums = a.bfloat16().double(), b.bfloat16().double(), torch.zeros(())
    for block in range(0, len(b), 32):
        chains = [torch.zeros(()), torch.zeros(())]
        for k in range(block, min(block + 32, len(b))):
            chains[k % 2] = (chains[k % 2] + a[:, k, None] * b[k]).float()  # rounded once
        sums = sums + (chains[0] + chains[1])
    return sums


@pytest.mark.parametrize("B", [1, 3, 33])
def test_sums_are_in_the_order_of_the_instruction(B, tiles):
    """On the CPU's tiles, on the stand-in's, and where vectors take their place."""
    torch.set_float32_matmul_precision("medium")
    weight, h = torch.randn(140, 70).bfloat16(), torch.randn(B, 70)
    weight, h = torch.cat([weight, -weight], 1), torch.cat([h, h], 1)  # 0, but for rounding
    for T, dtype in ((1, torch.bfloat16), (2, torch.bfloat16), (2, torch.float32)):
        hx, input = h[None].to(dtype), torch.zeros(T, B, 140, dtype=dtype)
        given = {"input": input, "hx": hx, "weight_hh": [weight.to(dtype)]}
        call = samples.Recurrence(**given, nonlinearity="identity")
        expected = of_tiles(h, weight.t()).to(dtype)
        assert expected.any()
        assert torch.equal(call.call(recurrence)[0][0], expected)


@pytest.mark.parametrize("K", [64, 512])
def test_the_error_of_each_precision(K, tiles):
    """Of one product, relative to the result's rms. docs/numerics.md has more sizes."""
    weight, hx, input = torch.randn(K, K), torch.randn(1, 16, K), torch.zeros(2, 16, K)
    call = samples.Recurrence(input=input, hx=hx, weight_hh=[weight], nonlinearity="identity")
    exact, errors = hx[0].double() @ weight.double().t(), {}
    for mode in ("highest", "high", "medium"):
        torch.set_float32_matmul_precision(mode)
        error = call.call(recurrence)[0][0] - exact
        errors[mode] = (error.square().mean() / exact.square().mean()).sqrt().item()
    print(K, errors)
    assert errors["highest"] < 1.9e-7 < 2e-6 < errors["high"] < 4.7e-6
    assert 1e-3 < errors["medium"] < 2.5e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_one_row_takes_tiny_numbers_as_zeros_as_a_batch_does(dtype, tiles):
    """A state that shrinks to nothing, in a batch, alone, and, in bfloat16, step by step."""
    torch.set_float32_matmul_precision("medium")
    rnn, x = rnnext.RNN(4, 64, bias=False, dtype=dtype), torch.zeros(300, 33, 4, dtype=dtype)
    x[0] = torch.randn(33, 4)
    with torch.no_grad():
        output, h = rnn(x)[0][:, :1], None
        assert 0 < output[130].abs().max() < 1e-25
        assert torch.equal(rnn(x[:, :1])[0], output)
        if dtype == torch.float32:
            return
        assert torch.equal(steps(rnnext.Stepper(rnn), x[:, :1]), output)
        for x_t, expected in zip(x[:, :1], output, strict=True):
            one, h = rnn(x_t[None], h)
            assert torch.equal(one[0], expected)


@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize(("T", "B", "H"), [(8, 32, 128), (3, 3, 64), (1, 32, 1024), (1, 7, 256)])
def test_all_kinds_of_calls_multiply_float32_by_tiles_where_that_pays(precision, T, B, H, tiles):
    rnn, x, results = rnnext.RNN(8, H, num_layers=2), torch.randn(T, B, 8), []
    for asked in ("highest", precision):
        torch.set_float32_matmul_precision(asked)
        plan = _C.plan(T=T, B=B, I=8, H=H, dtype=torch.float32, threads=1)
        output, each = rnn(x)[0], [weight[None] for weight in rnn.parameters()]
        results.append((output, *torch.autograd.grad(output.sum(), rnn.weight_ih_l0)))
        assert torch.equal(rnnext.functional.rnn_ensemble(x, None, each)[0][0], output)
        with torch.no_grad():
            assert torch.equal(rnn(x)[0], output)
            assert T > 1 or torch.equal(steps(rnnext.Stepper(rnn, B), x), output)
    same = [torch.equal(*pair) for pair in zip(*results, strict=True)]
    assert same == [plan["precision"] != precision] * 2


def chosen(code: str = "", **environment: str) -> str:
    """The ISA that a process of its own chooses, once `code` has run."""
    found = run_python("-c", f"{code}\nimport rnnext; print(rnnext._C.cpu_isa())", **environment)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def test_tiles_are_chosen_where_the_cpu_has_them():
    needed = {"amx_tile", "amx_bf16", "avx512_bf16"}  # as Linux names them
    built = "amx" in _C.build_info()["isas"]
    assert ("amx" in ISAS) == (built and needed <= set(Path("/proc/cpuinfo").read_text().split()))
    isa = chosen(RNNEXT_CPU_ISA="")
    assert isa != "amx_stand_in"
    assert (isa == "amx") == ("amx" in ISAS)


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
    below = [isa for isa in ISAS if isa not in ("amx", "amx_stand_in")]
    assert chosen(REFUSED, RNNEXT_CPU_ISA="") in below
