"""The bars: what this project aims at in speed and memory, each held or missed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .cases import GATED, Case
from .names import OURS, TORCH
from .report import Table
from .store import Result, Row

BEST, CELL = "the best rival", "the cell of torch.nn"
Wanted = Callable[[Case], bool]
Values = Callable[[Any], dict[str, float]]


@dataclass(frozen=True)
class Bar:
    """An aim for a run's values: each row's, or with `mean` their geometric mean, is at least
    `needed`, or with `at_most` at most that."""

    what: str
    needed: float
    values: Values
    mean: bool = False
    at_most: bool = False
    roof: Values | None = None  # the values if each row were at its roof

    def verdict(self, run: Any) -> tuple[str, str, str, str, str]:
        """Its line of the table: held, missed or not measured."""
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
        if not held and self.roof and (most := self.roof(run)):
            detail += f", {statistics.geometric_mean(most.values()):.2f} at the roof"
        return *line, f"{got:.2f}", "held" if held else "missed", detail


def text(run: Any, bars: Sequence[Bar]) -> tuple[str, bool]:
    """The verdicts, and whether none is missed."""
    lines = [bar.verdict(run) for bar in bars]
    table = Table(["bar", "needed", "measured", "verdict", "where"], lines)
    return table.text(), all(line[3] != "missed" for line in lines)


def plain(result: Result, wanted: Wanted, dtype: str = "float32") -> list[Row]:
    """In float32, or bfloat16 where the CPU multiplies it, at full precision on all cores."""
    if dtype == "bfloat16" and not {"avx512_bf16", "amx_bf16"} & {*result.stamp["cpu_flags"]}:
        return []
    return [
        row
        for row in result.rows.values()
        if row.case.dtype == dtype and row.case.precision == "highest" and not row.case.threads
        if OURS in row.seconds and wanted(row.case)
    ]


def _over(rival: str, wanted: Wanted, dtype: str, at_roof: bool = False) -> Values:
    """How many times as fast as a rival, as torch.nn's cell, or as the fastest of each row."""

    def ratios(result: Result) -> dict[str, float]:
        found = {}
        for row in plain(result, wanted, dtype):
            other: Row | None = row
            if rival == CELL and row.case.kind == "rnn":
                other = result.rows.get(replace(row.case, kind="cell").name)
            whom = {BEST: row.best_rival(OURS), CELL: TORCH}.get(rival, rival)
            bound = result.bound(row) if at_roof else None
            seconds = bound.seconds if bound else row.seconds[OURS]["median"]
            if other and whom in other.seconds and bool(bound) == at_roof:
                found[f"{row.case.name} ({whom})"] = other.seconds[whom]["median"] / seconds
        return found

    return ratios


def _roof(wanted: Wanted, *cells: str) -> Values:
    """The share that layers, by default the RNN, reach of what the machine can do."""

    def shares(result: Result) -> dict[str, float]:
        found = {}
        for row in plain(result, lambda c: _layer(c, *cells) and wanted(c)):
            if least := result.bound(row):
                name = f"{row.case.name} ({least.limit})"
                found[name] = least.seconds / row.seconds[OURS]["median"]
        return found

    return shares


def _behind(wanted: Wanted) -> Values:
    """How many points of the roof layers with gates are behind the RNN of their size."""

    def size(name: str) -> str:
        return name.split()[0].partition("-")[2]

    def points(result: Result) -> dict[str, float]:
        rnn = {size(name): share for name, share in _roof(wanted)(result).items()}
        gated = _roof(wanted, *GATED)(result)
        return {n: 100 * (rnn[size(n)] - share) for n, share in gated.items() if size(n) in rnn}

    return points


def _layer(c: Case, *cells: str) -> bool:
    return c.kind == "rnn" and c.T > 1 and c.cell in (cells or ("rnn",))


def layers(mode: str, *cells: str) -> Wanted:
    return lambda c: _layer(c, *cells) and c.mode == mode


def one(kind: str, *cells: str) -> Wanted:
    """One step by a layer ("rnn"), a cell or a Stepper."""
    return lambda c: c.kind == kind and c.T == 1 and c.mode == "infer" and c.cell in cells


