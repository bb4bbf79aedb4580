"""The kernels of an ISA in a program of their own, for CPUs that this one is not: calls are written
to a file, and what it computes is read from another. `tests/emulated/driver.cpp` is the other end.
"""

import math
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

import rnnext
from helpers import samples
from helpers.common import ROOT, assert_close, pairwise
from helpers.samples import DTYPES, WEIGHTS
from reference import GATES, STATES
from reference.cells import KINKED

PRECISIONS = ["medium", "high"]  # of float32, after the dtypes
COMMON = ["tests/emulated/driver.cpp", "csrc/cpu/rnn/plan.cpp", "csrc/cpu/rnn/machine.cpp"]
CASES = pairwise(
    samples.possible, T=[1, 2, 9], B=[1, 3, 7, 13], I=[1, 5, 70], H=[1, 4, 17, 65, 200],
    reverse=[(False,), (True,), (False, True)], nonlinearity=rnnext._C.nonlinearities(),
    hx=[True, False], rows=["full", "lengths"], dtype=DTYPES, cell=["elman", *GATES],
)  # fmt: skip
# Programs that can be compared where rounding may put a product on the other side of a kink.
SMOOTH = [case for case in CASES if case["nonlinearity"] not in KINKED]


def sources(*isas):
    """The files of a program that has the kernels of these ISAs."""
    return [*COMMON, *(f"csrc/cpu/isa/{name}.cpp" for name in isas)]


def build(compiler, sources, folder, *flags):
    def compiled(source):
        made = folder / f"{Path(source).stem}.o"
        command = [compiler, "-std=c++20", *flags, "-Icsrc", "-c", source, "-o", made]
        subprocess.run(command, cwd=ROOT, check=True, timeout=1800)
        return made

    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(compiled, sources))


def read(file, shape, dtype):
    data = bytearray(file.read(math.prod(shape) * dtype.itemsize))
    return torch.frombuffer(data, dtype=dtype).view(shape)


def of_directions(arguments):
    """The weights and biases of one direction, then of the other."""
    each = zip(*(getattr(arguments, name) for name in WEIGHTS), strict=True)
    return [tensor for of_direction in each for tensor in of_direction]


def packed(arguments, cotangents, precision=None):
    """A call as the driver reads it."""
    T, B, I = arguments.input.shape  # noqa: E741
    H, D = arguments.weight_hh[0].shape[1], len(arguments.weight_hh)
    cell = samples.VARIANTS["cell"].index(arguments.cell)
    reverse = sum(backwards << d for d, backwards in enumerate(arguments.reverse))
    nonlinearity = rnnext._C.nonlinearities().index(arguments.nonlinearity)
    dtype = DTYPES.index(arguments.input.dtype)
    if precision is not None:
        dtype = len(DTYPES) + PRECISIONS.index(precision)
    tensors = [arguments.input, arguments.hx, arguments.lengths]
    tensors += of_directions(arguments)
    arrays = [
        b"" if t is None else t.detach().contiguous().view(torch.uint8).numpy().tobytes()
        for t in [*tensors, *cotangents]
    ]
    header = struct.pack("<9q", T, B, I, H, D, dtype, nonlinearity, cell, reverse)
    return header + b"".join(struct.pack("<q", len(array)) + array for array in arrays)


def run(program, isa, path, calls, precision=None):
    """Each call's output, h_n, gradients of input and hx, and of each direction's WEIGHTS."""
    (path / "calls").write_bytes(b"".join(packed(*call, precision) for call in calls))
    subprocess.run([*program, isa, path / "calls", path / "results"], check=True, timeout=1800)
    with (path / "results").open("rb") as file:
        for arguments, cotangents in calls:
            (output, h_n), input = cotangents, arguments.input
            shapes = [v.shape for v in (output, h_n, input, h_n, *of_directions(arguments))]
            yield [read(file, shape, arguments.input.dtype) for shape in shapes]
        assert not file.read()


def made(cases):
    for seed, case in enumerate(cases):
        torch.manual_seed(seed)
        arguments = samples.make(**case)
        T, B, _ = arguments.input.shape
        D, H, dtype = len(case["reverse"]), case["H"], case["dtype"]
        states = D * STATES.get(case["cell"], 1)
        yield arguments, [torch.rand(T, B, D * H).to(dtype), torch.rand(states, B, H).to(dtype)]


def of_products(precision, some):
    """Some calls of bfloat16 tensors, or of float32 at a lower precision."""
    dtype = torch.float32 if precision else torch.bfloat16
    return list(made(case | {"dtype": dtype} for case in SMOOTH))[some]


def checked(program, isa, path, calls, precision=None):
    """The results of the calls, whose values and gradients are within the tolerances."""
    found = list(run(program, isa, path, calls, precision))
    tolerance = 2**-15 if precision == "high" else None
    for results, (arguments, cotangents) in zip(found, calls, strict=True):
        dtype = torch.bfloat16 if precision else arguments.input.dtype
        wanted = arguments.to_double().map(lambda t: t.requires_grad_(t.is_floating_point()))
        expected = wanted.expected(stored=arguments.input.dtype)
        torch.autograd.backward(expected, [c.double() for c in cotangents])
        assert_close(results[:2], list(expected), dtype, tolerance)
        leaves = [wanted.input, wanted.hx, *of_directions(wanted)]
        for result, leaf in zip(results[2:], leaves, strict=True):
            if leaf is not None:
                assert_close(result, leaf.grad, dtype, tolerance)
    return found
