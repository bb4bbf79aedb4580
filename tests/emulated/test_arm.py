"""The kernels on Arm: cross-compiled, run by an emulator, held against x86 and float64."""

import shutil
import subprocess

import pytest
import torch

import rnnext
from helpers import programs
from helpers.common import supported_isas
from helpers.programs import CASES, check, made, run
from reference.elman import ACTIVATIONS

COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
pytestmark = [
    pytest.mark.xdist_group("arm"),  # one worker compiles the program
    pytest.mark.skipif(
        not (COMPILER and EMULATOR),
        reason="needs g++-aarch64-linux-gnu and qemu-user-static",
    ),
]


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arm")
    sources = [*programs.COMMON, *programs.isa_sources()]
    objects = programs.build(COMPILER, sources, folder, "-O3")
    subprocess.run([COMPILER, "-static", *objects, "-o", folder / "driver"], check=True)
    return EMULATOR, folder / "driver"


def test_values_gradients_and_bits(driver, tmp_path):
    """Values and gradients to the tolerances; forward, the bits of x86 with FMA."""
    torch.set_num_threads(1)
    calls = list(made(CASES))
    if "avx2" in supported_isas():
        rnnext._C.set_cpu_isa("avx2")
    differ = []
    found = run(driver, "generic", tmp_path, calls)
    for results, (arguments, cotangents) in zip(found, calls, strict=True):
        check(results, arguments, cotangents, arguments.input.dtype)
        if "avx2" in supported_isas():
            on_x86 = arguments.call(torch.ops.rnnext.recurrence)
            if not all(map(torch.equal, results[:2], on_x86)):
                differ.append(arguments)
    assert not differ


@pytest.mark.parametrize("precision", [None, "medium"])
@pytest.mark.parametrize("isa", ["neon_bf16", "amx_stand_in"])
def test_bfloat16_products(driver, tmp_path, isa, precision):
    """Of bfloat16 tensors and of float32 at "medium": within bfloat16's tolerance, and used."""
    torch.set_num_threads(1)
    dtype = torch.float32 if precision else torch.bfloat16
    smooth = [case for case in CASES if not ACTIVATIONS[case["nonlinearity"]].kink]
    calls = list(made(case | {"dtype": dtype} for case in smooth))
    found = list(run(driver, isa, tmp_path, calls, precision))
    for results, (arguments, cotangents) in zip(found, calls, strict=True):
        check(results, arguments, cotangents, torch.bfloat16)
    without = run(driver, "generic", tmp_path, calls)
    pairs = (pair for both in zip(found, without, strict=True) for pair in zip(*both, strict=True))
    assert any(not torch.equal(a, b) for a, b in pairs)
