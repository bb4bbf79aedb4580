"""Stepper.generate: tokens drawn from the scores of the outputs."""

import functools

import pytest
import torch
from torch import nn

import rnnext
from helpers.common import assert_refused, steps


def drawn(model, score, prompt, n, temperature, seed):
    """generate, written with the whole modules."""
    generator = torch.Generator().manual_seed(seed)
    tokens = []
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


@pytest.mark.parametrize(("B", "form"), [(1, None), (3, "voltage")])
@pytest.mark.parametrize("temperature", [0, 0.7])
def test_generated_tokens_are_those_of_a_loop(temperature, B, form):
    model, score = rnnext.EmbeddingRNN(20, 8, 32, num_layers=2), nn.Linear(32, 20)
    if form:  # whose state is not its output
        model.rnn = rnnext.LeakyRNN(8, 32, 2, "softplus", alpha=0.3, form=form)
    prompt = torch.randint(20, (3, B))
    expected, h = drawn(model, score, prompt, 30, temperature, 5)
    stepper = rnnext.Stepper(model, B)
    steps(stepper, prompt)
    generator = torch.Generator().manual_seed(5)
    pieces = [stepper.generate(score, n, temperature, generator=generator) for n in (10, 20)]
    assert torch.equal(torch.cat(pieces), expected)
    assert torch.equal(stepper.get_state(), h)
    with torch.device("meta"):
        none = stepper.generate(score, 0)
    assert (none.shape, none.device.type) == ((0, B), "cpu")
    stepper.reset()
    steps(stepper, prompt)
    torch.manual_seed(5)  # torch's generator is the default
    assert torch.equal(stepper.generate(score, 30, temperature), expected)


def test_scores_that_are_no_numbers_are_refused():
    stepper, inf = rnnext.Stepper(rnnext.EmbeddingRNN(4, 3, 5), 2), torch.inf
    for temperature, row in (
        (0, [0.0, torch.nan, 1.0, 2.0]),
        (1.0, [0.0, torch.nan, 1.0, 2.0]),
        (1.0, [0.0, inf, 1.0, 2.0]),
        (1.0, [-inf] * 4),
    ):
        scores = torch.tensor([[0.0, 1.0, 2.0, 3.0], row])
        with pytest.raises(RuntimeError, match="the scores of sequence 1 are not finite"):
            stepper.generate(lambda h, scores=scores: scores, 1, temperature)
    assert torch.equal(stepper.get_state(), torch.zeros(1, 2, 5))
    scores = torch.tensor([[-inf, -inf, 0.0, -inf]] * 2)
    assert (stepper.generate(lambda h: scores, 9) == 2).all()


def test_half_scores_are_divided_in_float32():
    """So cold that it is greedy; the quotients would be infinite in float16."""
    model, score = rnnext.EmbeddingRNN(20, 8, 32, dtype=torch.float16), nn.Linear(32, 20).half()
    cold = rnnext.Stepper(model).generate(score, 20, temperature=1e-6)
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
        call = functools.partial(stepper.generate, **({"score": score, "n": 3} | arguments))
        assert_refused(call, error, message)
    other = rnnext.Stepper(rnnext.RNN(4, 6))
    message = "generate needs a Stepper of an EmbeddingRNN, not RNN"
    assert_refused(lambda: other.generate(score, 3), TypeError, message)
