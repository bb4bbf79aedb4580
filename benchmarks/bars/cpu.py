"""The bars of a run on a CPU."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence

from .. import edges
from ..cases import Case
from ..names import FLOAT32, OURS, TORCH
from ..store import Result, Row
from .verdict import Verdict, worst


def evaluate(result: Result) -> list[Verdict]:
    """Every bar, on float32 rows at full precision on all cores unless it says otherwise."""
    return [*_speed(result), *_memory(result), *_roof(result), *_low_precision(result),
            *_growth(result)]  # fmt: skip


def _rows(result: Result, wanted: Callable[[Case], bool], dtype: str = "float32") -> list[Row]:
    return [
        row
        for row in result.rows.values()
        if row.case.dtype == dtype
        and row.case.precision == "highest"
        and row.case.threads == 0
        and wanted(row.case)
    ]


def _sequence(mode: str) -> Callable[[Case], bool]:
    return lambda c: c.kind == "rnn" and c.T > 1 and c.mode == mode


def _embedding(mode: str, sparse: bool = False) -> Callable[[Case], bool]:
    return lambda c: c.kind == "embedding" and c.mode == mode and c.sparse == sparse


def _mean_and_worst(
    what: str,
    result: Result,
    rows: Sequence[Row],
    needs: tuple[float | None, float | None],
    best: bool = False,
) -> Iterator[Verdict]:
    """The geometric mean and the worst row of the speed-up over torch, or over each row's best."""
    ratios, ceilings = [], []
    for row in rows:
        rival = row.best_rival(OURS) if best else TORCH
        ratio = row.ratio(rival, OURS) if rival else None
        if rival and ratio is not None:
            ratios.append((ratio, f"{row.case.name} ({rival})"))
            if least := result.bound(row):
                ceilings.append(row.seconds[rival]["median"] / least.seconds)
    whom = "the best rival" if best else TORCH
    mean = statistics.geometric_mean([ratio for ratio, _ in ratios]) if ratios else None
    least_ratio, where = min(ratios, default=(None, ""))
    if needs[0] is not None:
        top = statistics.geometric_mean(ceilings) if ceilings else None
        yield Verdict(
            f"{what} over {whom}: mean", needs[0], mean, f"{len(ratios)} rows", at_roof=top
        )
    if needs[1] is not None:
        top = min(ceilings, default=None)
        yield Verdict(f"{what} over {whom}: worst row", needs[1], least_ratio, where, at_roof=top)


def _has_amx(result: Result) -> bool:
    return "amx_bf16" in result.stamp["cpu_flags"]


def _speed(result: Result) -> Iterator[Verdict]:
    over_best = {"infer": 2.8, "train": 3.5} if _has_amx(result) else {"infer": 2.3, "train": 2.5}
    for mode, over_torch in (("infer", 5.0), ("train", 4.5)):
        rows = _rows(result, _sequence(mode))
        yield from _mean_and_worst(mode, result, rows, (over_torch, None))
        yield from _mean_and_worst(mode, result, rows, (over_best[mode], 1.1), best=True)
    one_rnn = _rows(result, lambda c: c.kind == "rnn" and c.T == 1 and c.mode == "infer")
    yield from _mean_and_worst("one call, T=1, RNN", result, one_rnn, (2.5, 1.5))
    one_cell = _rows(result, lambda c: c.kind == "cell" and c.mode == "infer")
    yield from _mean_and_worst("one call, RNNCell", result, one_cell, (1.8, 1.5))
    stream = _rows(result, lambda c: c.kind == "step")
    yield from _mean_and_worst("one step of a stream", result, stream, (None, 1.1), best=True)
    for what, wanted, needs in (
        ("embedding gather", _embedding("infer"), (1.0, 0.95)),
        ("embedding + dense gradient", _embedding("train"), (1.6, 0.95)),
        ("embedding + sparse gradient", _embedding("train", sparse=True), (2.5, 1.1)),
    ):
        yield from _mean_and_worst(what, result, _rows(result, wanted), needs)


