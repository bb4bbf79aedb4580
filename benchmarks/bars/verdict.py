"""What a bar says: the number needed, the number measured, whether it is held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """One bar. got is None where the run has no row for it; at_most turns the comparison round.

    at_roof: what a kernel would get that ran every row at its roof: a bar above is out of reach.
    """

    what: str
    needed: float
    got: float | None
    detail: str = ""
    unit: str = "x"
    at_most: bool = False
    at_roof: float | None = None

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
