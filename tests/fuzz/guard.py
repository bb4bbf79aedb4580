"""Tensors in memory that ends at a page nobody may touch: reading past the end is a crash."""

import ctypes
import mmap

import torch
from torch import Tensor

_mprotect = ctypes.CDLL(None, use_errno=True).mprotect
_mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def guarded(tensor: Tensor) -> Tensor:
    """A copy with the same strides, whose last element is the last of its page."""
    if not tensor.numel():
        return tensor.clone()
    extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    size = extent * tensor.element_size()
    pages = -(-size // mmap.PAGESIZE)
    area = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    assert _mprotect(address + pages * mmap.PAGESIZE, mmap.PAGESIZE, 0) == 0
    offset = pages * mmap.PAGESIZE - size
    memory = torch.frombuffer(area, dtype=tensor.dtype, count=extent, offset=offset)
    memory.copy_(tensor.detach().as_strided((extent,), (1,)))
    return memory.as_strided(tensor.shape, tensor.stride())
