"""RNN.forward(reset=): rows that hold several episodes."""

import copy
import itertools

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import rnnext
from helpers.common import assert_close, error_of


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("grad", [True, False])
def test_a_row_of_episodes_equals_them_one_by_one(layers, bidirectional, grad):
    torch.manual_seed(0)
    rnn = rnnext.RNN(4, 9, layers, bidirectional=bidirectional).requires_grad_(grad)
    nn_rnn = rnnext.revert(copy.deepcopy(rnn))
    x, reset = torch.randn(20, 3, 4), torch.rand(20, 3) < 0.2
    output, _ = rnn(x, reset=reset)
    reset[0] = True
    expected = torch.zeros_like(output)
    for b in range(3):
        starts = [*reset[:, b].nonzero().flatten().tolist(), 20]
        for start, end in itertools.pairwise(starts):
            expected[start:end, b] = nn_rnn(x[start:end, b])[0]
    assert_close(output, expected)
    one, _ = rnn(x[:, 1], reset=reset[:, 1])
    assert_close(one, expected[:, 1])
    rnn.batch_first = True
    assert_close(rnn(x.transpose(0, 1), reset=reset.t())[0], expected.transpose(0, 1))


def test_reset_of_an_rnn_is_checked():
    rnn, x = rnnext.RNN(4, 9), torch.randn(5, 3, 4)
    packed = pack_padded_sequence(x, torch.tensor([5, 4, 2]))
    for given, reset, error, message in (
        (x, torch.zeros(3, 5) > 0, ValueError, r"reset must have shape \[5, 3\], got \[3, 5\]"),
        (x, torch.zeros(5) > 0, ValueError, r"reset must have shape \[T, B\], got \[5\]"),
        (x, torch.zeros(5, 3), TypeError, "reset must be a bool tensor, got float32"),
        (x[:, 0], torch.zeros(5, 3) > 0, ValueError, r"reset must have shape \[T\], got \[5, 3\]"),
        (packed, torch.zeros(5, 3) > 0, ValueError, "reset must not be given with a packed input"),
    ):
        kind, text = error_of(lambda given=given, reset=reset: rnn(given, reset=reset))
        assert kind is error
        assert message.replace("\\", "") in text
