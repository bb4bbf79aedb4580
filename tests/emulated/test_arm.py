"""The kernels on Arm: cross-compiled, run by an emulator, held against x86 and float64."""

import shutil
import subprocess

import pytest
import torch

import rnnext
from helpers import programs
from helpers.common import ISAS, same
from helpers.programs import CASES, SMOOTH, checked, made, of_products, run

COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")


@pytest.mark.skipif(not (COMPILER and EMULATOR), reason="needs g++-aarch64-linux-gnu and qemu")
def test_values_gradients_and_bits(tmp_path):
    """Forward, the bits of x86 with FMA; of bfloat16, others than without its products."""
    objects = programs.build(COMPILER, programs.sources("generic", "neon_bf16"), tmp_path, "-O2")
    driver = EMULATOR, tmp_path / "driver"
    subprocess.run([COMPILER, "-static", *objects, "-o", driver[1]], check=True)
    torch.set_num_threads(1)
    calls = list(made(CASES))
    found = checked(driver, "generic", tmp_path, calls)
    if "avx2" in ISAS:
        rnnext._C.set_cpu_isa("avx2")
        for results, (arguments, _) in zip(found, calls, strict=True):
            assert same(results[:2], arguments.call(torch.ops.rnnext.recurrence))
    for n, precision in enumerate((None, "medium")):
        some = slice(n, None, 2)
        calls = of_products(precision, some)
        found = checked(driver, "neon_bf16", tmp_path, calls, precision)
        large = [i for i, case in enumerate(SMOOTH[some]) if case["H"] == 200]
        without = run(driver, "generic", tmp_path, [calls[i] for i in large])
        assert not all(same(found[i], results) for i, results in zip(large, without, strict=True))
