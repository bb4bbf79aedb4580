"""Calls that modules and functions refuse: with torch.nn's errors where it has them, else with the
name of the argument, what was expected and what came."""

import functools
import itertools
import weakref

import numpy as np
import pytest
import torch
from torch import nn, zeros
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnnext
from helpers.common import assert_refused, error_of, outcome, pair
from rnnext import functional
from rnnext.functional import recurrence, rnn_cell

LAYERS, CELLS = ("RNN", "GRU", "LSTM"), ("RNNCell", "GRUCell", "LSTMCell")
SIZES = dict.fromkeys((*LAYERS, *CELLS), (4, 6)) | {"Embedding": (10, 3)}
double, integer = (functools.partial(zeros, dtype=d) for d in (torch.float64, torch.int64))
meta = functools.partial(zeros, device="meta")


def packed(size, batch_sizes):
    return PackedSequence(zeros(size), torch.tensor(batch_sizes))


# (Cells and Embedding inherit torch.nn's constructors, layers all other checks of their arguments.)
CONSTRUCTORS = [
    {"nonlinearity": "gelu"}, {"nonlinearity": None}, {"proj_size": 2}, {"hidden_size": 0},
    {"num_layers": 1.5}, {"dropout": True}, {"dtype": torch.int64},
]  # fmt: skip


def test_the_constructor_refuses_what_torchs_refuses():
    of_lstm = [{"proj_size": size} for size in (-1, 6)]
    for kind, wrong in (
        *(("RNN", wrong) for wrong in CONSTRUCTORS),
        *(("GRU", wrong) for wrong in CONSTRUCTORS[2:]),
        *(("LSTM", wrong) for wrong in (*CONSTRUCTORS[3:], *of_lstm)),
    ):
        arguments = {"input_size": 4, "hidden_size": 6} | wrong
        theirs, ours = (error_of(getattr(library, kind), **arguments) for library in (nn, rnnext))
        assert ours == theirs, (kind, wrong)


TABLE, ONE = zeros(5, 3), torch.tensor([1])


def states(kind, *given):
    """The state that a module of this kind takes, each of its tensors this one."""
    return [(h, h) if kind.startswith("LSTM") else h for h in given]


CALLS = [
    *((kind, double(5, 3, 4)) for kind in LAYERS),
    *((kind, integer(5, 3, 4)) for kind in LAYERS),
    *((kind, packed((4, 5), [3, 1])) for kind in ("RNN", "GRU")),
    *((kind, packed((4, 1, 4), [3, 1])) for kind in ("RNN", "GRU")),
    *((kind, packed((4, 4), [3, 1]), zeros(1, 4, 6)) for kind in ("RNN", "GRU")),
    *((kind, packed((4, 4), [3, 1]), zeros(3, 6)) for kind in ("RNN", "GRU")),
    ("LSTM", zeros(5, 3, 4), (zeros(1, 3, 6), zeros(1, 3, 5))),
    ("LSTM", zeros(5, 3, 4), (zeros(1, 3, 6), zeros(3, 6))),
    ("LSTMCell", zeros(3, 4), (zeros(3, 6), zeros(3, 6, 1))),
    ("Embedding", torch.ones(2)),
    ("Embedding", torch.ones(2, dtype=torch.int16)),
    ("Embedding", torch.ones(2, dtype=torch.bool)),
    ("Embedding", [1, 2]),
    ("Embedding", None),
    ("embedding", ONE, TABLE, 5),
    ("embedding", ONE, TABLE, -6),
    ("embedding", ONE, TABLE[0]),
    ("embedding", ONE, TABLE[None]),
    ("embedding", [1], TABLE),
    ("embedding", ONE, None),
]
# The errors of these are torch's own internals', or say less than ours.
CALLS_BY_TYPE = [
    (kind, *given)
    for kind in LAYERS
    for given in (
        (zeros(5, 3, 4), *states(kind, double(1, 3, 6))),
        (meta(5, 3, 4),),
        (zeros(5, 3, 4), *states(kind, meta(1, 3, 6))),
        (packed((4, 4), [1, 3]),),
        (packed((4, 4), [3, 1]), *states(kind, double(1, 3, 6))),
        (PackedSequence(zeros(4, 4), torch.tensor([3, 1], dtype=torch.int32)),),
    )
] + [
    (kind, *given)
    for kind in CELLS
    for given in (
        (double(3, 4),),
        (integer(3, 4),),
        (zeros(3, 4), *states(kind, double(3, 6))),
        (meta(3, 4),),
        (zeros(3, 4), *states(kind, meta(3, 6))),
        (zeros(4), *states(kind, zeros(6, 1))),
    )
]


