"""The calls whose bits compare_builds compares: those of tests/fuzz, without their checks."""

from __future__ import annotations

import fnmatch
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from hypothesis import given, settings
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

Case = dict[str, Any]

# So many calls of each kind, always the same. (An op may have other arguments in another tree.)
COUNTS = {
    "function": 100, "layers": 200, "tokens": 100, "cell": 40, "stepper": 50, "embedding": 60,
}  # fmt: skip
# T, B, I, H past those: every memory level's weights, many rows, few rows, long sequences.
LARGE = (
    (3, 32, 64, 512), (2, 64, 256, 1024), (3, 1, 256, 1024), (3, 2, 64, 2048), (4, 20, 200, 200),
    (20, 64, 1, 128), (2, 600, 5, 17), (3, 256, 64, 256), (60, 16, 16, 64), (100, 1, 64, 256),
)  # fmt: skip


def name(case: Case) -> str:
    return "-".join(f"{key}={str(value).replace(' ', '')}" for key, value in case.items())


def drawn(kind: str, count: int) -> list[Case]:
    from fuzz.test_calls import PROFILE, cases

    found: list[Case] = []

    @settings(PROFILE, max_examples=count, derandomize=True)
    @given(cases(kind))
    def draw(case: Case) -> None:
        found.append(case)

    draw()
    return found


def all_cases(patterns: Sequence[str]) -> list[Case]:
    """The samples whose name matches a shell pattern, all if none is given."""
    cases = [case for kind, count in COUNTS.items() for case in drawn(kind, count)]
    layers = [case for case in cases if case["call"] == "layers" and case["mode"] == "grad"]
    for sizes, case in zip(LARGE * 4, layers, strict=False):
        cases.append(case | dict(zip("TBIH", sizes, strict=True)) | {"layers": 1, "rows": "full"})
    chosen = [c for c in cases if any(fnmatch.fnmatchcase(name(c), p) for p in patterns or "*")]
    if not chosen:
        raise ValueError(f"no sample matches {' '.join(patterns)}")
    return chosen


def results(case: Case, isa: str, threads: int) -> list[Tensor | None]:
    """Values and gradients of a call, or the steps and the last state of a Stepper."""
    from fuzz import calls, compare

    found: list[Tensor | None] = []

    def record(case: Case, leaves: list[Tensor], ours: Any, theirs: Any) -> None:
        learned = enumerate(leaves)
        leaves = [t.detach().requires_grad_(not case["frozen"] >> i & 1) for i, t in learned]
        torch.set_num_threads(threads)
        found.extend(compare.results(ours, leaves, case, []))

    def record_steps(actual: list[Tensor], expected: list[Tensor]) -> bool:
        found.extend(actual)
        return True

    with patch.multiple(calls, compare=record, same=record_steps, check_reference=lambda *_: None):
        calls.check(**case | {"isa": isa, "threads": threads})
    return found


def hashes(case: Case, isa: str, threads: int) -> list[str]:
    """A hash of each result."""
    return [_hash(value) for value in results(case, isa, threads)]


def _hash(value: Tensor | None) -> str:
    if value is None:
        return "none"
    values = torch.empty(value.numel(), dtype=value.dtype).copy_(value.detach().reshape(-1))
    words = f"{value.dtype} {tuple(value.shape)} ".encode()
    return hashlib.sha256(words + values.view(torch.uint8).numpy().tobytes()).hexdigest()
