"""LeakyRNN: against the loops that people write, and its arguments."""

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnext
from helpers.common import assert_close, same
from reference.elman import ACTIVATIONS
from rnnext import functional

FORMS = ["rate", "voltage", "blend"]


def loop(rnn, x, hx=None):
    """One layer and direction as a loop over time in float64, as published models write it."""
    f = ACTIVATIONS[rnn.nonlinearity]
    parameters = [rnn.weight_ih_l0, rnn.weight_hh_l0]
    if rnn.bias:
        parameters += [rnn.bias_ih_l0, rnn.bias_hh_l0]
    w_ih, w_hh, *biases = (p.double() for p in parameters)
    a = rnn.alphas()[0].double()
    state = x.new_zeros(x.shape[1], rnn.hidden_size).double() if hx is None else hx[0].double()
    outputs = []
    for step in x.double():
        drive = step @ w_ih.t() + sum(biases)
        if rnn.form == "rate":
            state = (1 - a) * state + a * f(drive + state @ w_hh.t())
            outputs.append(state)
        elif rnn.form == "voltage":
            state = (1 - a) * state + a * (drive + f(state) @ w_hh.t())
            outputs.append(f(state))
        else:
            state = f((1 - a) * state + a * (drive + state @ w_hh.t()))
            outputs.append(state)
    return torch.stack(outputs), state.unsqueeze(0)


@pytest.mark.parametrize("learn_alpha", [False, True])
@pytest.mark.parametrize("nonlinearity", list(ACTIVATIONS))
@pytest.mark.parametrize("form", FORMS)
def test_against_the_loop(form, nonlinearity, learn_alpha):
    torch.manual_seed(3)
    alpha = torch.rand(30) * 0.8 + 0.1
    rnn = rnnext.LeakyRNN(
        7, 30, nonlinearity=nonlinearity, alpha=alpha, form=form, learn_alpha=learn_alpha
    )
    x, hx = torch.randn(12, 5, 7, requires_grad=True), torch.randn(1, 5, 30, requires_grad=True)
    leaves = [x, hx, *rnn.parameters()]
    results = []
    for output, h_n in (rnn(x, hx), loop(rnn, x, hx)):
        value = output.square().sum() + h_n.sum()
        results.append([output, h_n, *torch.autograd.grad(value, leaves)])
    assert_close(results[0], results[1])


@pytest.mark.parametrize("form", FORMS)
def test_layers_directions_and_layouts(form):
    torch.manual_seed(0)
    rnn = rnnext.LeakyRNN(3, 8, 3, bidirectional=True, alpha=0.3, form=form, dtype=torch.float64)
    x = torch.randn(6, 4, 3, dtype=torch.float64)
    output, h_n = rnn(x)
    layer, last = x, []
    for k in range(3):
        parts = []
        for d, suffix in enumerate(["", "_reverse"]):
            weights = [
                getattr(rnn, f"{kind}_l{k}{suffix}")
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            ]
            y, h = functional.recurrence(
                layer, None, *weights, alpha=0.3, form=form, reverse=bool(d)
            )
            parts.append(y)
            last.append(h)
        layer = torch.cat(parts, -1)
    assert_close([output, h_n], [layer, torch.stack(last)])
    assert_close(rnn(x[:, 1])[0], output[:, 1])
    rnn.batch_first = True
    assert_close(rnn(x.transpose(0, 1))[0], output.transpose(0, 1))
    lengths = torch.tensor([6, 2, 4, 1])
    padded, last = rnn(x.transpose(0, 1), lengths=lengths)
    packed = pack_padded_sequence(
        x.transpose(0, 1), lengths, batch_first=True, enforce_sorted=False
    )
    unpacked, packed_last = rnn(packed)
    assert_close([pad_packed_sequence(unpacked, batch_first=True)[0], packed_last], [padded, last])


def test_without_gradients_a_stack_gives_the_same_bits():
    rnn = rnnext.LeakyRNN(5, 16, 3, alpha=0.2, learn_alpha=True)
    x, reset = torch.randn(9, 2, 5), torch.rand(9, 2) < 0.3
    with torch.no_grad():
        assert same(rnn(x, reset=reset), [v.detach() for v in rnn(x, reset=reset)])


@pytest.mark.parametrize("form", ["rate", "blend"])
def test_alpha_of_one_is_the_rnn_to_the_bit(form):
    leaky = rnnext.LeakyRNN(5, 20, alpha=1.0, form=form)
    rnn = rnnext.RNN(5, 20)
    rnn.load_state_dict({k: v for k, v in leaky.state_dict().items() if k != "alpha"})
    x = torch.randn(8, 3, 5)
    assert same(leaky(x), rnn(x))


