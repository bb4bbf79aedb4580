"""The bars: what this project promises about speed and memory, each held or missed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .cases import Case
from .names import OURS, TORCH
from .report import Table, describe
from .store import Result, Row

BEST = "the best rival"


@dataclass(frozen=True)
class Verdict:
    """One bar. got is None where the run has no row for it; at_most turns the comparison round."""

    what: str
    needed: float
    got: float | None
    detail: str = ""
    at_most: bool = False

    @property
    def held(self) -> bool | None:
        if self.got is None:
            return None
        return self.got <= self.needed if self.at_most else self.got >= self.needed

    @property
    def word(self) -> str:
        return {True: "held", False: "missed", None: "not measured"}[self.held]


def worst(what: str, needed: float, values: Mapping[str, float], at_most: bool = False) -> Verdict:
    """The verdict on the worst of the values, named by case; its detail counts those that hold."""
    if not values:
        return Verdict(what, needed, None, at_most=at_most)
    where = (max if at_most else min)(values, key=values.__getitem__)
    good = sum(v <= needed if at_most else v >= needed for v in values.values())
    detail = f"{where}; {good} of {len(values)} rows hold"
    return Verdict(f"{what}: worst", needed, values[where], detail, at_most)


def mean(what: str, needed: float, values: Mapping[str, float]) -> Verdict:
    """The verdict on the geometric mean."""
    got = statistics.geometric_mean(values.values()) if values else None
    return Verdict(f"{what}: mean", needed, got, f"{len(values)} rows")


def _layers(mode: str) -> Callable[[Case], bool]:
    return lambda c: c.kind == "rnn" and c.T > 1 and c.mode == mode


# Which calls, whom they are held against, and how many times as fast they must be: in the mean, and
# each (0: as it comes). In float32 at full precision on all cores.
SPEED: tuple[tuple[str, Callable[[Case], bool], str, float, float], ...] = (
    ("infer", _layers("infer"), TORCH, 5.0, 0),
    ("infer", _layers("infer"), BEST, 2.3, 1.1),
    ("train", _layers("train"), TORCH, 4.5, 0),
    ("train", _layers("train"), BEST, 2.5, 1.1),
    ("one call, T=1, RNN",
     lambda c: c.kind == "rnn" and c.T == 1 and c.mode == "infer", TORCH, 2.5, 1.5),
    ("one call, RNNCell", lambda c: c.kind == "cell" and c.mode == "infer", TORCH, 1.8, 1.5),
    ("one step of a stream", lambda c: c.kind == "step", BEST, 0, 1.1),
    ("embedding gather",
     lambda c: c.kind == "embedding" and c.mode == "infer", TORCH, 1.0, 0.95),
    ("embedding + dense gradient",
     lambda c: c.kind == "embedding" and c.mode == "train" and not c.sparse, TORCH, 1.6, 0.95),
    ("embedding + sparse gradient", lambda c: c.sparse, TORCH, 2.5, 1.1),
)  # fmt: skip
# Which share of the machine's limit each of these layers must reach.
ROOF: tuple[tuple[str, Callable[[Case], bool], float], ...] = (
    ("H >= 256, B >= 16, infer", lambda c: c.H >= 256 and c.B >= 16 and c.mode == "infer", 0.84),
    ("H >= 256, B >= 16, train", lambda c: c.H >= 256 and c.B >= 16 and c.mode == "train", 0.78),
    # In few steps a call's fixed cost counts most.
    ("H 64..255, B >= 16, T > 30", lambda c: 64 <= c.H < 256 and c.B >= 16 and c.T > 30, 0.75),
    ("B = 1", lambda c: c.B == 1, 0.80),
)


def evaluate(result: Result) -> Iterator[Verdict]:
    """The verdicts on a run."""
    plain, lower = [], []
    for row in result.rows.values():
        if row.case.dtype == "bfloat16" or row.case.precision == "medium":
            lower.append(row)
        elif row.case.dtype == "float32" and not row.case.threads:
            plain.append(row)
    for what, wanted, rival, on_average, at_least in SPEED:
        ratios = _over([row for row in plain if wanted(row.case)], rival)
        if on_average:
            yield mean(f"{what} over {rival}", on_average, ratios)
        if at_least:
            yield worst(f"{what} over {rival}", at_least, ratios)
    if any("bfloat16" in limits.flops for limits in result.roofs.values()):
        yield worst(f"bfloat16 and medium over {TORCH}", 1.1, _over(lower, TORCH))
    layers = [row for row in plain if row.case.kind == "rnn" and row.case.T > 1]
    yield _memory([row for row in layers if row.case.mode == "train"])
    for what, wanted, needed in ROOF:
        shares = {}
        for row in layers:
            least = result.bound(row)
            if wanted(row.case) and OURS in row.seconds and least:
                name = f"{row.case.name} ({least.limit})"
                shares[name] = least.seconds / row.seconds[OURS]["median"]
        yield worst(f"share of the roof, {what}", needed, shares)


def _over(rows: Sequence[Row], rival: str) -> dict[str, float]:
    """The speed-up over a rival, or over the fastest of each row."""
    ratios = {}
    for row in rows:
        whom = row.best_rival(OURS) if rival == BEST else rival
        if whom and (ratio := row.ratio(whom, OURS)) is not None:
            ratios[f"{row.case.name} ({whom})"] = ratio
    return ratios


def _memory(rows: list[Row]) -> Verdict:
    shares = {
        row.case.name: row.saved_bytes[OURS] / row.saved_bytes[TORCH]
        for row in rows
        if {OURS, TORCH} <= row.saved_bytes.keys()
    }
    return worst("output + saved bytes of torch.nn's", 0.5, shares, at_most=True)


def table(verdicts: Sequence[Verdict]) -> Table:
    body = []
    for v in verdicts:
        got = "" if v.got is None else f"{v.got:.2f}"
        body.append([v.what, f"{'<=' if v.at_most else '>='} {v.needed:g}", got, v.word, v.detail])
    return Table(["bar", "needed", "measured", "verdict", "where"], body)


def text(result: Result, verdicts: Sequence[Verdict]) -> str:
    words = [verdict.word for verdict in verdicts]
    counts = (f"{words.count(word)} {word}" for word in ("held", "missed", "not measured"))
    return "\n".join([describe(result), table(verdicts).text(), ", ".join(counts)])
