"""What the modules refuse: torch.nn's errors, by type and, where they say enough, by message."""

import functools

import pytest
import torch
from torch import nn, zeros
from torch.nn.utils import rnn as rnn_utils

import rnnext
from helpers.common import error_of

SIZES = {"RNN": (4, 6), "RNNCell": (4, 6), "Embedding": (10, 3)}
of_kinds = pytest.mark.parametrize("kind", SIZES)
double, integer = (functools.partial(zeros, dtype=d) for d in (torch.float64, torch.int64))
meta = functools.partial(zeros, device="meta")


def both(kind, **options):
    """torch.nn's module and ours."""
    return (getattr(library, kind)(*SIZES[kind], **options) for library in (nn, rnnext))


def packed(size, batch_sizes):
    return rnn_utils.PackedSequence(zeros(size), torch.tensor(batch_sizes))


CONSTRUCTORS = {
    "RNN": [
        {"nonlinearity": "gelu"},
        {"nonlinearity": None},
        *({"input_size": n} for n in (0, -1, 1.5)),
        *({"hidden_size": n} for n in (0, -3, "6")),
        *({"num_layers": n} for n in (0, -1)),
        *({"dropout": p} for p in (1.5, -0.1, True)),
        {"bias": 1},
        {"batch_first": "yes"},
        {"proj_size": 2},
        {"dtype": torch.int64},
        {"dtype": torch.float8_e4m3fn},
    ],
    "RNNCell": [
        *({"input_size": n} for n in (-4, 1.5, "4")),
        {"hidden_size": -6},
    ],
    "Embedding": [
        {"padding_idx": 10},
        {"padding_idx": -11},
        {"num_embeddings": -1},
        {"embedding_dim": -1},
        {"_weight": zeros(2, 2)},
        {"dtype": torch.int64},
    ],
}
NAMES = {"Embedding": ("num_embeddings", "embedding_dim")}


@of_kinds
def test_constructors_refuse_what_torchs_refuse(kind):
    names = NAMES.get(kind, ("input_size", "hidden_size"))
    for wrong in CONSTRUCTORS[kind]:
        arguments = dict(zip(names, SIZES[kind], strict=True)) | wrong
        theirs, ours = (functools.partial(getattr(m, kind), **arguments) for m in (nn, rnnext))
        assert error_of(ours) == error_of(theirs), wrong


CALLS = {
    "RNN": [
        (zeros(4),),
        (zeros(1, 5, 3, 4),),
        (zeros(5, 3, 5),),
        (zeros(5, 5),),
        (double(5, 3, 4),),
        (integer(5, 3, 4),),
        (zeros(5, 3, 4), zeros(3, 6)),
        (zeros(5, 4), zeros(1, 3, 6)),
        (zeros(5, 4), zeros(2, 6)),
        (zeros(5, 4), zeros(6)),
        (zeros(5, 3, 4), zeros(1, 2, 6)),
        (zeros(5, 3, 4), zeros(2, 3, 6)),
        (zeros(5, 3, 4), zeros(1, 3, 5)),
        (zeros(0, 3, 4),),
        (zeros(0, 4),),
        (packed((4, 5), [3, 1]),),
        (packed((4, 1, 4), [3, 1]),),
        (packed((4, 4), [3, 1]), zeros(1, 4, 6)),
        (packed((4, 4), [3, 1]), zeros(3, 6)),
    ],
    "RNNCell": [
        (zeros(1, 3, 4),),
        (zeros(()),),
        (zeros(3, 5),),
        (zeros(5),),
        (zeros(3, 4), zeros(2, 6)),
        (zeros(3, 4), zeros(3, 5)),
        (zeros(3, 4), zeros(1, 3, 6)),
        (zeros(3, 4), zeros(6)),
        (zeros(1, 4), zeros(6)),
        (zeros(4), zeros(5)),
        (zeros(4), zeros(1, 6)),
    ],
    "Embedding": [
        *((torch.ones(2, dtype=d),) for d in (torch.float32, torch.int16, torch.uint8, torch.bool)),
        ([1, 2],),
        (1,),
        (None,),
    ],
}
# The errors of these are torch's own internals', or say less than ours.
CALLS_BY_TYPE = {
    "RNN": [
        (zeros(5, 3, 4), double(1, 3, 6)),
        (meta(5, 3, 4),),
        (zeros(5, 3, 4), meta(1, 3, 6)),
        (packed((4, 4), [2, 3]),),
        (packed((4, 4), [1, 3]),),
        (packed((4, 4), [3, 1]), double(1, 3, 6)),
        (rnn_utils.PackedSequence(zeros(4, 4), torch.tensor([3, 1], dtype=torch.int32)),),
    ],
    "RNNCell": [
        (double(3, 4),),
        (integer(3, 4),),
        (zeros(3, 4), double(3, 6)),
        (meta(3, 4),),
        (zeros(3, 4), meta(3, 6)),
        (zeros(4), zeros(6, 1)),
    ],
    "Embedding": [],
}


