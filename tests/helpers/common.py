"""Shared by all tests: comparisons and their tolerances, twins, processes, choice of cases.

A product of parameters is a pairwise cover: ``@cover(dtype=DTYPES, H=[7, 64], isa=ISAS)`` over
``def test_x(dtype, H, isa)``. A test runs on the fastest ISA unless it names the fixture ``isa``:
as a factor of its cover, or, for a promise of every ISA alone, as an argument and nothing else.
"""

import itertools
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rnnext

ROOT = Path(__file__).parents[2]
SEARCH = ":".join(filter(None, sys.path))  # where a process finds what this one does: PYTHONPATH

# The largest error allowed, as a part of the largest expected magnitude (or of 1, if that is more).
# The oracle is float64; half types store every state rounded, so they get a few units of rounding.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2**-9, torch.bfloat16: 2**-6}


def assert_close(actual, expected, dtype=None, tolerance=None):
    """Compare tensors, or lists and tuples of them, within the tolerance of the actual dtype.

    ``dtype``: a coarser type that the computation went through; ``tolerance`` overrides the table.
    """
    if not isinstance(expected, Tensor):
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert_close(a, e, dtype, tolerance)
        return
    expected = expected.double()
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    assert math.isfinite(scale), "what is expected is not finite"
    tolerance = TOLERANCE[dtype or actual.dtype] if tolerance is None else tolerance
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance * scale)


def poison(results, dtype):
    """Free memory of these sizes that is full of NaN, so that a result that is never written cannot
    be right by an earlier call's values."""
    sizes = [v.shape for v in results if v is not None] * 4
    _ = [torch.full(size, float("nan"), dtype=dtype) for size in sizes]


def same(actual, expected):
    """Whether the tensors are equal one by one, not merely close."""
    return all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def stacked(results):
    return [torch.stack(each) for each in zip(*results, strict=True)]


def steps(stepper, inputs):
    """The results of a Stepper for the inputs of a sequence, one after the other."""
    return torch.stack([stepper(x) for x in inputs])


def pair(name, *args, **kwargs):
    """torch.nn's module of this name and rnnext's, made from the same seed."""
    torch.manual_seed(7)
    theirs = getattr(nn, name)(*args, **kwargs)
    torch.manual_seed(7)
    return theirs, getattr(rnnext, name)(*args, **kwargs)


def outcome(call, *arguments, **options):
    """The type and the message of the error that a call raises, or None."""
    try:
        call(*arguments, **options)
    except Exception as error:
        return type(error), str(error)
    return None


def error_of(call, *arguments, **options):
    """The error of a call that must raise one."""
    error = outcome(call, *arguments, **options)
    assert error, "no error was raised"
    return error


def assert_refused(call, error, message, *arguments):
    """The call raises this error, whose message has this text."""
    kind, found = error_of(call, *arguments)
    assert issubclass(kind, error), found
    assert message in found, found


def run_python(*arguments, cwd=None, **environment):
    """Python with these command line arguments and additions to the environment."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=os.environ | environment, capture_output=True,
        text=True, timeout=600,
    )  # fmt: skip


def pairwise(valid=lambda case: True, **factors):
    """Few cases in which every pair of values of two factors occurs that a valid case can have.

    Pairs of earlier values come first, and each is filled up from a seed of its own: a value that
    is added at the end of a factor leaves the cases of the values before it as they were.
    """
    values = {name: list(given) for name, given in factors.items()}
    couples = list(itertools.combinations(values, 2))

    def pairs(case):
        return {(a, case[a], b, case[b]) for a, b in couples}

    def named(case):
        return {name: values[name][i] for name, i in case.items()}

    def filled(a, x, b, y, last):
        """Valid cases that have this pair, and of other factors values as far as the last."""
        draw = random.Random(f"{a} {x} {b} {y}")
        counts = {name: min(last + 1, len(values[name])) for name in values}
        drawn = [
            {name: draw.randrange(n) for name, n in counts.items()} | {a: x, b: y}
            for _ in range(60)
        ]
        return [case for case in drawn if valid(named(case))]

    ranges = ((a, range(len(values[a])), b, range(len(values[b]))) for a, b in couples)
    wanted = [(a, x, b, y) for a, xs, b, ys in ranges for x in xs for y in ys]
    covered, cases = set(), []
    for a, x, b, y in sorted(wanted, key=lambda pair: max(pair[1], pair[3])):
        if (a, x, b, y) in covered:
            continue
        candidates = filled(a, x, b, y, max(x, y)) or filled(a, x, b, y, sys.maxsize)
        if candidates:
            best = max(candidates, key=lambda case: len(pairs(case) - covered))
            covered |= pairs(best)
            cases.append(named(best))
    return cases


def cover(argument=None, valid=lambda case: True, **factors):
    """Parametrizes a test with a pairwise cover: ``@cover(T=[1, 9], dtype=DTYPES, isa=ISAS)``.

    The test has the factors as arguments; with ``@cover("case", ...)`` those that are not fixtures
    come as one dictionary. ``isa`` and ``threads`` are fixtures, which set what they name.
    """

    def possible(case):
        """The stand-in of AMX has kernels of its own for bfloat16 alone; else it is generic."""
        other = case.get("dtype", torch.bfloat16) != torch.bfloat16
        return not (other and case.get("isa") == "amx_stand_in") and valid(case)

    fixtures = [name for name in factors if name in ("isa", "threads")]
    names = [*fixtures, argument] if argument else list(factors)
    rows = []
    for case in pairwise(possible, **factors):
        ident = case_id(case)
        if argument:
            case[argument] = {k: case.pop(k) for k in factors if k not in fixtures}
        rows.append(pytest.param(*(case[name] for name in names), id=ident))
    return pytest.mark.parametrize(names, rows, indirect=fixtures)


def case_id(case):
    """A short test id: name=value for every factor."""
    return "-".join(f"{k}={str(v).removeprefix('torch.')}" for k, v in case.items())


# The ISAs that are built and that this CPU has, slowest first.
ISAS = list(rnnext._C.build_info()["isas_supported"])
