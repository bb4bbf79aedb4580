"""Resident memory: flat over 100,000 calls of any shape, and its peak in training beside nn.RNN's.

``pytest -s tests/cpu/check_memory.py``
"""

import random

import pytest
import torch

import rnnext
from helpers.common import SEARCH, run_python

PEAK = """
import sys, torch, rnnext
library, *sizes = sys.argv[1:]
T, B, I, H = map(int, sizes)
def mebibytes(name):
    (line,) = [line for line in open("/proc/self/status") if line.startswith(name)]
    return int(line.split()[1]) / 1024
rnn, x = (rnnext if library == "rnnext" else torch.nn).RNN(I, H), torch.randn(T, B, I)
rnn(x[:2, :1])[0].sum().backward()
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here on
before = mebibytes("VmRSS")
for _ in range(3):
    rnn(x)[0].sum().backward()
print(round(mebibytes("VmHWM") - before))
"""


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_many_calls_of_any_shape_leave_nothing():
    draw = random.Random(0)
    rnns = [rnnext.RNN(8, 16), rnnext.RNN(24, 64, bidirectional=True), rnnext.RNN(64, 128)]
    cell, table = rnnext.RNNCell(16, 32), rnnext.Embedding(100, 24)
    for n in range(100_001):
        rnn, T, B = draw.choice(rnns), draw.randint(1, 20), draw.randint(1, 12)
        lengths = [draw.randint(1, T) for _ in range(B)]
        rnn(torch.randn(T, B, rnn.input_size), lengths=lengths)[0].sum().backward()
        with torch.no_grad():
            rnn(torch.randn(T, B, rnn.input_size))
            cell(torch.randn(B, 16))
            table(torch.randint(100, (T, B)))
        if n == 5_000:
            early = resident()
    grown = (resident() - early) / 2**20
    print(f"{grown:.1f} MiB")
    assert grown < 4


@pytest.mark.parametrize("sizes", [(500, 64, 128, 256), (1000, 16, 64, 512), (200, 128, 256, 256)])
def test_the_peak_of_training(sizes):
    peaks = []
    for library in ("rnnext", "torch.nn"):
        run = run_python("-c", PEAK, library, *map(str, sizes), PYTHONPATH=SEARCH)
        peaks.append(int(run.stdout))
    print(sizes, *peaks, "MiB")
    assert peaks[0] < 1.1 * peaks[1]
