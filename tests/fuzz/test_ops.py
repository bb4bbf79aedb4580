"""Ops called with anything: they raise an error that says why, or are right; they never crash."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_map_only

import reference
import rnnext
from fuzz.compare import guarded
from fuzz.test_calls import PROFILE, one_of, tell
from helpers import samples
from helpers.common import ISAS, assert_close
from helpers.samples import WEIGHTS

ops = torch.ops.rnnext
ERRORS = (RuntimeError, ValueError, TypeError, IndexError)


def rnn_of(one):
    """The arguments of the op that runs all layers."""
    given = dict(vars(one))
    given["weights"] = [weight for name in WEIGHTS for weight in given.pop(name)]
    del given["reverse"], given["noise_key"]
    for name in ("hx", "reset_state"):
        given[name] = [] if given[name] is None else list(given[name].split(1))
    given |= {"has_biases": True, "num_layers": 1, "bidirectional": False, "batch_first": False}
    return given | {"dropout": 0.0, "training": False, "noise_keys": None}


def cell_of(one):
    weights = {name: getattr(one, name)[0] for name in WEIGHTS}
    given = {"input": one.input[0], "hx": list(one.hx), **weights}
    return given | {"cell": one.cell, "nonlinearity": one.nonlinearity}


INDICES = torch.tensor([[0, 4], [4, 2]])
ROWS = {"weight": torch.rand(5, 3), "indices": INDICES, "padding_idx": -1}
GRAD = {"grad": torch.rand(2, 2, 3), "indices": INDICES, "num_weights": 5, "padding_idx": 4}
# The right arguments of each op, from a sample of the recurrence's.
MADE = {
    "recurrence": lambda one: {**vars(one), "save": False},
    "recurrence_backward": lambda one: vars(one.backward_of(ops.recurrence)),
    "recurrence_stack": lambda one: {**vars(one), "save": False},
    "recurrence_ensemble": lambda one: {**vars(one.stacked(one)), "save": False},
    "recurrence_ensemble_backward": lambda one: vars(
        one.stacked(one).backward_of(ops.recurrence_ensemble)
    ),
    "rnn": rnn_of,
    "rnn_cell": cell_of,
    "noise": lambda one: {"keys": torch.tensor([1, -1]), "T": 2, "B": 3, "D": 2, "H": 70},
    "dropout_mask": lambda one: {
        "key": torch.tensor(-1), "T": 2, "B": 3, "H": 70, "p": 0.5, "dtype": torch.float64
    },
    "occurring": lambda one: {"tokens": INDICES, "num_rows": 5, "most": 5},
    "embedding": lambda one: {**ROWS, "scale_grad_by_freq": False, "sparse": False},
    "embedding_backward": lambda one: {**GRAD, "scale_grad_by_freq": True},
    "embedding_sparse_backward": lambda one: {**GRAD, "scale_grad_by_freq": False},
}  # fmt: skip
RIGHT = {
    "recurrence": lambda save, **given: reference.recurrence(**given),
    "embedding": reference.embedding,
    "embedding_backward": reference.embedding_backward,
    "embedding_sparse_backward": reference.embedding_sparse_backward,
}

BIG = 2**62
# The wrong arguments that are made of a right one.
OF_TENSORS = [
    lambda t: None,
    lambda t: 3,
    lambda t: "x",
    *(Tensor.float, Tensor.long, Tensor.int, Tensor.bool),
    lambda t: torch.complex(t.float(), t.float()),
    lambda t: t.to(torch.bfloat16),
    lambda t: t.to("meta"),
    lambda t: t.to_sparse(),
    lambda t: t[0],
    lambda t: t[None],
    lambda t: t.flatten()[0],
    lambda t: t[1:],
    lambda t: t[..., 1:],
    lambda t: t[:0],
    lambda t: t[..., :0],
    lambda t: torch.cat([t, t]),
    lambda t: torch.cat([t, t], -1),
    lambda t: t[:1].expand(BIG, *t.shape[1:]),
    lambda t: t[..., :1].expand(*t.shape[:-1], BIG),
    lambda t: t.transpose(0, -1),
    lambda t: t.repeat_interleave(3, -1)[..., ::3],
    lambda t: t[:1].expand_as(t),
    lambda t: -t,
    lambda t: t * 1000,
    lambda t: t * 1e300 if t.is_floating_point() else torch.full_like(t, BIG),
    lambda t: t * float("nan"),
    lambda t: t.detach().requires_grad_(),
    lambda t: torch._neg_view(-t),
    lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
]
OF_LISTS = [
    lambda v: [], lambda v: [*v, *v], lambda v: v * 3, lambda v: [*v, None], lambda v: v[0],
    lambda v: 3, lambda v: None,
]  # fmt: skip
OF_OTHERS = [0, 1, -1, 2, 2**40, BIG, -BIG, 0.5, float("nan"), True, False, None, "", "relu", "x"]


def spoiled(value, number):
    if isinstance(value, Tensor):
        return OF_TENSORS[number % len(OF_TENSORS)](value)
    if isinstance(value, list) and value and number % 2:
        return [spoiled(v, number) if i == number % len(value) else v for i, v in enumerate(value)]
    if isinstance(value, list) and value:
        return OF_LISTS[number // 2 % len(OF_LISTS)](value)
    return OF_OTHERS[number % len(OF_OTHERS)]


def own(tensor):
    """The tensor in memory that ends at a page that nobody may touch."""
    plain = tensor.is_cpu and tensor.layout == torch.strided
    if not plain or tensor.numel() > 10**6 or tensor.is_neg() or tensor._is_zerotensor():
        return tensor
    return guarded(tensor).requires_grad_(tensor.requires_grad)


def double(tensor):
    tensor = tensor.detach().clone().resolve_neg()
    return tensor.double() if tensor.is_floating_point() else tensor


def check(op, case, wrong, seed, isa):
    """Raise AssertionError where the op is wrong. A failing test prints this call."""
    torch.manual_seed(seed)
    rnnext._C.set_cpu_isa(isa)
    case = case | {"dtype": getattr(torch, case["dtype"])}
    one = samples.make_stack(2, **case) if op == "recurrence_stack" else samples.make(**case)
    arguments = MADE[op](one)
    # (Each once: torch may take very long to change a tensor that is already expanded.)
    for name, number in {list(arguments)[at % len(arguments)]: n for at, n in wrong}.items():
        try:
            arguments[name] = spoiled(arguments[name], number)
        except ERRORS:
            return  # there is no such tensor
    arguments, refused = tree_map_only(Tensor, own, arguments), None
    try:
        found = getattr(ops, op)(**arguments)
    except ERRORS as error:
        refused = str(error)
    assert wrong or refused is None, refused
    assert "INTERNAL ASSERT" not in str(refused)
    tensors = [v for v in arguments.values() if isinstance(v, Tensor)]
    no_data = any(t.is_meta or t.numel() > 10**6 for t in tensors)  # or too large a one, expanded
    if op not in RIGHT or no_data or refused is not None:
        return
    expected = RIGHT[op](**tree_map_only(Tensor, double, arguments))
    pairs = zip(found, expected, strict=False) if isinstance(found, tuple) else [(found, expected)]
    for actual, wanted in pairs:
        assert actual.shape == wanted.shape
        if not wanted.is_floating_point():
            assert torch.equal(actual, wanted)
        elif wanted.isfinite().all() and wanted.abs().sum() < 1e30:
            numbers = case.get("noise") and actual.dtype == torch.float64  # of float32
            assert_close(actual.detach(), wanted, torch.float32 if numbers else None)


@st.composite
def calls(draw):
    """An op, what its arguments are made from, and what is wrong with some of them."""
    op = draw(one_of(list(MADE)))
    plain = op in ("recurrence_stack", "rnn", "rnn_cell")
    case = {
        "T": draw(one_of([1, 2, 5])),
        "B": draw(one_of([1, 2, 3])),
        "H": draw(one_of([1, 6, 17])),
        "reverse": [False] if plain else draw(one_of([[False], [False, True]])),
        "rows": "full" if op == "rnn_cell" else draw(one_of(["full", "lengths", "packed"])),
        "cell": draw(one_of(samples.VARIANTS["cell"])),
        "reset": draw(one_of([None, "zeros", "state"])),
        "noise": op in ("recurrence", "recurrence_backward") and draw(st.booleans()),
        "dtype": draw(one_of(["float64", "float32", "bfloat16"])),
        "source": "features" if plain else draw(one_of(["features", "ready", "table"])),
    }
    if case["rows"] == "packed":
        case["reset"] = None
    if op == "rnn_cell" and case["cell"] in rnnext._C.forms():
        case["cell"] = "elman"
    case["noise"] = samples.possible(case) and case["noise"]
    wrong = draw(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 99)), max_size=3))
    isa = draw(one_of(ISAS[::-1]))
    return {"op": op, "case": case, "wrong": wrong, "seed": draw(st.integers(0, 999)), "isa": isa}


def once_wrong(op, *wrong, **case):
    """A right call, some of whose arguments are then spoiled."""
    case["dtype"] = "float64"
    return example({"op": op, "case": case, "wrong": list(wrong), "seed": 0, "isa": ISAS[0]})


@pytest.mark.filterwarnings("ignore:Casting complex")
@settings(PROFILE, max_examples=5 * PROFILE.max_examples)
@given(calls())
@once_wrong("embedding_sparse_backward", (2, 6))  # of -1 rows
@once_wrong("recurrence", (0, 20), source="table")  # of 2**62 rows
@once_wrong("recurrence", (0, 14), T=1)  # of no steps
@once_wrong("dropout_mask", (5, 2))  # of dtype -1
@once_wrong("dropout_mask", (1, 0), (3, 4))  # of no steps of 2**40 units
@once_wrong("rnn_cell", (1, 95), cell="lstm")  # of a c without memory
def test_ops(call):
    tell("fuzz.test_ops", call)
    check(**call)
