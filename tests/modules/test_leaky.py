import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import rnnext
from helpers.common import assert_close, assert_refused, error_of, same, steps
from helpers.modules import outputs, results

CELL = rnnext.LeakyRNNCell(3, 6, alpha=0.5, learn_alpha=True)
DOUBLING = {"forward": lambda self, x: 2 * x, "right_inverse": lambda self, x: x / 2}
Twice = type("Twice", (nn.Module,), DOUBLING)


def test_alpha_of_one_is_the_rnn_to_the_bit():
    for form in ("rate", "blend"):
        leaky = rnnext.LeakyRNN(5, 20, alpha=1.0, form=form)
        rnn, x = rnnext.RNN(5, 20), torch.randn(8, 3, 5)
        rnn.load_state_dict({k: v for k, v in leaky.state_dict().items() if k != "_alpha"})
        assert same(leaky(x), rnn(x))


def test_alpha_is_a_copy_of_what_was_given():
    double = {"dtype": torch.float64}
    tau, alpha = torch.tensor([20, 100], **double), torch.tensor([0.5, 0.1], **double)
    for options in ({"tau": tau, "dt": 10}, {"alpha": alpha}):
        rnn = rnnext.LeakyRNN(1, 2, **options, **double)
        next(iter(options.values())).fill_(1)
        assert_close(rnn.alpha, torch.tensor([0.5, 0.1], **double))


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("last", [20.0, torch.linspace(20, 50, 6)])
def test_each_layer_may_have_its_own_time_constant(last, learned):
    """(tests/fuzz has what layers with an alpha compute.)"""
    taus = [100.0, last]
    both = rnnext.LeakyRNN(3, 6, 2, tau=taus, learn_alpha=learned, bidirectional=True, dt=5)
    for alpha, tau in zip(both.alphas(), (100.0, 100.0, last, last), strict=True):
        assert_close(alpha, torch.as_tensor(5 / tau).expand(6))
    if learned:
        assert both.logit_alpha_l1_reverse.shape == getattr(last, "shape", ())
    assert both(torch.randn(7, 4, 3))[0].shape == (7, 4, 12)


def test_a_learned_alpha_is_positive_however_small_its_logit():
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        rnn = rnnext.LeakyRNN(2, 4, alpha=0.5, learn_alpha=True, dtype=dtype)
        with torch.no_grad():
            rnn.logit_alpha_l0.fill_(-2000)
        assert 0 < rnn.alphas()[0].min() < 1e-4
        assert rnn(torch.randn(3, 2, 2, dtype=dtype))[0].isfinite().all()


@pytest.mark.parametrize("learned", [False, True])
def test_reset_parameters_restores_what_is_not_drawn(learned):
    """Also of a module made without data, and a weight under a parametrization."""
    tau = [torch.linspace(20, 50, 4), 30.0]
    options = {"dt": 5, "tau": tau, "learn_alpha": learned, "bidirectional": True}
    options["noise_std"] = torch.linspace(0, 1, 4)
    first, trained = (rnnext.LeakyRNN(2, 4, 2, **options) for _ in range(2))
    nn.utils.parametrize.register_parametrization(trained, "weight_hh_l0", nn.Identity())
    if learned:
        nn.utils.parametrize.register_parametrization(trained, "logit_alpha_l0", Twice())
    with torch.device("meta"):
        empty = rnnext.LeakyRNN(2, 4, 2, **options)
    empty.to_empty(device="cpu")
    options["noise_std"].fill_(0.75)  # each has its own
    for rnn in (trained, empty):
        with torch.no_grad():
            for each in (*rnn.parameters(), *rnn.buffers()):
                each.fill_(0.75)
        rnn.reset_parameters()
        assert same([*rnn.alphas(), rnn.noise_std], [*first.alphas(), first.noise_std])
        assert rnn.weight_hh_l0.abs().max() <= 0.5
        assert rnn.weight_hh_l0.std() > 0


def test_noise_is_that_of_the_op_whose_keys_the_generator_gives():
    """The layer's own alpha scales it. (Weights are 0: the second layer's output is noise.)"""
    std = torch.linspace(0, 1, 70)
    rnn = rnnext.LeakyRNN(
        1, 70, 2, "identity", bidirectional=True, alpha=[0.5, 1.0], noise_std=std,
        noise_in_eval=True,
    ).eval()  # fmt: skip
    for weight in rnn.parameters():
        nn.init.zeros_(weight)
    output, _ = outputs(rnn, torch.zeros(4, 3, 1))
    torch.manual_seed(3)  # as in outputs()
    keys = torch.randint(2**63 - 1, (2,))
    assert_close(output, rnnext.ops.noise(keys, 4, 3, 2, 70)[1] * std.repeat(2) * math.sqrt(2))
    rnn.noise_in_eval = False
    assert not rnn(torch.zeros(4, 3, 1))[0].any()


