"""Large results take memory that earlier ones gave back: never memory that is still in use."""

from concurrent.futures import ThreadPoolExecutor

import torch

from helpers.common import run_python
from rnnext.functional import embedding

WEIGHT = torch.randn(1000, 256)
INDICES = torch.arange(40_000) % 1000  # 39 MiB of rows; from 4 on they come from the pool


def test_a_view_keeps_the_memory_of_its_result():
    rows = embedding(INDICES, WEIGHT)
    row, wanted = rows[3], rows[3].clone()
    del rows
    embedding(INDICES + 1, WEIGHT.repeat(2, 1))
    assert torch.equal(row, wanted)


def test_the_storage_is_as_large_as_the_tensor_and_grows():
    rows = embedding(INDICES, WEIGHT)
    assert rows.untyped_storage().nbytes() == 40_000 * 256 * 4
    rows.resize_(50_000, 256)
    assert torch.equal(rows[:40_000], WEIGHT[INDICES])


def test_threads_do_not_share_memory():
    def right(shift):
        indices = (INDICES + shift) % 1000
        return all(torch.equal(embedding(indices, WEIGHT), WEIGHT[indices]) for _ in range(4))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(right, range(4)))


def test_results_that_need_more_than_is_kept():
    for _ in range(2):
        rows = embedding(torch.arange(600_000) % 1000, WEIGHT).view(600, 1000, 256)  # 586 MiB
        assert torch.equal(rows, WEIGHT.expand_as(rows))


def test_kept_blocks_are_reused_and_released():
    """The pool keeps twelve, of which it reuses all but the last."""
    for shift in range(3):
        shifted = [(INDICES + shift + i) % 1000 for i in range(15)]
        results = [embedding(indices, WEIGHT) for indices in shifted]
        for indices, result in zip(shifted, results, strict=True):
            assert torch.equal(result, WEIGHT[indices])
        del results, result


def test_the_pool_frees_its_blocks_for_a_result_that_needs_memory():
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
    done = run_python("-c", code)
    assert done.stdout.splitlines() == ["refused True", "served True"], done.stderr


def test_other_tensors_of_a_model_are_not_faulted_in_at_each_step():
    """In a process of its own: what malloc keeps depends on all that was freed before."""
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
    done = run_python("-c", code, OMP_NUM_THREADS="1")
    assert int(done.stdout) < 5_000, done.stderr  # of some 40,000 pages that a malloc gives back
