"""Calls of every size at which the kernels go a way of their own: values, gradients and bits."""

from dataclasses import replace

import pytest
import torch
from torch.autograd.profiler import profile

import rnnext
from helpers import samples
from helpers.common import ISAS, assert_close, cover, same
from rnnext import _C
from rnnext.explain import explain

recurrence = torch.ops.rnnext.recurrence
# T, B, I, H.
SIZES = {
    "any": (9, 26, 19, 65),
    "tiles": (3, 33, 64, 97),
    "few features": (6, 9, 2, 39),
    "few rows": (2, 3, 9, 7),
    "prefetched output": (109, 40, 3, 70),  # one step in the last chunk of gradients
    "both directions by one thread": (12, 40, 24, 70),
    "shared": (12, 1, 21, 200),
    "shared and ragged": (12, 2, 21, 321),
    "weights packed by all": (4, 40, 130, 300),
    "panels in pairs": (3, 17, 40, 140),
    "no state in the output": (5, 11, 9, 1030),
    "more rows than a group or gradients take at once": (2, 600, 5, 17),
    "one step of a few": (1, 3, 3, 7),
    "one step of a few, whole panels": (1, 2, 40, 70),
    "one step": (1, 26, 21, 70),
    "one step of whole panels": (1, 26, 64, 128),
    "one step of large weights": (1, 26, 130, 300),
    "one step of many": (1, 270, 21, 70),
    "padding left out": (100, 24, 33, 65),
    "more rows than a chunk": (2, 180, 130, 300),
}
# A fifth of this batch exists; it is large enough for its padding to be left out.
SKEWED = [100, 0, 3, 40, 7, 1, 60, 22, 5, 0, 12, 9, 33, 2, 4, 50, 8, 1, 17, 6, 3, 2, 90, 11]
# The tensors' dtype, and the one that products are as exact as.
KINDS = {str(t).removeprefix("torch."): (t, t) for t in samples.DTYPES} | {
    "medium": (torch.float32, torch.bfloat16),
    "high": (torch.float32, torch.float32),
}


def sized(size, kind, **case):
    T, B, I, H = SIZES[size]  # noqa: E741
    if kind in ("medium", "high"):
        torch.set_float32_matmul_precision(kind)
    made = samples.make(T=T, B=B, I=I, H=H, dtype=KINDS[kind][0], requires_grad=True, **case)
    if size == "padding left out" and made.lengths is not None:
        return replace(made, lengths=torch.tensor(SKEWED))
    return made


def k_pack(kind, T, B, I, H):  # noqa: E741
    """Whether a call of these sizes multiplies numbers (1) or pairs (2)."""
    return _C.plan(T=T, B=B, I=I, H=H, dtype=KINDS[kind][0], threads=1)["k_pack"]


def valid(case):
    """The stand-in of AMX has its own kernels for few kinds. The gradient of alpha sums changes of
    the state: where these are many and 16-bit, it is too inexact to compare."""
    own = case["isa"] != "amx_stand_in" or case["kind"] in ("bfloat16", "medium", "high")
    T, B, _, _ = SIZES[case["size"]]
    right_rows = case["size"] != "padding left out" or case["rows"] == "lengths"
    summed = case["cell"] in _C.forms() and KINDS[case["kind"]][1] in samples.HALVES and T * B > 30
    return samples.possible(case) and own and right_rows and not summed


