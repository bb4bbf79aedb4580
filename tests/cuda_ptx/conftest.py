"""Tests of the compiled kernels: in the interpreter, which `make cuda-build` does and which needs
$CUDA_HOME, or on a device, as `make cuda-check` does."""

import os

import pytest
import torch

runs = {"CUDA_HOME", "RNNEXT_CHECK_DEVICE"} & os.environ.keys()
collect_ignore_glob = [] if runs else ["test_*.py"]


@pytest.fixture
def lib():
    """The kernels on an H100, which gives its memory back."""
    from cuda_ptx.ops import kernels

    torch.set_num_threads(1)  # the reference is small, and the interpreter has no use for more
    yield kernels()
    kernels().reset()
