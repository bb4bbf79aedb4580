"""What rnnext.RNN refuses: the errors of torch.nn.RNN, by type and where it has one by message."""

import pytest
import torch
from torch import nn
from torch.nn.utils import rnn as rnn_utils

import rnnext
from helpers.common import error_of


@pytest.mark.parametrize(
    "arguments",
    [
        {"nonlinearity": "gelu"},
        {"nonlinearity": None},
        {"input_size": 0},
        {"input_size": -1},
        {"input_size": 1.5},
        {"hidden_size": 0},
        {"hidden_size": -3},
        {"hidden_size": "6"},
        {"num_layers": 0},
        {"num_layers": -1},
        {"dropout": 1.5},
        {"dropout": -0.1},
        {"dropout": True},
        {"bias": 1},
        {"batch_first": "yes"},
        {"proj_size": 2},
        {"dtype": torch.int64},
        {"dtype": torch.float8_e4m3fn},
    ],
    ids=str,
)
def test_constructor_refuses_what_torch_refuses(arguments):
    arguments = {"input_size": 4, "hidden_size": 6} | arguments
    assert error_of(lambda: rnnext.RNN(**arguments)) == error_of(lambda: nn.RNN(**arguments))


def packed_input(data_size, batch_sizes):
    return rnn_utils.PackedSequence(torch.zeros(data_size), torch.tensor(batch_sizes))


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(4),),
        (torch.zeros(1, 5, 3, 4),),
        (torch.zeros(5, 3, 5),),
        (torch.zeros(5, 5),),
        (torch.zeros(5, 3, 4, dtype=torch.float64),),
        (torch.zeros(5, 3, 4, dtype=torch.int64),),
        (torch.zeros(5, 3, 4), torch.zeros(3, 6)),
        (torch.zeros(5, 4), torch.zeros(1, 3, 6)),
        (torch.zeros(5, 4), torch.zeros(2, 6)),
        (torch.zeros(5, 4), torch.zeros(6)),
        (torch.zeros(5, 3, 4), torch.zeros(1, 2, 6)),
        (torch.zeros(5, 3, 4), torch.zeros(2, 3, 6)),
        (torch.zeros(5, 3, 4), torch.zeros(1, 3, 5)),
        (torch.zeros(0, 3, 4),),
        (torch.zeros(0, 4),),
        (packed_input((4, 5), [3, 1]),),
        (packed_input((4, 1, 4), [3, 1]),),
        (packed_input((4, 4), [3, 1]), torch.zeros(1, 4, 6)),
        (packed_input((4, 4), [3, 1]), torch.zeros(3, 6)),
    ],
    ids=lambda a: "-".join(str(tuple(getattr(v, "shape", "x"))) for v in a),
)
def test_forward_refuses_what_torch_refuses(arguments):
    theirs, ours = nn.RNN(4, 6), rnnext.RNN(4, 6)
    assert error_of(lambda: ours(*arguments)) == error_of(lambda: theirs(*arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(5, 3, 4), torch.zeros(1, 3, 6, dtype=torch.float64)),
        (torch.zeros(5, 3, 4, device="meta"),),
        (torch.zeros(5, 3, 4), torch.zeros(1, 3, 6, device="meta")),
        (packed_input((4, 4), [2, 3]),),
        (packed_input((4, 4), [1, 3]),),
        (packed_input((4, 4), [3, 1]), torch.zeros(1, 3, 6, dtype=torch.float64)),
        (rnn_utils.PackedSequence(torch.zeros(4, 4), torch.tensor([3, 1], dtype=torch.int32)),),
    ],
    ids=range(7),
)
def test_forward_refuses_with_the_type_of_torch(arguments):
    theirs, ours = nn.RNN(4, 6), rnnext.RNN(4, 6)
    kind, message = error_of(lambda: ours(*arguments))
    assert kind is error_of(lambda: theirs(*arguments))[0]
    assert message


@pytest.mark.parametrize("name", ["weight_hh_l0", "bias_ih_l1", "bias_hh_l1"])
def test_a_missing_weight_raises_torchs_error(name):
    theirs, ours = nn.RNN(4, 6, 2), rnnext.RNN(4, 6, 2)
    for rnn in (theirs, ours):
        setattr(rnn, name, None)
    x = torch.zeros(5, 3, 4)
    assert error_of(lambda: ours(x)) == error_of(lambda: theirs(x))


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        (torch.tensor([5, 6, 1]), ValueError, "6"),
        (torch.tensor([5, -1, 1]), ValueError, "-1"),
        (torch.tensor([5, 5]), ValueError, "lengths"),
        (torch.tensor([[5, 5, 5]]), ValueError, "lengths"),
        (torch.tensor([5.0, 5.0, 5.0]), TypeError, "lengths"),
    ],
)
def test_lengths_out_of_range_are_named(lengths, error, message):
    with pytest.raises(error, match=message):
        rnnext.RNN(4, 6)(torch.zeros(5, 3, 4), lengths=lengths)


@pytest.mark.parametrize("given", [torch.zeros(5, 4), packed_input((4, 4), [3, 1])])
def test_lengths_need_a_batch(given):
    with pytest.raises(ValueError, match="lengths needs a 3-D input"):
        rnnext.RNN(4, 6)(given, lengths=torch.tensor([5, 5, 5]))


def test_unsupported_dtype_is_named():
    rnn = rnnext.RNN(4, 6, dtype=torch.complex64)
    with pytest.raises(RuntimeError, match=r"(?i)complex"):
        rnn(torch.zeros(5, 3, 4, dtype=torch.complex64))