@cover(
    "case",
    valid,
    size=SIZES,
    kind=KINDS,
    source=["features", "ready", "table"],
    reverse=[(False,), (False, True), (True,)],
    nonlinearity=["tanh", "sigmoid"],
    hx=[True, False],
    rows=["full", "lengths", "packed"],
    layout=["contiguous", "strided"],
    cell=["elman", "rate", "voltage", "gru", "lstm"],
    reset=[None, "zeros", "state"],
    isa=ISAS,
    threads=[1, 2, 3, 6],
)
def test_values_gradients_and_bits(case, isa, threads):
    arguments = sized(**case)
    output, h_n = samples.check(arguments, KINDS[case["kind"]][1])
    fixed = arguments.detach()
    assert same(fixed.call(recurrence), (output, h_n))  # as nothing is saved
    torch.set_num_threads(1)
    assert same(fixed.call(recurrence), (output, h_n))
    torch.set_num_threads(threads)
    if case["rows"] == "packed":
        return
    T, B, I, H = SIZES[case["size"]]  # noqa: E741

    def alike(rows):
        """Whether so many rows take the same kernels, without those that have no steps too."""
        n, kind = rows.stop - rows.start, case["kind"]
        there = n if fixed.lengths is None else int((fixed.lengths[rows] > 0).sum())
        return there > 0 and len({k_pack(kind, T, b, I, H) for b in (there, n, B)}) == 1

    for rows in (slice(0, 1), slice(B // 4, B // 2 + 1), slice(1, B)):
        if alike(rows):
            assert same(fixed.sequences(rows).call(recurrence), (output[:, rows], h_n[:, rows]))
    if case["rows"] == "full":  # the state is then kept elsewhere
        assert same(replace(fixed, lengths=torch.full((B,), T)).call(recurrence), (output, h_n))
    part = slice(B // 5, B // 2)
    if case["source"] == "features" and case["hx"] and alike(part):
        result, alone = arguments.call(recurrence), arguments.sequences(part)
        cotangents = [torch.rand_like(v) for v in result]
        found = torch.autograd.grad(result, [arguments.input, arguments.hx], cotangents)
        own = [c[:, part] for c in cotangents]
        expected = torch.autograd.grad(alone.call(recurrence), [alone.input, alone.hx], own)
        assert same([gradient[:, part] for gradient in found], expected)


@pytest.mark.parametrize("size", [size for size in SIZES if size != "padding left out"])
def test_plain_calls_of_every_size(size):
    """Some paths take only calls without options, which a pairwise cover may not have."""
    for cell in ("elman", "gru", "lstm"):
        for kind, threads in (("float32", 2), ("float64", 1), ("bfloat16", 2)):
            torch.set_num_threads(threads)
            samples.check(sized(size, kind, cell=cell))
    torch.set_num_threads(3)
    samples.check(sized(size, "float64", noise=True), torch.float32)  # as exact as the noise


# Gradients of weights take 256 rows at once.
@cover(rows=[(1, 255), (16, 16), (257, 1), (1, 257), (7, 73), (40, 16)], H=[31, 32, 33], isa=ISAS)
def test_sizes_around_whole_vectors_and_whole_sums(rows, H, isa):
    (T, B), single = rows, torch.float32
    for threads, dtype in (1, single), (2, single), (2, torch.float64), (1, torch.bfloat16):
        torch.set_num_threads(threads)
        samples.check(samples.make(T=T, B=B, I=20, H=H, dtype=dtype, requires_grad=True))
    frozen = samples.make(T=T, B=B, I=20, H=H, bias=False, dtype=single, requires_grad=True)
    for weight in frozen.weight_ih + frozen.weight_hh:
        weight.requires_grad_(False)
    samples.check(frozen)


@cover(cell=["GRU", "LSTM"], dtype=samples.DTYPES, H=[256, 260], isa=ISAS)
def test_gradients_of_a_call_whose_gates_are_written_past_the_caches(cell, dtype, H, isa):
    """They have the bits of calls half as large, which write into the caches."""
    torch.set_num_threads(2)
    rnn = getattr(rnnext, cell)(5, H, dtype=dtype)
    x = torch.randn(128 // dtype.itemsize, 72, 5, dtype=dtype)

    def gradients(x):
        x.requires_grad_()
        output = rnn(x)[0]
        return torch.autograd.grad(output, [x, *rnn.parameters()], output.detach())

    (of_x, *of_weights), *parts = map(gradients, (x, *x.split(36, 1)))
    assert same(of_x, torch.cat([part[0] for part in parts], 1))
    for whole, *halves in zip(of_weights, *(part[1:] for part in parts), strict=True):
        assert_close(sum(halves), whole, dtype=dtype)


def order_of_sums(isa, kind, size, nonlinearity):
    """In products and in tanh's polynomial. The dot product of bfloat16 pairs adds in another order
    than multiply-adds, and tiles add in a third."""
    sums = "no multiply-add" if isa in ("generic", "amx_stand_in") else "multiply-add"
    if k_pack(kind, *SIZES[size]) == 1:
        return sums, sums
    if "amx" in isa:
        return "tiles", sums if nonlinearity == "tanh" else None
    return "pairs", sums


@cover(
    valid=samples.possible,
    size=["any", "no state in the output", "one step", "one step of large weights"],
    kind=KINDS,
    nonlinearity=["tanh", "relu"],
    cell=["elman", "gru", "lstm"],
)
def test_the_same_bits_on_every_isa_that_sums_alike(size, kind, nonlinearity, cell):
    options = {"reverse": (False, True), "nonlinearity": nonlinearity, "cell": cell}
    arguments = sized(size, kind, **options).detach()
    results, orders = {}, {}
    for isa in ISAS:
        _C.set_cpu_isa(isa)
        orders[isa] = order_of_sums(isa, kind, size, nonlinearity)
        results.setdefault(orders[isa], []).append(arguments.call(recurrence))
    for alike in results.values():
        assert all(same(result, alike[0]) for result in alike)
    # Only products of pairs and of tiles make lower precisions faster: only there may they differ.
    if kind in ("medium", "high"):
        torch.set_float32_matmul_precision("highest")
        for isa, order in orders.items():
            _C.set_cpu_isa(isa)
            same_bits = same(arguments.call(recurrence), results[order][0])
            assert same_bits == (order[0] not in ("tiles", "pairs"))


def test_no_features_and_nothing_but_padding():
    given = sized("padding left out", "float64", rows="lengths").detach()
    input = torch.zeros(100, len(SKEWED), 0, dtype=torch.float64, requires_grad=True)
    empty = replace(given, input=input, weight_ih=[torch.zeros(65, 0).double()], hx=None)
    (gradient,) = torch.autograd.grad(empty.call(recurrence)[0].sum(), input)
    assert gradient.shape == input.shape
    output, h_n = replace(given, lengths=torch.zeros_like(given.lengths)).call(recurrence)
    assert not output.any()
    assert torch.equal(h_n, given.hx)


@pytest.mark.parametrize(("H", "B"), [(16, 6), (65, 24), (700, 6)])
def test_explain_knows_when_padding_is_left_out(H, B):
    torch.set_num_threads(2)
    rnn, hx = rnnext.RNN(33, H), torch.zeros(1, B, H, requires_grad=True)
    output, _ = rnn(torch.rand(100, B, 33), hx, lengths=SKEWED[:B])
    with profile() as profiler:
        output.sum().backward()
    unpadded = any(event.name == "aten::index_copy_" for event in profiler.function_events)
    sizes = {"T": 100, "I": 33, "H": H, "dtype": torch.float32, "train": True, "threads": 2}
    plan = _C.plan(B=B, lengths=SKEWED[:B], hx=True, **sizes)
    assert plan["unpadded"] == unpadded
    text = explain(100, B, 33, H, lengths=SKEWED[:B], hx=True, train=True, threads=2)
    assert ("padding is left out" in text) == unpadded
    if unpadded:  # the plan is that of the sequences that exist
        assert plan["group_rows"] <= sum(length > 0 for length in SKEWED[:B])
