"""What people give as lengths: any integers."""

import numpy as np
import pytest
import torch

import rnnext
from helpers.common import same
from helpers.modules import weights
from rnnext import functional

X, TOKENS, STEPS = torch.randn(5, 2, 3), torch.randint(7, (5, 2)), [5, 3]
LENGTHS = [
    STEPS,
    tuple(STEPS),
    list(torch.tensor(STEPS)),
    torch.tensor(STEPS, dtype=torch.int32),
    np.array(STEPS),
    np.array(STEPS, dtype=np.int32),
]
REFUSED = [
    ([5.0, 3.0], TypeError),
    ("53", TypeError),
    ([[5], [3]], ValueError),
    ([5, 3, 1], ValueError),
    ([5, 6], ValueError),
    (torch.tensor([5.0, 3.0]), TypeError),
]
RNN = rnnext.RNN(3, 4, batch_first=True)
CALLS = {
    "RNN": lambda n: RNN(X.transpose(0, 1), lengths=n),
    "LeakyRNN": lambda n: rnnext.LeakyRNN(3, 4, alpha=0.5, noise_std=1)(X, lengths=n),
    "EmbeddingRNN": lambda n: rnnext.EmbeddingRNN(7, 3, 4)(TOKENS, lengths=n),
    "functional.rnn": lambda n: functional.rnn(X, None, weights(RNN), lengths=n),
    "functional.recurrence": lambda n: functional.recurrence(X, None, *weights(RNN), lengths=n),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_lengths_are_any_integers(call):
    def drawn(lengths):
        torch.manual_seed(0)
        return call(lengths)

    expected = drawn(torch.tensor(STEPS))
    assert not torch.equal(expected[1], drawn(None)[1])
    for given in LENGTHS:
        assert same(drawn(given), expected), given
    for given, error in REFUSED:
        with pytest.raises(error, match=r"^lengths\b"):
            call(given)


def test_lengths_of_an_empty_batch_may_be_an_empty_list():
    output, h_n = rnnext.RNN(3, 4)(torch.zeros(5, 0, 3), lengths=[])
    assert (output.shape, h_n.shape) == ((5, 0, 4), (1, 0, 4))
