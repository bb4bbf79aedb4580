"""What people give to modules and functions in other types than torch's tensors of the docs."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

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
    output, h_n = rnnext.RNN(3, 4)(torch.zeros(5, 0, 3), lengths=[])
    assert (output.shape, h_n.shape) == ((5, 0, 4), (1, 0, 4))


ARRAY, LIST = np.zeros((5, 2, 3), dtype=np.float32), [[[0.0] * 3] * 2] * 5
PACKED = nn.utils.rnn.pack_sequence([X[:, 0], X[:2, 1]])


def test_what_is_no_tensor_is_named():
    recurrence, w_hh = functional.recurrence, CELL.weight_hh
    for call, name, got in (
        (lambda: RNN(ARRAY), "input", "ndarray: give torch.from_numpy(input)"),
        (lambda: RNN(LIST), "input", "list: give torch.tensor(input)"),
        (lambda: RNN(None), "input", "NoneType"),
        (lambda: RNN(X, np.zeros(3)), "hx", "ndarray: give torch.from_numpy(hx)"),
        (lambda: RNN(X, (X, X)), "hx", "a tuple of tensors"),  # an LSTM's
        (lambda: RNN(PACKED, [0.0]), "hx", "list: give torch.tensor(hx)"),
        (lambda: RNN(X, reset=[True]), "reset", "list: give torch.tensor(reset)"),
        (lambda: NOISY(ARRAY), "input", "ndarray: give torch.from_numpy(input)"),
        (lambda: TOKEN_RNN(np.zeros((5, 2))), "tokens", "ndarray"),
        (lambda: TOKEN_RNN([1, 2]), "tokens", "list"),
        (lambda: TOKEN_RNN(TOKENS, LIST), "hx", "list: give torch.tensor(hx)"),
        (lambda: CELL(ARRAY[0]), "input", "ndarray: give torch.from_numpy(input)"),
        (lambda: CELL(None), "input", "NoneType"),
        (lambda: CELL(X[0], LIST), "hx", "list: give torch.tensor(hx)"),
        (
            lambda: recurrence(ARRAY, None, *CELL_WEIGHTS),
            "input",
            "ndarray: give torch.from_numpy(input)",
        ),
        (
            lambda: recurrence(X, None, np.zeros((4, 3)), w_hh),
            "weight_ih",
            "ndarray: give torch.from_numpy(weight_ih)",
        ),
        (
            lambda: functional.rnn_cell(X[0], None, LIST, w_hh),
            "weight_ih",
            "list: give torch.tensor(weight_ih)",
        ),
        (lambda: recurrence(X, None, None, None), "weight_hh", "NoneType"),
        (lambda: functional.rnn_cell(X[0], None, CELL.weight_ih, None), "weight_hh", "NoneType"),
        (
            lambda: functional.rnn_ensemble(None, None, [w[None] for w in CELL_WEIGHTS]),
            "input",
            "NoneType",
        ),
    ):
        with pytest.raises(TypeError) as raised:
            call()
        assert str(raised.value) == f"{name} must be a tensor, got {got}"
    for given in (np.zeros(3, dtype=np.int64), [1, 2]):
        ours, theirs = (
            error_of(lambda e=e, given=given: e(given)) for e in (EMBEDDING, nn.Embedding(7, 3))
        )
        assert ours[0] is theirs[0] is TypeError
        assert ours[1] == theirs[1].replace("numpy.", "")
    of_none = [
        error_of(lambda f=f: f(TOKENS, None))
        for f in (functional.embedding, nn.functional.embedding)
    ]
    assert of_none[0] == of_none[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dt": 1, "tau": [5.0, 6.0]}, "tau must be a number or a tensor, got list: give torch.te"),
        ({"dt": 1, "tau": np.ones(4)}, "tau must be a number or a tensor, got ndarray: give torch"),
        ({"num_layers": 0.2}, "num_layers must be an integer, got float; alpha is given by name"),
    ],
    ids=str,
)
def test_what_a_leak_cannot_be_made_of_is_named(options, message):
    with pytest.raises(TypeError) as raised:
        rnnext.LeakyRNN(3, 4, **options)
    assert str(raised.value).startswith(message)


SHAPES = {
    "reset, batch first": (
        lambda: RNN(X, reset=torch.zeros(2, 5) > 0),
        "reset must have shape [5, 2], got [2, 5]",
    ),
    "hx of tokens": (
        lambda: rnnext.EmbeddingRNN(2, 3, 4, 2)(TOKENS % 2, torch.zeros(2, 3, 4)),
        "hx must have shape [2, 2, 4], got [2, 3, 4]",
    ),
    "hx of one sequence of tokens": (
        lambda: rnnext.EmbeddingRNN(1, 3, 4)(0 * TOKENS[:, 0], torch.zeros(1, 5)),
        "hx must have shape [1, 4], got [1, 5]",
    ),
    "hx of a recurrence": (
        lambda: functional.recurrence(X, torch.zeros(3, 4), *CELL_WEIGHTS),
        "hx must have shape [2, 4], got [3, 4]",
    ),
    "reset of a recurrence, batch first": (
        lambda: functional.recurrence(
            X, None, *CELL_WEIGHTS, batch_first=True, reset=torch.zeros(2, 5) > 0
        ),
        "reset must have shape [5, 2], got [2, 5]",
    ),
    "hx of an ensemble": (
        lambda: functional.rnn_ensemble(
            X, torch.zeros(6, 1, 3, 4), [w.expand(6, *w.shape) for w in CELL_WEIGHTS]
        ),
        "hx must have shape [6, 1, 2, 4], got [6, 1, 3, 4]",
    ),
}


@pytest.mark.parametrize(("call", "message"), SHAPES.values(), ids=SHAPES)
def test_shapes_are_named_as_the_caller_gave_them(call, message):
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
        (lambda: RNN(X, far(torch.zeros(1, 5, 4))), "hx"),
        (lambda: RNN(X, lengths=far(torch.tensor([2] * 5))), "lengths"),
        (lambda: RNN(X, reset=far(ones)), "reset"),
        (lambda: RNN(far(X), reset=ones), "input"),
        (lambda: copy.copy(NOISY).eval()(far(X)), "input"),
        (lambda: CELL(far(X[0])), "input"),
        (lambda: CELL(X[0], far(torch.zeros(2, 4))), "hx"),
        (lambda: EMBEDDING(far(TOKENS)), "indices"),
        (lambda: TOKEN_RNN(far(TOKENS)), "indices"),
        (lambda: rnnext.RNN(3, 4, device="meta")(X), "input"),
    ):
        with pytest.raises(RuntimeError, match=rf"^{name} must be on (the device of |cpu)"):
            call()


@pytest.mark.parametrize("module", [rnnext.RNN(3, 4, 2), NOISY, TOKEN_RNN], ids=lambda m: type(m))
def test_a_result_changed_in_place_says_what_to_do(module):
    output, _ = module(TOKENS if module is TOKEN_RNN else X)
    output *= 2
    with pytest.raises(RuntimeError) as raised:
        output.sum().backward()
    assert str(raised.value).startswith(
        "the output of an rnnext RNN was changed in place before backward(), which computes from "
        "it: write `y = y * 2` in place of `y *= 2`, or change `output.clone()`. (one of the "
        "variables needed for gradient computation has been modified by an inplace operation"
    )
    rnn = rnnext.RNN(3, 4)
    output, _ = rnn(X)
    with torch.no_grad():
        rnn.weight_hh_l0.mul_(1)
    with pytest.raises(RuntimeError, match=r"^one of the variables needed"):  # torch's own
        output.sum().backward()


def test_compiled_code_names_the_argument():
    for module, given, message in (
        (RNN, (torch.zeros(5, 2, 7),), "input must have 3 features, as many as weight_ih, got 7"),
        (RNN, (far(X),), "input must be on the device of weight_hh, cpu, got meta"),
        (RNN, (X.double(),), "input must have the dtype of weight_hh, float32, got float64"),
        (RNN, (X, torch.zeros(3, 5, 4)), r"hx must have shape \[1, 5, 4\], got \[3, 5, 4\]"),
        (RNN, (LIST,), "argument 'input'"),
        (CELL, (torch.zeros(2, 7),), "input must have 3 features, as many as weight_ih, got 7"),
        (EMBEDDING, (X,), TORCHS_INDICES),
        (TOKEN_RNN, (X[..., 0],), TORCHS_INDICES),
    ):
        torch.compiler.reset()
        compiled = torch.compile(module, fullgraph=True, backend="eager")
        with pytest.raises(RuntimeError, match=message):
            compiled(*given)