def test_noise_of_a_generator():
    """Its numbers are those of torch's own generator from the same seed, which stays as it was."""
    rnn = rnnext.LeakyRNN(1, 7, 2, alpha=0.5, noise_std=0.3, noise_in_eval=True)
    cell = rnnext.LeakyRNNCell(1, 7, alpha=0.5, noise_std=0.3)
    voltage = rnnext.LeakyRNN(1, 7, alpha=0.5, noise_std=0.3, form="voltage")
    x = torch.zeros(4, 3, 1)
    calls = [
        (rnn, lambda: rnn(x)[0]),
        (cell, lambda: cell(x[0])),
        (voltage, lambda: voltage.potentials(x)[0]),
        (rnn, lambda: rnnext.Stepper(rnn, batch_size=3)(x[0])),
    ]
    for module, call in calls:
        module.generator = None
        torch.manual_seed(5)
        expected = call()
        module.generator = torch.Generator().manual_seed(5)
        copied, state = copy.deepcopy(module.generator), torch.get_rng_state()
        assert torch.equal(call(), expected)
        assert not torch.equal(call(), expected)
        module.generator = copied
        assert torch.equal(call(), expected)
        assert torch.equal(torch.get_rng_state(), state)
    message = "generator must be a torch.Generator, got int"
    assert_refused(setattr, TypeError, message, cell, "generator", 5)


def test_noise_of_a_small_alpha_in_half_precision():
    options = {"nonlinearity": "identity", "bias": False, "dtype": torch.half}
    rnn = rnnext.LeakyRNN(1, 8, **options, alpha=2e-5, noise_std=0.1)
    output, _ = rnn(torch.zeros(1, 2000, 1, dtype=torch.half))
    assert output.std().item() == pytest.approx(0.1 * math.sqrt(2 * rnn.alpha), rel=0.05)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "softplus"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("noise_std", [0.0, 0.3])
def test_potentials_are_those_of_the_loop(nonlinearity, batch_first, noise_std):
    rnn = rnnext.LeakyRNN(
        3, 5, nonlinearity=nonlinearity, batch_first=batch_first, bias=batch_first, form="voltage",
        dt=2, tau=torch.linspace(4, 9, 5), noise_std=noise_std,
    )  # fmt: skip
    x, f = torch.randn(6, 4, 3), getattr(torch.nn.functional, nonlinearity)
    for hx in (None, torch.randn(1, 4, 5)):
        given = x.transpose(0, 1) if batch_first else x
        expected = outputs(rnn, given, hx)
        found, *values = outputs(rnn.potentials, given, hx)
        assert same(values, expected)
        assert_close(f(found), expected[0])
        assert_close(found.select(int(batch_first), -1), expected[1][0])
    torch.manual_seed(3)  # as in outputs()
    noise = rnnext.ops.noise(torch.randint(2**63 - 1, (1,)), 6, 4, 1, 5)[0] * noise_std
    v, a = hx[0], rnn.alpha
    for t in range(6):
        p = x[t] @ rnn.weight_ih_l0.T + f(v) @ rnn.weight_hh_l0.T + noise[t] * (2 / a).sqrt()
        v = (1 - a) * v + a * (p + rnn.bias_ih_l0 + rnn.bias_hh_l0 if batch_first else p)
        assert_close(found.select(int(batch_first), t), v)
    found.sum().backward()
    assert all(p.grad.any() for p in rnn.parameters())
    with pytest.raises(ValueError, match=r"^hx must have shape \[1, 4, 5\], got \[4, 5\]"):
        rnn.potentials(given, hx[0])
    rnn.form = "rate"
    with pytest.raises(ValueError, match=r'^potentials are of .* form="voltage", got .*\'rate\'$'):
        rnn.potentials(x)


def test_a_stepper_has_the_noise_of_one_call():
    rnn = rnnext.LeakyRNN(3, 40, 2, alpha=0.3, noise_std=0.5, noise_in_eval=True).eval()
    x = torch.randn(5, 2, 3)
    with torch.no_grad():
        (expected, _), (found,) = outputs(rnn, x), outputs(lambda: steps(rnnext.Stepper(rnn, 2), x))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("form", ["rate", "voltage", "blend"])
