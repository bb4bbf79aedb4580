"""The kernels of AMX as they are compiled, their tile instructions run by an emulator."""

import platform
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

import rnnext
from helpers import programs
from helpers.common import assert_close, supported_isas
from helpers.programs import CASES, check, made, run

COMPILER = shutil.which("c++")
pytestmark = [
    pytest.mark.xdist_group("amx"),  # one worker compiles the program
    pytest.mark.skipif(
        platform.machine() != "x86_64" or "avx512_bf16" not in supported_isas(),
        reason="all but the tile instructions runs on a CPU with AVX512_BF16",
    ),
]


@pytest.fixture(autouse=True)
def _precision():
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("amx")
    sources = [*programs.COMMON, *programs.isa_sources("amx"), "tests/emulated/tiles.cpp"]
    *objects, emulator = programs.build(COMPILER, sources, folder, "-O1")
    for name, linked in (("driver", [*objects, emulator]), ("bare", objects)):
        subprocess.run([COMPILER, *linked, "-o", folder / name], check=True)
    return folder


def on_stand_in(arguments, cotangents):
    """What the driver returns, by the kernels over the stand-in of the instructions."""
    rnnext._C.set_cpu_isa("amx_stand_in")
    own = arguments.map(lambda t: t.requires_grad_() if t.is_floating_point() else t)
    results = own.call(torch.ops.rnnext.recurrence)
    torch.autograd.backward(results, cotangents)
    leaves = [own.input, own.hx]
    for d in range(len(own.weight_hh)):
        leaves += [own.weight_ih[d], own.weight_hh[d], own.bias_ih[d]]
    return [*results, *(None if leaf is None else leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("precision", [None, "medium", "high"])
def test_values_and_gradients(folder, tmp_path, precision):
    """Of bfloat16 tensors, and of float32 at lower precisions."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision(precision or "highest")
    dtype = torch.float32 if precision else torch.bfloat16
    # (Of relu a rounded product may fall on the other side of the kink.)
    smooth = [case | {"dtype": dtype} for case in CASES if case["nonlinearity"] != "relu"]
    calls = list(made(smooth))
    found = run([folder / "driver"], "amx", tmp_path, calls, precision)
    exactness = torch.float32 if precision == "high" else torch.bfloat16
    for results, (arguments, cotangents) in zip(found, calls, strict=True):
        check(results, arguments, cotangents, torch.bfloat16)
        expected = on_stand_in(arguments, cotangents)
        for a, b in zip(results, expected, strict=True):
            if b is not None:
                assert_close(a, b.detach(), exactness)


def test_it_runs_on_tiles(folder, tmp_path):
    if "amx_tile" in Path("/proc/cpuinfo").read_text():
        pytest.skip("the CPU has the instructions")
    calls = list(made([CASES[0] | {"dtype": torch.bfloat16, "B": 16}]))
    with pytest.raises(subprocess.CalledProcessError) as error:
        list(run([folder / "bare"], "amx", tmp_path, calls))
    assert error.value.returncode == -signal.SIGILL
