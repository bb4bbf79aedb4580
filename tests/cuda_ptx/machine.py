"""Runs a kernel's PTX on numpy: a lane is a thread, and a launch's blocks run interleaved.

Warps, or blocks, are dealt to units at random, of which some begin late. A unit runs all of its
lanes that are at one place together, the lowest place first (or, `scattered`, any), so that lanes
that have parted meet again; units run in turns of random length. A lane that waits (for a barrier,
for others of its warp, in a loop around a strong load) lets the rest of its unit go on. Stores that
may arrive later arrive when nobody can go on without them, or now and then, in random order.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from typing import Any

import numpy as np

from cuda_ptx import warp
from cuda_ptx.code import Program
from cuda_ptx.memory import Arena, Fault, Global
from cuda_ptx.parse import Kernel
from cuda_ptx.shared import Shared
from cuda_ptx.units import Barrier, Unit

AT_ONCE = 16  # blocks of a plain grid that run side by side


@dataclass
class Launch:
    """A kernel and how it is started; `params` holds its arguments."""

    kernel: Kernel
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: int
    cooperative: bool
    shared_bytes: int
    params: bytes


def deal(rng: random.Random, blocks: int, threads: int) -> Any:
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


class Machine(warp.Warps):
    """One wave of blocks of a launch."""

    def __init__(
        self,
        launch: Launch,
        blocks: list[tuple[int, int, int]],
        arena: Arena,
        rng: random.Random,
        scattered: bool,
        watch: bool,
    ) -> None:
        kernel, block, cluster = launch.kernel, launch.block, launch.cluster
        self.kernel, self.rng, self.scattered = kernel, rng, scattered
        self.program = program(kernel)
        self.params = launch.params
        threads = block[0] * block[1] * block[2]
        if threads > kernel.threads:
            raise Fault(f"{threads} threads in a block, at most {kernel.threads}")
        self.cluster_size, count = cluster, len(blocks)
        warps_a_block = -(-threads // 32)
        self.unit_of, self.block, thread = deal(rng, count, threads).T.copy()
        self.size = len(thread)
        self.number = np.arange(self.size)
        self.warp = self.block * warps_a_block + thread // 32
        self.in_warp = thread % 32
        self.alive = np.ones(self.size, bool)
        places = np.array(blocks, np.uint32)[self.block]
        rank = (np.arange(count) % cluster).astype(np.uint32)
        self.rank, self.cluster = rank[self.block], self.block // cluster
        t = thread.astype(np.uint32)
        x, y = np.uint32(block[0]), np.uint32(block[1])
        self.special = {
            "%tid.x": t % x, "%tid.y": t // x % y, "%tid.z": t // (x * y),
            "%laneid": t % np.uint32(32),
            "%ctaid.x": places[:, 0].copy(), "%ctaid.y": places[:, 1].copy(),
            "%ctaid.z": places[:, 2].copy(), "%cluster_ctarank": self.rank,
        }  # fmt: skip
        sizes = {"ntid": block, "nctaid": launch.grid}
        self.whole = {
            f"%{name}.{axis}": np.uint32(count)
            for name, counts in sizes.items()
            for axis, count in zip("xyz", counts, strict=True)
        }
        self.whole["%cluster_nctarank"] = np.uint32(cluster)
        self.globals = Global(arena, count, late=launch.cooperative)
        self.shared = Shared(count, launch.shared_bytes + kernel.static_shared, watch)
        self.block_barrier, self.cluster_barrier = Barrier(count), Barrier(-(-count // cluster))
        self.block_barrier.members += threads
        self.cluster_barrier.members += threads * cluster
        self.waits_for = np.full(self.size, -1, np.int64)  # the generation that a lane arrived at
        self.cluster_arrival = np.full(self.size, -1, np.int64)
        self.split = np.zeros(count * warps_a_block, bool)
        self.clock = np.zeros(self.size, np.int32)  # see shared.py
        self.stamp = np.zeros(self.size, np.int32)
        self.released = np.zeros(count, np.int32)
        self.late_stores: list[warp.Store] = []
        self.copies: list[list[Any]] = []
        self.committed = np.zeros(self.size, np.int64)
        self.barriers: dict[tuple[int, int], list[int]] = {}
        self.progress = 0
        self.registers = {
            name: np.zeros(self.size, bool if kind == "p" else kind)
            for name, kind in self._kept().items()
        }
        self.uniform = self.program.start(self)
        self.units = []
        for unit in np.unique(self.unit_of):
            members = self.number[self.unit_of == unit]
            self.units.append(Unit(members, slice(int(members[0]), int(members[-1]) + 1)))

    def _kept(self) -> dict[str, str]:
        names = set().union(*(b.live_in | b.live_out for b in self.kernel.blocks))
        return {n: self.kernel.type_of(n) or "u8" for n in names - self.program.uniform}

    def param(self, base: Any, offset: int, kind: Any) -> Any:
        at = np.asarray(base).astype(np.int64) + offset
        size = np.dtype(kind).itemsize
        if at.ndim == 0:
            return np.frombuffer(self.params, kind, 1, int(at))[0]
        raw = np.frombuffer(self.params, np.uint8)
        return raw[at[:, None] + np.arange(size)].reshape(-1).view(kind)

    # ---- the schedule

    def run(self) -> None:
        idle: list[tuple[int, int]] = []
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
                idle = [*idle[-3:], (self.progress, self.globals.version)]
                if len(idle) == 4 and len(set(idle)) == 1:  # a turn of a loop may wait twice
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
        first = block.together
        if first is not None and not (lanes := self._together(unit, at, lanes, first)).size:
            return
        if first is not None and first.op.startswith("barrier.cluster"):
            self._aligned(lanes)
        if first is not None and "wait" in first.parts:
            over = (
                self.cluster_barrier.generation[self.cluster[lanes]] > self.cluster_arrival[lanes]
            )
            unit.wait(at, lanes[~over])
            lanes = lanes[over]
            if not lanes.size:
                return
            self._passed(lanes)
        where = unit.whole if len(lanes) == len(unit.lanes) else lanes
        try:
            taken = self.program.block(at)(self, self.registers, self.uniform, where)
        except Fault as fault:
            raise Fault(f"{fault} (PTX line {block.instructions[0].line} and on)") from None
        last = block.last
        if last.op.startswith("bra"):
            self._branch(unit, at, lanes, last, taken)
        elif last.op in ("ret", "exit"):
            self._leave(lanes)
        elif last.op == "trap":
            raise Fault("trap")
        elif last.op == "bar.sync":
            self._block_barrier(unit, at, lanes)
        elif last.op.startswith("barrier.cluster.arrive"):
            self._cluster_arrive(lanes, "release" in last.parts)
            unit.go(at + 1, lanes)
        elif last.op.startswith("nanosleep"):
            unit.wait(at + 1, lanes)
        else:
            unit.go(at + 1, lanes)

    def _branch(self, unit: Unit, at: int, lanes: Any, last: Any, taken: Any) -> None:
        target = self.kernel.labels[last.args[0]]
        block = self.kernel.blocks[at]
        to = unit.wait if block.strong and target <= at else unit.go
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

    def _together(self, unit: Unit, at: int, lanes: Any, first: Any) -> Any:
        """Of lanes before an instruction of a warp, those whose partners are there; others wait."""
        if len(lanes) == len(unit.lanes):
            self.split[self.warp[lanes]] &= not first.op.startswith("bar.warp")
            return lanes
        bits = np.int64(1) << self.in_warp
        here = np.zeros(len(self.split), np.int64)
        np.add.at(here, self.warp[lanes], bits[lanes])
        alive = np.zeros(len(self.split), np.int64)
        np.add.at(alive, self.warp[self.alive], bits[self.alive])
        needed: Any = np.int64(0xFFFFFFFF)
        if first.op.startswith(("shfl", "vote", "bar.warp")):
            arg = first.args[-1]
            if arg in self.registers:
                needed = self.registers[arg][lanes].astype(np.int64)
            elif arg in self.uniform:
                needed = np.int64(self.uniform[arg])
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

    def _aligned(self, lanes: Any) -> None:
        if self.split[self.warp[lanes]].any():
            raise Fault("an aligned instruction after a branch that parted the warp")

    def _leave(self, lanes: Any) -> None:
        self.alive[lanes] = False
        self.block_barrier.members -= np.bincount(
            self.block[lanes], minlength=len(self.block_barrier.members)
        )
        # (Of the cluster's barrier a thread that has left counts as arrived.)
        self.cluster_barrier.members -= np.bincount(
            self.cluster[lanes], minlength=len(self.cluster_barrier.members)
        )
        self.shared.ended[self.block_barrier.members == 0] = True
        self.progress += 1
        self._pass_blocks()
        self._pass_clusters()

    def _block_barrier(self, unit: Unit, at: int, lanes: Any) -> None:
        self.waits_for[lanes] = self.block_barrier.generation[self.block[lanes]]
        unit.wait_at_barrier(at + 1, lanes)
        self.block_barrier.arrive(self.block[lanes])
        self.progress += 1
        self._pass_blocks()

    def _release_waiting(self) -> None:
        """Lanes whose barrier is passed go on."""
        for unit in self.units:
            for at in list(unit.at_barrier):
                lanes = unit.at_barrier[at]
                over = self.block_barrier.generation[self.block[lanes]] > self.waits_for[lanes]
                if not over.any():
                    continue
                free, rest = lanes[over], lanes[~over]
                self.waits_for[free] = -1
                self._passed(free)
                self.split[self.warp[free]] = False
                if rest.size:
                    unit.at_barrier[at] = rest
                else:
                    del unit.at_barrier[at]
                unit.go(at, free)

    def _pass_blocks(self) -> None:
        over = self.block_barrier.pass_on()
        if over.any():
            self.released[over] += 1
            self._release_waiting()

    def _pass_clusters(self) -> None:
        over = self.cluster_barrier.pass_on()
        if not over.any():
            return
        self.progress += 1
        blocks = np.repeat(over, self.cluster_size)[: len(self.released)]
        self.released[blocks] += 1
        # What was released before the arrival is there.
        size = self.cluster_size
        for store in [s for s in self.late_stores if s.released and over[s.block // size]]:
            self.late_stores.remove(store)
            self._arrive_store(store)

    def _cluster_arrive(self, lanes: Any, release: bool) -> None:
        if (
            self.cluster_arrival[lanes] == self.cluster_barrier.generation[self.cluster[lanes]]
        ).any():
            raise Fault("a second arrival at the cluster's barrier without a wait")
        if release:
            mine = set(lanes.tolist())
            for store in self.late_stores:
                store.released |= store.to_peer and store.lane in mine
        self.cluster_arrival[lanes] = self.cluster_barrier.generation[self.cluster[lanes]]
        self.stamp[lanes] = self.released[self.block[lanes]] + 1
        self.cluster_barrier.arrive(self.cluster[lanes])
        self.progress += 1
        self._pass_clusters()

    def _passed(self, lanes: Any) -> None:
        self.clock[lanes] = self.stamp[lanes] = self.released[self.block[lanes]]

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
        if store.barrier is not None:
            self.complete(store.block, store.barrier, 0, -size)


program = functools.cache(Program)


def run(launch: Launch, arena: Arena, seed: int, scattered: bool, watch: bool) -> None:
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
            Machine(launch, wave, arena, rng, scattered, watch).run()
