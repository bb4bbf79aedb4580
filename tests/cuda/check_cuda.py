"""What only a GPU can show: each path, graphs, streams, errors of the device, several devices.

Not collected by `pytest tests`: `python -m tools.cuda_check` runs it where there is a GPU.
"""

import threading

import pytest
import torch

import rnnext
from helpers import samples
from helpers.common import assert_close
from helpers.device import DEVICE, check_recurrence, cuda_paths

PATHS = cuda_paths(torch.cuda.get_device_capability())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", ["full", "lengths", "packed"])
@pytest.mark.parametrize("path", PATHS)
def test_every_path(monkeypatch, path, rows, dtype):
    monkeypatch.setenv("RNNEXT_CUDA_PATH", path)
    for H, B in [(40, 1), (64, 19), (72, 5)]:
        for reverse in [(False,), (False, True)]:
            check_recurrence(
                {"T": 11, "B": B, "I": 12, "H": H, "reverse": reverse, "rows": rows, "dtype": dtype}
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("leak", [None, "rate", "voltage", "blend"])
@pytest.mark.parametrize("path", PATHS)
def test_leaks_and_resets_on_every_path(monkeypatch, path, leak, dtype):
    monkeypatch.setenv("RNNEXT_CUDA_PATH", path)
    case = {"T": 11, "I": 12, "leak": leak, "reset": "state", "dtype": dtype}
    for H, B, rows in [(40, 1, "full"), (64, 19, "lengths"), (72, 5, "full")]:
        for reverse in [(False,), (False, True)]:
            check_recurrence({**case, "H": H, "B": B, "rows": rows, "reverse": reverse})


@pytest.mark.parametrize("path", [p for p in PATHS if p not in ("step", "block")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_states(monkeypatch, path, dtype):
    monkeypatch.setenv("RNNEXT_CUDA_PATH", path)
    for H in (512, 769):
        check_recurrence({"T": 5, "B": 8, "I": 4, "H": H, "dtype": dtype})


@pytest.mark.parametrize("path", PATHS)
def test_tf32(monkeypatch, path):
    monkeypatch.setenv("RNNEXT_CUDA_PATH", path)
    arguments = samples.make(T=9, B=7, I=12, H=96, dtype=torch.float32).to_device(DEVICE)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        output, _ = arguments.call(torch.ops.rnnext.recurrence)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    exact, _ = arguments.call(torch.ops.rnnext.recurrence)
    assert_close(output, exact, torch.float16)  # ten bits of mantissa, as TF32 has


@pytest.mark.parametrize("path", PATHS)
def test_a_graph_replays_forward_and_backward(monkeypatch, path):
    monkeypatch.setenv("RNNEXT_CUDA_PATH", path)
    rnn = rnnext.RNN(16, 64, num_layers=2, device=DEVICE)
    table = rnnext.Embedding(100, 16, device=DEVICE)
    indices = torch.randint(0, 100, (12, 4), device=DEVICE)
    parameters = [*rnn.parameters(), *table.parameters()]

    def step():
        return torch.autograd.grad(rnn(table(indices))[0].square().sum(), parameters)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(3):
        indices.copy_(torch.randint(0, 100, (12, 4), device=DEVICE))
        graph.replay()
        assert_close(captured, step())


def test_an_index_error_of_the_last_call_is_found_when_asked_for():
    weight = torch.randn(10, 4, device=DEVICE)
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


@pytest.mark.parametrize("path", PATHS)
def test_two_threads_and_two_streams(monkeypatch, path):
    # Kernels of one path with different shapes: limits, workspaces and errors are of a call.
    monkeypatch.setenv("RNNEXT_CUDA_PATH", path)
    shapes = [(40, 4, 64), (25, 9, 96)]
    layers = [rnnext.RNN(8, H, device=DEVICE) for _, _, H in shapes]
    inputs = [torch.randn(T, B, 8, device=DEVICE) for T, B, _ in shapes]
    expected = [layer(x)[0].clone() for layer, x in zip(layers, inputs, strict=True)]
    torch.cuda.synchronize()
    wrong = []

    def work(i):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(50):
                if not torch.equal(layers[i](inputs[i])[0], expected[i]):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_index_out_of_range_is_named_and_leaves_the_context_alive():
    weight = torch.randn(10, 4, device=DEVICE)
    good = torch.tensor([1, 2, 3], device=DEVICE)
    for bad, value in [([3, 10, 2], 10), ([-1, 0, 0], -1)]:
        rnnext.functional.embedding(torch.tensor(bad, device=DEVICE), weight)
        torch.cuda.synchronize()
        with pytest.raises(IndexError, match=rf"= {value}, expected 0 <= index < 10"):
            rnnext.functional.embedding(good, weight)
        assert torch.equal(rnnext.functional.embedding(good, weight), weight[good])


def test_calls_follow_the_current_stream():
    rnn = rnnext.RNN(8, 128, device=DEVICE)
    x = torch.zeros(50, 8, 8, device=DEVICE)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x.fill_(1)
        output, _ = rnn(x)
    stream.synchronize()
    assert torch.equal(output, rnn(torch.ones_like(x))[0])


def test_every_device():
    for i in range(torch.cuda.device_count()):
        rnn = rnnext.RNN(8, 32, device=f"cuda:{i}")
        table = rnnext.Embedding(5, 8, device=f"cuda:{i}")
        output, _ = rnn(table(torch.tensor([[1], [4]], device=f"cuda:{i}")))
        output.sum().backward()
        assert output.device.index == i
        assert table.weight.grad.device.index == i


def test_the_forward_pass_does_not_wait_for_the_device():
    rnn, table = rnnext.RNN(8, 64, device=DEVICE), rnnext.Embedding(50, 8, device=DEVICE)
    indices = torch.randint(0, 50, (30, 4), device=DEVICE)
    rnn(table(indices))[0].sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        rnn(table(indices))[0].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
