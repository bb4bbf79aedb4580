"""torch's own tools see rnnext: profiler, flop counter; and a first call is silent."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import rnnext
from helpers.common import SEARCH, pair, run_python


def counted(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", ["RNN", "GRU"])  # (torch counts none of an LSTM.)
@pytest.mark.parametrize("mode", ["inference", "weights alone", "input alone"])
def test_flops_are_those_of_the_loop(mode, kind):
    learns = mode != "inference"

    def call(library):
        # Layers of one direction are one op.
        rnn = getattr(library, kind)(5, 4, 3, bidirectional=learns)
        rnn.requires_grad_(mode == "weights alone")
        x = torch.randn(7, 3, 5, requires_grad=mode == "input alone")
        # A learned hx, or torch.nn would not go back past the first step.
        output, _ = rnn(x, torch.zeros(3 * (1 + learns), 3, 4, requires_grad=learns))
        if learns:
            output.sum().backward()

    expected = counted(lambda: call(nn))
    assert expected > 0
    assert counted(lambda: call(rnnext)) == expected


def test_flops_of_cells_and_tables(monkeypatch):
    x, tokens = torch.randn(3, 5), torch.randint(9, (40, 3))
    for kind in ("RNNCell", "GRUCell", "LSTMCell"):
        cells = [counted(lambda cell=cell: cell(x)) for cell in pair(kind, 5, 4)]
        assert cells[0] == cells[1] > 0
    # W_ih times the 9 rows of the table, and W_hh times 120 states; but the counter hooks all
    # modules, and then EmbeddingRNN calls its parts, of which each of the 120 tokens is a row.
    model, states = rnnext.EmbeddingRNN(9, 5, 4), 2 * 120 * 4 * 4
    assert counted(lambda: model(tokens)) == 2 * 120 * 4 * 5 + states
    monkeypatch.setattr("rnnext.embedding_rnn._has_any_global_hook", lambda: False)
    assert counted(lambda: model(tokens)) == 2 * 9 * 4 * 5 + states


def test_the_profiler_shows_clear_names():
    rnn, embedding = rnnext.RNN(3, 4), rnnext.Embedding(9, 3)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        rnn(embedding(torch.randint(9, (5, 2))))[0].sum().backward()
    names = {event.key for event in profiler.key_averages()}
    ops = ("rnn", "recurrence", "recurrence_backward", "embedding", "embedding_backward")
    assert {f"rnnext::{op}" for op in ops} | {"RecurrenceBackward", "EmbeddingBackward"} <= names
    assert [name for name in names if "anonymous" in name] == []


def test_a_first_call_compiles_and_prints_nothing(tmp_path):
    """No compiler is found, none of torch's is loaded, no file appears, nothing is printed."""
    program = """
import os, sys, torch, rnnext
os.environ["PATH"] = ""
rnn = rnnext.convert(torch.nn.Sequential(torch.nn.Embedding(9, 3), torch.nn.RNN(3, 4)))
rnn(torch.randint(9, (5, 2)))[0].sum().backward()
leaky = rnnext.LeakyRNN(3, 4, alpha=0.5, noise_std=0.1)
leaky(torch.randn(5, 2, 3), lengths=[5, 3])[0].sum().backward()
rnnext.EmbeddingRNN(9, 3, 4)(torch.randint(9, (40, 2)), reset=None)[0].sum().backward()
rnnext.Stepper(rnn[1])(torch.randn(3))
compilers = ["torch._inductor", "torch._dynamo.convert_frame"]
if torch.__version__ < (2, 15):  # whose flop counter imports triton
    compilers.append("triton")
for compiler in compilers:
    assert compiler not in sys.modules, compiler
"""
    home = tmp_path / "home"
    home.mkdir()
    run = run_python(
        "-W", "error", "-c", program, cwd=tmp_path, HOME=str(home), TMPDIR=str(home),
        PYTHONPATH=SEARCH,
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert list(home.rglob("*")) == []
