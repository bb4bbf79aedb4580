import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

import rnnext
from helpers.common import ISAS, ROOT, assert_close, assert_refused, run_python, same, steps
from modules.test_embedding import Doubled
from rnnext import _C, Stepper


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@torch.no_grad()
def test_modules_of_torch_and_cells_give_the_bits_of_rnnexts_layer(kind):
    """(tests/fuzz has the others.)"""
    x, cell = torch.randn(6, 3, 5), f"{kind}Cell"
    for made in (getattr(nn, kind), getattr(nn, cell), getattr(rnnext, cell)):
        module, rnn = made(5, 40), getattr(rnnext, kind)(5, 40)
        for parameter, own in zip(rnn.parameters(), module.parameters(), strict=True):
            parameter.copy_(own)
        stepper, expected = Stepper(module, batch_size=3), rnn(x)[0]
        assert torch.equal(steps(stepper, x), expected)
        assert torch.equal(steps(Stepper(module), x[:, 0]), expected[:, 0])
        stepper.reset()
        assert torch.equal(steps(stepper, torch._neg_view(-x)), expected)
        assert repr(stepper) == "Stepper(5, 40, num_layers=1, batch_size=3)"


@torch.no_grad()
def test_states_of_an_lstm_are_pairs():
    lstm, x, marks = rnnext.LSTM(5, 7, 2), torch.randn(4, 3, 5), torch.tensor([True, False, True])
    hx = torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    stepper, expected = Stepper(lstm, 3), lstm(x, hx)
    stepper.set_state(hx)
    assert torch.equal(steps(stepper, x), expected[0])
    assert same(stepper.get_state(), expected[1])
    output, state = stepper.step(x[0], hx)
    assert torch.equal(output, expected[0][0])
    assert same(state, lstm(x[:1], hx)[1])
    assert same(stepper.get_state(), expected[1])
    start = torch.randn(2, 7), torch.randn(2, 3, 7)
    stepper.reset(marks, start)
    for found, begun, before in zip(stepper.get_state(), start, expected[1], strict=True):
        begun = begun if begun.dim() == 3 else begun.unsqueeze(1)
        assert torch.equal(found, torch.where(marks.unsqueeze(1), begun, before))
    of_none = tree_leaves(stepper.step(x[0, :0], [h[:, :0] for h in hx]))
    assert [t.shape for t in of_none] == [(0, 7), (2, 0, 7), (2, 0, 7)]
    lstm.double()
    stepper.refresh()
    assert {part.dtype for part in stepper.get_state()} == {torch.float64}
    stepper.reset()
    assert not any(part.any() for part in stepper.get_state())
    for wrong, error, message in (
        (hx[0], TypeError, "state must be a pair of tensors, (h, c), got Tensor"),
        (None, TypeError, "state must be a pair of tensors, (h, c), got NoneType"),
        ((hx[0], hx[1][:1]), RuntimeError, "state[1] must have shape [2, 3, 7], got [1, 3, 7]"),
        (hx, RuntimeError, "state[0] must have the weights' dtype, float64, got float32"),
        ((hx[0], [0.0]), TypeError, "state[1] must be a tensor, got list"),
    ):
        assert_refused(stepper.set_state, error, message, wrong)
        assert_refused(stepper.step, error, message, x[0].double(), wrong)


@torch.no_grad()
def test_modules_whose_attributes_were_set():
    """A cell may lack features and biases, an RNN not; the mode decides which nonlinearity."""
    x, h = torch.randn(3, 1, 4), torch.randn(1, 6)
    for library in (nn, rnnext):
        cell = library.RNNCell(0, 6)
        assert_close(Stepper(cell).step(x[0, :, :0], h[None])[0], cell(x[0, :, :0], h))
        cell = library.RNNCell(4, 6)
        for name in ("bias_ih", "bias_hh"):
            setattr(cell, name, None)
            assert_close(Stepper(cell)(x[0]), cell(x[0]))
        cell.weight_ih = None
        assert_refused(Stepper, TypeError, "weight_ih must be a tensor, got NoneType", cell)
        rnn = library.RNN(4, 6, num_layers=2)
        rnn.mode = "RNN_RELU"
        assert_close(steps(Stepper(rnn), x), rnn(x)[0])
        rnn.bias_hh_l1 = None
        assert_refused(Stepper, TypeError, "bias_hh_l1 must be a tensor, got NoneType", rnn)


