"""A user's file, which `make lint` checks: the types of calls, and mistakes that mypy must find."""

from typing import Any, assert_type

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnnext
from rnnext import functional, ops

rnn = rnnext.RNN(3, 4, num_layers=2, nonlinearity="relu", batch_first=True, device="cpu")
x, reset = torch.randn(2, 5, 3), torch.zeros(2, 5, dtype=torch.bool)
assert_type(rnn(x), tuple[Tensor, Tensor])
assert_type(rnn(x, None, [5, 3], reset), tuple[Tensor, Tensor])
assert_type(rnn(pack_sequence([x[0], x[1, :2]])), tuple[PackedSequence, Tensor])

assert_type(rnnext.GRU(3, 4)(x, x), tuple[Tensor, Tensor])
lstm = rnnext.LSTM(3, 4, batch_first=True, proj_size=0)
assert_type(lstm(x, (x, x), [5, 3], reset, (x, x)), tuple[Tensor, tuple[Tensor, Tensor]])
assert_type(lstm(pack_sequence([x[0], x[1, :2]])), tuple[PackedSequence, tuple[Tensor, Tensor]])

leaky = rnnext.LeakyRNN(3, 4, alpha=torch.tensor(0.5), form="voltage", noise_std=0.1)
assert_type(leaky(x, lengths=torch.tensor([5, 3])), tuple[Tensor, Tensor])
assert_type(leaky.alphas(), list[Tensor])
assert_type(rnnext.LeakyRNNCell(3, 4, dt=1, tau=5.0)(x[:, 0]), Tensor)

tokens, words = torch.zeros(5, 2, dtype=torch.int32), rnnext.EmbeddingRNN(9, 3, 4, padding_idx=0)
assert_type(words(tokens), tuple[Tensor, Any])
assert_type(words.embedding(tokens), Tensor)
assert_type(rnnext.Embedding(9, 3)(tokens), Tensor)
assert_type(rnnext.Embedding.from_linear(nn.Linear(9, 3, bias=False)), rnnext.Embedding)
h = torch.zeros(2, 4)
assert_type(rnnext.RNNCell(3, 4)(x[:, 0], h), Tensor)
assert_type(rnnext.GRUCell(3, 4)(x[:, 0], h), Tensor)
assert_type(rnnext.LSTMCell(3, 4)(x[:, 0], (h, h)), tuple[Tensor, Tensor])

stepper = rnnext.Stepper(rnn, batch_size=2)
assert_type(stepper(x[:, 0]), Tensor)
assert_type(stepper.step(x[:, 0], stepper.get_state()), tuple[Tensor, Any])
rnnext.Stepper(lstm).reset(None, (h, h))

model = nn.Sequential(nn.Embedding(9, 3), nn.RNN(3, 4))
assert_type(rnnext.convert(model, embedding=False, dry_run=True), nn.Sequential)
assert_type(rnnext.revert(rnn), rnnext.RNN)
assert_type(rnnext.summary(model), str)

weights: list[Tensor] = list(rnn.parameters())
assert_type(functional.rnn(x, None, weights, lengths=[5, 3]), tuple[Tensor, Tensor])
assert_type(functional.gru(x, None, weights), tuple[Tensor, Tensor])
assert_type(functional.lstm(x, (x, x), weights), tuple[Tensor, tuple[Tensor, Tensor]])
assert_type(functional.lstm_cell(h, None, *weights), tuple[Tensor, Tensor])
assert_type(functional.recurrence(x, None, None, weights[1], alpha=0.5), tuple[Tensor, Tensor])
assert_type(ops.noise(torch.tensor(5), 3, 2, 1, 4), Tensor)

# An ignore of what is no error is itself an error.
rnnext.RNN("3", 4)  # type: ignore[arg-type]
rnnext.RNN(3, 4)(None)  # type: ignore[type-var]
rnnext.RNN(3, 4)([1.0])  # type: ignore[type-var]
rnnext.RNNCell(3, 4)([1.0])  # type: ignore[arg-type]
rnnext.LSTM(3, 4)(x, x)  # type: ignore[arg-type]
rnnext.LSTMCell(3, 4)(h, h)  # type: ignore[arg-type]
rnnext.Stepper(nn.Linear(3, 4))  # type: ignore[arg-type]
rnnext.LeakyRNN(3, 4, noise=0.1)  # type: ignore[call-arg]
rnnext.convert(3)  # type: ignore[type-var]
rnnext.nothing()  # type: ignore[attr-defined]
