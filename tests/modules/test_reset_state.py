"""reset_state: what the episodes of a row begin with."""

import itertools

import pytest
import torch

import rnnext
from helpers.common import assert_close, error_of

MODULES = {
    "RNN": lambda both: rnnext.RNN(4, 9, 2, bidirectional=both),
    "LeakyRNN": lambda both: rnnext.LeakyRNN(
        4, 9, 2, bidirectional=both, alpha=0.3, form="voltage"
    ),
    "EmbeddingRNN": lambda both: rnnext.EmbeddingRNN(3, 4, 9, 2, bidirectional=both),
}


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("of_each_row", [False, True])
def test_episodes_begin_with_a_state_that_learns(kind, bidirectional, of_each_row):
    torch.manual_seed(0)
    module, S = MODULES[kind](bidirectional).double(), 4 if bidirectional else 2
    tokens = kind == "EmbeddingRNN"
    x = torch.randint(3, (20, 3)) if tokens else torch.randn(20, 3, 4, dtype=torch.float64)
    reset = torch.rand(20, 3) < 0.2
    start = torch.randn((S, 3, 9) if of_each_row else (S, 9), dtype=torch.float64)
    start.requires_grad_()

    def one_by_one():
        states, rows = start if of_each_row else start.unsqueeze(1).expand(S, 3, 9), []
        for b in range(3):
            ends = sorted({0, 20, *reset[:, b].nonzero().flatten().tolist()})
            parts = []
            for begin, end in itertools.pairwise(ends):
                begins = [bool(reset[begin, b]), end < 20]  # by direction
                begins = begins * (S // 2) if bidirectional else begins[:1] * S
                h = states[:, b : b + 1] * torch.tensor(begins).view(S, 1, 1)
                parts.append(module(x[begin:end, b : b + 1], h)[0])
            rows.append(torch.cat(parts))
        return torch.cat(rows, 1)

    results = []
    for output in (module(x, reset=reset, reset_state=start)[0], one_by_one()):
        leaves = [start, *module.parameters()]
        results.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
    assert_close(*results)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    assert_close(compiled(x, reset=reset, reset_state=start)[0], results[0][0])


def test_a_reset_state_of_one_sequence():
    rnn, x, reset = rnnext.RNN(4, 9, 2), torch.randn(7, 4), torch.zeros(7, dtype=torch.bool)
    start, reset[3] = torch.randn(2, 9), True
    output, h_n = rnn(x, reset=reset, reset_state=start)
    assert_close([output[3:], h_n], rnn(x[3:], start))


def test_a_reset_state_is_checked():
    rnn, x = rnnext.RNN(4, 9, 2, batch_first=True), torch.randn(3, 5, 4)
    reset = torch.ones(3, 5, dtype=torch.bool)
    for given, options, error, message in (
        (x, {"reset_state": torch.zeros(2, 9)}, ValueError, "reset_state needs a reset"),
        (
            x,
            {"reset": reset, "reset_state": torch.zeros(1, 9)},
            ValueError,
            "reset_state must have shape [2, 9] or [2, 3, 9], got [1, 9]",
        ),
        (
            x[0],
            {"reset": reset[0], "reset_state": torch.zeros(2, 1, 9)},
            ValueError,
            "reset_state must have shape [2, 9], got [2, 1, 9]",
        ),
        (x, {"reset": reset, "reset_state": [0.0]}, TypeError, "reset_state must be a tensor, got"),
    ):
        kind, text = error_of(lambda given=given, options=options: rnn(given, **options))
        assert kind is error
        assert message in text