def test_inference_mode_may_change_between_making_and_stepping():
    rnn, x, found = rnnext.RNN(4, 6), torch.randn(2, 1, 4), []
    for before, after in ((True, False), (False, True)):
        with torch.inference_mode(before):
            stepper = Stepper(rnn)
            stepper(x[0])
        with torch.inference_mode(after):
            stepper.set_state(stepper.get_state() + 1)
            found.append(stepper(x[1]))
    assert torch.equal(*found)


def test_threads_and_isa_may_change_after_it_was_made():
    rnn, x = rnnext.RNN(200, 300, num_layers=2), torch.randn(6, 2, 200)
    with torch.no_grad():
        expected = rnn(x)[0]
    for made_with in (1, 3):
        torch.set_num_threads(made_with)
        stepper = Stepper(rnn, 2)
        changes = zip([ISAS[0], *ISAS], [3, 1, 2, 3], x, expected, strict=False)
        for isa, threads, x_t, wanted in changes:
            rnnext._C.set_cpu_isa(isa)
            torch.set_num_threads(threads)
            assert torch.equal(stepper(x_t), wanted)
        rnnext._C.set_cpu_isa(ISAS[-1])


def test_refuses_tensors_without_memory():
    stepper, zeros = Stepper(rnnext.RNN(4, 6)), torch._efficientzerotensor
    with FakeTensorMode() as mode:
        with pytest.raises(RuntimeError, match="weight_ih must be a plain tensor"):
            Stepper(rnnext.RNN(4, 6, bias=False))
        fake = mode.from_tensor(torch.zeros(1, 4))
    of_tokens = Stepper(rnnext.EmbeddingRNN(9, 4, 6))
    for name, call in (
        ("input", lambda: stepper(fake)),
        ("input", lambda: stepper(zeros(1, 4))),
        ("state", lambda: stepper.set_state(zeros(1, 1, 6))),
        ("tokens", lambda: of_tokens(zeros(1, dtype=torch.int64))),
        ("mask", lambda: stepper.reset(zeros(1, dtype=torch.bool))),
        ("input", lambda: torch.func.functionalize(stepper)(torch.zeros(1, 4))),
        ("input", lambda: torch.jit.trace(lambda x: stepper(x), torch.zeros(1, 4))),
        ("input", lambda: torch.func.vmap(stepper)(torch.zeros(1, 1, 4))),
        ("state", lambda: torch.func.vmap(stepper.set_state)(torch.zeros(1, 1, 1, 6))),
    ):
        assert_refused(call, RuntimeError, f"{name} must be a plain tensor")


def test_a_step_has_no_gradient():
    stepper, x = Stepper(rnnext.RNN(4, 6)), torch.zeros(1, 4)
    learned = [t.requires_grad_() for t in (torch.randn(1, 4), torch.zeros(1, 1, 6))]
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x)
        assert_refused(stepper, RuntimeError, "no forward-mode derivative", dual)
    assert_refused(stepper, RuntimeError, "has no gradient", learned[0])
    assert_refused(stepper.step, RuntimeError, "has no gradient", x, learned[1])
    with torch.no_grad():
        assert not any(v.requires_grad for v in stepper.step(*learned))


