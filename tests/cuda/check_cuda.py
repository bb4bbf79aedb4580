"""Checks that need a GPU: modules on it, graphs, streams, errors of the device, several devices.

Not collected by `pytest tests`: `python -m tools.cuda_check` runs it where there is a GPU, and
rehearses what it can on the CPU.
"""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import rnnext
from helpers import samples
from helpers.common import assert_close, same
from helpers.device import DEVICE, ON_GPU, Captured, device_paths, new_stream

PATHS = device_paths()
gpu = pytest.mark.skipif(not ON_GPU, reason="the CPU has nothing like it")


@pytest.mark.parametrize("cell", samples.VARIANTS["cell"])
def test_second_derivatives(cell):
    options = {"cell": cell, "reset": None if cell == "elman" else "state"}
    arguments = samples.make(T=3, B=2, I=2, H=4, **options).map(lambda t: t.to(DEVICE))
    function, tensors = arguments.as_function(torch.ops.rnnext.recurrence)
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize(("kind", "lengths"), [("RNN", [5, 2]), ("GRU", None), ("LSTM", None)])
def test_gradients_in_eval_mode(kind, lengths):
    """Also of states that are not contiguous, and beside padding of NaN."""
    x, h, found = torch.randn(5, 2, 3).double(), torch.randn(1, 1, 4).double(), []
    x[2:, 1] = torch.nan if lengths else 0
    layer = getattr(rnnext, kind)(3, 4).double().eval()  # cuDNN's float32 may be TF32
    for device in ("cpu", DEVICE):
        layer, hx = layer.to(device), h.to(device).expand(1, 2, 4)
        output, _ = layer(x.to(device), (hx, hx) if kind == "LSTM" else hx, lengths=lengths)
        found.append([g.cpu() for g in torch.autograd.grad(output.sum(), [*layer.parameters()])])
    assert_close(*found)
    with pytest.raises(ValueError, match="reset_state needs a reset"):
        rnnext.GRU(3, 4, device=DEVICE)(x.float().to(DEVICE), reset_state=hx.float())


def test_autocast_runs_in_the_narrow_type():
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        output, _ = rnnext.RNN(8, 32, device=DEVICE)(torch.randn(4, 2, 8, device=DEVICE))
    assert output.dtype == torch.bfloat16


def model(name):
    """A call of this model, and what its gradients are of; the index is the input."""
    table, options = rnnext.Embedding(16, 16, device=DEVICE), {}
    if name == "tokens":  # three times as many as rows: W_ih's products are a table
        rnn = rnnext.EmbeddingRNN(16, 16, 64, device=DEVICE)
        return (lambda index: rnn(index)[0]), [*rnn.parameters()]
    if name == "leak and reset":
        rnn = rnnext.LeakyRNN(16, 64, alpha=0.3, learn_alpha=True, form="voltage", device=DEVICE)
        options["reset"] = torch.rand(12, 4, device=DEVICE) < 0.2
    elif name == "lengths":
        rnn = rnnext.RNN(16, 64, bidirectional=True, device=DEVICE)
        options["lengths"] = torch.tensor([12, 3, 7, 0], device=DEVICE)
    else:
        rnn = rnnext.RNN(16, 64, num_layers=2, device=DEVICE)
    return (lambda index: rnn(table(index), **options)[0]), [*rnn.parameters(), *table.parameters()]


@pytest.mark.parametrize("name", ["layers", "lengths", "leak and reset", "tokens"])
@pytest.mark.parametrize("path", PATHS)
def test_a_graph_replays_forward_and_backward(monkeypatch, path, name):
    monkeypatch.setenv("RNNEXT_CUDA_PATH", path)
    call, parameters = model(name)
    indices = torch.randint(16, (12, 4), device=DEVICE)

    def step():
        output = call(indices)
        return [output, *torch.autograd.grad(output.square().sum(), parameters)]

    captured = Captured(step)
    for _ in range(3):
        indices.copy_(torch.randint(16, (12, 4), device=DEVICE))
        captured.replay()
        assert same(captured.results, step())


@gpu
def test_an_index_error_of_the_last_call_is_found_when_asked_for():
    weight, rows = torch.randn(10, 4, device=DEVICE), torch.ones(30, 4, device=DEVICE)
    indices = torch.tensor([3, 1, 2], device=DEVICE)
    rnnext.functional.embedding(indices, weight)
    rnnext.functional.check_indices()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rnnext.functional.embedding(indices, weight)
    for bad in (11, -5):
        indices[1] = bad
        graph.replay()
        with pytest.raises(IndexError, match=rf"\[1\] = {bad}, expected 0 <= index < 10"):
            rnnext.functional.check_indices(DEVICE)
        rnnext.functional.check_indices(DEVICE)  # once
        rnnext.functional.embedding(indices, rows[10:20], max_norm=0.5)
        with pytest.raises(IndexError):
            rnnext.functional.check_indices()
    assert bool((rows[:10] == 1).all() and (rows[20:] == 1).all())


def results(layer, x):
    output, h_n = layer(x)
    return [output, h_n, *torch.autograd.grad(output.sum(), [*layer.parameters()])]


@pytest.mark.parametrize("path", PATHS)
def test_two_threads_and_two_streams(monkeypatch, path):
    # Kernels of one path with different shapes: limits, workspaces and errors are of a call.
    monkeypatch.setenv("RNNEXT_CUDA_PATH", path)
    calls = [
        (rnnext.RNN(8, H, device=DEVICE), torch.randn(T, B, 8, device=DEVICE))
        for T, B, H in ((40, 4, 64), (25, 9, 96))
    ]
    expected = [results(*call) for call in calls]
    if ON_GPU:
        torch.cuda.synchronize()

    def work(call, wanted):
        with new_stream():
            return all(same(results(*call), wanted) for _ in range(50))

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(work, calls, expected))


@gpu
def test_calls_follow_the_current_stream():
    rnn, x = rnnext.RNN(8, 128, device=DEVICE), torch.zeros(50, 8, 8, device=DEVICE)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x.fill_(1)
        output, _ = rnn(x)
    stream.synchronize()
    assert torch.equal(output, rnn(torch.ones_like(x))[0])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("path", PATHS)
def test_two_devices_at_once(monkeypatch, path):
    # Neither is the current device of the other's thread or calls.
    monkeypatch.setenv("RNNEXT_CUDA_PATH", path)
    layer, tokens = rnnext.EmbeddingRNN(50, 8, 64), torch.randint(50, (30, 5))
    pairs = [(copy.deepcopy(layer).to(f"cuda:{i}"), tokens.to(f"cuda:{i}")) for i in range(2)]
    found = [[results(*pair) for pair in pairs] for _ in range(10)]
    for on_first, on_second in found:
        assert_close([t.cpu() for t in on_second], [t.cpu() for t in on_first])
        assert same(on_first, found[0][0])


@gpu
def test_the_forward_pass_does_not_wait_for_the_device():
    rnn, table = rnnext.RNN(8, 64, device=DEVICE), rnnext.Embedding(50, 8, device=DEVICE)
    indices = torch.randint(0, 50, (30, 4), device=DEVICE)
    rnn(table(indices))[0].sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        rnn(table(indices))[0].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
