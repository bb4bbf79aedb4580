"""The kernels on Arm: cross-compiled, run by an emulator, held against x86 and float64."""

import shutil
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
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
SOURCES = ["tests/arm/driver.cpp", "csrc/cpu/rnn/plan.cpp", "csrc/cpu/rnn/machine.cpp"]
SOURCES += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc/cpu/isa").glob("*.cpp"))
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


def packed(arguments, cotangents, medium=False):
    """A call as the driver reads it."""
    T, B, I = arguments.input.shape  # noqa: E741
    H, D = arguments.weight_hh[0].shape[0], len(arguments.weight_hh)
    given = (arguments.hx is not None) + 2 * (arguments.lengths is not None)
    reverse = sum(backwards << d for d, backwards in enumerate(arguments.reverse))
    nonlinearity = rnnext._C.nonlinearities().index(arguments.nonlinearity)
    dtype = len(DTYPES) if medium else DTYPES.index(arguments.input.dtype)
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
    folder = tmp_path_factory.mktemp("arm")

    def compile(source):
        result = folder / f"{Path(source).stem}.o"
        command = [COMPILER, "-std=c++20", "-O3", "-Icsrc", "-c", source, "-o", result]
        subprocess.run(command, cwd=ROOT, check=True, timeout=1800)
        return result

    with ThreadPoolExecutor(max_workers=2) as pool:
        objects = list(pool.map(compile, SOURCES))
    subprocess.run([COMPILER, "-static", *objects, "-o", folder / "driver"], check=True)
    return folder / "driver"


def run(program, isa, path, calls, *, medium=False):
    """Each call's output, h_n, gradients of input and hx, and of a direction's weights and bias."""
    (path / "calls").write_bytes(b"".join(packed(*call, medium) for call in calls))
    command = [EMULATOR, program, isa, path / "calls", path / "results"]
    subprocess.run(command, check=True, timeout=1800)
    data = (path / "results").read_bytes()
    for arguments, _ in calls:
        T, B, I = arguments.input.shape  # noqa: E741
        H, D = arguments.weight_hh[0].shape[0], len(arguments.weight_hh)
        shapes = [(T, B, D * H), (D, B, H), (T, B, I), (D, B, H)]
        shapes += D * [(H, I), (H, H), (H,)]
        results, data = unpacked(data, shapes, arguments.input.dtype)
        yield results
    assert not data


def made(cases):
    for seed, case in enumerate(cases):
        torch.manual_seed(seed)
        arguments = samples.make(**case)
        T, B, _ = arguments.input.shape
        D, H, dtype = len(case["reverse"]), case["H"], case["dtype"]
        cotangents = [torch.rand(T, B, D * H).to(dtype), torch.rand(D, B, H).to(dtype)]
        yield arguments, cotangents


def check(results, arguments, cotangents, dtype):
    """Values and gradients, within the tolerances of dtype."""
    wanted = arguments.to_double().map(lambda t: t.requires_grad_() if t.is_floating_point() else t)
    expected = wanted.expected(stored=arguments.input.dtype)
    torch.autograd.backward(expected, [c.double() for c in cotangents])
    leaves = [wanted.input, wanted.hx]
    for d in range(len(arguments.weight_hh)):
        leaves += [wanted.weight_ih[d], wanted.weight_hh[d], wanted.bias_ih[d]]
    assert_close(results[:2], list(expected), dtype)
    for found, leaf in zip(results[2:], leaves, strict=True):
        if leaf is not None:
            assert_close(found, leaf.grad, dtype)


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


@pytest.mark.parametrize("medium", [False, True])
@pytest.mark.parametrize("isa", ["neon_bf16", "amx_stand_in"])
def test_bfloat16_products(driver, tmp_path, isa, medium):
    """Of bfloat16 tensors and of float32 at "medium": within bfloat16's tolerance, and used."""
    torch.set_num_threads(1)
    dtype = torch.float32 if medium else torch.bfloat16
    calls = list(made([case | {"dtype": dtype} for case in CASES]))
    found = list(run(driver, isa, tmp_path, calls, medium=medium))
    for results, (arguments, cotangents) in zip(found, calls, strict=True):
        check(results, arguments, cotangents, torch.bfloat16)
    without = run(driver, "generic", tmp_path, calls)
    assert any(not torch.equal(a[0], b[0]) for a, b in zip(found, without, strict=True))
