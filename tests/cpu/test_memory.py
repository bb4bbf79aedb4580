"""Large results take memory that earlier ones gave back: never memory that is still in use."""

import copy
import subprocess
import sys
import threading

import pytest
import torch

import rnnext
from helpers.common import assert_close

T, B, I, H = 300, 8, 5, 64  # noqa: E741 - an output of 600 KiB


@pytest.fixture
def rnn():
    torch.manual_seed(0)
    return rnnext.RNN(I, H)


def run(rnn, input):
    with torch.no_grad():
        return rnn(input)[0]


def test_results_that_are_alive_keep_their_values(rnn):
    inputs = [torch.randn(T, B, I) for _ in range(4)]
    outputs = [run(rnn, x) for x in inputs]
    theirs = rnnext.revert(copy.deepcopy(rnn))
    assert_close(outputs, [run(theirs, x) for x in inputs])
    assert len({output.data_ptr() for output in outputs}) == len(outputs)


def test_a_view_keeps_the_memory_of_its_result(rnn):
    x = torch.randn(T, B, I)
    output = run(rnn, x)
    row, wanted = output[3], output[3].clone()
    del output
    run(rnn, torch.randn(T, B, I))
    assert torch.equal(row, wanted)


def test_the_storage_is_as_large_as_the_tensor_and_grows(rnn):
    output = run(rnn, torch.randn(T, B, I))
    assert output.untyped_storage().nbytes() == T * B * H * 4
    wanted = output.clone()
    output.resize_(2 * T, B, H)
    assert torch.equal(output[:T], wanted)
    output.resize_(3)
    assert torch.equal(output, wanted.flatten()[:3])


def test_threads_do_not_share_memory(rnn):
    inputs = [torch.randn(T, B, I) for _ in range(4)]
    expected = [run(rnn, x).clone() for x in inputs]
    wrong = []

    def work(x, wanted):
        for _ in range(30):
            if not torch.equal(run(rnn, x), wanted):
                wrong.append(x)

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(inputs, expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_results_that_need_more_than_is_kept():
    weight = torch.randn(1000, 256)
    indices = torch.arange(300_000) % 1000  # 293 MiB of rows
    for _ in range(2):
        assert torch.equal(rnnext.functional.embedding(indices, weight), weight[indices])


def test_kept_blocks_are_reused_and_released():
    """Blocks of 40 MiB: the pool keeps six, of which it reuses all but the last."""
    weight = torch.randn(1000, 256)
    indices = torch.arange(40_000) % 1000
    for shift in range(3):
        results = [
            rnnext.functional.embedding((indices + shift + i) % 1000, weight) for i in range(8)
        ]
        for i, result in enumerate(results):
            assert torch.equal(result, weight[(indices + shift + i) % 1000])
        del results, result


def test_what_is_kept_is_given_up_for_a_result_that_needs_it():
    """In a process of its own, whose memory is limited once the pool is full."""
    code = (
        "import re, resource, torch, rnnext\n"
        "weight, indices = torch.randn(1000, 256), torch.arange(200_000) % 1000\n"
        "parts = [rnnext.functional.embedding(indices[:40_000], weight) for _ in range(6)]\n"
        "assert len({part.data_ptr() for part in parts}) == 6\n"
        "used = int(re.search(r'VmSize:\\s*(\\d+)', open('/proc/self/status').read())[1]) << 10\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))\n"
        "try:\n"
        "    rnnext.functional.embedding(indices, weight)\n"
        "except RuntimeError as error:\n"
        "    print('refused', 'could not allocate 204800000 bytes' in str(error))\n"
        "del parts\n"
        "result = rnnext.functional.embedding(indices, weight)\n"
        "print('served', torch.equal(result[-1], weight[indices[-1]]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["refused True", "served True"], done.stderr


def test_other_tensors_of_a_model_are_not_faulted_in_at_each_step():
    """In a process of its own: what malloc keeps hangs on all that was freed before."""
    code = (
        "import resource, torch, rnnext\n"
        "norm, rnn = torch.nn.LayerNorm(40), rnnext.RNN(40, 128, 2, bidirectional=True)\n"
        "x, lengths = torch.randn(98, 32, 40), torch.arange(98, 66, -1)\n"
        "def step():\n"
        "    packed = torch.nn.utils.rnn.pack_padded_sequence(norm(x), lengths)\n"
        "    output, _ = torch.nn.utils.rnn.pad_packed_sequence(rnn(packed)[0])\n"
        "    torch.autograd.backward(torch.nn.functional.dropout(output).square().sum())\n"
        "for _ in range(5): step()\n"
        "faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(10): step()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert int(done.stdout) < 5_000, done.stderr  # of some 60,000 pages that a malloc gives back
