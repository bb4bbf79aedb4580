"""The kernels on Arm: cross-compiled, run by an emulator, held against x86 and float64."""

import shutil
import subprocess

import pytest
import torch

import rnnext
from helpers import programs
from helpers.common import ISAS, same
from helpers.programs import CASES, SMOOTH, check, made, run

COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")


@pytest.mark.skipif(
    not (COMPILER and EMULATOR), reason="needs g++-aarch64-linux-gnu and qemu-user-static"
)
def test_values_gradients_and_bits(tmp_path):
    sources = programs.sources("generic", "neon_bf16")
    objects = programs.build(COMPILER, sources, tmp_path, "-O2")
    driver = EMULATOR, tmp_path / "driver"
    subprocess.run([COMPILER, "-static", *objects, "-o", driver[1]], check=True)
    torch.set_num_threads(1)
    check_every_type(driver, tmp_path)
    for n, precision in enumerate((None, "medium")):
        check_bfloat16_products(driver, tmp_path, precision, slice(n, None, 2))


def check_every_type(driver, folder):
    """Values and gradients to the tolerances; forward, the bits of x86 with FMA."""
    calls = list(made(CASES))
    if "avx2" in ISAS:
        rnnext._C.set_cpu_isa("avx2")
    found = run(driver, "generic", folder, calls)
    for results, (arguments, cotangents) in zip(found, calls, strict=True):
        check(results, arguments, cotangents, arguments.input.dtype)
        if "avx2" in ISAS:
            assert same(results[:2], arguments.call(torch.ops.rnnext.recurrence))


def check_bfloat16_products(driver, folder, precision, some):
    """Of bfloat16 tensors and of float32 at "medium": within bfloat16's tolerance, and used."""
    dtype = torch.float32 if precision else torch.bfloat16
    calls = list(made(case | {"dtype": dtype} for case in SMOOTH))[some]
    found = list(run(driver, "neon_bf16", folder, calls, precision))
    for results, (arguments, cotangents) in zip(found, calls, strict=True):
        check(results, arguments, cotangents, torch.bfloat16)
    large = [n for n, case in enumerate(SMOOTH[some]) if case["H"] == 200]
    without = run(driver, "generic", folder, [calls[n] for n in large])
    assert not all(same(found[n], results) for n, results in zip(large, without, strict=True))
