"""What people give to modules and functions in other types than torch's tensors of the docs."""

import copy

import numpy as np
import pytest
import torch
from torch import nn, zeros

import rnnext
from helpers.common import error_of, same
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
RNN = rnnext.RNN(3, 4, batch_first=True)
NOISY = rnnext.LeakyRNN(3, 4, alpha=0.5, noise_std=1)
TOKEN_RNN = rnnext.EmbeddingRNN(7, 3, 4)
CELL, EMBEDDING = rnnext.RNNCell(3, 4), rnnext.Embedding(7, 3)
CELL_WEIGHTS = (CELL.weight_ih, CELL.weight_hh, CELL.bias_ih, CELL.bias_hh)

CALLS = {
    "RNN": lambda lengths: RNN(X.transpose(0, 1), lengths=lengths),
    "LeakyRNN": lambda lengths: NOISY(X, lengths=lengths),
    "EmbeddingRNN": lambda lengths: TOKEN_RNN(TOKENS, lengths=lengths),
    "functional.rnn": lambda lengths: functional.rnn(X, None, RNN._flat_weights, lengths=lengths),
    "functional.recurrence": lambda lengths: functional.recurrence(
        X, None, *CELL_WEIGHTS, lengths=lengths
    ),
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
    for given, error in (
        ([5.0, 3.0], TypeError),
        ("53", TypeError),
        ([[5], [3]], ValueError),
        ([5, 3, 1], ValueError),
        ([5, 6], ValueError),
        (torch.tensor([5.0, 3.0]), TypeError),
    ):
        with pytest.raises(error, match=r"^lengths\b"):
            call(given)


def test_lengths_of_an_empty_batch_may_be_an_empty_list():
    output, h_n = rnnext.RNN(3, 4)(zeros(5, 0, 3), lengths=[])
    assert (output.shape, h_n.shape) == ((5, 0, 4), (1, 0, 4))


ARRAY, LIST = np.zeros((5, 2, 3), dtype=np.float32), [[[0.0] * 3] * 2] * 5
STACKED = [w.expand(6, *w.shape) for w in CELL_WEIGHTS]
PACKED = nn.utils.rnn.pack_sequence([X[:, 0], X[:2, 1]])


def test_what_is_no_tensor_is_named():
    weights, recurrence, rnn_cell = CELL_WEIGHTS, functional.recurrence, functional.rnn_cell
    for call, name, kind in (
        (lambda: RNN(ARRAY), "input", "ndarray"),
        (lambda: RNN(LIST), "input", "list"),
        (lambda: RNN(None), "input", "NoneType"),
        (lambda: RNN(X, np.zeros(3)), "hx", "ndarray"),
        (lambda: RNN(X, (X, X)), "hx", "a tuple of tensors"),  # an LSTM's
        (lambda: RNN(PACKED, [0.0]), "hx", "list"),
        (lambda: RNN(X, reset=[True]), "reset", "list"),
        (lambda: NOISY(ARRAY), "input", "ndarray"),
        (lambda: TOKEN_RNN(np.zeros((5, 2))), "tokens", "ndarray"),
        (lambda: TOKEN_RNN([1, 2]), "tokens", "list"),
        (lambda: TOKEN_RNN(TOKENS, LIST), "hx", "list"),
        (lambda: CELL(ARRAY[0]), "input", "ndarray"),
        (lambda: CELL(None), "input", "NoneType"),
        (lambda: CELL(X[0], LIST), "hx", "list"),
        (lambda: recurrence(ARRAY, None, *weights), "input", "ndarray"),
        (lambda: recurrence(X, None, np.zeros((4, 3)), weights[1]), "weight_ih", "ndarray"),
        (lambda: recurrence(X, None, None, None), "weight_hh", "NoneType"),
        (lambda: rnn_cell(X[0], None, LIST, weights[1]), "weight_ih", "list"),
        (lambda: rnn_cell(X[0], None, weights[0], None), "weight_hh", "NoneType"),
        (lambda: functional.rnn_ensemble(None, None, STACKED), "input", "NoneType"),
    ):
        made = {"ndarray": "from_numpy", "list": "tensor"}.get(kind)
        advice = f": give torch.{made}({name})" if made and name != "tokens" else ""
        with pytest.raises(TypeError) as raised:
            call()
        assert str(raised.value) == f"{name} must be a tensor, got {kind}{advice}"
    for given in (np.zeros(3, dtype=np.int64), [1, 2]):
        both = (EMBEDDING, nn.Embedding(7, 3))
        ours, theirs = (error_of(lambda e=e, given=given: e(given)) for e in both)
        assert ours[0] is theirs[0] is TypeError
        assert ours[1] == theirs[1].replace("numpy.", "")
    both = (functional.embedding, nn.functional.embedding)
    ours, theirs = (error_of(lambda f=f: f(TOKENS, None)) for f in both)
    assert ours == theirs


def test_shapes_are_named_as_the_caller_gave_them():
    tokens, reset, recurrence = rnnext.EmbeddingRNN, zeros(2, 5) > 0, functional.recurrence
    options = {"batch_first": True, "reset": reset}
    for call, message in (
        (lambda: RNN(X, reset=reset), "reset must have shape [5, 2], got [2, 5]"),
        (
            lambda: tokens(2, 3, 4, 2)(TOKENS % 2, zeros(2, 3, 4)),
            "hx must have shape [2, 2, 4], got [2, 3, 4]",
        ),
        (
            lambda: tokens(1, 3, 4)(0 * TOKENS[:, 0], zeros(1, 5)),
            "hx must have shape [1, 4], got [1, 5]",
        ),
        (
            lambda: recurrence(X, zeros(3, 4), *CELL_WEIGHTS),
            "hx must have shape [2, 4], got [3, 4]",
        ),
        (
            lambda: recurrence(X, None, *CELL_WEIGHTS, **options),
            "reset must have shape [5, 2], got [2, 5]",
        ),
        (
            lambda: functional.rnn_ensemble(X, zeros(6, 1, 3, 4), STACKED),
            "hx must have shape [6, 1, 2, 4], got [6, 1, 3, 4]",
        ),
    ):
        with pytest.raises((ValueError, RuntimeError)) as raised:
            call()
        assert str(raised.value) == message


TORCHS_INDICES = "to have one of the following scalar types: Long, Int; but got torch.FloatTensor"


def far(tensor):
    return tensor.to("meta")


def test_a_tensor_on_another_device_is_named():
    ones = torch.ones(5, 2, dtype=torch.bool)
    for call, name in (
        (lambda: RNN(far(X)), "input"),
        (lambda: RNN(X, far(zeros(1, 5, 4))), "hx"),
        (lambda: RNN(X, lengths=far(torch.tensor([2] * 5))), "lengths"),
        (lambda: RNN(X, reset=far(ones)), "reset"),
        (lambda: RNN(far(X), reset=ones), "input"),
        (lambda: copy.copy(NOISY).eval()(far(X)), "input"),
        (lambda: CELL(far(X[0])), "input"),
        (lambda: CELL(X[0], far(zeros(2, 4))), "hx"),
        (lambda: EMBEDDING(far(TOKENS)), "indices"),
        (lambda: TOKEN_RNN(far(TOKENS)), "indices"),
        (lambda: rnnext.RNN(3, 4, device="meta")(X), "input"),
    ):
        with pytest.raises(RuntimeError, match=rf"^{name} must be on (the device of |cpu)"):
            call()


def test_a_result_changed_in_place_says_what_to_do():
    for module, given in ((rnnext.RNN(3, 4, 2), X), (NOISY, X), (TOKEN_RNN, TOKENS)):
        output, _ = module(given)
        output *= 2
        with pytest.raises(RuntimeError) as raised:
            output.sum().backward()
        assert str(raised.value).startswith(
            "the output of an rnnext RNN was changed in place before backward(), which computes "
            "from it: write `y = y * 2` in place of `y *= 2`, or change `output.clone()`. (one of "
            "the variables needed for gradient computation has been modified by an inplace"
        )
    rnn = rnnext.RNN(3, 4)
    output, _ = rnn(X)
    with torch.no_grad():
        rnn.weight_hh_l0.mul_(1)
    with pytest.raises(RuntimeError, match=r"^one of the variables needed"):  # torch's own
        output.sum().backward()


def test_compiled_code_names_the_argument():
    for module, given, message in (
        (RNN, (zeros(5, 2, 7),), "input must have 3 features, as many as weight_ih, got 7"),
        (RNN, (far(X),), "input must be on the device of weight_hh, cpu, got meta"),
        (RNN, (X.double(),), "input must have the dtype of weight_hh, float32, got float64"),
        (RNN, (X, zeros(3, 5, 4)), r"hx must have shape \[1, 5, 4\], got \[3, 5, 4\]"),
        (RNN, (LIST,), "argument 'input'"),
        (CELL, (zeros(2, 7),), "input must have 3 features, as many as weight_ih, got 7"),
        (EMBEDDING, (X,), TORCHS_INDICES),
        (TOKEN_RNN, (X[..., 0],), TORCHS_INDICES),
    ):
        torch.compiler.reset()
        compiled = torch.compile(module, fullgraph=True, backend="eager")
        with pytest.raises(RuntimeError, match=message):
            compiled(*given)
