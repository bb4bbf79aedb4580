"""The kernels of AMX as they are compiled, their tile instructions run by an emulator."""

import platform
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from helpers import programs
from helpers.common import ISAS
from helpers.programs import checked, of_products, run

COMPILER = shutil.which("c++")
PRECISIONS = [None, "medium", "high"]


@pytest.mark.skipif(
    platform.machine() != "x86_64" or "avx512_bf16" not in ISAS,
    reason="all but the tile instructions runs on a CPU with AVX512_BF16",
)
def test_values_and_gradients(tmp_path):
    """Of bfloat16 tensors, and of float32 at lower precisions. (Each size at one of them: all but
    the instructions runs in the other tests, on their stand-in.)"""
    sources = [*programs.sources("amx"), "tests/emulated/tiles.cpp"]
    *objects, emulator = programs.build(COMPILER, sources, tmp_path, "-O1")
    driver, bare = tmp_path / "driver", tmp_path / "bare"
    for program, linked in ((driver, [*objects, emulator]), (bare, objects)):
        subprocess.run([COMPILER, *linked, "-o", program], check=True)
    for n, precision in enumerate(PRECISIONS):
        calls = of_products(precision, slice(n, None, len(PRECISIONS)))
        checked([driver], "amx", tmp_path, calls, precision)
    if "amx_tile" not in Path("/proc/cpuinfo").read_text():  # it is the tiles that were emulated
        with pytest.raises(subprocess.CalledProcessError) as error:
            list(run([bare], "amx", tmp_path, calls, precision))
        assert error.value.returncode == -signal.SIGILL
