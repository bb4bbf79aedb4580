"""The ops' promises beside right values, which tests/fuzz checks; torch's checks of every op."""

import functools
import inspect
import itertools
import mmap
import re
from dataclasses import replace

import pytest
import torch
from torch.library import opcheck

import rnnext
from cpu.test_paths import SKEWED
from fuzz.test_ops import MADE
from helpers import samples
from helpers.common import assert_close, assert_refused, cover, same
from helpers.samples import VARIANTS

ops = torch.ops.rnnext


@pytest.mark.parametrize("cell", VARIANTS["cell"])
def test_backward_keeps_the_output_and_the_saved_rows(cell):
    arguments = samples.make(B=40, cell=cell, reverse=(False, True), requires_grad=cell == "elman")
    arguments.input.requires_grad_()
    given, kept = {v.data_ptr() for v in arguments.float_tensors()}, []
    with torch.autograd.graph.saved_tensors_hooks(lambda v: kept.append(v) or v, lambda v: v):
        output, _ = arguments.call(ops.recurrence)
    own = [v for v in kept if v.data_ptr() not in given]
    assert output.data_ptr() in [v.data_ptr() for v in own]
    rows = {"rate": [1], "gru": [4], "lstm": [5]}.get(cell, [])
    assert [v.numel() / output.numel() for v in own] == [1, *rows]


def test_third_derivative():
    for nonlinearity in VARIANTS["nonlinearity"]:
        arguments = samples.make(T=3, B=2, I=2, H=3, nonlinearity=nonlinearity, requires_grad=True)
        wanted, results = arguments.to_double(), []
        for given, outputs in (
            (arguments, arguments.call(ops.recurrence)),
            (wanted, wanted.expected()),
        ):
            value = sum(v.square().sum() for v in outputs)
            for _ in range(3):
                grads = torch.autograd.grad(value, given.float_tensors(), create_graph=True)
                value = sum(g.square().sum() for g in grads)
            results.append([value, *grads])
        assert_close(*results)


@cover(
    source=["features", "ready"],
    reverse=[(False,), (False, True)],
    cell=VARIANTS["cell"],
    reset=[None, "state"],
    skewed=[False, True],
)
def test_steps_past_the_end_have_no_part_in_any_derivative(source, reverse, cell, reset, skewed):
    """Also of batches whose padding is left out."""
    options = {"source": source, "reverse": reverse, "cell": cell, "reset": reset}
    sizes = {"T": 100, "B": len(SKEWED), "I": 33, "H": 65} if skewed else {}
    arguments = samples.make(rows="lengths", requires_grad=True, **options, **sizes)
    if skewed:
        arguments = replace(arguments, lengths=torch.tensor(SKEWED))
    tensors = arguments.float_tensors()
    past = torch.arange(len(arguments.input)).view(-1, 1) >= arguments.lengths
    cotangent, expected = torch.rand_like(arguments.call(ops.recurrence)[0]), []
    for filling in (0.0, float("nan")):
        with torch.no_grad():
            arguments.input[past] = filling
            cotangent[past] = filling
            if reset:
                arguments.reset[past] = filling != 0
        for create_graph in (False,) if skewed else (False, True):
            output, _ = arguments.call(ops.recurrence)
            grads = torch.autograd.grad(output, tensors, cotangent, create_graph=create_graph)
            expected = expected or grads
            assert_close(grads, expected)
            if create_graph:
                second = torch.autograd.grad(sum(g.square().sum() for g in grads), tensors)
                assert all(g.isfinite().all() for g in second)


@cover(cell=VARIANTS["cell"], reset=["zeros", "state"], rows=["full", "lengths"], T=[1, 5])
def test_states_that_no_step_reads_have_no_part_in_any_gradient(cell, reset, rows, T):
    arguments = samples.make(rows=rows, cell=cell, reset=reset, T=T, requires_grad=True)
    arguments.reset[:, 0], arguments.reset[0, 2] = False, True
    unread = [2] if rows == "full" else [1, 2]  # of the lengths one is 0
    cotangent, expected = torch.rand_like(arguments.call(ops.recurrence)[0]), []
    for filling in (0.0, float("nan"), float("inf")):
        with torch.no_grad():
            if reset == "state":
                arguments.reset_state[:, 0] = filling
            arguments.hx[:, unread] = filling
        output, _ = arguments.call(ops.recurrence)
        grads = torch.autograd.grad(output, arguments.float_tensors(), cotangent)
        expected = expected or grads
        assert same(grads, expected)


@pytest.mark.parametrize(
    ("rows", "cell"),
    [("full", "elman"), ("lengths", "voltage"), ("packed", "rate"), ("full", "gru"),
     ("packed", "lstm")],
)  # fmt: skip
def test_gradients_of_a_stack(rows, cell):
    stack = samples.make_stack(3, T=3, B=2, I=2, H=3, rows=rows, cell=cell)
    assert torch.autograd.gradcheck(*stack.as_function(ops.recurrence_stack))


@pytest.mark.parametrize("cell", VARIANTS["cell"])
def test_a_stack_is_its_layers_one_after_the_other(cell):
    stack = samples.make_stack(3, T=4, B=2, I=3, H=5, cell=cell, reset="state", requires_grad=True)
    expected = stack.call(ops.recurrence_stack)  # which autograd records layer by layer
    with torch.no_grad():
        assert same(stack.call(ops.recurrence_stack), [v.detach() for v in expected])


