"""Random calls of everything against loops in float64: `make fuzz` runs many, `make test` some.

A failure is shrunk, and prints a program to paste; of a crash it is in build/fuzz-*.
"""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from fuzz.calls import CHECKS, check
from helpers.common import ISAS
from helpers.samples import VARIANTS
from reference import GATES
from rnnext import _C

# How many calls of each kind are drawn; 0: a few, which are always the same.
CASES = int(os.environ.get("RNNEXT_FUZZ", "0"))
PHASES = [Phase.explicit, Phase.generate]
if "RNNEXT_FAULT" not in os.environ:  # a planted fault need only be found
    PHASES.append(Phase.shrink)
PROFILE = settings(
    max_examples=CASES or 200, derandomize=not CASES, database=None, deadline=None,
    print_blob=False, suppress_health_check=list(HealthCheck), phases=PHASES,
)  # fmt: skip
LAST = Path(f"build/fuzz-{os.environ.get('PYTEST_XDIST_WORKER')}" if CASES else os.devnull)


def tell(module, case):
    """A line to paste into a shell in the root of the repository."""
    program = f'PYTHONPATH=tests python -c "from {module} import check; check(**{case!r})"'
    note(program)
    LAST.parent.mkdir(exist_ok=True)  # where the package is built elsewhere
    LAST.write_text(program)


one_of, flags = st.sampled_from, st.booleans()
resets = one_of([None, "zeros", "shared", "each"])
WIDTHS = [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40, 63, 64, 65, 96, 129, 200, 321]
widths, or_none = one_of(WIDTHS), one_of([*WIDTHS, 0])
# Of T and B: sums of gradients take 256 rows at once; two threads hold narrow steps. (257 is slow.)
EDGES = [(1, 255), (16, 16), (1, 257), (40, 16), *([(257, 1)] if CASES else [])]
COMMON = {
    "seed": st.integers(0, 10**6),
    "T": one_of([1, 2, 3, 4, 5, 9, 17]),
    "B": one_of([1, 2, 3, 0, 4, 7, 8, 9, 13, 16, 17, 33, 40]),
    "I": widths,
    "H": widths,
    "dtype": one_of(["float32", "float64", "bfloat16", "float16"]),
    "index_dtype": one_of(["int64", "int32"]),
    "vocabulary": one_of([1, 2, 9, 300]),
    "layout": one_of(
        ["contiguous", "guarded", "transposed", "strided", "expanded", "overlapping", "misaligned"]
    ),
    "nonlinearity": one_of(_C.nonlinearities()),
    "hx": flags,
    "mode": one_of(["grad", "grad", "grad", "no_grad", "inference"]),
    "frozen": st.integers(0, 2**10 - 1) | st.just(0),  # a bit for each argument
    "wanted": one_of(["both", 0, 1]),  # the results that get a gradient
    "isa": one_of(ISAS[::-1]),
    "threads": st.integers(1, 5),
    "precision": one_of(["highest", "highest", "medium", "high"]),
}
WAYS = ["call", "from", "parts", "refresh", "copy", "deepcopy"]  # to go a step forward
LAYERS = {
    "module": one_of(["RNN", "LeakyRNN", "EmbeddingRNN"]),
    "counted": flags,  # whether tables are multiplied with W_ih first
    "padding_idx": one_of([None, 0, -1]),
    "layers": one_of([1, 2, 3]),
    "bidirectional": flags,
    "bias": flags,
    "batch_first": flags,
    "rows": one_of(["full", "lengths", "packed", "single"]),
    "lengths": st.lists(st.integers(0, 17), min_size=1, max_size=5),
    "reset": resets,
    "alpha": one_of(["number", "unit", "learned", "learned unit", "one"]),
    "form": one_of(_C.forms()),
    "cell": one_of(["elman", *GATES]),
}
OWN = {
    "recurrence": {
        "I": or_none,
        "H": or_none,
        "source": one_of(["features", "ready", "table"]),
        "reverse": one_of([[0], [1], [0, 1], [1, 0], [1, 1], [0, 0]]),
        "bias": flags,
        "rows": one_of(["full", "lengths", "packed"]),
        "cell": one_of(["elman", *VARIANTS["cell"]]),
        "reset": one_of([None, "zeros", "state"]),
        "noise": one_of([False, False, True]),
    },
    "function": {
        "I": or_none,
        "H": or_none,
        "weight_ih": flags,
        "bias": one_of(["both", "bias_ih", "bias_hh", None]),
        "batch_first": flags,
        "reverse": flags,
        "lengths": flags,
        "reset": resets,
        "alpha": one_of([None, "number", "scalar", "unit"]),
        "form": one_of(_C.forms()),
    },
    "layers": LAYERS | {"module": one_of(["RNN", "LeakyRNN", "functional"])},
    "tokens": LAYERS | {"module": st.just("EmbeddingRNN")},
    "cell": {
        "I": or_none,
        "H": or_none,
        "bias": one_of(["both", "bias_ih", "bias_hh", None]),
        "rows": one_of(["full", "single"]),
        "cell": one_of(["elman", *GATES]),
    },
    "embedding": {
        "I": or_none,
        "rank": st.integers(0, 3),
        "padding_idx": st.none() | st.integers(0, 600),
        "by_freq": flags,
        "sparse": flags,
        "max_norm": one_of([None, 0.5, 2.0]),
        "norm_type": one_of([2.0, 1.0]),
    },
    "stepper": LAYERS | {"ways": st.lists(one_of(WAYS), min_size=1, max_size=5)},
}


def possible(case):
    """The case without what a call of its kind cannot have."""
    kind, rows, edge = case["call"], case.get("rows"), case.pop("edge", None)
    if edge:
        case["T"], case["B"] = edge
    if case.get("module") in ("RNN", "EmbeddingRNN"):
        case["nonlinearity"] = "relu" if case["nonlinearity"] == "relu" else "tanh"
    if kind == "stepper" or rows in ("packed", "single"):
        case["B"] = max(case["B"], 1)
    if rows == "packed" and kind != "stepper":
        case["reset"] = None
    if case.get("module") == "LeakyRNN":
        case["cell"] = "elman"
    if case.get("cell") in GATES:
        case |= {"nonlinearity": "tanh", "noise": False}
    return case


def cases(kind):
    edge = {"edge": one_of([None] * 30 + EDGES)} if kind in ("recurrence", "function") else {}
    drawn = {"call": st.just(kind), **edge, **COMMON, **OWN[kind]}
    return st.fixed_dictionaries(drawn).map(possible)


@pytest.mark.parametrize("kind", CHECKS)
def test_calls(kind):
    @PROFILE
    @given(cases(kind))
    def of_kind(case):
        tell("fuzz.calls", case)
        check(**case)

    of_kind()
