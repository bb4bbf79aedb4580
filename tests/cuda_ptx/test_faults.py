"""Faults planted in the PTX of our kernels: the interpreter finds each of them.

Of a few launches with different schedules, at least one must fail or give other bits. Launches
without a fault do neither, as test_recurrence.py shows.
"""

import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from cuda_ptx.memory import Fault
from cuda_ptx.ops import forced, recurrence, recurrence_backward
from helpers import samples
from helpers.common import same
from helpers.device import tf32_by

TRIES = 8
TYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32, "tf32": torch.float32}

NOTHING = "// nothing"
A = r"(mma\S+ \{[^}]*\}, \{)(%r\d+), (%r\d+)"
START = r"barrier\.cluster\.arrive\S+([\s\S]*?)barrier\.cluster\.wait\S+"
LANE = r"(shfl\S+ \S+ \S+) (?:%r)?\d+,"
# By path and arithmetic: what is wrong, a pattern, its replacement, which match (or all).
FAULTS: dict[tuple[str, str], list[tuple[Any, ...]]] = {
    ("block", "bf16"): [
        ("operands of mma swapped", A, r"\1\3, \2"),
        ("vectors of mma swapped", r"(mma.*\{)(%r\d+), (%r\d+)(\}, \{%f)", r"\1\3, \2\4"),
        ("results of mma swapped", r"(mma\S+ \{)(%f\d+), (%f\d+)", r"\1\3, \2", 0),
    ],
    ("block", "f32"): [
        ("copies nobody waits for", r"cp\.async\.wait_group \d", NOTHING),
        ("copies never committed", r"cp\.async\.commit_group", NOTHING),
        ("a copy from the next word", r"(cp\.async\.ca\S+ \S+ \[%rd\d+)\], 4", r"\1+4], 4"),
        ("a copy of too many bytes", r"(cp\.async\.ca.*), 4", r"\1, 8"),
        ("a write out of bounds", r"(st\.shared\.f32 \[%r\d+)(?:\+\d+)?\]", r"\1+200000]"),
        ("a misaligned vector", r"(ld\.shared\.v4\.f32.*\[%r\d+)\]", r"\1+4]"),
        ("another lane of a shuffle, H=20", LANE, r"\1 1,"),
    ],
    ("block", "tf32"): [("operands of mma swapped", A, r"\1\3, \2")],
    ("block", "f16"): [
        ("operands of mma swapped", A, r"\1\3, \2"),
        ("another product", r"f32\.f16\.f16\.f32", "f32.bf16.bf16.f32"),
    ],
    ("cluster", "bf16"): [
        ("all to one block", r"(mapa\.u64.*), %r\d+", r"\1, 0"),
        ("a block that is not there", r"(mapa\.u64.*), %r\d+", r"\1, 15"),
        ("arrival without release", r"arrive\.release", "arrive.relaxed"),
        ("no wait", r"barrier\.cluster\.wait\.acquire\.aligned", NOTHING),
        ("no arrival", r"barrier\.cluster\.arrive\.release\.aligned", NOTHING, -1),
        ("stores to a block that has not begun", START, r"// nothing\1", 0),
        ("a parted warp at the barrier", r"bar\.warp\.sync -1", NOTHING),
    ],
    ("grid", "bf16"): [
        ("a flag without release", r"st\.release", "st.relaxed"),
        ("a flag read without acquire", r"ld\.acquire", "ld.relaxed"),
        ("a flag that the block alone sees", r"st\.release\.gpu", "st.release.cta"),
        ("a flag of the block's own", r"ld\.acquire\.gpu", "ld.acquire.cta"),
        ("no wait for flags", r"(ld\.acquire\S+ (%r\d+), .*;)", r"\1\nmov.u32 \2, 99;"),
        ("a copy nobody waits for", r"cp\.async\.wait_group \d", NOTHING),
    ],
}  # fmt: skip
CASES = [(*key, *fault) for key, faults in FAULTS.items() for fault in faults]


def edited(text: str, pattern: str, replacement: str, which: int | None = None) -> str:
    text = re.sub(r"[ \t]+", " ", text)
    found = list(re.finditer(pattern, text))
    assert found, "there is nothing to break"
    for match in reversed(found if which is None else [found[which]]):
        text = text[: match.start()] + match.expand(replacement) + text[match.end() :]
    return text


@pytest.fixture
def planted(lib):
    """Whether a pass that runs PTX with a fault, in some schedule, raises or gives other bits."""

    def found(path: str, dtype: str, edit: Callable[[str], str], **case: Any) -> bool:
        backward, device = case.pop("backward", False), case.pop("device", "small")
        lib.set_device(device)
        sizes = {"T": 4, "B": 5, "reverse": (False, True), "source": "table"}
        arguments = samples.make(**sizes | case, dtype=TYPES[dtype])

        def results() -> list[Tensor]:
            with forced(path), tf32_by("allow_tf32") if dtype == "tf32" else nullcontext():
                tensors = arguments.call(recurrence)
                if backward:
                    lib.ran.clear()
                    grads = arguments.backward(tensors[0], *tensors).call(recurrence_backward)
                    tensors = tree_leaves(grads)
            tensors = [t.clone() for t in tensors]
            lib.arena.clear()
            return tensors

        def differs(seed: int) -> bool:
            lib.seed = seed
            try:
                return not same(results(), right)
            except RuntimeError:
                return isinstance(lib.error, Fault)

        lib.ran.clear()
        right = results()
        (name,) = [n for n in lib.ran if "recurrence_kernel" in n]
        with lib.planted(name, edit(lib.texts[name])):
            return any(differs(seed) for seed in range(TRIES))

    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: ", ".join(case[:3]))
def test_a_planted_fault_is_found(planted, case):
    path, dtype, what, *edit = case
    assert planted(path, dtype, lambda text: edited(text, *edit), H=20 if "H=20" in what else 70)


# Of each path the barriers of its kernel, and sequences enough that a cluster meets a second tile.
BARRIERS = {"block": (4, 5), "cluster": (3, 100), "grid": (6, 5)}


@pytest.mark.parametrize(
    ("path", "which"), [(path, k) for path, (n, _) in BARRIERS.items() for k in range(n)]
)
def test_a_planted_fault_is_found_where_any_barrier_is_missing(planted, path, which):
    count, B = BARRIERS[path]

    def edit(text: str) -> str:
        assert len(re.findall(r"bar\.sync\s+0", text)) == count
        return edited(text, r"bar\.sync 0", NOTHING, which)

    assert planted(path, "bf16", edit, T=2, B=B, H=70, backward=True, device="tight")
