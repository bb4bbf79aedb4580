"""What the CPU kernels promise beyond the right values: the same bits, and a tanh within 2 ULP."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import rnnext
from helpers import samples
from helpers.common import (
    assert_close,
    case_id,
    pairwise,
    run_python,
    same,
    supported_isas,
)

recurrence = torch.ops.rnnext.recurrence
# The stand-in of AMX has kernels of its own only for bfloat16 products.
FMA_ISAS = [isa for isa in supported_isas() if isa not in ("generic", "amx_stand_in")]
TILE_ISAS = [isa for isa in supported_isas() if isa in ("amx", "amx_stand_in")]
DOT_ISAS = ["avx512_bf16", *TILE_ISAS]
MEDIUM_CASES = pairwise(
    T=[1, 6],
    B=[1, 7],
    I=[5, 64],
    H=[9, 64],
    source=["features", "ready", "table"],
    reverse=[(False,), (False, True)],
    nonlinearity=["tanh", "relu"],
    rows=["full", "lengths", "packed"],
)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def check_step_by_step(arguments):
    """Calls of one step, each on the state of the one before, give the bits of one call."""
    output, h_n = arguments.call(recurrence)
    state = arguments.hx
    for x, expected in zip(arguments.input, output, strict=True):
        _, state = replace(arguments, input=x.unsqueeze(0), hx=state).call(recurrence)
        assert torch.equal(state[0], expected)
    assert torch.equal(state, h_n)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("source", ["features", "ready", "table"])
@pytest.mark.parametrize("H", [7, 64, 129])
def test_the_same_bits_for_any_batch(dtype, source, H, isa, threads):
    arguments = samples.make(
        T=9, B=26, I=19, H=H, source=source, reverse=(False, True), dtype=dtype, rows="lengths"
    )
    output, h_n = arguments.call(recurrence)
    for rows in (slice(0, 1), slice(3, 6), slice(5, 17), slice(0, 13), slice(1, 26)):
        expected = output[:, rows], h_n[:, rows]
        assert same(arguments.sequences(rows).call(recurrence), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reverse", [(False,), (False, True)])
def test_the_same_bits_where_the_output_is_prefetched(dtype, reverse, isa, threads):
    """Outputs of 1 MiB and more are prefetched before they are written."""
    step = 40 * 70 * len(reverse) * dtype.itemsize
    arguments = samples.make(T=2**20 // step + 1, B=40, I=3, H=70, reverse=reverse, dtype=dtype)
    output, h_n = arguments.call(recurrence)
    assert output.nbytes >= 2**20
    part = arguments.sequences(slice(33, 36))
    assert same(part.call(recurrence), (output[:, 33:36], h_n[:, 33:36]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("leak", [None, "rate", "voltage"])
def test_the_same_bits_where_steps_are_held(dtype, reverse, leak, isa):
    """Threads that have narrow rows beside each other write several steps at once, the last time
    fewer."""
    H = 280 // dtype.itemsize
    arguments = samples.make(T=61, B=13, I=41, H=H, reverse=(reverse,), leak=leak, dtype=dtype)
    assert rnnext._C.plan(T=61, B=13, I=41, H=H, dtype=dtype, threads=2)["held_steps"] > 1
    torch.set_num_threads(1)
    expected = arguments.call(recurrence)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert same(arguments.call(recurrence), expected)
    part = arguments.sequences(slice(5, 9))
    assert same(part.call(recurrence)[:2], (expected[0][:, 5:9], expected[1][:, 5:9]))


@pytest.mark.parametrize(("T", "B", "H"), [(20_000, 2, 64), (2000, 2, 300), (100, 32, 1024)])
def test_float32_is_about_as_exact_as_torch(T, B, H):
    """Over long runs, and where H is large: a single chain of H sums errs up to four times as much
    as the parallel sums of a matrix library."""
    torch.manual_seed(0)
    theirs = torch.nn.RNN(16, H)
    ours, exact = rnnext.convert(copy.deepcopy(theirs)), copy.deepcopy(theirs).double()
    x = torch.randn(T, B, 16)
    with torch.no_grad():
        expected = exact(x.double())[0]
        errors = [(rnn(x)[0] - expected).square().mean().sqrt() for rnn in (ours, theirs)]
    assert errors[0] <= 1.5 * errors[1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("H", [1, 8, 17, 64, 200])
@pytest.mark.parametrize("B", [1, 2, 13, 40])
def test_the_same_bits_for_any_threads_and_isa(dtype, H, B):
    arguments = samples.make(T=12, B=B, I=21, H=H, reverse=(False, True), dtype=dtype)
    results = {}
    tiles = TILE_ISAS if dtype == torch.bfloat16 else []
    for isa in {*FMA_ISAS, *tiles}:
        rnnext._C.set_cpu_isa(isa)
        # The dot product of bfloat16 pairs adds in another order, and tiles in a third.
        dot = "dot" if isa == "avx512_bf16" and dtype == torch.bfloat16 else "multiply-add"
        kind = "tiles" if isa in tiles else dot
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.setdefault(kind, []).append(arguments.call(recurrence))
    assert all(same(result, alike[0]) for alike in results.values() for result in alike)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ["full", "lengths", "packed"])
@pytest.mark.parametrize(
    ("B", "H", "reverse"),
    [(1, 200, (False,)), (2, 321, (True,)), (3, 200, (False,)), (1, 200, (False, True))],
)
def test_the_same_bits_where_threads_share_a_sequence(dtype, rows, B, H, reverse, isa):
    """Few sequences, large weights: threads split the hidden units and wait for each other. Four
    and six make groups, each with sequences or a direction of its own."""
    arguments = samples.make(
        T=12, B=B, I=21, H=H, rows=rows, reverse=reverse, dtype=dtype, requires_grad=True
    )
    inputs = arguments.float_tensors()
    torch.set_num_threads(1)
    expected = arguments.call(recurrence)
    cotangents = [torch.rand_like(v) for v in expected]
    gradients = torch.autograd.grad(expected, inputs, cotangents)
    for threads in (2, 3, 4, 6):
        torch.set_num_threads(threads)
        result = arguments.call(recurrence)
        assert same(result, expected)
        for a, e in zip(torch.autograd.grad(result, inputs, cotangents), gradients, strict=True):
            assert_close(a, e, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("H", [64, 129, 1030])
def test_the_same_bits_with_lengths_that_change_nothing(dtype, H, isa, threads):
    """The state is then a copy in scratch; otherwise, up to some H, it is read from the output."""
    arguments = samples.make(T=5, B=11, I=9, H=H, reverse=(False,), dtype=dtype, requires_grad=True)
    given = replace(arguments, lengths=torch.full((11,), 5))
    inputs = arguments.float_tensors()
    result, expected = arguments.call(recurrence), given.call(recurrence)
    assert same(result, expected)
    cotangents = [torch.rand_like(v) for v in result]
    for a, e in zip(
        torch.autograd.grad(result, inputs, cotangents),
        torch.autograd.grad(expected, inputs, cotangents),
        strict=True,
    ):
        assert_close(a, e, dtype)


@pytest.fixture
def medium():
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("case", MEDIUM_CASES, ids=case_id)
def test_medium_precision_is_within_bfloat16(case, isa, threads, medium):
    arguments = samples.make(**case, dtype=torch.float32, requires_grad=True)
    wanted = arguments.to_double()
    result, expected = arguments.call(recurrence), wanted.expected()
    assert_close(result, expected, torch.bfloat16)
    cotangents = [torch.rand_like(v) for v in result]
    torch.autograd.backward(result, cotangents)
    torch.autograd.backward(expected, [c.double() for c in cotangents])
    for a, e in zip(arguments.float_tensors(), wanted.float_tensors(), strict=True):
        if e.grad is not None:
            assert_close(a.grad, e.grad, torch.bfloat16)
    torch.set_float32_matmul_precision("highest")
    with torch.no_grad():
        exact = arguments.call(recurrence)
    assert_close(exact, expected)
    # Only products of bfloat16 make "medium" faster, so only there may it differ.
    assert same(result, exact) == (isa not in DOT_ISAS)


def test_high_precision_changes_what_tiles_multiply(isa, medium):
    arguments = samples.make(T=3, B=7, I=64, H=64, dtype=torch.float32)
    torch.set_float32_matmul_precision("high")
    high = arguments.call(recurrence)
    assert_close(high, arguments.to_double().expected())
    torch.set_float32_matmul_precision("highest")
    assert same(high, arguments.call(recurrence)) == (isa not in TILE_ISAS)


@pytest.mark.parametrize("H", [7, 64, 129])
def test_the_same_bits_at_medium_precision(H, isa, threads, medium):
    dtype = torch.float32
    arguments = samples.make(
        T=9, B=26, I=19, H=H, reverse=(False, True), rows="lengths", dtype=dtype
    )
    output, h_n = arguments.call(recurrence)
    for rows in (slice(0, 1), slice(5, 17), slice(1, 26)):
        assert same(arguments.sequences(rows).call(recurrence), (output[:, rows], h_n[:, rows]))
    check_step_by_step(samples.make(T=9, B=5, I=19, H=H, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_step_by_step(dtype, isa):
    check_step_by_step(samples.make(T=9, B=5, I=19, H=33, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_backwards_shortened_and_packed(dtype, isa):
    arguments = samples.make(T=9, B=3, I=19, H=33, dtype=dtype, reverse=(True,))
    input = arguments.input
    lengths, batch_sizes = torch.tensor([9, 9, 4]), torch.tensor([3] * 4 + [2] * 5)
    output, h_n = arguments.call(recurrence)
    turned = replace(arguments, input=input.flip(0), reverse=[False]).call(recurrence)
    assert same((turned[0].flip(0), turned[1]), (output, h_n))
    shortened = replace(arguments, lengths=lengths).call(recurrence)
    assert torch.equal(shortened[0][:, :2], output[:, :2])
    alone = replace(arguments, input=input[:4]).sequences(slice(2, 3)).call(recurrence)
    assert torch.equal(shortened[0][:4, 2:], alone[0])
    assert torch.equal(shortened[1][:, 2:], alone[1])
    present = torch.arange(9).unsqueeze(1) < lengths
    packed = replace(arguments, input=input[present], batch_sizes=batch_sizes).call(recurrence)
    assert same(packed, (shortened[0][present], shortened[1]))


def tanh(x):
    """tanh of each element, by one step of the recurrence: as one unit and as a row of units."""
    zero = torch.zeros(1, 1, dtype=x.dtype)
    one, _ = samples.Recurrence(input=x.view(1, -1, 1), weight_hh=[zero]).call(recurrence)
    wide = torch.zeros(x.numel() // 8, x.numel() // 8, dtype=x.dtype)
    row, _ = samples.Recurrence(input=x.view(1, 8, -1), weight_hh=[wide]).call(recurrence)
    torch.testing.assert_close(one.flatten(), row.flatten(), rtol=0, atol=0, equal_nan=True)
    return one.flatten()


@pytest.mark.parametrize(
    ("dtype", "exact"), [(torch.float32, np.float64), (torch.float64, np.longdouble)]
)
def test_tanh_is_within_two_units_in_the_last_place(dtype, exact, isa):
    kind = np.float32 if dtype is torch.float32 else np.float64
    info = np.finfo(kind)
    # Every exponent, subnormal ones too, with 32 mantissas each; more where tanh bends.
    exponents = np.arange(info.minexp - info.nmant, info.maxexp, dtype=np.int32)
    mantissas = 1 + np.random.default_rng(0).random((len(exponents), 32), dtype=np.float64)
    x = np.ldexp(mantissas, exponents[:, None]).astype(kind).ravel()
    x = np.concatenate([x, np.linspace(1e-3, 24, 8 * 2048).astype(kind)])
    x = np.concatenate([x, -x])
    for part in np.array_split(x[: len(x) // 64 * 64], 8):
        y = tanh(torch.from_numpy(part[: len(part) // 8 * 8])).numpy()
        wanted = np.tanh(part[: len(y)].astype(exact))
        ulp = np.spacing(np.abs(wanted.astype(kind))).astype(exact)
        error = np.abs(y.astype(exact) - wanted) / ulp
        assert error.max() <= 2
        assert np.abs(y).max() <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tanh_of_16_bits_is_within_055_units_in_the_last_place(dtype, isa):
    """Of every value of the type, and of sums of two: what is between is rounded but once."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    # (The CPU's bfloat16 instructions take subnormal numbers as zeros.)
    every = every[every.isfinite() & (every.abs() >= 2 * torch.finfo(dtype).tiny)]
    every = every[: len(every) // 8 * 8]
    x = torch.linspace(-6, 6, 2**16).view(1, -1, 1)
    pair = torch.cat([x.to(dtype), (x - x.to(dtype)).to(dtype)], dim=2)
    arguments = samples.Recurrence(
        input=pair,
        weight_ih=[torch.ones(1, 2, dtype=dtype)],
        weight_hh=[torch.zeros(1, 1, dtype=dtype)],
    )
    between = arguments.call(recurrence)[0]
    for pre, h in ((every, tanh(every)), (pair.double().sum(dim=2), between)):
        wanted = pre.double().flatten().tanh()
        info = torch.finfo(dtype)
        exponent = torch.frexp(wanted.abs().clamp(min=info.tiny)).exponent - 1
        ulp = info.eps * 2 ** exponent.double()
        error = (h.double().flatten() - wanted).abs() / ulp
        assert error.max() <= 0.55
        assert h.abs().max() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_tanh_is_odd_and_exact_where_it_must_be(dtype, isa):
    x = torch.cat([torch.rand(4000, dtype=dtype) * 30, torch.rand(4000, dtype=dtype) * 1e-3])
    assert torch.equal(tanh(-x), -tanh(x))
    tiny = 2 * torch.finfo(dtype).tiny if dtype.itemsize == 2 else 1e-30
    special = torch.tensor([0.0, 20.0, -20.0, 6e4, float("inf"), -float("inf"), -0.0, tiny])
    expected = torch.tensor([0.0, 1.0, -1.0, 1.0, 1.0, -1.0, 0.0, tiny])
    assert torch.equal(tanh(special.to(dtype)), expected.to(dtype))
    assert tanh(torch.full((8,), float("nan"), dtype=dtype)).isnan().all()


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_nan_stays_in_its_row(nonlinearity, isa):
    arguments = samples.make(T=4, B=13, H=17, nonlinearity=nonlinearity, dtype=torch.float32)
    arguments.input[1, 5] = float("nan")
    output, _ = arguments.call(recurrence)
    assert output[1:, 5].isnan().all()
    assert not output[:, [b for b in range(13) if b != 5]].isnan().any()
    assert not output[0].isnan().any()


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("B", "H", "T"), [(1, 200, 3), (13, 17, 3), (2, 321, 3), (5, 64, 2)])
def test_a_diverged_weight_shows_in_the_first_step(B, H, T, dtype, broken, isa, threads):
    """Zeros times it are NaN, as in torch.nn, though a product with zeros is skipped."""
    arguments = samples.make(T=T, B=B, I=4, H=H, hx=False, reverse=(False, True), dtype=dtype)
    finite = arguments.call(recurrence)[0]
    unit = H // 2
    arguments.weight_hh[1][unit, H - 1] = broken
    output = arguments.call(recurrence)[0]
    first = output[T - 1, :, H:]
    assert first[:, unit].isnan().all()
    others = torch.arange(H) != unit
    assert torch.equal(first[:, others], finite[T - 1, :, H:][:, others])
    assert torch.equal(output[..., :H], finite[..., :H])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("H", [6, 7])
def test_infinite_states_of_odd_rows_stay_infinite(dtype, H, isa, medium):
    weight = torch.full((H, H), 1e25, dtype=dtype)
    input, hx = torch.zeros(4, 2, H, dtype=dtype), torch.ones(1, 2, H, dtype=dtype)
    output, _ = samples.Recurrence(
        input=input, hx=hx, weight_hh=[weight], nonlinearity="relu"
    ).call(recurrence)
    assert output[0].isfinite().all()
    assert output[1:].isinf().all()


@pytest.mark.parametrize("isa", supported_isas())
def test_the_environment_lowers_the_isa(isa):
    result = run_python("-c", "import rnnext; print(rnnext._C.cpu_isa())", RNNEXT_CPU_ISA=isa)
    assert result.stdout.strip() == isa


def test_an_unknown_isa_is_refused():
    for name in ("avx1024", "AVX2"):
        with pytest.raises(ValueError, match=name):
            rnnext._C.set_cpu_isa(name)
    result = run_python("-c", "import rnnext", RNNEXT_CPU_ISA="avx1024")
    assert result.returncode != 0
    assert "avx1024" in result.stderr
