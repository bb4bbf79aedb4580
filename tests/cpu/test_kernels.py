"""What the CPU kernels promise beyond the right values: the same bits, and a tanh within 2 ULP."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import rnnext
from helpers import samples
from helpers.common import ISAS, cover, same

recurrence = torch.ops.rnnext.recurrence
DTYPES = samples.DTYPES


@pytest.mark.parametrize(("T", "B", "H"), [(1000, 2, 300), (50, 32, 1024)])
def test_float32_is_about_as_exact_as_torch(T, B, H):
    """Over long runs, and where H is large: a single chain of H sums errs up to four times as much
    as the parallel sums of a matrix library."""
    theirs = torch.nn.RNN(16, H)
    ours, exact = rnnext.convert(copy.deepcopy(theirs)), copy.deepcopy(theirs).double()
    x = torch.randn(T, B, 16)
    with torch.no_grad():
        expected = exact(x.double())[0]
        errors = [(rnn(x)[0] - expected).square().mean().sqrt() for rnn in (ours, theirs)]
    assert errors[0] <= 1.5 * errors[1]


@cover(dtype=DTYPES, H=[33, 129], leak=[None, "rate", "voltage", "blend"], isa=ISAS)
def test_the_same_bits_step_by_step_backwards_shortened_and_packed(dtype, H, leak, isa):
    arguments = samples.make(T=9, B=26, I=19, H=H, dtype=dtype, leak=leak, reset="state")
    output, h_n = arguments.call(recurrence)
    state = arguments.hx
    for t in range(9):
        step = {name: getattr(arguments, name)[t : t + 1] for name in ("input", "reset")}
        one, state = replace(arguments, **step, hx=state).call(recurrence)
        assert torch.equal(one[0], output[t])
    assert torch.equal(state, h_n)
    arguments = samples.make(T=9, B=3, I=19, H=H, dtype=dtype, leak=leak)
    input, (output, h_n) = arguments.input, arguments.call(recurrence)
    turned = replace(arguments, input=input.flip(0), reverse=[True]).call(recurrence)
    assert same((turned[0].flip(0), turned[1]), (output, h_n))
    lengths, batch_sizes = torch.tensor([9, 9, 4]), torch.tensor([3] * 4 + [2] * 5)
    present = torch.arange(9).unsqueeze(1) < lengths
    shortened = replace(arguments, lengths=lengths).call(recurrence)
    assert torch.equal(shortened[0][present], output[present])
    if leak != "voltage":  # whose output is not the state
        assert torch.equal(shortened[1][0], output[lengths - 1, torch.arange(3)])
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


@pytest.mark.parametrize(
    ("name", "exact", "bound", "extremes"),
    [
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x)), 2.4, [0, 0, 1, 1]),
        ("softplus", lambda x: np.where(x > 20, x, np.logaddexp(0, x)), 2.6, [0, 0, 1e30, np.inf]),
    ],
    ids=["sigmoid", "softplus"],
)
def test_the_errors_of_sigmoid_and_softplus(name, exact, bound, extremes, isa):
    """In ULP, as docs/numerics.md has them."""

    def of(x):
        weight = torch.zeros(x.numel(), x.numel())
        call = samples.Recurrence(input=x.view(1, 1, -1), weight_hh=[weight], nonlinearity=name)
        return call.call(recurrence)[0].flatten().numpy()

    for x in np.split(np.linspace(-103, 103, 2**14).astype(np.float32), 8):
        wanted = exact(x.astype(np.float64))
        error = np.abs(of(torch.from_numpy(x)) - wanted) / np.spacing(wanted.astype(np.float32))
        assert error.max() <= bound
    assert of(torch.tensor([-np.inf, -1e30, 1e30, np.inf])).tolist() == pytest.approx(extremes)


def test_tanh_is_odd_and_exact_where_it_must_be(isa):
    for dtype in DTYPES:
        x = torch.cat([torch.rand(4000, dtype=dtype) * 30, torch.rand(4000, dtype=dtype) * 1e-3])
        assert torch.equal(tanh(-x), -tanh(x))
        tiny = 2 * torch.finfo(dtype).tiny if dtype.itemsize == 2 else 1e-30
        special = torch.tensor([0.0, 20.0, -20.0, 6e4, float("inf"), -float("inf"), -0.0, tiny])
        expected = torch.tensor([0.0, 1.0, -1.0, 1.0, 1.0, -1.0, 0.0, tiny])
        assert torch.equal(tanh(special.to(dtype)), expected.to(dtype))
        assert tanh(torch.full((8,), float("nan"), dtype=dtype)).isnan().all()


@cover(nonlinearity=["tanh", "relu"], dtype=[torch.float32, torch.bfloat16], H=[7, 33], isa=ISAS)
def test_nan_stays_in_its_row(nonlinearity, dtype, H, isa):
    arguments = samples.make(T=4, B=19, H=H, nonlinearity=nonlinearity, dtype=dtype)
    arguments.input[1, 17] = float("nan")
    output, _ = arguments.call(recurrence)
    assert output[1:, 17].isnan().all()
    assert not output[:, [b for b in range(19) if b != 17]].isnan().any()
    assert not output[0].isnan().any()


@cover(
    size=[(1, 200, 3), (13, 17, 3), (2, 321, 3), (5, 64, 2)],
    dtype=DTYPES,
    broken=[float("nan"), float("inf"), float("-inf")],
    threads=[1, 3],
)
def test_a_diverged_weight_shows_in_the_first_step(size, dtype, broken, threads):
    """Zeros times it are NaN, as in torch.nn, though a product with zeros is skipped."""
    B, H, T = size
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
def test_infinite_states_of_odd_rows_stay_infinite(dtype, isa):
    torch.set_float32_matmul_precision("medium")
    for H in (6, 7):
        weight = torch.full((H, H), 1e25, dtype=dtype)
        input, hx = torch.zeros(4, 2, H, dtype=dtype), torch.ones(1, 2, H, dtype=dtype)
        output, _ = samples.Recurrence(
            input=input, hx=hx, weight_hh=[weight], nonlinearity="relu"
        ).call(recurrence)
        assert output[0].isfinite().all()
        assert output[1:].isinf().all()
