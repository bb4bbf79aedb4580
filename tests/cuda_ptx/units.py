"""Lanes that run in step, and barriers at which they meet."""

from __future__ import annotations

from typing import Any

import numpy as np


class Barrier:
    """What some lanes wait for: a generation passes when all of them have arrived."""

    def __init__(self, groups: int) -> None:
        self.generation = np.zeros(groups, np.int64)
        self.arrived = np.zeros(groups, np.int64)
        self.members = np.zeros(groups, np.int64)

    def arrive(self, group: Any) -> None:
        self.arrived += np.bincount(group, minlength=len(self.arrived))

    def pass_on(self) -> Any:
        """Groups in which all that are left have arrived."""
        over = (self.arrived >= self.members) & (self.arrived > 0)
        self.generation[over] += 1
        self.arrived[over] = 0
        return over


class Unit:
    """Lanes that run in step: where those are that can go on, and those that wait."""

    def __init__(self, lanes: Any, whole: slice) -> None:
        self.lanes, self.whole = lanes, whole
        self.ready: dict[int, Any] = {0: lanes}
        self.waiting: dict[int, Any] = {}
        self.at_barrier: dict[int, Any] = {}

    def _add(self, to: dict[int, Any], at: int, lanes: Any) -> None:
        if not lanes.size:
            return
        if at in to:
            lanes = np.sort(np.concatenate([to[at], lanes]))
        to[at] = lanes

    def go(self, at: int, lanes: Any) -> None:
        if at in self.waiting:  # together with those that wait for partners there
            lanes = np.sort(np.concatenate([self.waiting.pop(at), lanes]))
        self._add(self.ready, at, lanes)

    def wait(self, at: int, lanes: Any) -> None:
        self._add(self.waiting, at, lanes)

    def wait_at_barrier(self, at: int, lanes: Any) -> None:
        self._add(self.at_barrier, at, lanes)

    def wake(self) -> None:
        waiting, self.waiting = self.waiting, {}
        for at, lanes in waiting.items():
            self._add(self.ready, at, lanes)
