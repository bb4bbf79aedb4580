"""Shared memory of the blocks of a launch, and who may touch it when.

Clocks count a block's barriers. After a thread has written a word, another may read or write it
only at a later clock; after a thread has read it, another may write it only then.
"""

import numpy as np

from cuda_ptx.arithmetic import KINDS
from cuda_ptx.memory import Fault

WINDOW = 1 << 24  # of a block, in addresses of its cluster: (1 + rank) * WINDOW + offset
GENERIC = 1 << 56  # where that lies in generic addresses


class Shared:
    def __init__(self, blocks: int, size: int, watch: bool) -> None:
        self.size, self.stride, self.watch = size, -(-max(size, 16) // 16) * 16, watch
        self.bytes = np.full(blocks * self.stride, 255, np.uint8)
        words = blocks * self.stride // 2
        self.begun, self.ended = np.zeros(blocks, bool), np.zeros(blocks, bool)
        if watch:
            self.write_clock, self.read_clock = (np.full(words, -1, np.int32) for _ in range(2))
            self.writer, self.reader = (np.full(words, -1, np.int32) for _ in range(2))

    def at(self, block, offset, size: int, what: str):
        place = np.atleast_1d(offset).astype(np.int64)
        if (place & (size - 1)).any():
            raise Fault(f"misaligned {what} of {size} bytes of shared memory")
        if place.min() < 0 or place.max() + size > self.size:
            raise Fault(f"{what} out of bounds of shared memory")
        return place + block * self.stride

    def load(self, place, kind: str):
        return self.bytes.view(KINDS[kind])[place // KINDS[kind].itemsize]

    def store(self, place, value, kind: str) -> None:
        self.bytes.view(KINDS[kind])[place // KINDS[kind].itemsize] = value

    def _watched(self, place, size: int):
        """The words of accesses, one after the other; none where nobody watches."""
        return (place // 2 + k for k in range(max(size // 2, 1) if self.watch else 0))

    def reads(self, place, size: int, lane, clock) -> None:
        for word in self._watched(place, size):
            if ((self.write_clock[word] >= clock) & (self.writer[word] != lane)).any():
                raise Fault("race: a read of what another thread wrote since the last barrier")
            newer = clock > self.read_clock[word]
            # Two readers at one clock: neither may write.
            self.reader[word] = np.where(newer, lane, np.where(self.reader[word] == lane, lane, -2))
            self.read_clock[word] = np.maximum(clock, self.read_clock[word])

    def writes(self, place, size: int, lane, clock, stamp) -> None:
        """`stamp`: the clock from which on others may read."""
        for word in self._watched(place, size):
            wrote = (self.write_clock[word] >= clock) & (self.writer[word] != lane)
            read = (self.read_clock[word] >= clock) & (self.reader[word] != lane)
            if size > 1 and (wrote | read).any():
                raise Fault("race: a write over what another thread used since the last barrier")
            self.writer[word], self.write_clock[word] = lane, stamp
