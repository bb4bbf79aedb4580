"""What the tests share: comparisons and their tolerances, twins, processes, choice of cases."""

import itertools
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

import rnnext

# The largest error allowed, as a part of the largest expected magnitude (or of 1, if that is more).
# The oracle is float64; half types store every state rounded, so they get a few units of rounding.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2**-9,
    torch.bfloat16: 2**-6,
}


def assert_close(
    actual: Any,
    expected: Any,
    dtype: torch.dtype | None = None,
    tolerance: float | None = None,
) -> None:
    """Compare tensors, or lists and tuples of them, within the tolerance of the actual dtype.

    ``dtype`` names a coarser type that the computation went through; ``tolerance`` overrides the
    table.
    """
    if not isinstance(expected, Tensor):
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert_close(a, e, dtype, tolerance)
        return
    assert actual.shape == expected.shape
    if expected.numel() == 0:
        return
    expected = expected.double()
    error = (actual.double() - expected).abs().max().item()
    scale = max(1.0, expected.abs().max().item())
    if tolerance is None:
        tolerance = TOLERANCE[dtype or actual.dtype]
    assert error <= tolerance * scale, f"error {error} at scale {scale}, allowed {tolerance}"


def same(actual: Iterable[Tensor], expected: Iterable[Tensor]) -> bool:
    """Whether the tensors are equal one by one, not merely close."""
    return all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def steps(stepper: rnnext.Stepper, inputs: Tensor) -> Tensor:
    """What a Stepper gives for the inputs of a sequence, one after the other."""
    return torch.stack([stepper(x) for x in inputs])


def pair(name: str, *args: Any, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """torch.nn's module of this name and rnnext's, made from the same seed."""
    torch.manual_seed(7)
    theirs = getattr(nn, name)(*args, **kwargs)
    torch.manual_seed(7)
    return theirs, getattr(rnnext, name)(*args, **kwargs)


class NoGradient(torch.autograd.Function):
    """A copy that hands no gradient on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        return None


def error_of(function: Callable[[], Any]) -> tuple[type[Exception], str]:
    """The type and the message of the error that a call raises."""
    try:
        function()
    except Exception as error:
        return type(error), str(error)
    raise AssertionError("no error was raised")


def run_python(
    *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Python with these command line arguments and additions to the environment."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def leave_group() -> NoReturn:
    """Ends a process of a gloo group whose work is done, without Python's end.

    DTensor's caches keep the group past its destruction, and a thread of gloo that still holds a
    tensor when Python ends aborts the process (pytorch#179291).
    """
    torch.distributed.barrier()
    os._exit(0)


def pairwise(**factors: list[Any]) -> list[dict[str, Any]]:
    """Cases in which every pair of values of two factors occurs, chosen greedily from a seed."""
    rng = random.Random(0)
    names = list(factors)
    pairs = {
        (a, x, b, y)
        for a, b in itertools.combinations(names, 2)
        for x in range(len(factors[a]))
        for y in range(len(factors[b]))
    }

    def covered(case: dict[str, int]) -> set[tuple[str, int, str, int]]:
        return {(a, case[a], b, case[b]) for a, b in itertools.combinations(names, 2)}

    cases = []
    while pairs:
        a, x, b, y = min(pairs)
        candidates = [
            {n: rng.randrange(len(factors[n])) for n in names} | {a: x, b: y} for _ in range(40)
        ]
        best = max(candidates, key=lambda case: len(covered(case) & pairs))
        pairs -= covered(best)
        cases.append({name: factors[name][i] for name, i in best.items()})
    return cases


def case_id(case: dict[str, Any]) -> str:
    """A short test id: name=value for every factor."""
    return "-".join(f"{k}={str(v).removeprefix('torch.')}" for k, v in case.items())


def supported_isas() -> list[str]:
    """The ISAs that are built and that this CPU has, slowest first."""
    return list(rnnext._C.build_info()["isas_supported"])
