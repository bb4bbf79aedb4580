"""The CPU kernels' promises beyond right values: the same bits, and a tanh within 2 ULP."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import rnnext
from helpers import samples
from helpers.common import ISAS, cover, same
from reference import GATES

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


def cut(arguments, steps):
    """Output and h_n of a sequence called in parts of `steps` steps, which pass the state on."""
    state, outputs = arguments.hx, []
    for t in range(0, len(arguments.input), steps):
        given = {"input": arguments.input, "reset": arguments.reset}
        part = {name: v[t : t + steps] for name, v in given.items() if v is not None}
        output, state = replace(arguments, **part, hx=state).call(recurrence)
        outputs.append(output)
    return torch.cat(outputs), state


@cover(
    dtype=DTYPES,
    H=[33, 129, 1, 7, 8, 9, 15, 16, 17, 31, 32, 65, 100],  # around lanes and panels
    cell=samples.VARIANTS["cell"],
    isa=ISAS,
)
def test_the_same_bits_step_by_step_backwards_shortened_and_packed(dtype, H, cell, isa):
    arguments = samples.make(T=9, B=26, I=19, H=H, dtype=dtype, cell=cell, reset="state")
    output, h_n = arguments.call(recurrence)
    for steps in (1, 4):
        assert same(cut(arguments, steps), (output, h_n))
    arguments = samples.make(T=9, B=3, I=19, H=H, dtype=dtype, cell=cell)
    input, (output, h_n) = arguments.input, arguments.call(recurrence)
    assert same(cut(arguments, 1), (output, h_n))  # with weights as they lie
    turned = replace(arguments, input=input.flip(0), reverse=[True]).call(recurrence)
    assert same((turned[0].flip(0), turned[1]), (output, h_n))
    lengths, batch_sizes = torch.tensor([9, 9, 4]), torch.tensor([3] * 4 + [2] * 5)
    present = torch.arange(9).unsqueeze(1) < lengths
    shortened = replace(arguments, lengths=lengths).call(recurrence)
    assert torch.equal(shortened[0][present], output[present])
    if cell != "voltage":  # whose output is not the state
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tanh_is_within_two_units_in_the_last_place(dtype, isa):
    kind, exact = {torch.float32: (np.float32, np.float64)}.get(dtype, (np.float64, np.longdouble))
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
        assert (np.abs(y.astype(exact) - wanted) / ulp).max() <= 2
        assert np.abs(y).max() <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tanh_of_16_bits_is_within_055_units_in_the_last_place(dtype, isa):
    """For every value of the type, and for sums of two, which are rounded only after tanh."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    # (The CPU's bfloat16 instructions take subnormal numbers as zeros.)
    every = every[every.isfinite() & (every.abs() >= 2 * torch.finfo(dtype).tiny)]
    every, x = every[: len(every) // 8 * 8], torch.linspace(-6, 6, 2**16).view(1, -1, 1)
    pair = torch.cat([x.to(dtype), (x - x.to(dtype)).to(dtype)], dim=2)
    arguments = samples.Recurrence(
        input=pair,
        weight_ih=[torch.ones(1, 2, dtype=dtype)],
        weight_hh=[torch.zeros(1, 1, dtype=dtype)],
    )
    between = arguments.call(recurrence)[0]
    for pre, h in ((every, tanh(every)), (pair.double().sum(dim=2), between)):
        wanted, info = pre.double().flatten().tanh(), torch.finfo(dtype)
        ulp = info.eps * 2 ** (torch.frexp(wanted.abs().clamp(min=info.tiny)).exponent - 1).double()
        assert ((h.double().flatten() - wanted).abs() / ulp).max() <= 0.55
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


@cover(cell=list(GATES), dtype=DTYPES, T=[1, 9], B=[3, 19], isa=ISAS)
def test_a_saturated_gate_keeps_the_state_as_it_is(cell, dtype, T, B, isa):
    """Gates are quotients, which must be 1 where both parts are equal."""
    arguments = samples.make(T=T, B=B, H=33, source="ready", bias=False, cell=cell, dtype=dtype)
    for weight in arguments.weight_hh:
        weight.zero_()
    # z of a GRU, whose n is 0; f of an LSTM, whose i is 0.
    gates = torch.tensor({"gru": [0.3, 60, 0], "lstm": [-700, 60, 0.3, 0.3]}[cell], dtype=dtype)
    input = gates.repeat_interleave(33).expand_as(arguments.input)
    _, h_n = replace(arguments, input=input).call(recurrence)
    assert torch.equal(h_n[-1], arguments.hx[-1])


@cover(
    valid=samples.possible,
    nonlinearity=["tanh", "relu"],
    dtype=[torch.float32, torch.bfloat16],
    H=[7, 33],
    cell=["elman", *GATES],
    isa=ISAS,
)
def test_nan_stays_in_its_row(nonlinearity, dtype, H, cell, isa):
    arguments = samples.make(T=4, B=19, H=H, nonlinearity=nonlinearity, dtype=dtype, cell=cell)
    arguments.input[1, 17] = float("nan")
    output, _ = arguments.call(recurrence)
    assert output[1:, 17].isnan().all()
    assert not output[:, [b for b in range(19) if b != 17]].isnan().any()
    assert not output[0].isnan().any()


@cover(
    size=[(1, 200, 3), (13, 17, 3), (2, 321, 3), (5, 64, 2)],
    dtype=DTYPES,
    broken=[float("nan"), float("inf"), float("-inf")],
    cell=["elman", *GATES],
    threads=[1, 3],
)
def test_a_diverged_weight_shows_in_the_first_step(size, dtype, broken, cell, threads):
    """Zeros times NaN or inf are NaN, as in torch.nn, though kernels skip zeros."""
    (B, H, T), both = size, (False, True)
    arguments = samples.make(T=T, B=B, I=4, H=H, hx=False, reverse=both, dtype=dtype, cell=cell)
    finite, unit = arguments.call(recurrence)[0], H // 2
    arguments.weight_hh[1][unit - H, H - 1] = broken  # of the last gate
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
