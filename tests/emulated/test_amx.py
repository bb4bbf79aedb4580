"""The kernels of AMX as they are compiled, their tile instructions run by an emulator."""

import platform
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from helpers import programs
from helpers.common import supported_isas
from helpers.programs import CASES, check, made, run
from reference.elman import ACTIVATIONS

COMPILER = shutil.which("c++")
pytestmark = [
    pytest.mark.xdist_group("amx"),  # one worker compiles the program
    pytest.mark.skipif(
        platform.machine() != "x86_64" or "avx512_bf16" not in supported_isas(),
        reason="all but the tile instructions runs on a CPU with AVX512_BF16",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("amx")
    sources = [*programs.COMMON, *programs.isa_sources("amx"), "tests/emulated/tiles.cpp"]
    *objects, emulator = programs.build(COMPILER, sources, folder, "-O1")
    for name, linked in (("driver", [*objects, emulator]), ("bare", objects)):
        subprocess.run([COMPILER, *linked, "-o", folder / name], check=True)
    return folder


@pytest.mark.parametrize("precision", [None, "medium", "high"])
def test_values_and_gradients(folder, tmp_path, precision):
    """Of bfloat16 tensors, and of float32 at lower precisions."""
    dtype = torch.float32 if precision else torch.bfloat16
    smooth = [case for case in CASES if not ACTIVATIONS[case["nonlinearity"]].kink]
    calls = list(made(case | {"dtype": dtype} for case in smooth))
    found = run([folder / "driver"], "amx", tmp_path, calls, precision)
    tolerance = 2**-15 if precision == "high" else None
    for results, (arguments, cotangents) in zip(found, calls, strict=True):
        check(results, arguments, cotangents, torch.bfloat16, tolerance)


def test_it_runs_on_tiles(folder, tmp_path):
    if "amx_tile" in Path("/proc/cpuinfo").read_text():
        pytest.skip("the CPU has the instructions")
    calls = list(made([CASES[0] | {"dtype": torch.bfloat16, "B": 16}]))
    with pytest.raises(subprocess.CalledProcessError) as error:
        list(run([folder / "bare"], "amx", tmp_path, calls))
    assert error.value.returncode == -signal.SIGILL