@of_kinds
def test_calls_refuse_what_torchs_refuse(kind):
    theirs, ours = both(kind)
    for given in CALLS[kind]:
        assert error_of(lambda g=given: ours(*g)) == error_of(lambda g=given: theirs(*g)), given
    for given in CALLS_BY_TYPE[kind]:
        error, message = error_of(lambda g=given: ours(*g))
        assert error is error_of(lambda g=given: theirs(*g))[0], given
        assert message


def test_what_was_set_wrong_afterwards_raises_torchs_error():
    x = zeros(5, 3, 4)
    for name in ("weight_hh_l0", "bias_ih_l1", "bias_hh_l1"):
        theirs, ours = both("RNN", num_layers=2)
        setattr(theirs, name, None)
        setattr(ours, name, None)
        assert error_of(lambda m=ours: m(x)) == error_of(lambda m=theirs: m(x))
    theirs, ours = both("RNNCell", nonlinearity="gelu")
    assert error_of(lambda: ours(x[0])) == error_of(lambda: theirs(x[0]))
    for kind in ("RNN", "RNNCell"):  # rnnext.functional has this one, the modules have torch's two
        theirs, ours = both(kind)
        theirs.mode = theirs.nonlinearity = "RNN_SIGMOID"
        ours.mode = ours.nonlinearity = "RNN_SIGMOID"
        assert error_of(lambda m=ours: m(x[0])) == error_of(lambda m=theirs: m(x[0]))
        with pytest.raises((AssertionError, RuntimeError)):
            rnnext.Stepper(ours)
    theirs, ours = both("Embedding")
    ours.max_norm = 1.0
    assert error_of(lambda: ours(x)) == error_of(lambda: theirs(x))


@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_an_index_out_of_range_is_named(max_norm):
    embedding = rnnext.Embedding(10, 3, max_norm=max_norm)
    before = embedding.weight.detach().clone()
    for indices, where in (
        (torch.tensor([1, 7, 10]), "indices[2] = 10"),
        (torch.tensor([0, -1]), "indices[1] = -1"),
        (torch.tensor([[1, 2], [2**31 - 1, 3]]), f"indices[1, 0] = {2**31 - 1}"),
        (torch.tensor(10), "indices = 10"),
        (torch.tensor([2**32]), f"indices[0] = {2**32}"),  # which is 0 in 32 bits
    ):
        for dtype in (torch.int64, torch.int32)[: 1 + (int(indices.max()) < 2**32)]:
            kind, message = error_of(lambda i=indices, d=dtype: embedding(i.to(d)))
            assert kind is IndexError
            assert message.startswith(
                f"index out of range in self: {where}, expected 0 <= index < 10"
            )
    assert torch.equal(embedding.weight, before)


LENGTHS, RESETS = "lengths must have shape", "reset must have shape"


def test_lengths_and_resets_that_do_not_fit_are_named():
    rnn, x = rnnext.RNN(4, 6), zeros(5, 3, 4)
    both_given = packed((4, 4), [3, 1])
    for given, options, error, message in (
        (x, {"lengths": torch.tensor([5, 6, 1])}, ValueError, "lengths[1] = 6"),
        (x, {"lengths": torch.tensor([5, -1, 1])}, ValueError, "lengths[1] = -1"),
        (x, {"lengths": torch.tensor([5, 5])}, ValueError, f"{LENGTHS} [3], got [2]"),
        (x, {"lengths": torch.tensor([[5, 5, 5]])}, ValueError, f"{LENGTHS} [3], got [1, 3]"),
        (x, {"lengths": zeros(3)}, TypeError, "lengths must be an int64 tensor, got float32"),
        (x[:, 0], {"lengths": [5, 5, 5]}, ValueError, "lengths needs a 3-D input"),
        (both_given, {"lengths": [5, 5, 5]}, ValueError, "lengths needs a 3-D input"),
        (x, {"reset": zeros(3, 5) > 0}, ValueError, f"{RESETS} [5, 3], got [3, 5]"),
        (x, {"reset": zeros(5) > 0}, ValueError, f"{RESETS} [5, 3], got [5]"),
        (x, {"reset": zeros(5, 3)}, TypeError, "reset must be a bool tensor, got float32"),
        (x[:, 0], {"reset": zeros(5, 3) > 0}, ValueError, f"{RESETS} [5], got [5, 3]"),
        (both_given, {"reset": x[..., 0] > 0}, ValueError, "reset must not be given with a packed"),
    ):
        kind, text = error_of(lambda given=given, options=options: rnn(given, **options))
        assert (kind, message in text) == (error, True), text


def test_an_unsupported_dtype_is_named():
    rnn = rnnext.RNN(4, 6, dtype=torch.complex64)
    with pytest.raises(RuntimeError, match=r"(?i)complex"):
        rnn(zeros(5, 3, 4, dtype=torch.complex64))