OF_OWN = rnnext.EmbeddingRNN(9, 4, 6)
OF_OWN.embedding = Doubled(9, 4)
OF_LEAK = rnnext.LeakyRNN(4, 6, alpha=0.5)
OF_LEAK.alpha.fill_(1.5)
MADE_OF = [
    ((nn.Linear(4, 6),), TypeError, "or a cell, got Linear"),
    ((nn.LSTM(4, 6, proj_size=2),), ValueError, "module must have proj_size 0, got 2"),
    ((OF_OWN,), TypeError, "no forward of its own, as no step calls it: Doubled has"),
    ((rnnext.EmbeddingRNN(9, 4, 6, bidirectional=True),), ValueError, "one direction"),
    ((OF_LEAK,), ValueError, "alpha must be in (0, 1], got 1.5"),
    ((rnnext.RNN(4, 6), 0), ValueError, "batch_size must be positive, got 0"),
    ((rnnext.RNN(4, 6), 1.5), TypeError, "batch_size must be an integer, got float"),
    ((rnnext.RNN(4, 6), 10**13), RuntimeError, "allocate memory"),
    ((rnnext.RNN(4, 6, device="meta"),), RuntimeError, "CPU: the weights are on meta"),
]
ZEROS, STATES, MASK = torch.zeros(2, 4), torch.zeros(1, 2, 6), torch.tensor([True, False])
FEATURES = [
    (torch.zeros(3, 4), RuntimeError, "input must have shape [2, 4], got [3, 4]"),
    (ZEROS.double(), RuntimeError, "input must have the weights' dtype, float32, got float64"),
    (ZEROS.to("meta"), RuntimeError, "input must be on the CPU, got meta"),
    ([0.0], TypeError, "input must be a tensor, got list: give torch.tensor(input)"),
]
TOKENS = [
    (torch.tensor([0, 2000]), IndexError, "tokens[1] = 2000 is out of range: expected 0 <="),
    (torch.tensor([-1, 0]).int(), IndexError, "tokens[0] = -1 is out of range"),
    (torch.tensor([0]), RuntimeError, "tokens must have shape [2], got [1]"),
    (torch.zeros(2), TypeError, "tokens must be int32 or int64, got float32"),
    (torch.tensor([0, 0], device="meta"), RuntimeError, "on the CPU, got meta"),
    (np.zeros(2), TypeError, "tokens must be a tensor, got ndarray: give torch.from_numpy(tokens)"),
]
SET_STATE = [
    (torch.zeros(2, 6), RuntimeError, "state must have shape [1, 2, 6], got [2, 6]"),
    (STATES.double(), RuntimeError, "state must have the weights' dtype, float32, got float64"),
    (STATES.to("meta"), RuntimeError, "state must be on the CPU, got meta"),
    ([0.0], TypeError, "state must be a tensor, got list"),
]
RESET = [
    ((torch.zeros(2),), TypeError, "mask must be a bool tensor, got float32"),
    ((torch.zeros(2), STATES), TypeError, "mask must be a bool tensor, got float32"),
    (([True, False],), TypeError, "mask must be a tensor, got list"),
    ((MASK[:1],), ValueError, "mask must have shape [2], got [1]"),
    ((MASK.to("meta"),), ValueError, "on the CPU, got meta"),
    ((MASK, torch.zeros(6)), ValueError, "state must have shape [1, 6] or [1, 2, 6], got [6]"),
    ((MASK, STATES.double()), RuntimeError, "state must have the weights' dtype"),
    ((MASK, [0.0]), TypeError, "state must be a tensor, got list"),
    ((MASK[:1], torch.zeros(1, 6)), ValueError, "mask must have shape [2], got [1]"),
]
MARKS = [
    ((torch.zeros(2),), TypeError, "reset must be a bool tensor, got float32"),
    (([True, False],), TypeError, "reset must be a tensor, got list"),
    ((MASK[:1],), ValueError, "reset must have shape [2], got [1]"),
    ((MASK, torch.zeros(6)), ValueError, "reset_state must have shape [1, 6] or [1, 2, 6], got"),
    ((MASK, STATES.int()), RuntimeError, "reset_state must have the weights' dtype, float32, got"),
    ((MASK, STATES.to("meta")), RuntimeError, "reset_state must be on the device of the weights"),
    ((MASK.to("meta"),), RuntimeError, "reset must be on the device of the weights, cpu, got meta"),
    ((None, STATES), ValueError, "reset_state needs a reset"),
]
OF_ROWS = [
    ((ZEROS, STATES[:, :1]), RuntimeError, "input must have shape [1, 4] or [4], got [2, 4]"),
    ((ZEROS, STATES[:, :0]), RuntimeError, "input must have shape [0, 4], got [2, 4]"),
    ((ZEROS, STATES.repeat(1, 2, 1)), RuntimeError, "must have shape [1, 2, 6], got [1, 4, 6]"),
]


