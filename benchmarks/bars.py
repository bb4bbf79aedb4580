"""The bars: what this project promises about speed and memory, each held or missed."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .cases import MODES, Case
from .names import FLOAT32, OURS, TORCH
from .report import Table, describe
from .store import Result, Row

GROWTH = 1.25  # of the cost per unit of work from one size to the next


@dataclass(frozen=True)
class Verdict:
    """One bar. got is None where the run has no row for it; at_most turns the comparison round."""

    what: str
    needed: float
    got: float | None
    detail: str = ""
    unit: str = "x"
    at_most: bool = False

    @property
    def held(self) -> bool | None:
        if self.got is None:
            return None
        return self.got <= self.needed if self.at_most else self.got >= self.needed

    @property
    def word(self) -> str:
        return {True: "held", False: "missed", None: "not measured"}[self.held]


def worst(
    what: str, needed: float, values: Mapping[str, float], unit: str = "x", at_most: bool = False
) -> Verdict:
    """The verdict on the worst of the values, named by case; its detail counts those that hold."""
    if not values:
        return Verdict(what, needed, None, unit=unit, at_most=at_most)
    where = (max if at_most else min)(values, key=values.__getitem__)
    good = sum(v <= needed if at_most else v >= needed for v in values.values())
    detail = f"{where}; {good} of {len(values)} rows hold"
    return Verdict(what, needed, values[where], detail, unit, at_most)


def evaluate(result: Result) -> list[Verdict]:
    """Of a run: float32 at full precision on all cores, unless a bar says otherwise."""
    plain = [
        row
        for row in result.rows.values()
        if row.case.dtype == "float32" and row.case.precision == "highest" and not row.case.threads
    ]
    sequences = {
        mode: [r for r in plain if r.case.kind == "rnn" and r.case.T > 1 and r.case.mode == mode]
        for mode in MODES
    }
    amx = "amx_bf16" in result.stamp["cpu_flags"]
    verdicts = [*_speed(plain, sequences, amx), _memory(sequences["train"])]
    verdicts += _roof(result, sequences, amx)
    if any("bfloat16" in limits.flops for limits in result.roofs.values()):
        verdicts += _low_precision(result, amx)
    return [*verdicts, *_growth(result, sequences)]


def _mean_and_worst(
    what: str, rows: Sequence[Row], needs: tuple[float | None, float | None], best: bool = False
) -> Iterator[Verdict]:
    """The geometric mean and the worst row of the speed-up over torch, or over each row's best."""
    ratios = []
    for row in rows:
        rival = row.best_rival(OURS) if best else TORCH
        if rival and (ratio := row.ratio(rival, OURS)) is not None:
            ratios.append((ratio, f"{row.case.name} ({rival})"))
    whom = "the best rival" if best else TORCH
    mean = statistics.geometric_mean([ratio for ratio, _ in ratios]) if ratios else None
    if needs[0] is not None:
        yield Verdict(f"{what} over {whom}: mean", needs[0], mean, f"{len(ratios)} rows")
    if needs[1] is not None:
        yield Verdict(f"{what} over {whom}: worst row", needs[1], *min(ratios, default=(None, "")))


def _speed(plain: list[Row], sequences: dict[str, list[Row]], amx: bool) -> Iterator[Verdict]:
    over_best = {"infer": 2.8, "train": 3.5} if amx else {"infer": 2.3, "train": 2.5}
    for mode, over_torch in (("infer", 5.0), ("train", 4.5)):
        rows = sequences[mode]
        yield from _mean_and_worst(mode, rows, (over_torch, None))
        yield from _mean_and_worst(mode, rows, (over_best[mode], 1.1), best=True)
    kinds: tuple[tuple[str, Callable[[Case], bool], tuple[float | None, float]], ...] = (
        ("one call, T=1, RNN",
         lambda c: c.kind == "rnn" and c.T == 1 and c.mode == "infer", (2.5, 1.5)),
        ("one call, RNNCell", lambda c: c.kind == "cell" and c.mode == "infer", (1.8, 1.5)),
        ("one step of a stream", lambda c: c.kind == "step", (None, 1.1)),
        ("embedding gather", lambda c: c.kind == "embedding" and c.mode == "infer", (1.0, 0.95)),
        ("embedding + dense gradient",
         lambda c: c.kind == "embedding" and c.mode == "train" and not c.sparse, (1.6, 0.95)),
        ("embedding + sparse gradient", lambda c: c.sparse, (2.5, 1.1)),
    )  # fmt: skip
    for what, wanted, needs in kinds:
        rows = [row for row in plain if wanted(row.case)]
        yield from _mean_and_worst(what, rows, needs, best=needs[0] is None)


