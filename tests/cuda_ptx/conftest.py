"""Tests of the compiled kernels: they need nvcc ($CUDA_HOME), and are left out without it."""

import pytest

from cuda_ptx import build

collect_ignore_glob = [] if build.home() else ["test_*.py"]


@pytest.fixture
def lib():
    """The recurrence's kernels on an H100, which gives its memory back."""
    from cuda_ptx.recurrence import kernels

    lib = kernels()
    yield lib
    lib.reset()