@pytest.mark.parametrize("learned", [False, True])
def test_a_cell_is_one_step_of_one_layer_to_the_bit(form, learned):
    options = {"dt": 5, "tau": torch.linspace(20, 50, 7), "learn_alpha": learned, "form": form}
    options |= {"nonlinearity": "softplus", "bias": learned, "noise_std": 0.3}
    cell, layer = rnnext.LeakyRNNCell(3, 7, **options), rnnext.LeakyRNN(3, 7, **options)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    x, h = torch.randn(4, 3), torch.randn(4, 7)

    def step(x, *hx):
        return layer(x[None], *(h[None] for h in hx))[1][0]

    step.parameters = layer.parameters
    for given in ((x,), (x, h), (x[0], h[0])):
        assert same(results(cell, *given), results(step, *given))
    assert torch.equal(rnnext.Stepper(cell.eval(), 4).step(x, h[None])[1][0], cell(x, h))
    if learned:  # with biases, of which one may be left out
        nn.init.zeros_(layer.eval().bias_ih_l0)
        cell.bias_ih = None
        assert same(cell(x, h), step(x, h))
    cell.dt = 10
    assert_close(cell.alphas()[0], 10 / torch.linspace(20, 50, 7))


def test_a_cells_errors_are_an_rnn_cells():
    (cell, plain), x, h = (CELL, rnnext.RNNCell(3, 6)), torch.randn(4, 3), torch.randn(4, 6)
    for given in (
        (x[None],), (x, h[None]), (x[:, :2],), (x, h[:3]), (x, h[:, :5]), (x, h[0]),
        (x.to("meta"),), (x, h.to("meta")), ([0.0],), (x, [0.0]), (x.double(),), (x, h.half()),
    ):  # fmt: skip
        assert error_of(cell, *given) == error_of(plain, *given)


def test_an_invalid_noise_std_is_refused_whenever_it_is_set():
    rnn = rnnext.LeakyRNN(2, 4, alpha=0.5, noise_std=0.1)
    learned, parameter = torch.tensor(0.2, requires_grad=True), nn.Parameter(torch.tensor(0.2))
    for value in (-1, math.nan, math.inf, 1e39, torch.rand(2), learned, parameter, "1", True):
        for refused in (
            lambda v=value: rnnext.LeakyRNN(2, 4, alpha=0.5, noise_std=v),
            lambda v=value: setattr(rnn, "noise_std", v),
        ):
            with pytest.raises((TypeError, ValueError), match=r"^noise_std must "):
                refused()
    assert rnn.noise_std == 0.1
    rnn.noise_std = std = torch.tensor(0.2)
    std.fill_(3)
    quiet = copy.copy(rnn)  # with the same weights
    quiet.noise_std = 0
    assert torch.equal(rnn.noise_std, torch.tensor(0.2))


def test_options_are_checked_when_they_are_set_and_take_effect():
    rnn, x = rnnext.LeakyRNN(2, 4, alpha=0.5, noise_std=0.1), torch.randn(5, 3, 2)
    for name in ("form", "nonlinearity", "noise_scale"):
        with pytest.raises(ValueError, match=rf"^{name} must be one of .*, got 'elu'"):
            setattr(rnn, name, "elu")
    assert "elu" not in repr(rnn)
    compiled = torch.compile(rnn.eval(), backend="eager")
    for rnn.form, rnn.nonlinearity in (("rate", "tanh"), ("blend", "relu"), ("voltage", "relu")):
        twin = rnnext.LeakyRNN(2, 4, alpha=0.5, form=rnn.form, nonlinearity=rnn.nonlinearity)
        twin.load_state_dict(rnn.state_dict())
        for module in (rnn, compiled, copy.deepcopy(rnn)):
            assert same(module(x), twin(x))