def test_refuses_what_does_not_fit_and_keeps_its_state():
    of_features = Stepper(rnnext.RNN(4, 6), 2)
    # Of a table that is multiplied with W_ih ahead, and one that is not.
    of_few, of_many = (Stepper(rnnext.EmbeddingRNN(V, 5, 6), 2) for V in (9, 2000))
    of_features(torch.randn(2, 4))
    for stepper in (of_few, of_many):
        stepper(torch.tensor([3, 8]))
    states = [stepper.get_state() for stepper in (of_features, of_few, of_many)]
    for call, rows in (
        (lambda given: Stepper(*given), MADE_OF),
        (of_features, FEATURES),
        (of_few, TOKENS),
        (of_many, TOKENS),
        (of_features.set_state, SET_STATE),
        (lambda state: of_features.step(ZEROS, state), SET_STATE),
        (lambda given: of_features.reset(*given), RESET),
        (lambda given: of_features(ZEROS, *given), MARKS),
        (lambda given: of_features.step(ZEROS, STATES, *given), MARKS),
        (lambda given: of_features(given, MASK), FEATURES),
        (lambda given: of_features.step(*given), OF_ROWS),
    ):
        for wrong, error, message in rows:
            assert_refused(call, error, message, wrong)
    assert same([s.get_state() for s in (of_features, of_few, of_many)], states)
    one, message = Stepper(rnnext.RNN(4, 6)), "input must have shape [1, 4] or [4], got [5]"
    assert_refused(one, RuntimeError, message, torch.zeros(5))
    for name in ("num_layers", "input_size", "hidden_size", "batch_size", "state"):
        with pytest.raises(AttributeError, match=name):
            setattr(one, name, 2)


def test_equal_weights_are_packed_once():
    """In a process of its own, whose memory nothing else takes. (Copies would need 230 MiB.)"""
    code = """
import re, rnnext
def used():
    return int(re.search(r"RssAnon:\\s*(\\d+)", open("/proc/self/status").read())[1]) >> 10
modules = rnnext.RNN(8, 512), rnnext.EmbeddingRNN(1000, 8, 256)
made = [rnnext.Stepper(module) for module in modules]
before = used()
made += [rnnext.Stepper(module) for module in modules * 100]
print(used() - before)
"""
    done = run_python("-c", code, cwd=ROOT)
    assert int(done.stdout) < 120, done.stderr


def test_an_uninitialized_instance_cannot_be_made():
    """Such an instance once crashed the process."""
    made = Stepper(rnnext.RNN(4, 6))._stepper
    for make in (_C.Stepper.__new__, object.__new__, lambda kind: copy.copy(made)):
        with pytest.raises(TypeError):
            make(_C.Stepper).step(torch.zeros(1, 4))


def test_other_tables_tokens_and_autocast():
    """A table of torch.nn's whose rows are scaled, one token without a dimension."""
    model, tokens = rnnext.EmbeddingRNN(9, 5, 6, num_layers=2), torch.randint(9, (7,))
    model.embedding = nn.Embedding(9, 5, max_norm=1.0)
    for rnn in (rnnext.LeakyRNN(5, 6, 2, alpha=0.3), model.rnn):
        model.rnn = rnn
        with torch.no_grad():
            expected = rnn(model.embedding(tokens))[0]
        assert torch.equal(steps(one := Stepper(model), tokens), expected)
    assert repr(one) == "Stepper(9, 6, num_layers=2, batch_size=1)"
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(steps(Stepper(model), tokens[:, None])[:, 0], expected)


def drawn(model, score, prompt, n, temperature, seed):
    """generate, written with the whole modules."""
    generator, tokens = torch.Generator().manual_seed(seed), []
    with torch.no_grad():
        output, h = model.rnn(model.embedding(prompt))
        for _ in range(n):
            scores = score(output[-1])
            if temperature:
                chances = ((scores - scores.amax(-1, keepdim=True)) / temperature).softmax(-1)
                tokens.append(torch.multinomial(chances, 1, generator=generator).squeeze(-1))
            else:
                tokens.append(scores.argmax(-1))
            output, h = model.rnn(model.embedding(tokens[-1][None]), h)
    return torch.stack(tokens), h


