"""Threads: results must not depend on how many the pool gives, or on when they start."""

import ctypes
import signal
from concurrent.futures import ThreadPoolExecutor

import torch

import rnnext
from helpers.common import assert_close, pair, run_python, same

# Prints a hash of each result and gradient.
RUN = """
import hashlib, itertools, os, signal, sys, threading, torch, rnnext
def digest(v):
    return hashlib.sha256(v.detach().numpy().tobytes()).hexdigest()
def run(rnn, x):
    output, h = rnn(x)
    gradients = torch.autograd.grad(output, [x, *rnn.parameters()], output.detach())
    return [digest(v) for v in (output, *(h if isinstance(h, tuple) else [h]), *gradients)]
kinds = [rnnext.RNN, rnnext.GRU, rnnext.LSTM]  # by turns
torch.manual_seed(0)
"""
ON_ONE_CORE = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"


def test_gradients_do_not_depend_on_how_many_threads_take_part():
    """torch's pool may give fewer threads than requested: the order of sums must stay the same. On
    one core a thread runs until it has to wait, and then the next one does."""
    code = """
torch.set_num_threads(4)
sizes = [(35, 20, 24, 200), (35, 40, 24, 200), (9, 2, 24, 321), (3, 16, 24, 200)]
for n, ((T, B, I, H), both) in enumerate(itertools.product(sizes, (False, True))):
    print(*run(kinds[n % 3](I, H, bidirectional=both), torch.randn(T, B, I, requires_grad=True)))
for B, H in [(3, 129), (6, 256)]:
    x = torch.randn(20, B, H, requires_grad=True)
    print(*run(rnnext.LeakyRNN(H, H, alpha=torch.full((H,), 0.5), learn_alpha=True), x))
table, tokens = torch.randn(3000, 8, requires_grad=True), torch.arange(20_000) * 7 % 3000
for sparse in (False, True):
    rows = rnnext.functional.embedding(tokens, table, sparse=sparse)
    (gradient,) = torch.autograd.grad(rows, table, rows.detach())
    print(digest(gradient.to_dense()))
"""
    expected = run_python("-c", RUN + code).stdout
    assert len(expected.split()) == 4 * (7 + 11) + 2 + 2 * 8 + 2  # an LSTM has two states
    for limit in ("1", "3"):
        limits = {"OMP_THREAD_LIMIT": limit, "RNNEXT_CPU_TEAM": ""}
        assert run_python("-c", RUN + code, **limits).stdout == expected
    assert run_python("-c", ON_ONE_CORE + RUN + code).stdout == expected


def test_alphas_gradient_where_panels_go_in_pairs_does_not_depend_on_them_either():
    code = """
torch.set_num_threads(11)  # each has 3 panels, of which none are pairs
alpha = torch.rand(1024) * 0.8 + 0.1
rnn = rnnext.LeakyRNN(8, 1024, alpha=alpha, learn_alpha=True, form="blend")
print(*run(rnn, torch.randn(3, 20, 8, requires_grad=True)))
"""
    given = {"RNNEXT_CPU_MACHINE": "xeon-amx", "RNNEXT_CPU_TEAM": "whole"}
    expected = run_python("-c", RUN + code, **given).stdout
    assert run_python("-c", RUN + code, **given, OMP_THREAD_LIMIT="1").stdout == expected


def test_gradients_where_a_thread_has_no_sequence(isa):
    """Threads take as many steps each: one long sequence leaves one of four without any."""
    torch.set_num_threads(4)
    x, found = torch.nn.utils.rnn.pack_sequence([torch.randn(n, 64) for n in (100, 1, 1)]), []
    for rnn in pair("RNN", 64, 64):
        found.append(torch.autograd.grad(rnn(x)[0].data.square().sum(), list(rnn.parameters())))
    assert_close(found[1], found[0])


def test_calls_from_several_threads_give_what_one_gives():
    """Gradients too; results are so large that they come from one pool of memory."""
    torch.set_num_threads(3)
    kinds, x = (rnnext.RNN, rnnext.GRU, rnnext.LSTM), torch.randn(140, 32, 64)
    rnns = [kind(64, 128, bidirectional=True) for kind in kinds]

    def train(rnn):
        output = rnn(x)[0]
        return [output, *torch.autograd.grad(output, list(rnn.parameters()), output.detach())]

    expected = [train(rnn) for rnn in rnns]
    with ThreadPoolExecutor(8) as pool:
        assert all(map(same, pool.map(train, rnns * 8), expected * 8))


