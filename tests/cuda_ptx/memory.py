"""Global memory as kernels see it: checked, and late.

Each block of a launch whose blocks wait for each other has a view of its own. A plain store shows
in the block's view at once, and in memory only when the block releases it; a plain load, and an
asynchronous copy, see the view, which follows memory only when the block acquires. So what is not
released, or not acquired, is not seen. Strong (relaxed, acquire) loads see memory.
"""

import numpy as np

from cuda_ptx.arithmetic import KINDS

SIZE = 256 << 20
UNMAPPED, ASYNCHRONOUS, CONSTANT, WRITABLE = range(4)  # ASYNCHRONOUS: no plain load


class Fault(Exception):
    """A thing that a kernel must not do."""


class Arena:
    """Device memory: what is given out is between unmapped bytes, and holds NaNs."""

    def __init__(self) -> None:
        memory = np.zeros(SIZE + 256, np.uint8)
        self.base = -(-memory.ctypes.data // 256) * 256
        self.bytes = memory[self.base - memory.ctypes.data :][:SIZE]
        self.access = np.zeros(SIZE, np.uint8)
        self.begin = self.end = 256

    def clear(self) -> None:
        """Takes back what is not to be kept."""
        self.access[self.begin : self.end] = UNMAPPED
        self.end = self.begin

    def allocate(self, size: int, kept: bool = False) -> int:
        """The address is a multiple of 256, but not of 512."""
        begin = -(-(self.end + 64) // 512) * 512 + 256
        if begin + size + 64 > SIZE:
            raise MemoryError("the tests' device memory is full")
        self.end = begin + size
        self.bytes[begin : self.end] = 255
        self.access[begin : self.end] = WRITABLE
        if kept:
            self.begin = self.end
        return self.base + begin

    def holds(self, address: int) -> bool:
        return 0 <= address - self.base < SIZE

    def protect(self, address: int, size: int, access: int = CONSTANT) -> None:
        self.access[address - self.base : address - self.base + size] = access


class Global:
    """The memory of one launch, of blocks that see each other's stores late or at once."""

    def __init__(self, arena: Arena, blocks: int, late: bool) -> None:
        self.arena, self.late = arena, late
        self.main, self.version = arena.bytes, 0
        if not self.late:
            return
        self.size = -(-arena.end // 16) * 16
        self.views = np.repeat(self.main[None, : self.size], blocks, 0)
        self.dirty = np.zeros((blocks, self.size), np.int32)  # 1 + the barriers before the store
        self.writer, self.seen = np.zeros((blocks, self.size), np.int32), np.zeros(blocks, np.int64)

    def at(self, address, offset: int, size: int, needed: int, what: str):
        """Places in memory of accesses, checked; `needed`: the least access that they need."""
        place = np.atleast_1d(address).astype(np.int64) + (offset - self.arena.base)
        if (place & (size - 1)).any():
            raise Fault(f"misaligned {what} of {size} bytes")
        access = self.arena.access
        if place.min() < 0 or place.max() >= len(access):
            raise Fault(f"{what} out of bounds: no memory at all")
        allowed = np.minimum(access[place], access[place + (size - 1)]).min()
        if allowed == UNMAPPED:
            raise Fault(f"{what} out of bounds")
        if allowed < needed:
            asks = "constant memory" if needed == WRITABLE else "what only copies may wait for"
            raise Fault(f"{what} of {asks}")
        return place

    def load(self, place, block, kind: str, strong: bool):
        item = KINDS[kind].itemsize
        if not self.late or strong:
            return self.main.view(KINDS[kind])[place // item]
        return self.views.reshape(-1).view(KINDS[kind])[(block * self.size + place) // item]

    def store(self, place, block, lane, epoch, value, kind: str) -> None:
        item = KINDS[kind].itemsize
        if not self.late:
            self.main.view(KINDS[kind])[place // item] = value
            return
        self.views.reshape(-1).view(KINDS[kind])[(block * self.size + place) // item] = value
        each = (block * self.size + place)[:, None] + np.arange(item)
        self.dirty.reshape(-1)[each] = (epoch + 1)[:, None]
        self.writer.reshape(-1)[each] = lane[:, None]

    def publish(self, place, value: bytes) -> None:
        """A strong store arrives: in memory, and in no view."""
        self.main[place : place + len(value)] = np.frombuffer(value, np.uint8)
        self.version += 1

    def release(self, block: int, lane: int, epoch: int) -> None:
        """Publishes a lane's stores, and its block's before the barriers it has passed."""
        if not self.late:
            return
        dirty = self.dirty[block]
        places = np.flatnonzero(dirty)
        ready = places[(dirty[places] <= epoch) | (self.writer[block, places] == lane)]
        self.main[ready] = self.views[block, ready]
        dirty[ready] = 0
        self.version += 1

    def acquire(self, block: int) -> None:
        if not self.late or self.seen[block] == self.version:
            return
        mine = np.flatnonzero(self.dirty[block])
        kept = self.views[block, mine]
        self.views[block] = self.main[: self.size]
        self.views[block, mine] = kept
        self.seen[block] = self.version

    def finish(self) -> None:
        """All stores arrive. No two blocks may have stored to one place unordered."""
        if not self.late:
            return
        dirty = self.dirty > 0
        if (dirty.sum(0) > 1).any():
            raise Fault("race: two blocks write to one place")
        for block in range(len(dirty)):
            places = np.flatnonzero(dirty[block])
            self.main[places] = self.views[block, places]
