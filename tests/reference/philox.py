"""The random numbers of the kernels, one by one: Philox, and Box and Muller's transform."""

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


def words(key: int, t: int, b: int, d: int, H: int) -> list[int]:
    """The words that a step of a sequence draws in one direction: at least H."""
    drawn = [0] * ((H + 63) // 64 * 64)
    for block in range(len(drawn) // 4):
        place = block // 16 * 64 + block % 16
        drawn[place : place + 64 : 16] = philox((block, t, b, d), (key & WORD, key >> 32 & WORD))
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
    """Two normal numbers; the two highest bits of the angle choose the quarter of the circle."""
    r = math.sqrt(-2 * math.log(((radius >> 1) + 0.5) / 2**31))
    rest = (angle << 2) & WORD
    phi = (rest - (rest >> 31 << 32)) / 2**31 * math.pi / 4
    x, y = math.cos(phi) * (-1 if angle >> 30 & 1 else 1), math.sin(phi)
    return (r * y, r * x) if angle >> 31 else (r * x, r * y)
