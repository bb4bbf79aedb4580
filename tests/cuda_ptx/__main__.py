"""Random cases of the recurrence for some seconds: `PYTHONPATH=tests python -m cuda_ptx SECONDS`.

Prints, for each arithmetic and path, how many cases ran and how long, and how many kernels in all;
stops at the first case that is wrong, with what it takes to repeat it.
"""

import random
import sys
import time
from collections import Counter
from typing import Any

from cuda_ptx.choice import COMPUTES, EXCHANGES, PATHS
from cuda_ptx.recurrence import FORMS, NONLINEARITIES, Case, kernels
from cuda_ptx.test_recurrence import fit, run

TRIES = {
    "path": [*PATHS, *(f"{path} {EXCHANGES[1]}" for path in ("cluster", "grid"))],
    "device": ["small", "tight", "H100"],
    "grads": [(True, True), (True, False), (False, True)],
    "compute": list(COMPUTES),
    "T": [1, 2, 3, 7],
    "B": [1, 3, 13, 40],
    "H": [1, 7, 16, 33, 64, 100],
    "reverse": [(False,), (True,), (False, True)],
    "nonlinearity": ["tanh", "relu", *NONLINEARITIES],
    "source": ["ready", "table"],
    "sequence": ["full", "lengths", "packed"],
    "hx": [True, False],
    "bias": [True, False],
    "leak": [None, *FORMS],
    "reset": [None, None, "zeros", "state"],
}


def main() -> None:
    seconds, first = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    lib, began = kernels(), time.monotonic()
    ran: Counter[tuple[str, str]] = Counter()
    took: Counter[tuple[str, str]] = Counter()
    number = first
    while time.monotonic() - began < seconds:
        rng = random.Random(number)
        factors: dict[str, Any] = fit({name: rng.choice(values) for name, values in TRIES.items()})
        path, device, grads = (factors.pop(name) for name in ("path", "device", "grads"))
        lib.mode(rng.randrange(1 << 20))
        started = time.monotonic()
        try:
            run(Case(**factors, seed=number), path, device, *grads)
        except Exception:
            print(f"case {number}: {path} on {device}, {factors}; again: SECONDS {number}")
            raise
        key = factors["compute"], path
        ran[key] += 1
        took[key] += time.monotonic() - started
        lib.arena.clear()
        number += 1
    for key in sorted(ran):
        print(f"{key[0]:5} {key[1]:15} {ran[key]:5} cases {took[key]:7.1f} s")
    print(f"{number - first} cases, {len(lib.ran)} of {len(lib.texts)} kernels, all right")


if __name__ == "__main__":
    main()