def test_calls_refuse_what_torchs_refuse():
    pairs = {kind: pair(kind, *sizes) for kind, sizes in SIZES.items()}
    pairs["embedding"] = [F.embedding, functional.embedding]

    def errors(kind, given):
        return [error_of(call, *given) for call in pairs[kind]]

    for kind, *given in CALLS:
        expected, found = errors(kind, given)
        assert found == expected, (kind, given)
    for kind, *given in CALLS_BY_TYPE:
        expected, found = errors(kind, given)
        assert found[0] is expected[0], (kind, given)


SHAPES = [(), (4,), (5, 4), (5, 5), (5, 3, 4), (5, 3, 5), (0, 4), (0, 3, 4), (1, 5, 3, 4)]
STATES = [(6,), (1, 6), (2, 6), (3, 6), (3, 5), (1, 3, 6), (1, 2, 6), (2, 3, 6), (1, 3, 5)]


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_shapes_are_refused_that_torch_refuses(kind):
    theirs, ours = pair(kind, *SIZES[kind])
    for shape, state in itertools.product(SHAPES, [None, *STATES]):
        given = (zeros(shape), *([] if state is None else states(kind, zeros(state))))
        expected, found = outcome(theirs, *given), outcome(ours, *given)
        if torch.__version__ >= (2, 15) and kind in CELLS and len(shape) != len(state or shape):
            expected, found = expected[0], found[0]  # 2.15 has another text
        assert found == expected, (shape, state)
        if kind in LAYERS:  # which subclasses call
            expected, found = (outcome(m.check_input, given[0], None) for m in (theirs, ours))
            assert found == expected, shape


def test_what_was_set_wrong_afterwards_raises_torchs_error():
    x = zeros(5, 3, 4)
    sigmoid = {"mode": "RNN_SIGMOID", "nonlinearity": "sigmoid"}  # rnnext.functional has that
    for kind, edits in (
        *(("RNN", {name: None}) for name in ("weight_hh_l0", "bias_ih_l0", "bias_hh_l0")),
        ("GRU", {"weight_hh_l0": None}),
        ("RNN", sigmoid),
        ("RNNCell", sigmoid),
    ):
        theirs, ours = pair(kind, *SIZES[kind])
        for module in (theirs, ours):
            for name, value in edits.items():
                setattr(module, name, value)
        given = x[0] if kind == "RNNCell" else x
        assert error_of(ours, given) == error_of(theirs, given)
        with pytest.raises((AssertionError, RuntimeError, TypeError)):
            rnnext.Stepper(ours)


@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_an_index_out_of_range_is_named(max_norm):
    embedding = rnnext.Embedding(10, 3, max_norm=max_norm)
    before = embedding.weight.detach().clone()
    for indices, where in (
        (torch.tensor([1, 7, 10]), "10 at [2]"),
        (torch.tensor([0, -1]), "-1 at [1]"),
        (torch.tensor([[1, 2], [2**31 - 1, 3]]), f"{2**31 - 1} at [1, 0]"),
        (torch.tensor(10), "10"),
        (torch.tensor([2**32]), f"{2**32} at [0]"),  # which is 0 in 32 bits
    ):
        message = f"index out of range in self: {where}, expected 0 <= index < 10"
        for dtype in (torch.int64, torch.int32)[: 1 + (int(indices.max()) < 2**32)]:
            assert_refused(embedding, IndexError, message, indices.to(dtype))
    assert torch.equal(embedding.weight, before)


