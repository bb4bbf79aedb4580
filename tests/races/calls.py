"""Random calls by Python threads at once, some of one module, each on a team of its own threads."""

import ctypes
import random
from concurrent.futures import ThreadPoolExecutor

import torch

import rnnext
from helpers import samples

CALLS = {
    "T": [1, 2, 5, 20],
    "B": [1, 2, 7, 16, 40],
    "I": [1, 5, 40],
    "H": [8, 33, 130, 400],
    "source": ["features", "table"],
    "reverse": [(False,), (True,), (False, True)],
    "hx": [True, False],
    "rows": ["full", "lengths"],
    "cell": samples.VARIANTS["cell"],
    "reset": [None, "zeros", "state"],
    "noise": [False, False, True],
}
shared = rnnext.RNN(32, 64)


def layer(draw):
    case = {name: draw.choice(values) for name, values in CALLS.items()}
    case["noise"] &= samples.possible(case)
    made = samples.make(**case, dtype=torch.float32, requires_grad=True)
    for weight in made.weight_ih:
        weight.requires_grad_(draw.randrange(2) == 0)
    output, h_n = made.call(torch.ops.rnnext.recurrence)
    (output.sum() + h_n.sum()).backward()


@torch.no_grad()
def stack(draw):
    H = draw.choice([16, 60])
    rnnext.RNN(H, H, 3)(torch.ones(draw.choice([2, 9, 40]), draw.choice([1, 3, 8]), H))


def table(draw):
    embedding = rnnext.Embedding(3000, 8, sparse=draw.randrange(2) == 0)
    embedding(torch.randint(3000, (20_000,))).sum().backward()


def steps(draw):
    stepper = rnnext.Stepper(shared, batch_size=4)
    for _ in range(10):
        stepper(torch.ones(4, 32))


def training(draw):
    shared(torch.ones(300, 64, 32))[0].sum().backward()


def calls(seed):
    draw = random.Random(seed)
    for _ in range(150):
        draw.choice([layer, layer, layer, stack, table, steps, training])(draw)


@torch.no_grad()
def pooled(_):
    """Results of 5 MB, which come from the pool of memory, and go back."""
    tokens, weight = torch.arange(20_000) % 8, torch.ones(8, 64)
    _ = [rnnext.functional.embedding(tokens, weight) for _ in range(20)]


torch.set_num_threads(1)  # of torch's own loops
with ThreadPoolExecutor(3) as pool:
    list(pool.map(calls, range(3)))
    list(pool.map(pooled, range(200)))
assert ctypes.CDLL(None).teams_made() > 100  # or nothing was watched
