"""Effects of lanes on memory and on each other: the methods that compiled blocks call.

`L` are the lanes that run: numbers in ascending order, or a slice of a unit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cuda_ptx.arithmetic import KINDS, of_bf16
from cuda_ptx.memory import ASYNCHRONOUS, CONSTANT, WRITABLE, Fault
from cuda_ptx.shared import GENERIC, WINDOW


def _mma_places() -> dict[str, Any]:
    """Row and column of a fragment's elements, by lane: PTX manual, "Matrix Fragments for mma"."""
    lane = np.arange(32)[:, None]
    g, q = lane >> 2, lane & 3
    i8, i4, i2 = np.arange(8)[None], np.arange(4)[None], np.arange(2)[None]
    return {
        "a16": (g + 8 * ((i8 // 2) % 2), q * 2 + i8 % 2 + 8 * (i8 // 4)),
        "b16": (q * 2 + i4 % 2 + 8 * (i4 // 2), g + 0 * i4),
        "a8": (g + 8 * (i4 % 2), q + 4 * (i4 // 2)),
        "b8": (q + 4 * i2, g + 0 * i2),
        "c": (g + 8 * (i4 // 2), q * 2 + i4 % 2),
    }


PLACES = _mma_places()
# Of each form of mma, k and the numbers in its 32-bit words.
FORMATS: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "m16n8k16.row.col.f32.f16.f16.f32": (16, lambda w: w.view(np.float16).astype(np.float32)),
    "m16n8k16.row.col.f32.bf16.bf16.f32": (16, lambda w: of_bf16(w.view(np.uint16))),
    "m16n8k8.row.col.f32.tf32.tf32.f32": (
        8, lambda w: (w & np.uint32(0xFFFFE000)).view(np.float32)
    ),
}  # fmt: skip


@dataclass(eq=False)
class Store:
    """A store under way: to a block's shared memory, or to global memory."""

    place: int
    value: bytes
    block: Any = None
    lane: int = -1  # that stored
    released: bool = False  # by an arrival at the cluster's barrier, which brings it


class Warps:
    def _each(self, L, *values) -> Iterator[tuple[int, ...]]:
        """For each lane: its number, its block and its values."""
        lanes = self.number[L]
        lists = (np.broadcast_to(value, lanes.shape).tolist() for value in values)
        return zip(lanes.tolist(), self.block[L].tolist(), *lists, strict=True)

    # ---- addresses

    @staticmethod
    def generic(offset):
        return offset + np.uint64(GENERIC)

    def mapa(self, address, rank):
        if (np.asarray(rank) >= self.cluster_size).any():
            raise Fault("an address in a block that the cluster does not have")
        offset = (address - np.uint64(GENERIC)) % np.uint64(WINDOW)
        wide = np.asarray(rank).astype(np.uint64) + np.uint64(1)
        return offset + wide * np.uint64(WINDOW) + np.uint64(GENERIC)

    def _peer(self, L, address, offset: int):
        """The block and the offset in its shared memory of an address of the cluster."""
        whole = np.broadcast_to(np.asarray(address).astype(np.int64) + offset, self.block[L].shape)
        window, mine = whole // WINDOW, self.block[L]
        block = np.where(window == 0, mine, self.cluster[L] * self.cluster_size + window - 1)
        if self.shared.ended[block].any() or not self.shared.begun[block].all():
            raise Fault("the shared memory of a block that has ended, or not begun")
        return block, whole % WINDOW

    # ---- global memory

    def load_global(self, L, base, offset: int, kind: str, count: int, how: str):
        size = KINDS[kind].itemsize
        place = self._global(L, base, offset, size * count, CONSTANT, "read")
        block = self.block[L]
        places, last = [place + n * size for n in range(count)], (block, kind, how != "plain")
        loaded = tuple(self.globals.load(place, *last) for place in places)
        if how == "acquire":
            for one in np.unique(block):
                self.globals.acquire(one)
        return loaded

    def _global(self, L, base, offset: int, size: int, needed: int, what: str):
        place = self.globals.at(base, offset, size, needed, what)
        return np.broadcast_to(place, self.block[L].shape)

    def store_global(self, L, base, offset: int, values, kind: str, how: str) -> None:
        size = KINDS[kind].itemsize
        place = self._global(L, base, offset, size * len(values), WRITABLE, "write")
        block, lane = self.block[L], self.number[L]
        if how == "release":
            self.release(L)
        if how != "plain" and self.globals.late:
            raw = np.stack([np.broadcast_to(v.view(f"u{size}"), place.shape) for v in values], 1)
            pairs = zip(place.tolist(), raw, strict=True)
            stores = [Store(at, value.tobytes()) for at, value in pairs]
            if how == "release":  # what they release is in memory by now
                for store in stores:
                    self._arrive_store(store)
            else:
                self.late_stores += stores
            return
        epoch = self.of_blocks.generation[block]
        for n, value in enumerate(values):
            self.globals.store(place + n * size, block, lane, epoch, value, kind)

    def release(self, L) -> None:
        for lane, block, epoch in self._each(L, self.of_blocks.generation[self.block[L]]):
            self.globals.release(block, lane, epoch)

    def compare_and_swap(self, L, base, offset: int, expected, desired):
        place = self._global(L, base, offset, 4, WRITABLE, "atomic access")
        memory, old = self.globals.main.view(np.uint32), np.empty(len(place), np.uint32)
        expected, desired = (np.broadcast_to(x, place.shape) for x in (expected, desired))
        for n in self.rng.sample(range(len(place)), len(place)):
            old[n] = memory[place[n] // 4]
            if old[n] == expected[n]:
                memory[place[n] // 4] = desired[n]
        return old

    # ---- shared memory

    def _shared(self, L, base, offset: int, size: int, what: str):
        at = np.broadcast_to(np.asarray(base).astype(np.int64) + offset, self.block[L].shape)
        return self.shared.at(self.block[L], at, size, what)

    def load_shared(self, L, base, offset: int, kind: str, count: int, how: str):
        size = KINDS[kind].itemsize
        place = self._shared(L, base, offset, size * count, "read")
        self.shared.reads(place, size * count, self.number[L], self.clock[L])
        return tuple(self.shared.load(place + n * size, kind) for n in range(count))

    def store_shared(self, L, base, offset: int, values, kind: str, how: str) -> None:
        size = KINDS[kind].itemsize
        place = self._shared(L, base, offset, size * len(values), "write")
        self.shared.writes(place, size * len(values), self.number[L], self.clock[L], self.stamp[L])
        for n, value in enumerate(values):
            self.shared.store(place + n * size, value, kind)

    def store_generic(self, L, base, offset: int, values, kind: str, how: str) -> None:
        if (np.asarray(base) < np.uint64(GENERIC)).all():
            self.store_global(L, base, offset, values, kind, how)
            return
        block, at = self._peer(L, np.asarray(base) - np.uint64(GENERIC), offset)
        place = self.shared.at(block, at, KINDS[kind].itemsize * len(values), "write")
        raw = np.stack([np.broadcast_to(v, place.shape) for v in values], 1)
        for (lane, _, at, to), value in zip(self._each(L, place, block), raw, strict=True):
            self.late_stores.append(Store(at, value.tobytes(), to, lane))

    # ---- asynchronous copies

    def copy(self, L, to, to_at: int, of, of_at: int, size: int) -> None:
        place = self._shared(L, to, to_at, size, "asynchronous write").copy()
        source = self._global(L, of, of_at, size, ASYNCHRONOUS, "asynchronous read").copy()
        # Until it is waited for, nobody may read what is there.
        self.shared.writes(place, size, self.number[L], self.clock[L], self.stamp[L])
        for n in range(0, size, 4):
            self.shared.store(place + n, np.uint32(0xFFFFFFFF), "u4")
        self.copies.append([self.number[L].copy(), self.committed[L].copy(), place, source, size])

    def commit(self, L) -> None:
        self.committed[L] += 1

    def wait_copies(self, L, pending: int) -> None:
        waits = np.zeros(self.size, bool)
        waits[L] = True
        left = []
        for lanes, group, place, source, size in self.copies:
            done = waits[lanes] & (group < self.committed[lanes] - pending)
            if done.any():
                which, where = lanes[done], place[done]
                self.shared.writes(where, size, which, self.clock[which], self.stamp[which])
                for n in range(0, size, 4):
                    value = self.globals.load(source[done] + n, self.block[which], "u4", False)
                    self.shared.store(where + n, value, "u4")
            if not done.all():
                rest = ~done
                left.append([lanes[rest], group[rest], place[rest], source[rest], size])
        self.copies = left

    # ---- of a warp

    def shuffle(self, L, value, b, c, mask):
        """The value of lane ^ b."""
        lanes = self.number[L]
        value, b, c, mask = (np.broadcast_to(x, lanes.shape) for x in (value, b, c, mask))
        if (c != 31).any():
            raise Fault("a shuffle in less than a warp")
        lane = self.in_warp[L]
        source, mask = lane ^ (b.astype(np.int64) & 31), mask.astype(np.int64)
        if (((mask >> lane) & 1) == 0).any() or (((mask >> source) & 1) == 0).any():
            raise Fault("a shuffle with a lane outside of its mask")
        table = np.full((len(self.split), 32), -1, np.int64)
        table[self.warp[L], lane] = np.arange(len(lanes))
        place = table[self.warp[L], source]
        if (place < 0).any():
            raise Fault("a shuffle from a lane that is not there")
        return value[place]

    def mma(self, L, form: str, *registers):
        k, of_words = FORMATS[form]
        size = len(self.number[L])
        words = [np.broadcast_to(r, (size,)) for r in registers]
        parts = [of_words(np.stack(words[n:m], 1)) for n, m in ((0, 4), (4, 6))]
        parts.append(np.stack(words[6:], 1))
        matrices = [np.zeros((size // 32, *s), np.float32) for s in ((16, k), (k, 8), (16, 8))]
        for matrix, key, values in zip(matrices, (f"a{k}", f"b{k}", "c"), parts, strict=True):
            row, column = PLACES[key]
            matrix[:, row, column] = values.reshape(size // 32, 32, -1)
        a, b, c = matrices
        row, column = PLACES["c"]
        return tuple((np.matmul(a, b) + c)[:, row, column].reshape(size, 4).T)
