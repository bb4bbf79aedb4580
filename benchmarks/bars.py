"""The bars: what this project promises about speed and memory, each held or missed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .cases import Case
from .names import OURS, TORCH
from .report import Table
from .store import Result, Row

BEST = "the best rival"


@dataclass(frozen=True)
class Bar:
    """What the values of a run, by row, must be: each of them, or their geometric mean; at least
    that, or at most."""

    what: str
    needed: float
    values: Callable[[Any], dict[str, float]]
    mean: bool = False
    at_most: bool = False

    def verdict(self, run: Any) -> tuple[str, str, str, str, str]:
        """Its line of the table: held, missed, or of no row of the run."""
        values, detail = self.values(run), ""
        sign = "<=" if self.at_most else ">="
        line = f"{self.what}: {'mean' if self.mean else 'worst'}", f"{sign} {self.needed:g}"
        if not values:
            return *line, "", "not measured", ""
        if self.mean:
            got, detail = statistics.geometric_mean(values.values()), f"{len(values)} rows"
        else:
            detail = (max if self.at_most else min)(values, key=values.__getitem__)
            got = values[detail]
        held = got <= self.needed if self.at_most else got >= self.needed
        return *line, f"{got:.2f}", "held" if held else "missed", detail


def text(run: Any, bars: Sequence[Bar]) -> tuple[str, bool]:
    """The verdicts, and whether none is missed."""
    lines = [bar.verdict(run) for bar in bars]
    table = Table(["bar", "needed", "measured", "verdict", "where"], lines)
    return table.text(), all(line[3] != "missed" for line in lines)


def _plain(result: Result, wanted: Callable[[Case], bool]) -> list[Row]:
    """In float32 at full precision on all cores."""
    return [
        row
        for row in result.rows.values()
        if row.case.dtype == "float32" and row.case.precision == "highest" and not row.case.threads
        if OURS in row.seconds and wanted(row.case)
    ]


def _over(rival: str, wanted: Callable[[Case], bool]) -> Callable[[Result], dict[str, float]]:
    """How many times as fast as a rival, or as the fastest of each row."""

    def ratios(result: Result) -> dict[str, float]:
        found = {}
        for row in _plain(result, wanted):
            whom = row.best_rival(OURS) if rival == BEST else rival
            if whom and (ratio := row.ratio(whom, OURS)) is not None:
                found[f"{row.case.name} ({whom})"] = ratio
        return found

    return ratios


def _roof(wanted: Callable[[Case], bool]) -> Callable[[Result], dict[str, float]]:
    """The share that layers reach of what the machine can do."""

    def shares(result: Result) -> dict[str, float]:
        found = {}
        for row in _plain(result, lambda c: c.kind == "rnn" and c.T > 1 and wanted(c)):
            if least := result.bound(row):
                name = f"{row.case.name} ({least.limit})"
                found[name] = least.seconds / row.seconds[OURS]["median"]
        return found

    return shares


def _layers(mode: str) -> Callable[[Case], bool]:
    return lambda c: c.kind == "rnn" and c.T > 1 and c.mode == mode


# Which calls, whom they are held against, and how many times as fast they must be: in the mean, and
# each (0: as it comes).
_SPEED: tuple[tuple[str, Callable[[Case], bool], str, float, float], ...] = (
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
BARS = (
    *(
        Bar(f"{what} over {rival}", needed, _over(rival, wanted), mean)
        for what, wanted, rival, on_average, at_least in _SPEED
        for needed, mean in ((on_average, True), (at_least, False))
        if needed
    ),
    Bar("share of the roof, H >= 256, B >= 16, infer", 0.84,
        _roof(lambda c: c.H >= 256 and c.B >= 16 and c.mode == "infer")),
    Bar("share of the roof, H >= 256, B >= 16, train", 0.78,
        _roof(lambda c: c.H >= 256 and c.B >= 16 and c.mode == "train")),
    Bar("share of the roof, B = 1", 0.80, _roof(lambda c: c.B == 1)),
)  # fmt: skip