X, TOKENS = torch.randn(5, 2, 3), torch.randint(7, (5, 2))
ARRAY, LIST, BOOLS = np.zeros((5, 2, 3), dtype=np.float32), [[[0.0] * 3] * 2] * 5, zeros(5, 2) > 0
FAR, FAR_TOKENS = meta(5, 2, 3), integer(5, 2, device="meta")
PACKED = pack_sequence([X[:, 0], X[:2, 1]])
UNSORTED = pack_sequence([X[:2, 1], X[:, 0]], enforce_sorted=False)
RNN = rnnext.RNN(3, 4, batch_first=True)
TWO = rnnext.RNN(3, 4, 2)
LSTM, LSTM_CELL, GRU = rnnext.LSTM(3, 4), rnnext.LSTMCell(3, 4), rnnext.GRU(3, 4)
NOISY = rnnext.LeakyRNN(3, 4, alpha=0.5, noise_std=1)
VOLTAGE = rnnext.LeakyRNN(3, 4, alpha=0.5, form="voltage")
WRONG = rnnext.GRU(3, 4)
WRONG.weight_hh_l0 = nn.Parameter(zeros(15, 5))
TOKEN_RNN, OF_FEW = rnnext.EmbeddingRNN(7, 3, 4), rnnext.EmbeddingRNN(1, 3, 4)
CELL, EMBEDDING = rnnext.RNNCell(3, 4), rnnext.Embedding(7, 3)
WEIGHTS = W_IH, W_HH, B, _ = (CELL.weight_ih, CELL.weight_hh, CELL.bias_ih, CELL.bias_hh)
STACKED = [w.expand(6, *w.shape) for w in WEIGHTS]


def functional_rnn(*weights, **options):
    return functional.rnn(X, None, weights, **options)


def cell(*weights):
    return rnn_cell(X[0], None, *weights)


def ensemble(**changes):
    return functional.rnn_ensemble(**{"input": X, "hx": None, "weights": STACKED} | changes)


def recur(**changes):
    return recurrence(**{"input": X, "hx": None, "weight_ih": W_IH, "weight_hh": W_HH} | changes)


NO_TENSORS = [
    (lambda: RNN(ARRAY), "input", "ndarray"),
    (lambda: RNN(None), "input", "NoneType"),
    (lambda: RNN(X, np.zeros(3)), "hx", "ndarray"),
    (lambda: RNN(X, (X, X)), "hx", "a tuple of tensors"),  # an LSTM's
    (lambda: LSTM(X, (zeros(1, 2, 4), None)), "hx[1]", "NoneType"),
    (lambda: LSTM(X, reset=BOOLS, reset_state=(zeros(1, 4), [0.0])), "reset_state[1]", "list"),
    (lambda: LSTM_CELL(X[0], (LIST, zeros(2, 4))), "hx[0]", "list"),
    (lambda: RNN(PACKED, [0.0]), "hx", "list"),
    (lambda: RNN(X, reset=[True]), "reset", "list"),
    (lambda: TWO(X, reset=BOOLS, reset_state=[0.0]), "reset_state", "list"),
    (lambda: NOISY(ARRAY), "input", "ndarray"),
    (lambda: TOKEN_RNN(np.zeros((5, 2))), "tokens", "ndarray"),
    (lambda: TOKEN_RNN(TOKENS, LIST), "hx", "list"),
    (lambda: CELL(ARRAY[0]), "input", "ndarray"),
    (lambda: CELL(X[0], LIST), "hx", "list"),
    (lambda: cell(LIST, W_HH), "weight_ih", "list"),
    (lambda: cell(W_IH, None), "weight_hh", "NoneType"),
    (lambda: recur(input=ARRAY), "input", "ndarray"),
    (lambda: recur(weight_ih=np.zeros((4, 3))), "weight_ih", "ndarray"),
    (lambda: recur(weight_hh=None), "weight_hh", "NoneType"),
    (lambda: recur(noise_std=0.1, noise_key=5), "noise_key", "int"),
    (lambda: ensemble(input=None), "input", "NoneType"),
]