def test_alpha_from_dt_and_tau():
    assert rnnext.LeakyRNN(1, 2, dt=10, tau=50).alpha.item() == pytest.approx(0.2)
    tau = torch.tensor([20.0, 100.0])
    assert_close(rnnext.LeakyRNN(1, 2, dt=10, tau=tau).alpha, torch.tensor([0.5, 0.1]))


def test_learned_alpha_stays_between_0_and_1_and_learns():
    torch.manual_seed(0)
    rnn = rnnext.LeakyRNN(2, 4, alpha=torch.full((4,), 0.5), learn_alpha=True, form="voltage")
    optimizer = torch.optim.SGD(rnn.parameters(), lr=50.0)
    x = torch.randn(10, 3, 2)
    before = rnn.alphas()[0].detach().clone()
    for _ in range(20):
        optimizer.zero_grad()
        rnn(x)[0].square().mean().backward()
        optimizer.step()
    after = rnn.alphas()[0]
    assert not torch.equal(before, after)
    assert bool(((after > 0) & (after <= 1)).all())


@pytest.mark.parametrize("scale", ["sqrt_2_over_alpha", "sqrt_2_alpha", "none"])
def test_noise_has_its_deviation_and_comes_from_torchs_generator(scale, threads):
    alpha, std = 0.25, 0.5
    factor = {"sqrt_2_over_alpha": (2 / alpha) ** 0.5, "sqrt_2_alpha": (2 * alpha) ** 0.5}
    rnn = rnnext.LeakyRNN(
        1, 200, nonlinearity="identity", bias=False, alpha=alpha, noise_std=std, noise_scale=scale
    )
    with torch.no_grad():
        rnn.weight_hh_l0.zero_()
    x = torch.zeros(50, 20, 1)
    torch.manual_seed(1)
    output, _ = rnn(x)
    # With W = 0: h_t = (1 - a) h_{t-1} + a n_t.
    noise = (output[1:] - (1 - alpha) * output[:-1]) / alpha
    assert noise.std().item() == pytest.approx(std * factor.get(scale, 1.0), rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert abs((noise[1:] * noise[:-1]).mean().item()) < 0.02
    torch.manual_seed(1)
    assert torch.equal(rnn(x)[0], output)
    assert not torch.equal(rnn(x)[0], output)
    assert not rnn.eval()(x)[0].any()


def test_noise_passes_gradients_and_other_arguments():
    rnn = rnnext.LeakyRNN(3, 6, 2, bidirectional=True, alpha=0.4, noise_std=0.1, dropout=0.2)
    x = torch.randn(5, 4, 3, requires_grad=True)
    lengths, reset = torch.tensor([5, 3, 0, 4]), torch.rand(5, 4) < 0.3
    output, _ = rnn(x, lengths=lengths, reset=reset)
    output.sum().backward()
    assert not output[3:, 1].any()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in rnn.parameters())
    assert x.grad[:3, 1].any()
    with torch.autocast("cpu"):
        assert rnn(x)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("batch_first", [False, True])
def test_noise_keeps_what_lies_past_the_end_out(batch_first):
    rnn = rnnext.LeakyRNN(3, 6, alpha=0.4, noise_std=0.1, batch_first=batch_first)
    x = torch.randn(5, 2, 3)
    x[3:, 1] = math.nan
    output, _ = rnn(x.transpose(0, 1) if batch_first else x, lengths=torch.tensor([5, 3]))
    output.sum().backward()
    assert all(p.grad.isfinite().all() for p in rnn.parameters())


def test_is_made_without_data():
    for learn_alpha in (False, True):
        rnn = rnnext.LeakyRNN(3, 6, alpha=0.4, learn_alpha=learn_alpha, device="meta")
        assert "LeakyRNN(3, 6" in repr(rnn)
    with torch.device("meta"):
        assert rnnext.LeakyRNN(3, 6, alpha=0.4)(torch.zeros(2, 1, 3))[0].shape == (2, 1, 6)


def test_noise_leaves_bad_lengths_to_be_named():
    rnn = rnnext.LeakyRNN(3, 6, alpha=0.4, noise_std=0.1)
    with pytest.raises(ValueError, match=r"lengths must have shape \[2\], got \[3\]"):
        rnn(torch.zeros(5, 2, 3), lengths=torch.tensor([5, 3, 1]))


def test_alpha_is_a_copy():
    alpha = torch.full((6,), 0.5, dtype=torch.float64)
    rnn = rnnext.LeakyRNN(3, 6, alpha=alpha, dtype=torch.float64)
    alpha.fill_(0.1)
    assert rnn.alpha[0] == 0.5