@pytest.mark.parametrize(("B", "cell"), [(1, "rnn"), (3, "voltage"), (2, "gru"), (1, "lstm")])
@pytest.mark.parametrize("temperature", [0, 0.7])
def test_generated_tokens_are_those_of_a_loop(temperature, B, cell):
    score, leaks = nn.Linear(32, 20), cell == "voltage"  # whose state is not its output
    model = rnnext.EmbeddingRNN(20, 8, 32, num_layers=2, cell="rnn" if leaks else cell)
    if leaks:
        model.rnn = rnnext.LeakyRNN(8, 32, 2, "softplus", alpha=0.3, form=cell)
    prompt = torch.randint(20, (3, B))
    expected, h = drawn(model, score, prompt, 30, temperature, 5)
    stepper = rnnext.Stepper(model, B)
    steps(stepper, prompt)
    generator = torch.Generator().manual_seed(5)
    pieces = [stepper.generate(score, n, temperature, generator=generator) for n in (10, 20)]
    assert torch.equal(torch.cat(pieces), expected)
    assert same(tree_leaves(stepper.get_state()), tree_leaves(h))
    with torch.device("meta"):
        none = stepper.generate(score, 0)
    assert (none.shape, none.device.type) == ((0, B), "cpu")
    stepper.reset()
    steps(stepper, prompt)
    torch.manual_seed(5)  # torch's generator is the default
    assert torch.equal(stepper.generate(score, 30, temperature), expected)


def test_scores_that_give_no_distribution_are_refused():
    stepper, inf = rnnext.Stepper(rnnext.EmbeddingRNN(4, 3, 5), 2), torch.inf
    for temperature, row in (
        (0, [0.0, torch.nan, 1.0, 2.0]),
        (1.0, [0.0, torch.nan, 1.0, 2.0]),
        (1.0, [0.0, inf, 1.0, 2.0]),
        *((number, [-inf] * 4) for number in (0, 1.0)),
    ):
        scores = torch.tensor([[0.0, 1.0, 2.0, 3.0], row])
        with pytest.raises(RuntimeError, match="the scores of sequence 1 are not finite"):
            stepper.generate(lambda h, scores=scores: scores, 1, temperature)
    assert torch.equal(stepper.get_state(), torch.zeros(1, 2, 5))
    assert (stepper.generate(lambda h: torch.tensor([[-inf, -inf, 0.0, -inf]] * 2), 9) == 2).all()


@pytest.mark.parametrize(("dtype", "temperature"), [(torch.float16, 1e-6), (torch.float32, 1e-46)])
def test_a_tiny_temperature_is_greedy(dtype, temperature):
    """Half scores are divided in float32: their quotients would be infinite."""
    model, score = rnnext.EmbeddingRNN(20, 8, 32, dtype=dtype), nn.Linear(32, 20, dtype=dtype)
    cold = rnnext.Stepper(model).generate(score, 20, temperature)
    assert torch.equal(cold, rnnext.Stepper(model).generate(score, 20, temperature=0))


def test_generate_refuses():
    stepper, score = rnnext.Stepper(rnnext.EmbeddingRNN(9, 5, 6), 2), nn.Linear(6, 9)
    for arguments, error, message in (
        ({"n": 2.0}, TypeError, "n must be an integer, got float"),
        ({"n": -1}, ValueError, "n must not be negative, got -1"),
        ({"temperature": -0.5}, ValueError, "must be finite and not negative, got -0.5"),
        ({"temperature": float("nan")}, ValueError, "must be finite and not negative, got nan"),
        ({"temperature": torch.ones(2)}, ValueError, "temperature must have shape [] or [1], got"),
        ({"temperature": "1"}, TypeError, "temperature must be a number or a tensor, got str"),
        ({"score": score.weight}, TypeError, "score must be a function of the output, got Parame"),
        ({"generator": 5}, TypeError, "generator must be a torch.Generator, got int"),
        ({"score": lambda h: [0.0]}, TypeError, "score must give a tensor, got list"),
        ({"score": nn.Linear(6, 8)}, ValueError, "score must give shape [2, 9], got [2, 8]"),
    ):
        given = {"score": score, "n": 3} | arguments
        assert_refused(lambda given=given: stepper.generate(**given), error, message)
    message = "generate needs a Stepper of an EmbeddingRNN, not RNN"
    assert_refused(Stepper(rnnext.RNN(4, 6)).generate, TypeError, message, score, 3)
