"""reset_state: what the episodes of a row begin with."""

import torch

import rnnext
from helpers.common import error_of


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