@pytest.mark.parametrize("learn_alpha", [False, True])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_compiles_whole(learn_alpha, noise):
    rnn = rnnext.LeakyRNN(3, 6, alpha=0.4, learn_alpha=learn_alpha, noise_std=noise)
    x, reset = torch.randn(5, 4, 3, requires_grad=True), torch.rand(5, 4) < 0.3
    results = []
    for call in (rnn, torch.compile(rnn, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        output, h_n = call(x, reset=reset)
        rnn.zero_grad()
        (output.sum() + h_n.sum()).backward()
        results.append([output, h_n, *(p.grad for p in rnn.parameters())])
    assert_close(results[1], results[0])


def test_exports_with_dynamic_sizes():
    rnn = rnnext.LeakyRNN(3, 6, 2, alpha=0.4, form="voltage")
    x, reset = torch.randn(5, 4, 3), torch.rand(5, 4) < 0.3
    T, B = torch.export.Dim("T"), torch.export.Dim("B")
    exported = torch.export.export(
        rnn, (x,), {"reset": reset}, dynamic_shapes={"input": {0: T, 1: B}, "reset": {0: T, 1: B}}
    ).module()
    x, reset = torch.randn(9, 2, 3), torch.rand(9, 2) < 0.3
    assert_close(exported(x, reset=reset), rnn(x, reset=reset))


def test_state_dict_copies_and_pickles():
    rnn = rnnext.LeakyRNN(3, 6, alpha=0.4, learn_alpha=True)
    x = torch.randn(4, 2, 3)
    other = rnnext.LeakyRNN(3, 6, alpha=0.9, learn_alpha=True)
    other.load_state_dict(rnn.state_dict())
    file = io.BytesIO()
    torch.save(rnn, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for twin in (other, copy.deepcopy(rnn), loaded):
        assert same(twin(x), rnn(x))
    assert "alpha" in rnnext.LeakyRNN(3, 6, alpha=0.4).state_dict()
    assert rnnext.LeakyRNN(3, 6, alpha=0.4).double().alpha.dtype == torch.float64
    weights = {k for k in rnn.state_dict() if not k.startswith("logit")}
    assert weights == set(nn.RNN(3, 6).state_dict())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "alpha must be given, or dt and tau"),
        ({"dt": 1.0}, ValueError, "alpha must be given, or dt and tau"),
        ({"alpha": 0.1, "tau": 3.0}, ValueError, "must not be given with dt and tau"),
        ({"alpha": 0.0}, ValueError, r"alpha must be in \(0, 1\], got 0.0"),
        ({"alpha": 1.5}, ValueError, r"alpha must be in \(0, 1\], got 1.5"),
        ({"alpha": math.nan}, ValueError, r"alpha must be in \(0, 1\], got nan"),
        ({"dt": 3.0, "tau": 2.0}, ValueError, r"dt / tau must be in \(0, 1\], got 1.5"),
        ({"alpha": torch.rand(5)}, ValueError, r"alpha must have shape \[\] or \[6\], got \[5\]"),
        ({"alpha": 1.0, "learn_alpha": True}, ValueError, "less than 1 to be learned"),
        ({"alpha": 0.1, "form": "cubic"}, ValueError, "form must be one of 'rate', .* got 'cubic'"),
        ({"alpha": 0.1, "nonlinearity": "gelu"}, ValueError, "nonlinearity must be .*'gelu'"),
        ({"alpha": 0.1, "noise_std": -1.0}, ValueError, "noise_std must be .* got -1.0"),
        ({"alpha": 0.1, "noise_scale": "x"}, ValueError, "noise_scale must be one of .* got 'x'"),
        ({"dt": 1.0, "tau": 0.0}, ValueError, r"dt / tau must be in \(0, 1\], got inf"),
        ({"alpha": 1e-9, "dtype": torch.float16}, ValueError, r"alpha must be in \(0, 1\]"),
        ({"alpha": "a"}, TypeError, "alpha"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        rnnext.LeakyRNN(3, 6, **arguments)


def test_a_buffer_out_of_range_is_refused_when_it_is_used():
    rnn = rnnext.LeakyRNN(3, 6, alpha=0.4)
    rnn.alpha.fill_(2)
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\], got 2"):
        rnn(torch.zeros(2, 1, 3))


def test_repr_names_what_differs():
    text = repr(rnnext.LeakyRNN(3, 6, alpha=0.25, form="blend", noise_std=0.1))
    assert all(part in text for part in ("3, 6", "form=blend", "alpha=0.25", "noise_std=0.1"))
