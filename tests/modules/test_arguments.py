"""What people give to modules and functions in other types than torch's tensors of the docs."""

import numpy as np
import pytest
import torch
from torch import nn

import rnnext
from helpers.common import same
from rnnext import functional

X, TOKENS, STEPS = torch.randn(5, 2, 3), torch.randint(7, (5, 2)), [5, 3]
LENGTHS = {
    "list": STEPS,
    "tuple": tuple(STEPS),
    "of tensors": list(torch.tensor(STEPS)),
    "int32": torch.tensor(STEPS, dtype=torch.int32),
    "numpy int64": np.array(STEPS),
    "numpy int32": np.array(STEPS, dtype=np.int32),
}
RNN = rnnext.RNN(3, 4, batch_first=True)
NOISY = rnnext.LeakyRNN(3, 4, alpha=0.5, noise_std=1)
TOKEN_RNN = rnnext.EmbeddingRNN(7, 3, 4)
CELL, EMBEDDING = rnnext.RNNCell(3, 4), rnnext.Embedding(7, 3)
CELL_WEIGHTS = (CELL.weight_ih, CELL.weight_hh, CELL.bias_ih, CELL.bias_hh)

CALLS = {
    "RNN": lambda lengths: RNN(X.transpose(0, 1), lengths=lengths),
    "LeakyRNN": lambda lengths: NOISY(X, lengths=lengths),
    "EmbeddingRNN": lambda lengths: TOKEN_RNN(TOKENS, lengths=lengths),
    "functional.rnn": lambda lengths: functional.rnn(X, None, RNN.all_weights, lengths=lengths),
    "functional.recurrence": lambda lengths: functional.recurrence(
        X, None, *CELL_WEIGHTS, lengths=lengths
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("given", LENGTHS.values(), ids=LENGTHS)
def test_lengths_are_any_integers(call, given):
    expected = call(torch.tensor(STEPS))
    torch.manual_seed(0)
    expected = call(torch.tensor(STEPS))
    torch.manual_seed(0)
    actual = call(given)
    assert same(actual, expected)
    assert not torch.equal(actual[1], call(None)[1])


def test_lengths_of_an_empty_batch_may_be_an_empty_list():
    output, h_n = rnnext.RNN(3, 4)(torch.zeros(5, 0, 3), lengths=[])
    assert (output.shape, h_n.shape) == ((5, 0, 4), (1, 0, 4))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("given", "error"),
    [
        ([5.0, 3.0], TypeError),
        ("53", TypeError),
        ([[5], [3]], ValueError),
        ([5, 3, 1], ValueError),
        ([5, 6], ValueError),
        (torch.tensor([5.0, 3.0]), TypeError),
    ],
    ids=str,
)
def test_other_lengths_are_refused(call, given, error):
    with pytest.raises(error, match=r"^lengths\b"):
        call(given)


def test_lengths_in_a_list_compile():
    compiled = torch.compile(RNN, fullgraph=True, backend="eager")
    x = X.transpose(0, 1)
    assert same(compiled(x, lengths=STEPS), RNN(x, lengths=torch.tensor(STEPS)))


ARRAY, LIST = np.zeros((5, 2, 3), dtype=np.float32), [[[0.0] * 3] * 2] * 5
MIXED = {
    "input array": (lambda: RNN(ARRAY), "input", "ndarray: give torch.from_numpy(input)"),
    "input list": (lambda: RNN(LIST), "input", "list: give torch.tensor(input)"),
    "input none": (lambda: RNN(None), "input", "NoneType"),
    "hx array": (lambda: RNN(X, np.zeros(3)), "hx", "ndarray: give torch.from_numpy(hx)"),
    "hx of an LSTM": (lambda: RNN(X, (X, X)), "hx", "tuple: give torch.tensor(hx)"),
    "hx packed": (
        lambda: RNN(nn.utils.rnn.pack_sequence([X[:, 0], X[:2, 1]]), [0.0]),
        "hx",
        "list: give torch.tensor(hx)",
    ),
    "reset list": (lambda: RNN(X, reset=[True]), "reset", "list: give torch.tensor(reset)"),
    "leaky": (lambda: NOISY(ARRAY), "input", "ndarray: give torch.from_numpy(input)"),
    "tokens array": (lambda: TOKEN_RNN(np.zeros((5, 2))), "tokens", "ndarray"),
    "tokens list": (lambda: TOKEN_RNN([1, 2]), "tokens", "list"),
    "hx of tokens": (lambda: TOKEN_RNN(TOKENS, LIST), "hx", "list: give torch.tensor(hx)"),
    "cell": (lambda: CELL(ARRAY[0]), "input", "ndarray: give torch.from_numpy(input)"),
    "cell none": (lambda: CELL(None), "input", "NoneType"),
    "cell hx": (lambda: CELL(X[0], LIST), "hx", "list: give torch.tensor(hx)"),
    "recurrence": (
        lambda: functional.recurrence(ARRAY, None, *CELL_WEIGHTS),
        "input",
        "ndarray: give torch.from_numpy(input)",
    ),
    "recurrence weight": (
        lambda: functional.recurrence(X, None, np.zeros((4, 3)), CELL.weight_hh),
        "weight_ih",
        "ndarray: give torch.from_numpy(weight_ih)",
    ),
    "rnn_cell": (
        lambda: functional.rnn_cell(X[0], None, LIST, CELL.weight_hh),
        "weight_ih",
        "list: give torch.tensor(weight_ih)",
    ),
}


@pytest.mark.parametrize(("call", "name", "got"), MIXED.values(), ids=MIXED)
def test_what_is_no_tensor_is_named(call, name, got):
    with pytest.raises(TypeError) as raised:
        call()
    assert str(raised.value) == f"{name} must be a tensor, got {got}"


def test_indices_that_are_no_tensor_raise_torchs_error():
    for given in (np.zeros(3, dtype=np.int64), [1, 2]):
        with pytest.raises(TypeError) as ours:
            EMBEDDING(given)
        with pytest.raises(TypeError) as theirs:
            nn.Embedding(7, 3)(given)
        assert str(ours.value) == str(theirs.value).replace("numpy.", "")


TORCHS_INDICES = "to have one of the following scalar types: Long, Int; but got torch.FloatTensor"


def far(tensor):
    return tensor.to("meta")


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: RNN(far(X)), "input"),
        (lambda: RNN(X, far(torch.zeros(1, 5, 4))), "hx"),
        (lambda: RNN(X, lengths=far(torch.tensor([2] * 5))), "lengths"),
        (lambda: RNN(X, reset=far(torch.ones(5, 2, dtype=torch.bool))), "reset"),
        (lambda: RNN(far(X), reset=torch.ones(5, 2, dtype=torch.bool)), "input"),
        (lambda: NOISY.eval()(far(X)), "input"),
        (lambda: CELL(far(X[0])), "input"),
        (lambda: CELL(X[0], far(torch.zeros(2, 4))), "hx"),
        (lambda: EMBEDDING(far(TOKENS)), "indices"),
        (lambda: TOKEN_RNN(far(TOKENS)), "indices"),
        (lambda: rnnext.RNN(3, 4, device="meta")(X), "input"),
    ],
)
def test_a_tensor_on_another_device_is_named(call, name):
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


def test_a_weight_changed_in_place_raises_torchs_own_error():
    output, _ = RNN(X)
    with torch.no_grad():
        RNN.weight_hh_l0.mul_(1)
    with pytest.raises(RuntimeError, match=r"^one of the variables needed"):
        output.sum().backward()


@pytest.mark.parametrize(
    ("module", "given", "message"),
    [
        (RNN, (torch.zeros(5, 2, 7),), "input must have 3 features, as many as weight_ih, got 7"),
        (RNN, (far(X),), "input must be on the device of weight_hh, cpu, got meta"),
        (RNN, (X.double(),), "input must have the dtype of weight_hh, float32, got float64"),
        (RNN, (X, torch.zeros(3, 5, 4)), r"hx must have shape \[1, B, H\], got \[3, 5, 4\]"),
        (RNN, (LIST,), "argument 'input'"),
        (CELL, (torch.zeros(2, 7),), "input must have 3 features, as many as weight_ih, got 7"),
        (EMBEDDING, (X,), TORCHS_INDICES),
        (TOKEN_RNN, (X[..., 0],), TORCHS_INDICES),
    ],
)
def test_compiled_code_names_the_argument(module, given, message):
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    with pytest.raises(RuntimeError, match=message):
        compiled(*given)
