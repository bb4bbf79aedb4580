"""Numbers of PTX in numpy: kinds of elements, and operations that numpy does not have."""

from __future__ import annotations

from typing import Any

import numpy as np

KINDS = {
    "u1": np.uint8, "i1": np.int8, "u2": np.uint16, "i2": np.int16, "u4": np.uint32, "i4": np.int32,
    "u8": np.uint64, "i8": np.int64, "f2": np.float16, "f4": np.float32, "f8": np.float64,
    "p": np.bool_,
}  # fmt: skip
SIZE = {"p": 1, "b16": 16} | {k: int(k[1]) for k in KINDS if k != "p"}


def _fma_f4(a: Any, b: Any, c: Any) -> Any:
    return (a.astype(np.float64) * b + c).astype(np.float32)


def _fma_down_f4(a: Any, b: Any, c: Any) -> Any:
    exact = a.astype(np.float64) * b + c
    near = exact.astype(np.float32)
    return np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near)


def _fma_f8(a: Any, b: Any, c: Any) -> Any:
    return (a.astype(np.longdouble) * b + c).astype(np.float64)


def _toward_zero(a: Any, b: Any) -> Any:
    exact = a.astype(np.float64) + b
    near = exact.astype(np.float32)
    return np.where(np.abs(near) > np.abs(exact), np.nextafter(near, np.float32(0)), near)


def _quotient(a: Any, b: Any) -> Any:
    """Rounded to zero."""
    if a.dtype.kind == "u":
        return a // b
    quotient = a // b
    return quotient + ((quotient < 0) & (quotient * b != a)).astype(a.dtype)


def _to_bf16(x: Any) -> Any:
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(np.uint16)


def _of_bf16(x: Any) -> Any:
    return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _to_tf32(x: Any) -> Any:
    """To nearest, ties away from zero: 13 bits of the mantissa go."""
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(x), rounded, bits)


def _saturated(x: Any) -> Any:
    return np.where(np.isnan(x), np.float32(0), np.clip(x, np.float32(0), np.float32(1)))


def _unordered(a: Any, b: Any, otherwise: Any) -> Any:
    return np.isnan(a) | np.isnan(b) | otherwise


def _reversed_bits(x: Any) -> Any:
    for shift, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F)):
        s, m = np.uint32(shift), np.uint32(mask)
        x = ((x >> s) & m) | ((x & m) << s)
    return np.asarray(x).byteswap()


def _leading_zeros(x: Any, of_none: int = 0xFFFFFFFF) -> Any:
    return np.where(x == 0, of_none, 31 - np.frexp(x.astype(np.float64))[1] + 1).astype(np.uint32)


NAMESPACE = dict(KINDS) | {
    "np": np, "fma_f4": _fma_f4, "fma_f8": _fma_f8, "fma_down_f4": _fma_down_f4,
    "toward_zero": _toward_zero, "quotient": _quotient, "to_bf16": _to_bf16, "of_bf16": _of_bf16,
    "to_tf32": _to_tf32, "saturated": _saturated, "unordered": _unordered,
    "reversed_bits": _reversed_bits, "leading_zeros": _leading_zeros,
}  # fmt: skip