def test_the_child_of_a_fork_gets_the_same_results():
    """It has none of the pool's threads, and libgomp would wait for them for ever."""
    code = """
torch.set_num_threads(3)
table, tokens = rnnext.Embedding(5000, 512), torch.arange(5000)
calls = []
for kind, B, H in [(0, 16, 200), (2, 1, 321)]:  # which threads run alone, and share
    rnn, x = kinds[kind](24, H), torch.randn(20, B, 24, requires_grad=True)
    calls.append((rnn, x, rnnext.Stepper(rnn, B)))
def everything():
    found = [digest(table(tokens))]
    for rnn, x, stepper in calls:
        stepper.reset()
        found += [*run(rnn, x), digest(torch.stack([stepper(step) for step in x.detach()]))]
    return found
expected = everything()
sys.stdout.flush()
child = os.fork()
if child == 0:
    signal.alarm(100)
    os._exit(0 if everything() == expected else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run_python("-c", RUN + code).stdout.strip() == "0"


def test_processes_that_compete_for_cores_get_the_same_results():
    """Each process asks for more threads than there are cores: some start late or never."""
    code = """
torch.set_num_threads(4)
rnns, x = [kind(24, 200) for kind in kinds], torch.randn(20, 16, 24, requires_grad=True)
expected = [run(rnn, x) for rnn in rnns]
burning = True
def burn():
    while burning:
        pass
burners = [threading.Thread(target=burn) for _ in range(2)]
[b.start() for b in burners]
print(all([run(rnn, x) for rnn in rnns] == expected for _ in range(10)))
burning = False
"""
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(run_python, "-c", RUN + code, RNNEXT_CPU_TEAM="") for _ in range(2)]
    assert [run.result().stdout.strip() for run in runs] == ["True"] * 2


def test_the_number_of_threads_changes_at_run_time():
    rnns, x = [rnnext.RNN(24, 200), rnnext.GRU(24, 200)], torch.randn(20, 16, 24)
    torch.set_num_threads(1)
    expected = [rnn(x)[0] for rnn in rnns]
    for n, threads in enumerate((3, 1, 16, 2, 64, 100, 1)):
        torch.set_num_threads(threads)
        assert torch.equal(rnns[n % 2](x)[0], expected[n % 2])


def test_calls_inside_of_another_librarys_parallel_region():
    """Each thread of the region makes a call, for which torch's pool gives it no other thread."""
    torch.set_num_threads(3)
    rnn, x, openmp = rnnext.RNN(24, 200), torch.randn(20, 16, 24), ctypes.CDLL("libgomp.so.1")
    expected, found = rnn(x)[0], []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def region(_):
        for _ in range(5):
            found.append((openmp.omp_get_num_threads(), torch.equal(rnn(x)[0], expected)))

    openmp.GOMP_parallel(region, None, 3, 0)
    assert found == [(3, True)] * 15
    assert torch.equal(rnn(x)[0], expected)


def test_ctrl_c_during_a_long_call():
    """KeyboardInterrupt comes after the call, and the next call is right; or it ends the process.
    A timer sends the signal: no Python thread has to run, so it comes in mid-call."""
    code = """
torch.set_num_threads(2)
signal.signal(signal.SIGALRM, signal.default_int_handler)
rnn = rnnext.RNN(24, 200)
x, long = (torch.randn(T, 16, 24, requires_grad=True) for T in (20, 500))
expected = run(rnn, x)
for call in (rnn, lambda long: run(rnn, long)):
    signal.setitimer(signal.ITIMER_REAL, 0.03)
    try:
        while True:
            call(long)
    except KeyboardInterrupt:
        print(run(rnn, x) == expected)
sys.stdout.flush()
signal.setitimer(signal.ITIMER_REAL, 0.03)
while True:
    rnn(long)
"""
    ended = run_python("-c", RUN + code)
    assert ended.stdout.split() == ["True"] * 2
    assert ended.stderr.rstrip().endswith("KeyboardInterrupt")
    assert ended.returncode == -signal.SIGINT
