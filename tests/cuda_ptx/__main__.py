"""Random cases of the recurrence for some seconds: `PYTHONPATH=tests python -m cuda_ptx SECONDS`.

Prints, for each arithmetic and path, how many cases ran and how long, and how many kernels in all;
stops at the first case that is wrong, with what it takes to repeat it.
"""

import random
import sys
import time
from collections import Counter
from typing import Any

import torch

from cuda_ptx.ops import WAYS, kernels, run
from helpers.cases import VARIANTS
from helpers.common import case_id
from reference.elman import ACTIVATIONS

TRIES: dict[str, list[Any]] = {
    **VARIANTS,
    "path": [None, *WAYS],
    "device": ["small", "tight", "H100"],
    "grads": [(True, True), (True, False), (False, True)],
    "tf32": [False, True],
    "T": [1, 2, 3, 7],
    "B": [1, 3, 13, 40],
    "H": [1, 7, 16, 33, 64, 100],
    "I": [1, 5],
}


def drawn(number: int) -> dict[str, Any]:
    """A case that can run, and of which something can be said."""
    rng = random.Random(number)
    case = {name: rng.choice(values) for name, values in TRIES.items()}
    if case["rows"] == "packed":
        case["reset"] = None
    if case["tf32"]:
        case["dtype"] = torch.float32
    if ACTIVATIONS[case["nonlinearity"]].kink:  # of which a rounded product may miss the side
        case["nonlinearity"] = "tanh"
    return case


def main() -> None:
    seconds, first = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    lib, began = kernels(), time.monotonic()
    ran: Counter[str] = Counter()
    took: Counter[str] = Counter()
    number = first
    while time.monotonic() - began < seconds:
        case, started = drawn(number), time.monotonic()
        lib.mode(number)
        torch.manual_seed(number)
        try:
            run(**case)
        except Exception:
            print(f"case {number}: {case_id(case)}; again: SECONDS {number}")
            raise
        key = f"{'tf32' if case['tf32'] else case['dtype']} {case['path'] or 'chosen'}"
        ran[key] += 1
        took[key] += time.monotonic() - started
        lib.arena.clear()
        number += 1
    for key in sorted(ran):
        print(f"{key:30} {ran[key]:5} cases {took[key]:7.1f} s")
    print(f"{number - first} cases, {len(lib.ran)} of {len(lib.texts)} kernels, all right")


if __name__ == "__main__":
    main()
