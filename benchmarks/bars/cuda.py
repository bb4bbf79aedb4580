"""The bars of a run on a GPU."""

from __future__ import annotations

from collections.abc import Callable

from ..cases import Case
from ..costs import ITEMSIZE
from ..names import OURS, TORCH
from ..store import Result
from .verdict import Verdict, worst


def evaluate(result: Result) -> list[Verdict]:
    """Each over the cases that it speaks of."""
    rows = [row for row in result.rows.values() if OURS in row.seconds]
    steps = {
        row.case.name: seconds * 1e6
        for row in rows
        if row.case.kind == "rnn"
        and row.case.mode == "infer"
        and not (row.case.packed or row.case.bidirectional)
        and row.case.dtype in ("bfloat16", "float16")
        and row.case.H <= 1024
        and row.case.B <= 16
        and (seconds := result.step_seconds(row, OURS)) is not None
    }

    def speedups(wanted: Callable[[Case], bool]) -> dict[str, float]:
        found = {row.case.name: row.ratio(TORCH, OURS) for row in rows if wanted(row.case)}
        return {name: ratio for name, ratio in found.items() if ratio is not None}

    weak = speedups(lambda c: c.kind == "rnn" and not cudnn_is_persistent(c))
    strong = speedups(lambda c: c.kind == "rnn" and cudnn_is_persistent(c))
    backward = speedups(lambda c: c.kind == "embedding" and c.mode == "backward")
    copied = {
        row.case.name: 100 * _copy_seconds(result, row.case) / row.seconds[OURS]["median"]
        for row in rows
        if row.case.kind == "embedding" and row.case.mode == "infer"
        if row.case.N > 100_000 and row.case.indices == "uniform"
    }
    return [
        worst("a step, 16-bit, H <= 1024, B <= 16", 1.0, steps, " us", at_most=True),
        worst("over cuDNN where it has no persistent kernel", 2.0, weak),
        worst("over cuDNN where it has one", 1.0, strong),
        worst("embedding backward over torch.nn", 1.5, backward),
        worst("embedding forward, share of the copy's bandwidth", 85, copied, "%"),
    ]


def cudnn_is_persistent(case: Case) -> bool:
    """Where cuDNN keeps the weights on the chip, by the selection code in PyTorch."""
    limit = 256 if case.mode == "train" else 384
    if case.dtype == "float16" and not case.bidirectional:
        limit = 1024
    aligned = case.H % 128 == 0 and case.B % 8 == 0
    return not case.packed and aligned and limit >= case.H


def _copy_seconds(result: Result, case: Case) -> float:
    """A copy of as many rows, each read once and written once, though some occur twice."""
    return 2.0 * case.N * case.D * ITEMSIZE[case.dtype] / result.roofs[0].read["DRAM"]
