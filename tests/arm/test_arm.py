"""The kernels on Arm: cross-compiled, run by an emulator, held against x86 and float64."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import torch

import rnnext
from helpers import samples
from helpers.common import assert_close, pairwise, supported_isas

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
pytestmark = pytest.mark.skipif(
    not (COMPILER and EMULATOR),
    reason="needs g++-aarch64-linux-gnu and qemu-user-static",
)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SOURCES = ["tests/arm/driver.cpp", "csrc/cpu/isa/generic.cpp", "csrc/cpu/rnn/plan.cpp",
           "csrc/cpu/rnn/machine.cpp"]  # fmt: skip
CASES = pairwise(
    T=[1, 2, 9],
    B=[1, 3, 7, 13],
    I=[1, 5, 70],
    H=[1, 4, 17, 65, 200],
    reverse=[(False,), (True,), (False, True)],
    nonlinearity=["tanh", "relu", "sigmoid", "softplus", "identity"],
    hx=[True, False],
    rows=["full", "lengths"],
    dtype=DTYPES,
)


def raw(tensor):
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


def packed(arguments, cotangents):
    """A call as the driver reads it."""
    T, B, I = arguments.input.shape  # noqa: E741
    H, D = arguments.weight_hh[0].shape[0], len(arguments.weight_hh)
    given = (arguments.hx is not None) + 2 * (arguments.lengths is not None)
    reverse = sum(backwards << d for d, backwards in enumerate(arguments.reverse))
    nonlinearity = rnnext._C.nonlinearities().index(arguments.nonlinearity)
    dtype = DTYPES.index(arguments.input.dtype)
    tensors = [arguments.input]
    if arguments.hx is not None:
        tensors.append(arguments.hx)
    for d in range(D):
        tensors += [arguments.weight_ih[d], arguments.weight_hh[d]]
        tensors += [arguments.bias_ih[d], arguments.bias_hh[d]]
    if arguments.lengths is not None:
        tensors.append(arguments.lengths)
    header = struct.pack("<9q", T, B, I, H, D, dtype, nonlinearity, given, reverse)
    return header + b"".join(map(raw, [*tensors, *cotangents]))


def unpacked(data, shapes, dtype):
    """Tensors of the driver's results, and what is left of them."""
    tensors = []
    for shape in shapes:
        size = torch.Size(shape).numel() * dtype.itemsize
        tensors.append(torch.frombuffer(bytearray(data[:size]), dtype=dtype).view(shape))
        data = data[size:]
    return tensors, data


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    program = tmp_path_factory.mktemp("arm") / "driver"
    command = [COMPILER, "-std=c++20", "-O3", "-static", "-Icsrc", *SOURCES, "-o", program]
    subprocess.run(command, cwd=ROOT, check=True, timeout=1800)
    return program


def test_values_gradients_and_bits(driver, tmp_path):
    """Values and gradients to the tolerances; forward, the bits of x86 with FMA."""
    torch.set_num_threads(1)
    calls = []
    for seed, case in enumerate(CASES):
        torch.manual_seed(seed)
        arguments = samples.make(**case)
        T, B, _ = arguments.input.shape
        D, H, dtype = len(case["reverse"]), case["H"], case["dtype"]
        cotangents = [torch.rand(T, B, D * H).to(dtype), torch.rand(D, B, H).to(dtype)]
        calls.append((arguments, cotangents))
    (tmp_path / "calls").write_bytes(b"".join(packed(*call) for call in calls))
    command = [EMULATOR, driver, tmp_path / "calls", tmp_path / "results"]
    subprocess.run(command, check=True, timeout=1800)
    data = (tmp_path / "results").read_bytes()
    if "avx2" in supported_isas():
        rnnext._C.set_cpu_isa("avx2")
    differ = []
    for (arguments, cotangents), case in zip(calls, CASES, strict=True):
        T, B, I = arguments.input.shape  # noqa: E741
        D, H, dtype = len(case["reverse"]), case["H"], case["dtype"]
        shapes = [(T, B, D * H), (D, B, H), (T, B, I), (D, B, H)]
        results, data = unpacked(data, shapes + D * [(H, I), (H, H), (H,)], dtype)
        wanted = arguments.to_double().map(
            lambda t: t.requires_grad_() if t.is_floating_point() else t
        )
        expected = wanted.expected(stored=dtype)
        assert_close(results[:2], list(expected), dtype)
        torch.autograd.backward(expected, [c.double() for c in cotangents])
        assert_close(results[2], wanted.input.grad, dtype)
        if wanted.hx is not None:
            assert_close(results[3], wanted.hx.grad, dtype)
        for d in range(D):
            pairs = zip(
                results[4 + 3 * d : 7 + 3 * d],
                [wanted.weight_ih[d], wanted.weight_hh[d], wanted.bias_ih[d]],
                strict=True,
            )
            for found, leaf in pairs:
                assert_close(found, leaf.grad, dtype)
        if "avx2" in supported_isas():
            on_x86 = arguments.call(torch.ops.rnnext.recurrence)
            if not all(map(torch.equal, results[:2], on_x86)):
                differ.append(case)
    assert not data
    assert not differ
