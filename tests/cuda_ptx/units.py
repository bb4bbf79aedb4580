"""Lanes that run in step, and barriers at which they meet."""

from collections.abc import Callable
from typing import Any

import numpy as np

from cuda_ptx.memory import Fault


class Barrier:
    """A barrier for the lanes of each group: a generation passes when all have arrived."""

    def __init__(self, group_of) -> None:
        self.group_of = group_of
        self.members = np.bincount(group_of)
        self.generation, self.arrived = np.zeros((2, len(self.members)), np.int64)
        self.waits_for = np.full(len(group_of), -1, np.int64)  # at which a lane arrived last

    def arrive(self, lanes) -> None:
        now = self.generation[self.group_of[lanes]]
        if (self.waits_for[lanes] == now).any():
            raise Fault("a second arrival at a barrier without a wait")
        self.waits_for[lanes] = now
        self.arrived += np.bincount(self.group_of[lanes], minlength=len(self.members))

    def leave(self, lanes) -> None:
        self.members -= np.bincount(self.group_of[lanes], minlength=len(self.members))

    def pass_on(self):
        """Groups whose remaining lanes have arrived."""
        over = (self.arrived >= self.members) & (self.arrived > 0)
        self.generation[over] += 1
        self.arrived[over] = 0
        return over

    def over(self, lanes):
        """Whether what each lane waits for has passed."""
        return self.generation[self.group_of[lanes]] > self.waits_for[lanes]


class Unit:
    """Lanes that run in step: where those are that can go on, and those that wait."""

    def __init__(self, lanes) -> None:
        self.lanes = lanes
        self.whole = slice(int(lanes[0]), int(lanes[-1]) + 1)
        self.ready: dict[int, Any] = {0: lanes}
        self.waiting: dict[int, Any] = {}

    def _add(self, to: dict[int, Any], at: int, lanes) -> None:
        if lanes.size:
            to[at] = np.sort(np.concatenate([to[at], lanes])) if at in to else lanes

    def go(self, at: int, lanes) -> None:
        self._add(self.ready, at, lanes)
        if at in self.waiting:  # together with those that wait for partners there
            self._add(self.ready, at, self.waiting.pop(at))

    def wait(self, at: int, lanes) -> None:
        self._add(self.waiting, at, lanes)

    def wake(self, where: Callable[[int], bool] = lambda at: True) -> None:
        for at in [at for at in self.waiting if where(at)]:
            self._add(self.ready, at, self.waiting.pop(at))