def _memory(rows: list[Row]) -> Verdict:
    shares = {
        row.case.name: row.saved_bytes[OURS] / row.saved_bytes[TORCH]
        for row in rows
        if {OURS, TORCH} <= row.saved_bytes.keys()
    }
    return worst("output + saved bytes of torch.nn's: worst row", 0.5, shares, at_most=True)


def _roof(result: Result, sequences: dict[str, list[Row]], amx: bool) -> Iterator[Verdict]:
    def wide(c: Case) -> bool:
        return c.H >= 256 and c.B >= 16

    def middle(c: Case) -> bool:
        return 64 <= c.H < 256 and c.B >= 16 and c.T > 30  # or a call's fixed cost counts most

    infer, train = (75, 72) if amx else (84, 78)
    for what, need, modes, sized in (
        ("H >= 256, B >= 16, infer", infer, ("infer",), wide),
        ("H >= 256, B >= 16, train", train, ("train",), wide),
        ("H 64..255, B >= 16, T > 30", 75, MODES, middle),
        ("B = 1", 80, MODES, lambda c: c.B == 1),
    ):
        shares = {}
        for row in itertools.chain(*(sequences[mode] for mode in modes)):
            least = result.bound(row)
            if sized(row.case) and OURS in row.seconds and least:
                share = 100 * least.seconds / row.seconds[OURS]["median"]
                shares[f"{row.case.name} ({least.limit})"] = share
        yield worst(f"share of the roof, {what}: worst row", need, shares, "%")


def _low_precision(result: Result, amx: bool) -> Iterator[Verdict]:
    """bfloat16 and "medium", where the CPU has an instruction for them: over torch.nn at the same
    setting and over our own float32."""
    what = "bfloat16 and medium"
    rows = [
        row
        for row in result.rows.values()
        if row.case.dtype == "bfloat16" or row.case.precision == "medium"
    ]
    yield from _mean_and_worst(what, rows, (6.0, 1.5) if amx else (None, 1.1))
    ratios = {row.case: r for row in rows if (r := row.ratio(FLOAT32, OURS)) is not None}
    for mode, needed in (("infer", 5.0 if amx else 1.6), ("train", 4.0 if amx else 1.6)):
        large = {
            case.name: ratio
            for case, ratio in ratios.items()
            if case.mode == mode and case.H >= 128 and case.B >= 16
        }
        yield worst(f"{what} over our float32, {mode}: worst row", needed, large)
    every = {case.name: ratio for case, ratio in ratios.items()}
    yield worst(f"{what} over our float32, any row: worst", 1.0, every)


def _growth(result: Result, sequences: dict[str, list[Row]]) -> Iterator[Verdict]:
    """Cost for each row and step must not rise along the sweeps of T and B."""
    for letter in "TB":
        rises = {}
        for mode in MODES:
            costs = sorted(
                (size, row.seconds[OURS]["median"] / size, row.case.name)
                for row in sequences[mode]
                if f"sweep-{letter}" in row.case.tags and OURS in row.seconds
                if (size := getattr(row.case, letter))
            )
            for (_, small, _), (_, large, name) in itertools.pairwise(costs):
                rises[name] = large / small
        what = f"cost per unit along {letter}: worst rise"
        yield worst(what, GROWTH, rises, at_most=True)


def table(verdicts: Sequence[Verdict]) -> Table:
    body = []
    for v in verdicts:
        got = "" if v.got is None else f"{v.got:.2f}{v.unit}"
        needed = f"{'<=' if v.at_most else '>='} {v.needed:g}{v.unit}"
        body.append([v.what, needed, got, v.word, v.detail])
    return Table(["bar", "needed", "measured", "verdict", "where"], body)


def text(result: Result, verdicts: Sequence[Verdict]) -> str:
    words = [verdict.word for verdict in verdicts]
    lines = [describe(result), table(verdicts).text()]
    if not any("bfloat16" in limits.flops for limits in result.roofs.values()):
        lines.append("bfloat16 counts only where the CPU has a dot product of it")
    counts = (f"{words.count(word)} {word}" for word in ("held", "missed", "not measured"))
    return "\n".join([*lines, ", ".join(counts)])