def test_arguments_that_are_no_tensors_are_named():
    for call, name, kind in NO_TENSORS:
        made = {"ndarray": "from_numpy", "list": "tensor"}.get(kind)
        advice = f": give torch.{made}({name})" if made else ""
        assert error_of(call) == (TypeError, f"{name} must be a tensor, got {kind}{advice}")


REFUSED = [  # In the caller's shapes.
    (lambda: RNN(X, lengths=[5, 6]), ValueError, "lengths must have shape [5], got [2]"),
    (lambda: TWO(X, lengths=[5, 6]), ValueError, "lengths[1] = 6 is out of range: expected 0 <="),
    (lambda: TWO(X[:, 0], lengths=[5]), ValueError, "lengths needs a 3-D input: one sequence or"),
    (lambda: TWO(PACKED, lengths=[5, 2]), ValueError, "lengths needs a 3-D input"),
    (lambda: RNN(X, lengths=X[0, :, 0]), TypeError, "lengths must be integers, got float32"),
    (lambda: RNN(X, lengths=meta(5).long()), RuntimeError, "lengths must be on cpu, got"),
    (lambda: RNN(X, reset=BOOLS.t()), ValueError, "reset must have shape [5, 2], got [2, 5]"),
    (lambda: RNN(X, reset=meta(5, 2) > 0), RuntimeError, "reset must be on cpu, got meta"),
    (lambda: TWO(X, reset=X[..., 0]), TypeError, "reset must be a bool tensor, got float32"),
    (lambda: TWO(X[:, 0], reset=BOOLS), ValueError, "reset must have shape [5], got [5, 2]"),
    (lambda: TWO(UNSORTED, zeros(2, 3, 4)), RuntimeError, "Expected hidden size (2, 2, 4), got"),
    (lambda: TWO(UNSORTED._replace(sorted_indices=integer(1)), zeros(2, 2, 4)), RuntimeError,
     "hx must have 1 rows, as sorted_indices has, got [[2, 2, 4]]"),
    (lambda: TWO(PACKED, reset=BOOLS), ValueError, "reset must not be given with a packed input"),
    (lambda: TWO(X, reset_state=zeros(2, 4)), ValueError, "reset_state needs a reset"),
    (lambda: TWO(X, reset=BOOLS, reset_state=zeros(1, 4)), ValueError,
     "reset_state must have shape [2, 4] or [2, 2, 4], got [1, 4]"),
    (lambda: TWO(X[:, 0], reset=BOOLS[:, 0], reset_state=zeros(2, 1, 4)), ValueError,
     "reset_state must have shape [2, 4], got [2, 1, 4]"),
    (lambda: LSTM(X, X), TypeError, "hx must be a pair of tensors, (h, c), got Tensor"),
    (lambda: LSTM(X, (zeros(1, 2, 4), zeros(1, 2, 4) > 0)), RuntimeError, "hx must be tensors of"),
    (torch.autocast("cpu")(lambda: torch.jit.trace(LSTM, X)), RuntimeError, "Cannot insert a"),
    (lambda: torch.vmap(lambda x: TWO(x, lengths=TOKENS[0, 0]))(X[None]), IndexError, "range"),
    (lambda: LSTM(X, [X]), TypeError, "hx must be a pair of tensors, (h, c), got 1 of them"),
    (lambda: LSTM_CELL(X[0], X), TypeError, "hx must be a pair of tensors, (h, c), got Tensor"),
    (lambda: LSTM(X, reset=BOOLS, reset_state=zeros(1, 4)), TypeError,
     "reset_state must be a pair of tensors, (h, c), got Tensor"),
    (lambda: LSTM(X, reset=BOOLS, reset_state=(zeros(1, 4), zeros(2, 4))), ValueError,
     "reset_state[1] must have shape [1, 4] or [1, 2, 4], got [2, 4]"),
    (lambda: functional.gru(X, None, WEIGHTS), RuntimeError, "weight_hh must have shape [12, 4]"),
    (lambda: WRONG(X), RuntimeError, "weight_hh_l0 must have shape [12, 4], got [15, 5]"),
    (lambda: functional.lstm(X, None, list(GRU.parameters())), RuntimeError,
     "weight_hh must have shape [16, 4], got [12, 4]"),
    (lambda: rnnext.LSTM(3, 4, proj_size=2), NotImplementedError, "proj_size must be 0, got 2"),
    (lambda: ensemble(cell="elman"), ValueError, "cell must be one of 'rnn', 'gru', 'lstm', got"),
    (lambda: rnnext.EmbeddingRNN(7, 3, 4, cell="GRU"), ValueError, "'gru', 'lstm', got 'GRU'"),
    (lambda: rnnext.EmbeddingRNN(7, 0, 4), ValueError, "embedding_dim must be greater than zero"),
    (lambda: rnnext.EmbeddingRNN(7, 3, 4, nonlinearity="relu", cell="gru"), ValueError,
     "nonlinearity must be 'tanh' of a gru, got 'relu'"),
    (lambda: RNN(X.to_sparse()), RuntimeError, "input must be a dense tensor, got torch.sparse"),
    (lambda: RNN(FAR, reset=BOOLS), RuntimeError, "input must be on the device of the weights"),
    (lambda: RNN(X, meta(1, 5, 4)), RuntimeError, "hx must be on the device of the weights"),
    (lambda: rnnext.RNN(3, 4, dtype=torch.complex64)(X.to(torch.complex64)), NotImplementedError,
     "weight_hh must be float32, float64, bfloat16 or float16, got complex64"),
    (lambda: TOKEN_RNN(FAR_TOKENS), RuntimeError, "indices must be on the device of the weights"),
    (lambda: TOKEN_RNN(TOKENS > 3), TypeError, "tokens must be int32 or int64, got bool"),
    (lambda: OF_FEW(0 * TOKENS[None]), ValueError, "tokens must have 1 or 2 dimensions, got 3"),
    (lambda: OF_FEW(0 * TOKENS[:, 0], lengths=[5]), ValueError, "lengths needs 2-D tokens: one"),
    (lambda: OF_FEW(PackedSequence(TOKENS, torch.tensor([5]))), ValueError, "1 dimensions, got 2"),
    (lambda: torch.vmap(functional.embedding)(TOKENS[:, None] + 2, zeros(5, 2, 3)), IndexError,
     "at [0, 0, 0], expected 0 <= index < 2"),
    (lambda: OF_FEW(0 * TOKENS, zeros(1, 3, 4)), RuntimeError,
     "hx must have shape [1, 2, 4], got [1, 3, 4]"),
    (lambda: EMBEDDING(FAR_TOKENS), RuntimeError, "indices must be on the device of the weights"),
    (lambda: EMBEDDING(TOKENS.to_sparse()), RuntimeError, "indices must be a dense tensor, got"),
    (lambda: EMBEDDING(np.zeros(3, dtype=np.int64)), TypeError, "must be Tensor, not ndarray"),
    (lambda: functional.embedding(TOKENS, zeros([]), 0), RuntimeError, "'weight' must be 2-D"),
    (lambda: functional.embedding(0 * TOKENS, W_IH, max_norm="1"), TypeError,
     "max_norm must be a number or a tensor, got str"),
    (lambda: rnnext.Embedding.from_linear(W_IH), TypeError,
     "linear must be a torch.nn.Linear, got Parameter"),
    (lambda: rnnext.convert([RNN]), TypeError, "model must be a torch.nn.Module, got list"),
    (lambda: rnnext.revert(None), TypeError, "model must be a torch.nn.Module, got NoneType"),
    (lambda: rnnext.summary(nn.RNN), TypeError, "model must be a torch.nn.Module, got type"),
    (lambda: RNN(X, (None, None)), TypeError, "hx must be a tensor, got tuple"),
    (lambda: CELL(X[0], meta(2, 4)), RuntimeError, "hx must be on the device of the weights"),
    (lambda: CELL(X[0].to_sparse()), RuntimeError, "input must be a dense tensor, got torch"),
    (lambda: cell(zeros(4, 0, 1, 1, 1, 3), W_HH), RuntimeError, "weight_ih must be 2-D, got [4"),
    (lambda: cell(W_IH, zeros(4, 5)), RuntimeError, "weight_hh must have shape [5, 5], got [4, 5]"),
    (lambda: cell(W_IH, W_HH, zeros(5), B), RuntimeError, "bias_ih must have shape [4], got [5]"),
    (lambda: cell(W_IH, W_HH, B, zeros(4, 1)), RuntimeError, "bias_hh must have shape [4], got"),
    (lambda: cell(W_IH, W_HH, None, zeros(5)), RuntimeError, "bias_hh must have shape [4], got"),
    (lambda: cell(W_IH, zeros(4), None, B), RuntimeError, "weight_hh must be 2-D, got [4]"),
    (lambda: recur(bias_hh=B.double()), RuntimeError, "bias_hh must have the dtype of weight_hh"),
    (lambda: cell(*(w.double() for w in WEIGHTS)), RuntimeError, "input must have the dtype of"),
    (lambda: cell(*WEIGHTS, "gelu"), ValueError, "nonlinearity must be one of 'tanh', 'relu',"),
    (lambda: functional_rnn(), ValueError, "each of 1 directions, got 0 tensors"),
    (lambda: functional_rnn(W_IH, W_HH, bidirectional=True), ValueError, "2 directions, got 2"),
    (lambda: functional_rnn(W_IH, None), TypeError, "flat list of tensors, got a NoneType among"),
    (lambda: functional_rnn([W_IH, W_HH]), TypeError, "flat list of tensors, got a list among"),
    (lambda: functional.rnn(X, None, 3), TypeError, "flat list of tensors, got a int among them"),
    (lambda: functional_rnn(*WEIGHTS, nonlinearity="gelu"), ValueError, "got 'gelu'"),
    (lambda: functional_rnn(*WEIGHTS, nonlinearity=3), RuntimeError, "argument 'nonlinearity'"),
    (lambda: functional_rnn(*WEIGHTS, nonlinearity="\udc00"), RuntimeError, "'nonlinearity'"),
    (lambda: functional_rnn(*TWO.parameters(), dropout=1.5, training=True), RuntimeError,
     "dropout must be between 0 and 1, got 1.5"),
    (lambda: ensemble(hx=zeros(6, 1, 3, 4)), ValueError,
     "hx must have shape [6, 1, 2, 4], got [6, 1, 3, 4]"),
    (lambda: ensemble(dropout=3), RuntimeError, "dropout must be between 0 and 1, got 3"),
    (lambda: ensemble(reset_state=B), ValueError, "[6, 1, 4] or [6, 1, 2, 4], got [4]"),
    (lambda: ensemble(reset_state=zeros(6, 1, 4)), ValueError, "reset_state needs a reset"),
    (lambda: ensemble(input=X[0]), ValueError, "input must have 3 or 4 dimensions, got 2"),
    (lambda: ensemble(reset=BOOLS[0]), ValueError, "must have shape [5, 2] or [6, 5, 2], got [2]"),
    (lambda: ensemble(weights=[B, B]), RuntimeError, "weights[1] must have 3 dimensions, got 1"),
    (lambda: ensemble(weights=[W_IH]), ValueError, "weights must hold weight_ih, weight_hh and"),
    (lambda: functional_rnn(W_IH, W_HH, W_HH, W_HH.double()), RuntimeError,
     "weight_hh_l1 must have the dtype of weight_ih_l0, float32, got float64"),
    (lambda: functional_rnn(W_IH, W_HH, W_IH, W_IH, bidirectional=True), RuntimeError,
     "weight_hh_l0_reverse must have shape [4, 4], got [4, 3]"),
    (lambda: functional_rnn(W_IH, zeros(8, 4)), RuntimeError, "weight_hh must have shape [4, 4]"),
    (lambda: ensemble(input=zeros(3, 5, 2, 3)), ValueError, "input must have shape [5, 2, 3] or ["),
    (lambda: ensemble(lengths=[1, 2, 3]), ValueError, "lengths must have shape [2] or [6, 2], got"),
    (lambda: cell(B[0], W_HH), RuntimeError, "weight_ih must be"),
    (lambda: VOLTAGE.potentials(X[0]), ValueError, "input must have 3 dimensions, got 2"),
    (lambda: recur(alpha=0.0), ValueError, "alpha must be in (0, 1], got 0.0"),
    (lambda: recur(alpha="x"), TypeError, "alpha must be a number or a tensor, got str"),
    (lambda: recur(alpha=B[:3]), ValueError, "alpha must have shape [] or [4], got [3]"),
    (lambda: recur(form="x", alpha=0.5), ValueError, "form must be one of 'rate', 'voltage',"),
    (lambda: recur(form="blend"), ValueError, "form must not be given without alpha, got 'blend'"),
    (lambda: recur(noise_std=B[:3]), ValueError, "noise_std must have shape [] or [4], got [3]"),
    (lambda: recur(noise_std=-1.0), ValueError, "noise_std must be finite and not negative"),
    (lambda: recur(noise_std=torch.tensor([1.0, 1, -1, 1])), ValueError,
     "noise_std must be finite and not negative, got -1 at 2"),
    (lambda: recur(noise_std=1e39), ValueError, "must be finite and not negative, got 1e+39"),
    (lambda: recur(noise_std=B), ValueError, "noise_std must not require a gradient"),
    (lambda: recur(noise_key=torch.tensor(5)), ValueError, "noise_key must not be given without"),
    (lambda: recur(noise_std=0.1, noise_scale="none"), ValueError,
     "noise_scale must be given with alpha and noise_std, got 'none'"),
    (lambda: recur(noise_std=0.1, alpha=0.5, noise_scale="x"), ValueError,
     "noise_scale must be one of 'sqrt_2_over_alpha'"),
    (lambda: recur(reset=BOOLS, batch_first=True, input=X.transpose(0, 1)), ValueError,
     "reset must have shape [2, 5], got [5, 2]"),
    (lambda: recur(reset_state=B), ValueError, "reset_state needs a reset"),
    (lambda: recur(reset=BOOLS, reset_state=zeros(3)), ValueError,
     "reset_state must have shape [4] or [2, 4], got [3]"),
    (lambda: recur(hx=zeros(3, 4)), RuntimeError, "hx must have shape [2, 4], got [3, 4]"),
    (lambda: recur(hx=X[0], weight_hh=W_IH), RuntimeError, "must have shape [H, H], got [4, 3]"),
]  # fmt: skip