def _memory(result: Result) -> Iterator[Verdict]:
    shares = {
        row.case.name: row.saved_bytes[OURS] / row.saved_bytes[TORCH]
        for row in _rows(result, _sequence("train"))
        if OURS in row.saved_bytes and TORCH in row.saved_bytes
    }
    yield worst("output + saved bytes of torch.nn's: worst row", 0.5, shares, at_most=True)


def _roof(result: Result) -> Iterator[Verdict]:
    def wide(c: Case) -> bool:
        return c.H >= 256 and c.B >= 16

    def middle(c: Case) -> bool:
        return 64 <= c.H < 256 and c.B >= 16 and c.T > 30  # or a call's fixed cost counts most

    def single(c: Case) -> bool:
        return c.B == 1

    infer, train = (75, 72) if _has_amx(result) else (84, 78)
    for what, need, modes, sized in (
        ("H >= 256, B >= 16, infer", infer, ("infer",), wide),
        ("H >= 256, B >= 16, train", train, ("train",), wide),
        ("H 64..255, B >= 16, T > 30", 75, ("infer", "train"), middle),
        ("B = 1", 80, ("infer", "train"), single),
    ):
        shares = {}
        for mode in modes:
            for row in _rows(result, _sequence(mode)):
                least = result.bound(row)
                if sized(row.case) and OURS in row.seconds and least:
                    share = 100 * least.seconds / row.seconds[OURS]["median"]
                    shares[f"{row.case.name} ({least.limit})"] = share
        yield worst(f"share of the roof, {what}: worst row", need, shares, "%")


def _low_precision(result: Result) -> Iterator[Verdict]:
    """bfloat16 and "medium", where the CPU has an instruction for them: over torch.nn at the same
    setting and over our own float32."""
    if not any("bfloat16" in limits.flops for limits in result.roofs.values()):
        return
    amx = _has_amx(result)
    what = "bfloat16 and medium"
    rows = [
        row
        for row in result.rows.values()
        if row.case.dtype == "bfloat16" or row.case.precision == "medium"
    ]
    yield from _mean_and_worst(what, result, rows, (6.0, 1.5) if amx else (None, 1.1))
    over_float32 = [
        (row.case, ratio) for row in rows if (ratio := row.ratio(FLOAT32, OURS)) is not None
    ]
    for mode, needed in (("infer", 5.0 if amx else 1.6), ("train", 4.0 if amx else 1.6)):
        large = {
            case.name: ratio
            for case, ratio in over_float32
            if case.mode == mode and case.H >= 128 and case.B >= 16
        }
        yield worst(f"{what} over our float32, {mode}: worst row", needed, large)
    every = {case.name: ratio for case, ratio in over_float32}
    yield worst(f"{what} over our float32, any row: worst", 1.0, every)


def _growth(result: Result) -> Iterator[Verdict]:
    """Cost for each row and step must not rise along the sweeps of T and B, nor at a tile edge."""
    for letter in ("T", "B"):
        rises = {}
        for mode in ("infer", "train"):
            tag = f"sweep-{letter}"
            rows = [
                row
                for row in _rows(result, _sequence(mode))
                if tag in row.case.tags and OURS in row.seconds
            ]
            rows.sort(key=lambda row: getattr(row.case, letter))
            for small, large in itertools.pairwise(rows):
                cost = [r.seconds[OURS]["median"] / getattr(r.case, letter) for r in (small, large)]
                rises[large.case.name] = cost[1] / cost[0]
        what = f"cost per unit along {letter}: worst rise"
        yield worst(what, edges.LIMIT, rises, at_most=True)
    jump, where = edges.worst_jump(result.edges) if result.edges else (None, "")
    yield Verdict("cost per unit, one size to the next: worst rise", edges.LIMIT, jump, where,
                  at_most=True)  # fmt: skip
