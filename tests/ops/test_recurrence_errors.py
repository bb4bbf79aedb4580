"""What the op of the recurrence refuses, and how it says so."""

import functools
from dataclasses import replace

import pytest
import torch

from helpers import samples
from helpers.common import error_of

ops = torch.ops.rnnext
zeros = functools.partial(torch.zeros, dtype=torch.float64)


@pytest.mark.parametrize("position", [0, 7, 14])
@pytest.mark.parametrize("value", [-1, 9, 2**31 - 1])
@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32])
def test_table_index_out_of_range_is_named(position, value, index_dtype):
    arguments = samples.make(source="table", index_dtype=index_dtype)
    arguments.index.view(-1)[position] = value
    kind, message = error_of(lambda: arguments.call(ops.recurrence))
    assert kind is IndexError
    assert str(value) in message
    assert str(position) in message


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("input", zeros(5, 3, 5), "input must have 4 features, as many as weight_ih, got 5"),
        ("input", torch.zeros(5, 3, 4), "input must have the dtype of weight_hh"),
        ("input", zeros(5, 4), "input must have 3 dimensions, got 2"),
        ("index", torch.zeros(5, 3, dtype=torch.int64), "index needs a table"),
        ("weight_ih", [], "input must be 6, got 4"),
        ("weight_ih", [zeros(5, 4)], r"weight_ih .* \[6, 4\], got \[5, 4\]"),
        ("weight_hh", [], "weight_hh must hold 1 or 2 tensors"),
        ("weight_hh", [zeros(6, 5)], r"weight_hh .* \[6, 6\], got \[6, 5\]"),
        ("weight_hh", [zeros(6)], r"weight_hh .* \[H, H\], got \[6\]"),
        ("weight_hh", [torch.zeros(6, 6)], "dtype of weight_hh, float32, got float64"),
        ("bias_ih", [], "bias_ih and bias_hh must both"),
        ("bias_ih", [zeros(5)], r"bias_ih .* \[6\], got \[5\]"),
        ("bias_hh", [zeros(6, 1)], r"bias_hh .* \[6\], got \[6, 1\]"),
        ("hx", zeros(1, 2, 6), r"hx must have shape \[1, 3, 6\], got \[1, 2, 6\]"),
        ("hx", zeros(3, 6), r"hx must have shape \[1, 3, 6\], got \[3, 6\]"),
        ("hx", torch.zeros(1, 3, 6), "hx must have the dtype of weight_hh, float64, got float32"),
        (
            "hx",
            zeros(1, 3, 6, device="meta"),
            r"hx must be on the device of weight_hh, cpu, got meta",
        ),
        ("batch_sizes", torch.tensor([3, 3, 3, 3, 3]), "packed .* must have 2 dimensions, got 3"),
        ("reverse", [False, True], "reverse .* got 2"),
        ("reverse", [], "reverse .* got 0"),
    ],
)
def test_recurrence_refuses_what_does_not_fit(name, value, message):
    arguments = replace(samples.make(), **{name: value})
    with pytest.raises(RuntimeError, match=message):
        arguments.call(ops.recurrence)


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        (torch.tensor([5, 5]), ValueError, r"lengths must have shape \[3\], got \[2\]"),
        (torch.tensor([[5, 5, 5]]), ValueError, r"lengths must have shape \[3\], got \[1, 3\]"),
        (torch.tensor([5, 6, 5]), ValueError, r"lengths\[1\] = 6"),
        (torch.tensor([5, -1, 5]), ValueError, r"lengths\[1\] = -1"),
        (torch.tensor([5, 5, 5], dtype=torch.int32), TypeError, "lengths .* int64 .* got int32"),
    ],
)
def test_bad_lengths_are_named(lengths, error, message):
    with pytest.raises(error, match=message):
        replace(samples.make(), lengths=lengths).call(ops.recurrence)


@pytest.mark.parametrize(
    ("batch_sizes", "message"),
    [
        ([], r"sum\(batch_sizes\) = 0 rows, got 5"),
        ([0], "got 0 at step 0"),
        ([2, 3], "must not increase, got 3 at step 1"),
        ([3, 1], r"sum\(batch_sizes\) = 4 rows, got 5"),
        ([3, 2, 1], r"sum\(batch_sizes\) = 6 rows, got 5"),
        ([3, 0, 1], "got 0 at step 1"),
        ([2**40], rf"batch_sizes\[0\] = {2**40} is more than input has rows, 5"),
        ([-1, 3], "got -1 at step 0"),
        ([3, -(2**62)], f"got -{2**62} at step 1"),
        ([[3, 1]], r"batch_sizes must be a 1-D int64 .* \[1, 2\]"),
        ([3.0, 1.0], "batch_sizes must be a 1-D int64 .* got float32"),
    ],
)
def test_recurrence_refuses_bad_batch_sizes(batch_sizes, message):
    sizes = torch.tensor(batch_sizes) if batch_sizes else torch.empty(0, dtype=torch.long)
    arguments = samples.make(rows="packed", T=2, B=2)
    arguments = replace(arguments, input=arguments.input.new_zeros(5, 4), batch_sizes=sizes)
    with pytest.raises(RuntimeError, match=message):
        arguments.call(ops.recurrence)


def test_unknown_nonlinearity_and_dtype_are_named():
    arguments = samples.make(nonlinearity="gelu")
    with pytest.raises(ValueError, match="gelu"):
        arguments.call(ops.recurrence)
    arguments = samples.make(dtype=torch.complex64)
    with pytest.raises(RuntimeError, match=r"(?i)complex"):
        arguments.call(ops.recurrence)
