"""Runs a kernel's PTX on numpy: a lane is a thread, and a launch's blocks run interleaved.

Units get warps, or whole blocks, at random, and some begin late. A unit runs all of its lanes that
are at one place together: the lowest place first (with one seed in four, any place), so that lanes
that have parted meet again. Units run in turns of random length. One seed in two watches shared
memory for races. A lane that waits (for a barrier, for others of its warp, in a loop around a
strong load) lets the rest of its unit go on. A store that may arrive late does so when no unit can
go on without it, or now and then, in random order.
"""

import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from cuda_ptx import warp
from cuda_ptx.arithmetic import KINDS
from cuda_ptx.memory import Arena, Fault, Global
from cuda_ptx.parse import Kernel
from cuda_ptx.shared import Shared
from cuda_ptx.writer import Program

AT_ONCE = 16  # blocks of a plain grid that run side by side
IDLE = 5000  # turns of a kernel whose waits should end by themselves
WAITS = ("bar.wait", "barrier.cluster.wait")


def deal(rng: random.Random, blocks: int, threads: int):
    """Unit, block and thread of each lane, in the order of the units."""
    warps = -(-threads // 32)
    units = rng.randint(1, min(4, blocks * warps))
    unit_of = [rng.randrange(units) for _ in range(blocks * warps)]
    if rng.random() < 0.5:  # whole blocks
        unit_of = [unit_of[w // warps] for w in range(blocks * warps)]
    lanes = [
        (unit, w // warps, thread)
        for unit, w in sorted((unit, w) for w, unit in enumerate(unit_of))
        for thread in range(w % warps * 32, min(w % warps * 32 + 32, threads))
    ]
    return np.array(lanes, np.int64)


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
        self.lanes, self.whole = lanes, slice(int(lanes[0]), int(lanes[-1]) + 1)
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


class Machine(warp.Warps):
    """One wave of blocks of a launch, which runtime.cpp describes."""

    def __init__(self, kernel: Kernel, launch, params: bytes, blocks, arena: Arena, seed, rng):
        self.kernel, self.params, self.rng = kernel, params, rng
        self.scattered, watched = seed % 4 == 3, seed % 2 == 1
        self.program = program(kernel)
        x, y, z = launch.block
        threads = x * y * z
        if threads > kernel.threads:
            raise Fault(f"{threads} threads in a block, at most {kernel.threads}")
        self.cluster_size, count = launch.cluster, len(blocks)
        warps_a_block = -(-threads // 32)
        unit_of, self.block, thread = deal(rng, count, threads).T.copy()
        self.size = len(thread)
        self.number = np.arange(self.size)
        self.warp, self.in_warp = self.block * warps_a_block + thread // 32, thread % 32
        self.alive = np.ones(self.size, bool)
        self.cluster = self.block // self.cluster_size
        self.special = {"%clock64": np.zeros(self.size, np.uint64)}
        places = {"tid": np.unravel_index(thread, (z, y, x))[::-1], "ntid": launch.block}
        places["ctaid"] = np.array(blocks)[self.block].T
        for name, axes in places.items():
            for axis, value in zip("xyz", axes, strict=True):
                self.special[f"%{name}.{axis}"] = np.full(self.size, value, np.uint32)
        self.globals = Global(arena, count, late=bool(launch.cooperative))
        self.shared = Shared(count, launch.shared_bytes, watched)
        self.of_blocks, self.of_clusters = Barrier(self.block), Barrier(self.cluster)
        self.split = np.zeros(count * warps_a_block, bool)
        self.clock = np.zeros(self.size, np.int32)  # see shared.py
        self.stamp = np.zeros(self.size, np.int32)
        self.released = np.zeros(count, np.int32)
        self.late_stores: list[warp.Store] = []
        self.copies: list[list[Any]] = []
        self.committed = np.zeros(self.size, np.int64)
        self.progress = 0
        kept = self.program.kept.items()
        self.registers = {name: np.zeros(self.size, KINDS[kind]) for name, kind in kept}
        self.units = [Unit(self.number[unit_of == unit]) for unit in np.unique(unit_of)]

    def param(self, base, offset: int, kind):
        raw = np.frombuffer(self.params, np.uint8)
        at = np.atleast_1d(base).astype(np.int64) + offset
        return raw[at[:, None] + np.arange(kind.itemsize)].reshape(-1).view(kind)

    # ---- the schedule

    def run(self) -> None:
        before, idle = (0, 0), 0  # turns in which nothing has changed
        late = [u for u in self.units if self.rng.random() < 0.3]  # to begin
        while True:
            ready = [u for u in self.units if u.ready and u not in late]
            if not ready and late:
                late.clear()
                continue
            if not ready:
                waiting = [u for u in self.units if u.waiting]
                if not waiting:
                    break
                if self.late_stores:
                    self.deliver(self.rng.randint(1, len(self.late_stores)))
                now = self.progress, self.globals.version
                before, idle = now, idle + 1 if now == before else 0
                self.special["%clock64"] += np.uint64(1)
                if idle == (IDLE if self.kernel.timed else 3):  # a turn of a loop may wait twice
                    raise Fault(self._deadlock())
                for unit in waiting:
                    unit.wake()
                continue
            unit = self.rng.choice(ready)
            for _ in range(self.rng.choice((1, 5, 30, 200))):
                if not unit.ready:
                    break
                self.step(unit)
            if self.late_stores and self.rng.random() < 0.1:
                self.deliver(self.rng.randint(1, len(self.late_stores)))
        self.deliver(len(self.late_stores))
        self.globals.finish()

    def _deadlock(self) -> str:
        lines = [
            f"{len(lanes)} threads at line {self.kernel.blocks[at].instructions[0].line}"
            for unit in self.units
            for at, lanes in unit.waiting.items()
        ]
        return "deadlock: " + ", ".join(lines)

    def step(self, unit: Unit) -> None:
        """Runs one basic block of the lanes at one place."""
        at = self.rng.choice(list(unit.ready)) if self.scattered else min(unit.ready)
        lanes = unit.ready.pop(at)
        self.shared.begun[self.block[lanes]] = True
        block = self.kernel.blocks[at]
        first, last = block.instructions[0], block.instructions[-1]
        if block.together and not (lanes := self._together(unit, at, lanes, first)).size:
            return
        if first.op.endswith(".aligned") and self.split[self.warp[lanes]].any():
            raise Fault("an aligned instruction after a branch that parted the warp")
        if first.op.startswith(WAITS):
            barrier = self.of_blocks if first.op == "bar.wait" else self.of_clusters
            over = barrier.over(lanes)
            unit.wait(at, lanes[~over])
            lanes = lanes[over]
            if not lanes.size:
                return
            self.clock[lanes] = self.stamp[lanes] = self.released[self.block[lanes]]
            if barrier is self.of_blocks:
                self.split[self.warp[lanes]] = False
        where = unit.whole if len(lanes) == len(unit.lanes) else lanes
        try:
            taken = self.program.block(at)(self, self.registers, where)
        except Fault as fault:
            raise Fault(f"{fault} (PTX line {first.line} and on)") from None
        if last.op.startswith("bra"):
            self._branch(unit, at, lanes, last, taken)
        elif last.op in ("ret", "exit"):
            self._leave(lanes)
        elif last.op == "trap":
            raise Fault(f"trap in block {self.block[lanes[0]]}, PTX line {last.line}")
        elif last.op.startswith("nanosleep"):
            unit.wait(at + 1, lanes)
        else:
            unit.go(at + 1, lanes)
            if last.op == "bar.arrive":
                self.of_blocks.arrive(lanes)
                self._pass_on()
            elif last.op.startswith("barrier.cluster.arrive"):
                self._cluster_arrive(lanes, "release" in last.parts)

    def _branch(self, unit: Unit, at: int, lanes, last, taken) -> None:
        target = self.kernel.labels[last.args[0]]
        to = unit.wait if self.kernel.blocks[at].strong and target <= at else unit.go
        if taken is None:
            to(target, lanes)
            return
        taken = np.broadcast_to(taken, lanes.shape)
        yes, no = lanes[taken], lanes[~taken]
        if yes.size and no.size:
            both = np.zeros((2, len(self.split)), bool)
            both[0, self.warp[yes]] = both[1, self.warp[no]] = True
            self.split |= both[0] & both[1]
        if yes.size:
            to(target, yes)
        if no.size:
            unit.go(at + 1, no)

    def _together(self, unit: Unit, at: int, lanes, first):
        """The lanes whose partners have reached this warp instruction, too; the others wait."""
        if len(lanes) == len(unit.lanes):
            self.split[self.warp[lanes]] &= not first.op.startswith("bar.warp")
            return lanes
        bits, here = np.int64(1) << self.in_warp, np.zeros(len(self.split), np.int64)
        np.add.at(here, self.warp[lanes], bits[lanes])
        alive = np.zeros(len(self.split), np.int64)
        np.add.at(alive, self.warp[self.alive], bits[self.alive])
        needed = np.int64(0xFFFFFFFF)
        if first.op.startswith(("shfl", "bar.warp")):
            arg = first.args[-1]
            if arg in self.registers:
                needed = self.registers[arg][lanes].astype(np.int64)
            else:
                needed = np.int64(int(arg, 0) & 0xFFFFFFFF)
        needed = needed & alive[self.warp[lanes]]
        complete = (needed & ~here[self.warp[lanes]]) == 0
        unit.wait(at, lanes[~complete])
        lanes = lanes[complete]
        if first.op.startswith("bar.warp") and lanes.size:
            full = here[self.warp[lanes]] == alive[self.warp[lanes]]
            self.split[self.warp[lanes[full]]] = False
        return lanes

    def _leave(self, lanes) -> None:
        """Ends lanes: every barrier counts them as arrived."""
        self.alive[lanes] = False
        self.of_blocks.leave(lanes)
        self.of_clusters.leave(lanes)
        self.shared.ended[self.of_blocks.members == 0] = True
        self._pass_on()

    def _cluster_arrive(self, lanes, release: bool) -> None:
        if release:
            mine = set(lanes.tolist())
            for store in self.late_stores:
                store.released |= store.block is not None and store.lane in mine
        self.stamp[lanes] = self.released[self.block[lanes]] + 1
        self.of_clusters.arrive(lanes)
        self._pass_on()

    def _pass_on(self) -> None:
        """Lets pass those barriers at which all have arrived."""
        self.progress += 1
        blocks, clusters = self.of_blocks.pass_on(), self.of_clusters.pass_on()
        if not blocks.any() and not clusters.any():
            return
        self.released[blocks] += 1
        self.released[np.repeat(clusters, self.cluster_size)[: len(self.released)]] += 1
        # Stores released by an arrival arrive now.
        for store in self.late_stores[:]:
            if store.released and clusters[store.block // self.cluster_size]:
                self.late_stores.remove(store)
                self._arrive_store(store)
        for unit in self.units:
            unit.wake(lambda at: self.kernel.blocks[at].instructions[0].op.startswith(WAITS))

    # ---- stores that arrive late

    def deliver(self, count: int) -> None:
        for _ in range(count):
            at = self.rng.randrange(len(self.late_stores))
            self.late_stores[at], self.late_stores[-1] = self.late_stores[-1], self.late_stores[at]
            self._arrive_store(self.late_stores.pop())

    def _arrive_store(self, store: warp.Store) -> None:
        self.progress += 1
        if store.block is None:
            self.globals.publish(store.place, store.value)
            return
        if self.shared.ended[store.block]:
            raise Fault("a store to the shared memory of a block that has ended")
        size = len(store.value)
        self.shared.bytes[store.place : store.place + size] = np.frombuffer(store.value, np.uint8)


program = functools.cache(Program)


def run(kernel: Kernel, launch, params: bytes, arena: Arena, seed: int) -> None:
    """Runs a whole grid, some of its blocks at once and the others in random order."""
    rng, cluster = random.Random(seed), launch.cluster
    x, y, z = map(range, launch.grid)
    blocks = [(i, j, k) for k in z for j in y for i in x]
    groups = [blocks[i : i + cluster] for i in range(0, len(blocks), cluster)]
    if not launch.cooperative:
        rng.shuffle(groups)
    at_once = len(groups) if launch.cooperative else max(1, AT_ONCE // cluster)
    with np.errstate(all="ignore"):
        for first in range(0, len(groups), at_once):
            wave = [b for group in groups[first : first + at_once] for b in group]
            Machine(kernel, launch, params, wave, arena, seed, rng).run()