def test_arguments_that_do_not_fit_are_named():
    for row in REFUSED:
        assert_refused(*row)


def test_a_refused_call_keeps_no_tensor():
    x = zeros(5, 2, 7)
    kept = weakref.ref(x)
    assert "Expected 3, got 7" in error_of(GRU, x)[1]
    del x
    assert kept() is None


def test_a_result_changed_in_place_says_what_to_do():
    for module, given in ((TWO, X), (GRU, X), (LSTM, X), (NOISY, X), (TOKEN_RNN, TOKENS)):
        output, _ = module(given)
        output *= 2
        assert_refused(
            output.sum().backward,
            RuntimeError,
            "the output of an rnnext layer was changed in place before backward(), which computes "
            "from it: write `y = y * 2` in place of `y *= 2`, or change `output.clone()`. (one of "
            "the variables needed for gradient computation has been modified by an inplace",
        )
    output, _ = TWO(X)
    with torch.no_grad():
        TWO.weight_hh_l0.mul_(1)
    with pytest.raises(RuntimeError, match=r"^one of the variables needed"):  # torch's own
        output.sum().backward()


def test_compiled_code_names_the_argument():
    features = "input must have 3 features, as many as weight_ih, got 7"
    if torch.__version__ >= (2, 15):  # which shows the eager call's text
        features = "got 7"
    for module, given, message in (
        (RNN, zeros(5, 2, 7), features),
        (CELL, zeros(2, 7), features),
        (lambda x: recur(input=x), zeros(5, 2, 7), features),
        (EMBEDDING, X, "one of the following scalar types: Long, Int; but got torch.FloatTensor"),
        (TOKEN_RNN, X[..., 0], "tokens must be int32 or int64, got float32"),
    ):
        torch.compiler.reset()
        compiled = torch.compile(module, fullgraph=True, backend="eager")
        assert_refused(compiled, RuntimeError, message, given)
