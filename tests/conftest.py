"""Fixtures: the ISA of the kernels and the number of threads, put back after each test."""

import ctypes
import os
from collections.abc import Iterator

# Read when torch, numpy and rnnext are imported. (Threads of several test processes would wait for
# work by spinning on each other's cores, which doubled the processor time of some files.)
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("RNNEXT_CPU_TEAM", "whole")
# Small calls take AMX tiles too, weights of 400 KB are fetched ahead, panels of 16 KB go in pairs.
os.environ.setdefault("RNNEXT_CPU_MACHINE", "tiles=0,fetch_bytes=4e5,pair_bytes=16e3")

import pytest
import torch

import rnnext
from helpers.common import ISAS

# malloc fills what it hands out with the byte 0xfe: a result that is never written cannot then be
# right by chance. (Blocks below a KiB that were just freed stay as they are.)
M_PERTURB = -6
if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
    mallopt(M_PERTURB, 1)


def pytest_collectstart() -> None:
    """What a test file draws as it is imported is the same each time: torch's own seed is not."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """Tests may choose an ISA, threads, a precision and so on; the next one starts afresh."""
    isa, threads = rnnext._C.cpu_isa(), torch.get_num_threads()
    yield
    rnnext._C.set_cpu_isa(isa)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = "none"  # as a process begins
    torch._C._functorch._set_vmap_fallback_enabled(True)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    """The ISA that a cover names (see helpers.common); else each that this CPU has, one by one."""
    rnnext._C.set_cpu_isa(request.param)
    return request.param


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> int:
    """As many threads as a cover says; else one, then several."""
    torch.set_num_threads(request.param)
    return request.param
