"""The kernels of AMX tiles: on the CPU's own where it has them, and on their stand-in."""

import platform
from pathlib import Path

import pytest
import torch

from helpers import samples
from helpers.common import ISAS, run_python
from rnnext import _C

recurrence = torch.ops.rnnext.recurrence


@pytest.fixture(params=[isa for isa in ISAS if isa in ("amx", "amx_stand_in")])
def tiles(request):
    """Run the test on each ISA that multiplies by tiles."""
    _C.set_cpu_isa(request.param)


def rms_error(K: int, B: int = 16) -> float:
    """Of one product with [K, K] weights, against float64, relative to the result's rms."""
    torch.manual_seed(0)
    weight, hx = torch.randn(K, K), torch.rand(1, B, K) * 2 - 1
    input = torch.zeros(2, B, K)
    call = samples.Recurrence(input=input, hx=hx, weight_hh=[weight], nonlinearity="identity")
    exact = hx[0].double() @ weight.double().t()
    error = call.call(recurrence)[0][0] - exact
    return (error.square().mean() / exact.square().mean()).sqrt().item()


@pytest.mark.parametrize("K", [64, 512])
def test_the_error_of_each_precision(K, tiles):
    """docs/numerics.md has these numbers, of more sizes."""
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
    assert ("amx" in ISAS) == has_amx()
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
    below = [isa for isa in ISAS if isa not in ("amx", "amx_stand_in")]
    assert chosen(REFUSED, RNNEXT_CPU_ISA="") in below
