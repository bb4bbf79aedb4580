"""The ops and modules on one device against the plain reference in float64 on the CPU.

Not collected by `pytest tests`: `python -m tools.cuda_check` runs it on the GPU, and rehearses
it on the CPU where there is none. RNNEXT_CHECK_DEVICE names the device.
"""

import pytest
import torch
from torch import nn

import reference
import rnnext
from helpers import samples
from helpers.cases import cuda_cases
from helpers.common import assert_close, case_id, same
from helpers.device import DEVICE, check_recurrence, device_paths, with_gradients

PATHS = device_paths()
CASES = cuda_cases(["step", "block", "cluster", "grid"])


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_recurrence(case, monkeypatch):
    case = dict(case)
    if (path := case.pop("path")) in PATHS:
        monkeypatch.setenv("RNNEXT_CUDA_PATH", path)
    check_recurrence(case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_long_sequence(dtype):
    arguments = samples.make(T=400, B=5, I=8, H=128, dtype=dtype)
    actual = arguments.to_device(DEVICE).call(torch.ops.rnnext.recurrence)
    expected = arguments.to_double().expected(stored=dtype)
    assert_close([t.cpu() for t in actual], expected)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_modules_match_torch(bidirectional, packed):
    options = {"num_layers": 2, "bidirectional": bidirectional, "dtype": torch.float64}
    theirs = nn.RNN(7, 33, **options)
    ours = rnnext.RNN(7, 33, device=DEVICE, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(6, 4, 7, dtype=torch.float64)
    if packed:
        x = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([6, 5, 5, 2]))
    expected, last = theirs(x)
    actual, our_last = ours(x.to(DEVICE))
    if packed:
        actual, expected = actual.data, expected.data
    assert_close([actual.cpu(), our_last.cpu()], [expected, last])
    expected.sum().backward()
    actual.sum().backward()
    assert_close([p.grad.cpu() for p in ours.parameters()], [p.grad for p in theirs.parameters()])


@pytest.mark.parametrize("leak", [None, "rate", "voltage", "blend"])
def test_second_derivatives(leak):
    options = {"leak": leak, "reset": leak and "state"}
    arguments = samples.make(T=3, B=2, I=2, H=4, requires_grad=True, **options).to_device(DEVICE)
    tensors = arguments.float_tensors()

    def function(*tensors):
        return arguments.with_tensors(tensors).call(torch.ops.rnnext.recurrence)

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


def test_autocast_runs_in_the_narrow_type():
    rnn = rnnext.RNN(8, 32, device=DEVICE)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        output, _ = rnn(torch.randn(4, 2, 8, device=DEVICE))
    assert output.dtype == torch.bfloat16


def test_a_backward_pass_in_autocast_keeps_its_dtype():
    rnn = rnnext.RNN(8, 32, device=DEVICE)
    x = torch.randn(4, 2, 8, device=DEVICE)
    expected = torch.autograd.grad(rnn(x)[0].square().sum(), [*rnn.parameters()])
    total = rnn(x)[0].square().sum()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        actual = torch.autograd.grad(total, [*rnn.parameters()])
    assert same(actual, expected)


@pytest.mark.parametrize("dtype", samples.DTYPES)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("V", "D", "N"), [(1, 1, 1), (10, 3, 40), (300, 64, 5000), (40, 129, 900)])
def test_embedding(V, D, N, index_dtype, dtype):
    weight = torch.randn(V, D, dtype=torch.float64).to(dtype)
    indices = torch.randint(0, V, (N,), dtype=index_dtype)
    grad = torch.randn(N, D, dtype=torch.float64).to(dtype)
    weight_there, indices_there, grad_there = (t.to(DEVICE) for t in (weight, indices, grad))
    rows = torch.ops.rnnext.embedding(weight_there, indices_there)
    assert torch.equal(rows.cpu(), weight[indices.long()])
    for padding_idx, by_frequency in [(-1, False), (0, False), (V // 2, True)]:
        options = {
            "num_weights": V, "padding_idx": padding_idx, "scale_grad_by_freq": by_frequency
        }  # fmt: skip
        expected = reference.embedding_backward(grad.double(), indices, **options)
        actual = torch.ops.rnnext.embedding_backward(grad_there, indices_there, **options)
        assert_close(actual.cpu(), expected)
        rows, values = torch.ops.rnnext.embedding_sparse_backward(
            grad_there, indices_there, **options
        )
        assert_close(values.cpu(), expected[rows.cpu()])
        assert torch.equal(rows.cpu(), indices[indices != padding_idx].long().unique())


@pytest.mark.parametrize("N", [1, 17, 4096, 100_000])
def test_embedding_with_one_row_repeated(N):
    indices = torch.full((N,), 3, device=DEVICE)
    grad = torch.randn(N, 20)
    actual = torch.ops.rnnext.embedding_backward(grad.to(DEVICE), indices, 5, -1, False)
    expected = torch.zeros(5, 20, dtype=torch.float64)
    expected[3] = grad.double().sum(0)
    assert_close(actual.cpu(), expected)


def test_results_repeat_bit_for_bit():
    arguments = samples.make(T=20, B=9, I=16, H=96, dtype=torch.float32, requires_grad=True)
    results = []
    for _ in range(2):
        moved = arguments.to_device(DEVICE)
        outputs = moved.call(torch.ops.rnnext.recurrence)
        results.append(with_gradients(*outputs, moved.float_tensors()))
    assert same(*results)
    indices = torch.randint(0, 9, (3000,), device=DEVICE)
    grad = torch.randn(3000, 40, device=DEVICE)
    backward = torch.ops.rnnext.embedding_backward
    assert torch.equal(backward(grad, indices, 9, -1, False), backward(grad, indices, 9, -1, False))