def test_the_keys_of_the_state_dict():
    for options, stored in (
        ({"alpha": 0.4}, {"_alpha"}),
        ({"dt": 4, "tau": 10}, {"_tau", "_dt"}),
        ({"alpha": 0.4, "learn_alpha": True, "noise_std": torch.tensor(0.1)}, {"logit_alpha_l0"}),
        ({"dt": 4, "tau": 10, "learn_alpha": True}, {"logit_alpha_l0", "_dt"}),
    ):
        rnn = rnnext.LeakyRNN(3, 6, **options)
        assert rnn.state_dict().keys() == nn.RNN(3, 6).state_dict().keys() | stored
        assert_close(torch.stack(rnn.alphas()), torch.full((1, 6), 0.4))
        assert rnn.double().alpha.dtype == torch.float64


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("tau", [100.0, torch.linspace(30, 500, 6), [50.0, 30.0]])
def test_what_was_trained_at_one_dt_runs_at_another(tau, learned):
    options, x = {"tau": tau, "learn_alpha": learned, "bidirectional": True}, torch.randn(7, 4, 3)
    L = np.int64(2)
    trained, finer, twin = (rnnext.LeakyRNN(3, 6, L, dt=dt, **options) for dt in (20, 5, 5))
    if learned:
        message = "alpha was learned at dt = 20, and this module has 5: load it at its own, then"
        assert_refused(finer.load_state_dict, RuntimeError, message, trained.state_dict())
        fixed = rnnext.LeakyRNN(3, 6, dt=20, tau=100).state_dict()
        assert_refused(finer.load_state_dict, RuntimeError, "Missing key", fixed)
        finer.dt = 20
    finer.load_state_dict(trained.state_dict())
    finer.dt = 5
    weights = {k: v for k, v in trained.state_dict().items() if k.startswith(("weight", "bias"))}
    twin.load_state_dict(weights, strict=False)
    assert_close(finer(x), twin(x))
    finer.reset_parameters()
    assert_close(finer.alpha, twin.alpha)
    assert ("dt=5" in repr(finer), finer.weight_hh_l1.shape) == (True, (6, 6))


def test_dt_tau_and_alpha_are_set_where_they_were_given():
    fixed, given = rnnext.LeakyRNN(3, 6, dt=10, tau=100), rnnext.LeakyRNN(3, 6, alpha=0.5)
    learned = rnnext.LeakyRNN(3, 6, dt=10, tau=100, learn_alpha=True)
    nn.utils.parametrize.register_parametrization(learned, "logit_alpha_l0", Twice())
    fixed.tau = torch.linspace(20, 50, 6)
    assert_close(fixed.alpha, 10 / torch.linspace(20, 50, 6))
    fixed.dt, fixed.tau = 20, [40.0]
    assert_close(fixed.alphas()[0], torch.full((6,), 0.5))
    given.alpha = 0.25
    assert_close(given.alphas()[0], torch.full((6,), 0.25))
    assert (given.dt, given.tau) == (None, None)
    assert_close(learned.tau, torch.full((1, 6), 100.0))
    for module, name, value, error, message in (
        (fixed, "dt", 41, ValueError, "alpha = dt / tau must be in (0, 1], got 1.025"),
        (fixed, "dt", -1, ValueError, "dt must be positive, got -1"),
        (fixed, "tau", 19, ValueError, "alpha = dt / tau must be in (0, 1], got 1.05"),
        (fixed, "tau", torch.ones(5), ValueError, "tau must have shape [] or [6]"),
        (fixed, "alpha", 0.1, AttributeError, "alpha is dt / tau: set these"),
        (given, "alpha", 2, ValueError, "alpha must be in (0, 1], got 2"),
        (given, "alpha", PARAMETER, ValueError, "alpha must not require a gradient without"),
        (given, "dt", 5, AttributeError, "dt must be given with tau, in the place of alpha"),
        (given, "tau", 5, AttributeError, "tau must be given with dt, in the place of alpha"),
        (CELL, "alpha", 0.5, AttributeError, "alpha is learned: set logit_alpha"),
        (learned, "alpha", 0.5, AttributeError, "alpha is learned: set logit_alpha_l0"),
        (learned, "tau", 50, AttributeError, "tau is learned: set logit_alpha_l0"),
        (learned, "learn_alpha", False, AttributeError, "'learn_alpha'"),
        (fixed, "dt", PARAMETER, ValueError, "dt must not require a gradient: none reaches it"),
        (learned, "dt", 101, ValueError, "dt must be less than the learned tau, got 101"),
    ):
        assert_refused(setattr, error, message, module, name, value)
    assert (fixed.dt, float(fixed.tau), learned.dt) == (20, 40, 10)
    at_5 = rnnext.LeakyRNN(3, 6, dt=5, tau=100, learn_alpha=True)
    message = "alpha was learned at dt = 10, and this module has 5"
    assert_refused(at_5.load_state_dict, RuntimeError, message, learned.state_dict())
    copy.copy(at_5).dt = 1
    at_5.reset_parameters()
    assert_close(at_5.tau, torch.full((1, 6), 100.0))
    learned.dt = 20
    assert_close(learned.tau, torch.full((1, 6), 100.0))


