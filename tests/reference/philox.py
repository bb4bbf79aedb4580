"""The random numbers of the kernels, one by one: Philox, and Box and Muller's transform."""

import ctypes
import math

import torch
from torch import Tensor

WORD = 0xFFFFFFFF


def philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox 4x32-7 as Salmon et al. (2011) define it."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(7):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = right >> 32 ^ b ^ k, right & WORD, left >> 32 ^ d ^ m, left & WORD
        k, m = k + 0x9E3779B9 & WORD, m + 0xBB67AE85 & WORD
    return a, b, c, d


def words(key: int, t: int, b: int, d: int, H: int) -> list[int]:
    """The words that a step of a sequence draws in one direction: at least H."""
    drawn = [0] * ((H + 63) // 64 * 64)
    for block in range(len(drawn) // 4):
        place = block // 16 * 64 + block % 16
        drawn[place : place + 64 : 16] = philox((t, block, d, b), (key & WORD, key >> 32 & WORD))
    return drawn


def normals(key: int, T: int, B: int, d: int, H: int) -> Tensor:
    """``[T, B, H]`` in float64: the numbers of one direction."""
    rows = [[_row(words(key, t, b, d, H))[:H] for b in range(B)] for t in range(T)]
    return torch.tensor(rows, dtype=torch.float64).reshape(T, B, H)


def dropout_mask(key: int, T: int, B: int, H: int, p: float) -> Tensor:
    """``[T, B, H]`` in float64: 0 where a word is less than p of all that there are."""
    rows = [[words(key, t, b, 0, H)[:H] for b in range(B)] for t in range(T)]
    return (torch.tensor(rows) >= int(p * 2**32)).double() / (1 - p)


def _row(drawn: list[int]) -> list[float]:
    numbers = [0.0] * len(drawn)
    for place in range(len(drawn)):
        if place % 32 < 16:
            numbers[place : place + 17 : 16] = _pair(drawn[place], drawn[place + 16])
    return numbers


def _pair(radius: int, angle: int) -> tuple[float, float]:
    """Two normal numbers: from a number in (0, 1], in float32, and an angle of 24 bits."""
    phi = math.pi * (angle % 2**23 / 2**23 - 0.5)
    r = math.sqrt(-2 * math.log(ctypes.c_float(radius % 2**31 | 1).value / 2**31))
    return r * math.cos(phi) * (-1 if angle >> 31 else 1), r * math.sin(phi)
