"""The noise of the recurrence: its numbers, where they go, and what does not change them. And the
masks of dropout, which are of the same random words."""

from dataclasses import replace

import pytest
import torch

import reference
import rnnext
from helpers import samples
from helpers.common import ISAS, assert_close
from rnnext import ops

recurrence = torch.ops.rnnext.recurrence


def test_the_oracle_gives_the_known_answers_of_philox():
    """The answers that come with Random123, its authors' library."""
    known = {
        ((0, 0, 0, 0), (0, 0)): "5f6fb709 0d893f64 4f121f81 4f730a48",
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2): "5207ddc2 45165e59 4d8ee751 8c52f662",
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
        ): "4dfccaba 190a87f0 c47362ba b6b5242a",
    }
    for given, words in known.items():
        assert " ".join(f"{word:08x}" for word in reference.philox(*given)) == words


@pytest.mark.parametrize(
    ("T", "B", "D", "H"),
    [(2, 3, 1, 1), (2, 3, 2, 33), (2, 2, 1, 64), (3, 3, 1, 100), (5, 1, 4, 130), (5, 35, 2, 25)],
)
def test_numbers_of_every_isa(T, B, D, H):
    """(64 numbers at once and parts of them, of two sequences and of one, 16 in turn, threads.)"""
    keys = torch.tensor([0, -1, 0x299F31D0A4093822])
    torch.set_num_threads(3)
    results = []
    for name in ISAS:
        rnnext._C.set_cpu_isa(name)
        results.append(ops.noise(keys, T, B, D, H))
        assert torch.equal(results[-1], results[0])
        for key, p in zip(keys, (0.0, 0.3, 0.999), strict=True):
            mask = torch.ops.rnnext.dropout_mask(key, T, B, H, p, torch.float64)
            assert torch.equal(mask, reference.dropout_mask(key.item() % 2**64, T, B, H, p))
    for key, own in zip(keys.tolist(), results[0], strict=True):
        both = [reference.normals(key % 2**64, T, B, d, H) for d in range(D)]
        assert_close(own, torch.cat(both, 2), tolerance=1e-6)


def test_ten_million_numbers_are_normal_and_uncorrelated():
    numbers = ops.noise(torch.tensor(1), 1000, 100, 1, 100).double()
    n = numbers.numel()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        powers = numbers**power
        assert abs(powers.mean().item() - moment) < 5 * powers.std().item() / n**0.5
    # Kolmogorov and Smirnov's statistic, times sqrt(n): above 2.2 in one of 10,000 samples.
    expected = torch.special.ndtr(numbers.flatten().sort()[0])
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = max((expected - steps[1:]).abs().max(), (expected - steps[:-1]).abs().max())
    assert distance.item() * n**0.5 < 2.2
    # Neighbours in time, batch and units, the two of a pair, and those of the next key.
    numbers = numbers.float()
    others = [numbers.roll(1, dim) for dim in range(3)] + [numbers.roll(16, 2)]
    others.append(ops.noise(torch.tensor(2), 1000, 100, 1, 100))
    for other in others:
        for f in (torch.clone, torch.square):
            pairs = torch.stack([f(numbers).flatten(), f(other).flatten()])
            assert abs(torch.corrcoef(pairs)[0, 1].item()) < 5 / n**0.5


def test_mapped_calls_have_the_noise_of_their_keys():
    of = samples.make(T=4, B=3, cell="rate", noise=True)
    keys, inputs = torch.arange(5), torch.randn(5, 4, 3, 4, dtype=torch.float64)

    def call(key, input):
        return replace(of, noise_key=key, input=input).call(recurrence)[0]

    for dims in ((0, 0), (0, None), (None, 0)):
        given = [x if dim == 0 else x[2] for x, dim in zip((keys, inputs), dims, strict=True)]
        for i, own in enumerate(torch.func.vmap(call, in_dims=dims)(*given)):
            one = [x[i] if dim == 0 else x for x, dim in zip(given, dims, strict=True)]
            assert_close(own, call(*one))