PARAMETER = nn.Parameter(torch.tensor(0.1))
REFUSED = [
    ({}, ValueError, "alpha must be given, or dt and tau"),
    ({"dt": 1.0}, ValueError, "alpha must be given, or dt and tau"),
    ({"alpha": 0.1, "tau": 3.0}, ValueError, "alpha must not be given with dt and tau"),
    ({"alpha": 0.0}, ValueError, "alpha must be in (0, 1], got 0, as torch.float32"),
    ({"alpha": 1.5}, ValueError, "alpha must be in (0, 1], got 1.5"),
    ({"alpha": math.nan}, ValueError, "alpha must be in (0, 1], got nan"),
    ({"alpha": 1e-9, "dtype": torch.float16}, ValueError, "got 1e-09, as torch.float16"),
    ({"alpha": 1.0, "learn_alpha": True}, ValueError, "alpha must be less than 1 to be learned"),
    ({"alpha": "a"}, TypeError, "alpha must be a number or a tensor, got str"),
    ({"alpha": torch.tensor(1j)}, TypeError, "alpha must be of real numbers, got complex64"),
    ({"alpha": PARAMETER}, ValueError, "alpha must not require a gradient without learn_alpha"),
    ({"alpha": torch.rand(3, 6)}, ValueError, "[] or [6] or [1, 1] or [1, 6], got [3, 6]"),
    ({"alpha": [[0.1]]}, TypeError, "alpha[0] must be a number or a tensor, got list"),
    ({"alpha": [torch.rand(5)]}, ValueError, "alpha[0] must have shape [] or [6], got [5]"),
    ({"dt": 3.0, "tau": 2.0}, ValueError, "alpha = dt / tau must be in (0, 1], got 1.5"),
    ({"dt": 1.0, "tau": 0.0}, ValueError, "alpha = dt / tau must be in (0, 1], got inf"),
    ({"dt": 1, "tau": 1e5, "dtype": torch.float16}, ValueError, "got 0, as torch.float16"),
    ({"dt": -1, "tau": -20}, ValueError, "dt must be positive, got -1"),
    ({"dt": torch.rand(5), "tau": 2.0}, ValueError, "dt must have shape [], got [5]"),
    ({"dt": [1.0], "tau": 3.0}, TypeError, "dt must be a number or a tensor, got list"),
    ({"dt": 1, "tau": [5.0, 6.0]}, ValueError, "each of 1 layers, got 2; for one of each unit"),
    ({"dt": 1, "tau": np.ones(4)}, TypeError, "got ndarray: give torch.from_numpy(tau)"),
    ({"form": "cubic"}, ValueError, "form must be one of 'rate', 'voltage', 'blend', got 'cubic'"),
    ({"nonlinearity": "gelu"}, ValueError, "nonlinearity must be one of 'tanh'"),
    ({"noise_scale": "x"}, ValueError, "noise_scale must be one of 'sqrt_2_over_alpha'"),
    ({"num_layers": 0.2}, TypeError, "num_layers must be an integer, got float; alpha is given by"),
]


def test_bad_arguments_are_named():
    for arguments, error, message in REFUSED:
        assert_refused(lambda given=arguments: rnnext.LeakyRNN(3, 6, **given), error, message)


def test_an_alpha_that_does_not_fit_is_refused_when_it_is_set_or_used():
    rnn = rnnext.LeakyRNN(3, 6, alpha=0.4)
    rnn.alpha.fill_(2)
    assert_refused(rnn, ValueError, "alpha must be in (0, 1], got 2", torch.zeros(2, 1, 3))
    for shape in ((5,), (2, 6)):
        with pytest.raises(ValueError, match=r"^alpha must have shape .* or \[.*6\], got"):
            rnn.alpha = torch.full(shape, 0.5)
    rnn.alpha = torch.full((6,), 0.5)
    rnn.reset_parameters()
    assert torch.equal(rnn.alphas()[0], torch.full((6,), 0.5))


def test_repr_names_what_differs():
    for options, parts in (
        ({"num_layers": 2, "dropout": 0.5, "alpha": 0.25, "form": "blend"},
         ("3, 6, num_layers=2", "dropout=0.5", "form=blend", "alpha=0.25")),
        ({"dt": 1, "tau": torch.arange(2.0, 8), "noise_std": torch.full((6,), 0.1)},
         ("alpha=0.142857 to 0.5", "noise_std=0.1", "scale=sqrt_2_over_alpha", "eval=False")),
        ({"alpha": 0.2, "learn_alpha": True}, ("alpha=0.2", "learn_alpha=True")),
        ({"alpha": 0.2, "device": "meta"}, ("alpha=?",)),
    ):  # fmt: skip
        assert [part for part in parts if part not in repr(rnnext.LeakyRNN(3, 6, **options))] == []
    with FakeTensorMode():
        assert "alpha=?" in repr(rnnext.LeakyRNN(3, 6, alpha=0.2))