Speed = tuple[str, Wanted, dict[str, tuple[float, float]]]
# Which calls, and how many times as fast as each rival ours must be: in the mean, and in each row
# (0: no bar).
_SPEED: tuple[Speed, ...] = (
    ("infer", layers("infer"), {TORCH: (5.0, 0), BEST: (2.3, 1.1)}),
    ("train", layers("train"), {TORCH: (4.5, 0), BEST: (2.5, 1.1)}),
    ("one call, T=1, RNN", one("rnn", "rnn"), {TORCH: (2.5, 1.5)}),
    ("one call, RNNCell", one("cell", "rnn"), {TORCH: (1.8, 1.5)}),
    ("one step of a stream", one("step", "rnn"), {BEST: (0, 1.1)}),
    ("GRU infer", layers("infer", "gru"), {TORCH: (4.0, 0), BEST: (1.6, 1.0)}),
    ("GRU train", layers("train", "gru"), {TORCH: (4.0, 0), BEST: (2.5, 1.2)}),
    ("LSTM infer", layers("infer", "lstm"), {TORCH: (2.0, 0), BEST: (1.35, 0.97)}),
    ("LSTM train", layers("train", "lstm"), {TORCH: (1.5, 0), BEST: (1.5, 1.0)}),
    ("packed GRU, LSTM",
     lambda c: c.packed and _layer(c, *GATED), {TORCH: (4.0, 0), BEST: (0, 2.0)}),
    ("one call, T=1, GRU, LSTM", one("rnn", *GATED), {CELL: (2.0, 0), BEST: (0, 1.2)}),
    ("one call, GRUCell, LSTMCell", one("cell", *GATED), {CELL: (1.5, 1.2)}),
    ("one step of a stream, GRU, LSTM", one("step", *GATED), {CELL: (5.0, 0), BEST: (0, 1.2)}),
    ("embedding gather",
     lambda c: c.kind == "embedding" and c.mode == "infer", {TORCH: (1.0, 0.95)}),
    ("embedding + dense gradient",
     lambda c: c.kind == "embedding" and c.mode == "train" and not c.sparse, {TORCH: (1.6, 0.95)}),
    ("embedding + sparse gradient", lambda c: c.sparse, {TORCH: (2.5, 1.1)}),
)  # fmt: skip
# In bfloat16, where the CPU multiplies it.
_BFLOAT16: tuple[Speed, ...] = (
    ("GRU in bfloat16", lambda c: _layer(c, "gru"), {TORCH: (4.0, 0)}),
    ("LSTM in bfloat16", lambda c: _layer(c, "lstm"), {TORCH: (1.3, 0)}),
    ("GRU, LSTM in bfloat16", lambda c: _layer(c, *GATED), {BEST: (0, 1.0)}),
)
BARS = (
    *(
        Bar(f"{what} over {rival}", needed, _over(rival, wanted, dtype), mean,
            roof=_over(rival, wanted, dtype, at_roof=True))
        for dtype, speed in (("float32", _SPEED), ("bfloat16", _BFLOAT16))
        for what, wanted, rivals in speed
        for rival, times in rivals.items()
        for needed, mean in zip(times, (True, False), strict=True)
        if needed
    ),
    Bar("share of the roof, H >= 256, B >= 16, infer", 0.84,
        _roof(lambda c: c.H >= 256 and c.B >= 16 and c.mode == "infer")),
    Bar("share of the roof, H >= 256, B >= 16, train", 0.78,
        _roof(lambda c: c.H >= 256 and c.B >= 16 and c.mode == "train")),
    Bar("share of the roof, B = 1", 0.80, _roof(lambda c: c.B == 1)),
    Bar("points of the roof behind the RNN, H >= 256, B >= 16", 4,
        _behind(lambda c: c.H >= 256 and c.B >= 16), at_most=True),
    Bar("points of the roof behind the RNN, H = 128, B >= 16", 8,
        _behind(lambda c: c.H == 128 and c.B >= 16), at_most=True),
)  # fmt: skip
