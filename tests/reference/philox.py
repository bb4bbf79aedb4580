"""The noise of the recurrence, number by number: Philox and Box and Muller's transform."""

import math

import torch
from torch import Tensor

WORD = 0xFFFFFFFF


def philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox 4x32-10 as Salmon et al. (2011) define it."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = right >> 32 ^ b ^ k, right & WORD, left >> 32 ^ d ^ m, left & WORD
        k, m = k + 0x9E3779B9 & WORD, m + 0xBB67AE85 & WORD
    return a, b, c, d


def normals(key: int, T: int, B: int, d: int, H: int) -> Tensor:
    """``[T, B, H]`` in float64: the numbers of one direction."""
    rows = [[_row(key, t, b, d, H) for b in range(B)] for t in range(T)]
    return torch.tensor(rows, dtype=torch.float64).reshape(T, B, H)


def _row(key: int, t: int, b: int, d: int, H: int) -> list[float]:
    numbers = [0.0] * (H + 63)
    halves = key & WORD, key >> 32 & WORD
    for block in range((H + 63) // 64 * 16):
        words = philox((block, t, b, d), halves)
        place = block // 16 * 64 + block % 16
        for pair in (0, 2):
            for i, number in enumerate(_pair(*words[pair : pair + 2])):
                if place + 16 * (pair + i) < H:
                    numbers[place + 16 * (pair + i)] = number
    return numbers[:H]


def _pair(radius: int, angle: int) -> tuple[float, float]:
    """Two normal numbers; the two highest bits of the angle choose a quarter of the circle."""
    r = math.sqrt(-2 * math.log(((radius >> 1) + 0.5) / 2**31))
    rest = (angle << 2) & WORD
    phi = (rest - (rest >> 31 << 32)) / 2**31 * math.pi / 4
    x, y = math.cos(phi) * (-1 if angle >> 30 & 1 else 1), math.sin(phi)
    return (r * y, r * x) if angle >> 31 else (r * x, r * y)