@pytest.mark.parametrize("dtype", VARIANTS["dtype"])
def test_the_same_bits_where_threads_run_layers_as_a_pipeline(dtype):
    """(With gradients a layer is computed after the other.)"""
    for layers, B in itertools.product([2, 3, 5], [1, 2, 4]):
        rnn, inputs = rnnext.RNN(64, 64, layers, dtype=dtype), torch.randn(2, 100, B, 64).to(dtype)
        torch.set_num_threads(1)
        expected = [[v.detach() for v in rnn(x)] for x in inputs]
        for threads in (2, 4):
            torch.set_num_threads(threads)
            for i in range(8):  # what the call before left in memory is wrong for this one
                with torch.no_grad():
                    assert same(rnn(inputs[i % 2]), expected[i % 2])


# The parts of calls of the recurrence's ops; and arguments of the ops beside it.
LEAKY = {"reset": "state", "reverse": (False, True), "rows": "lengths"}
CASES = [
    {"source": "ready", "reverse": (False, True)},
    {"source": "features", "rows": "lengths", "reverse": (False, True)},
    {"source": "table", "rows": "packed", "reverse": (False, True)},
    *({"cell": cell, **LEAKY} for cell in ("rate", "voltage", "gru", "lstm")),
    {"hx": False, "bias": False, "reset": "zeros"},
    {"cell": "rate", "noise": True},
]
TABLE, TOKENS = torch.rand(5, 3), torch.tensor([[0, 4], [4, 2]])
OF_OTHERS = {
    "noise": [(torch.tensor([1, -2]), 3, 2, 2, 5)],
    "occurring": [(TOKENS, 5, 5), (TOKENS, 5, 1)],
    "embedding": [
        (TABLE.clone().requires_grad_(), TOKENS, -1, False, False),
        (TABLE, TOKENS.int(), 4, True, True),
    ],
    "embedding_backward": [(torch.rand(2, 2, 3, requires_grad=True), TOKENS, 5, -1, True)],
    "embedding_sparse_backward": [(torch.rand(2, 2, 3), TOKENS, 5, 4, False)],
}


def op_samples(op):
    """Positional and keyword arguments of a few calls of an op."""
    if op in OF_OTHERS:
        yield from ((arguments, {}) for arguments in OF_OTHERS[op])
        return
    modules = op in ("rnn", "rnn_cell", "recurrence_stack")
    once = op in ("rnn_cell", "dropout_mask")
    for case in CASES[:1] if once else CASES[:-2] if modules else CASES:
        if modules:
            case = {**case, "source": "features", "reverse": (False,), "bias": True, "hx": True}
            case["noise"] = False
        make = functools.partial(samples.make_stack, 3) if op.endswith("stack") else samples.make
        yield (), MADE[op](make(**case, requires_grad="backward" not in op))


def test_every_op_has_samples():
    names = torch._C._dispatch_get_all_op_names()
    defined = {name.removeprefix("rnnext::") for name in names if name.startswith("rnnext::")}
    assert set(MADE) == defined


def test_every_op_is_documented_and_takes_its_arguments_in_one_order():
    order = list(vars(samples.make()))
    for name in MADE:
        schema = [a.name for a in getattr(ops, name).default._schema.arguments]
        shared = [argument for argument in schema if argument in order]
        assert shared == [argument for argument in order if argument in shared]
        function = getattr(rnnext.ops, name, None) or getattr(rnnext.functional, name, None)
        if function is None:
            said = (f"``{name}``", f"``{name}(", f".{name}(")
            assert any(words in rnnext.ops.__doc__ for words in said)
            continue
        names = list(inspect.signature(function).parameters)
        if function.__module__ == "rnnext.ops":
            assert name in rnnext.ops.__all__
            assert names == schema
        documented = inspect.getdoc(function)  # indented alike in every version of Python
        arguments = documented.split("Args:")[1].split("Returns:")[0]
        assert ", ".join(re.findall(r"^ {4}(\w+(?:, \w+)*):", arguments, re.M)).split(", ") == names
        assert "Raises:" in documented


@pytest.mark.parametrize("op", MADE)
def test_opcheck(op):
    for arguments, keywords in op_samples(op):
        opcheck(getattr(ops, op).default, arguments, keywords)


def test_sizes_past_31_bits():
    # Virtual memory alone: only the pages that are read or written come into being.
    far = torch.frombuffer(mmap.mmap(-1, 2**32 + 8192), dtype=torch.float16)
    table = far[: 2**31 + 64].view(-1, 64)
    table[-1] = torch.arange(64)
    assert torch.equal(ops.embedding(table, torch.tensor([2**25])), table[-1:])
    # Two steps and two sequences, 2^30 elements apart.
    weights = [torch.eye(2, dtype=torch.float16)]
    x = far.as_strided((2, 2, 2), (2**30, 2**30, 1)).zero_()
    x[1, 1] = 2
    arguments = samples.Recurrence(input=x, weight_hh=weights, nonlinearity="relu")
    output, _ = arguments.call(ops.recurrence)
    assert output[1, 1].tolist() == [2, 2]
    assert output.sum() == 4
    huge = torch.zeros(1, 1, 2, dtype=torch.float16).expand(2**31, 2**30, 2)
    assert_refused(replace(arguments, input=huge).call, RuntimeError, "overflow", ops.recurrence)


def test_each_bias_has_a_gradient_of_its_own():
    for reverse, create_graph in itertools.product([(False,), (False, True)], [False, True]):
        arguments = samples.make(reverse=reverse, requires_grad=True)
        loss = arguments.call(ops.recurrence)[0].square().sum()
        biases = [*arguments.bias_ih, *arguments.bias_hh]
        grads = torch.autograd.grad(loss, biases, create_graph=create_graph)
        expected = [g.detach() * 2 for g in grads]
        with torch.no_grad():
            torch._foreach_mul_(grads, 2)
        assert_close(grads, expected)
