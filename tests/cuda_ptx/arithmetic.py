"""Numbers of PTX in numpy: kinds of elements, and operations that numpy does not have."""

from __future__ import annotations

from typing import Any

import numpy as np

# The dtype of each kind of element; "p": a predicate.
NUMBERS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")
KINDS = {kind: np.dtype(kind) for kind in NUMBERS} | {"p": np.dtype("?")}
SIZE = {"b16": 16} | {kind: dtype.itemsize for kind, dtype in KINDS.items()}


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


def _wide(a: Any, b: Any) -> Any:
    """The whole product, of twice as many bits."""
    dtype = np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")
    return a.astype(dtype) * b.astype(dtype)


def _high(a: Any, b: Any) -> Any:
    whole = _wide(a, b)
    return (whole >> whole.dtype.type(8 * a.dtype.itemsize)).astype(a.dtype)


def _quotient(a: Any, b: Any) -> Any:
    """Of integers rounded to zero."""
    if a.dtype.kind == "f":
        return a / b
    quotient = a // b
    return quotient + ((quotient < 0) & (quotient * b != a)).astype(a.dtype)


def _shifted(a: Any, by: Any, left: bool) -> Any:
    """A shift past the last bit leaves none, or the sign's."""
    bits, number = 8 * a.dtype.itemsize, a.dtype.type
    past = by >= bits
    if past.any():
        by = np.minimum(by, np.uint32(bits - 1))
    result = a << by.astype(number) if left else a >> by.astype(number)
    return np.where(past, number(0), result) if a.dtype.kind == "u" and past.any() else result


def _inserted(a: Any, b: Any, at: Any, size: Any) -> Any:
    """b, of which `size` bits from `at` on are a's."""
    number = a.dtype.type
    mask = number(((1 << int(size)) - 1) << int(at))
    return (b & ~mask) | ((a << number(at)) & mask)


def _to_bf16(x: Any) -> Any:
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(np.uint16)


def of_bf16(x: Any) -> Any:
    return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _to_tf32(x: Any) -> Any:
    """To nearest, ties away from zero: 13 bits of the mantissa go."""
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(x), rounded, bits)


def _saturated(x: Any) -> Any:
    return np.where(np.isnan(x), np.float32(0), np.clip(x, np.float32(0), np.float32(1)))


def _reversed_bits(x: Any) -> Any:
    for shift, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F)):
        s, m = np.uint32(shift), np.uint32(mask)
        x = ((x >> s) & m) | ((x & m) << s)
    return np.asarray(x).byteswap()


def _leading_zeros(x: Any, of_none: int = 0xFFFFFFFF) -> Any:
    return np.where(x == 0, of_none, 31 - np.frexp(x.astype(np.float64))[1] + 1).astype(np.uint32)


NAMESPACE = KINDS | {
    "np": np, "fma_f4": _fma_f4, "fma_f8": _fma_f8, "fma_down_f4": _fma_down_f4,
    "toward_zero": _toward_zero, "wide": _wide, "high": _high, "quotient": _quotient,
    "shifted": _shifted, "inserted": _inserted, "to_bf16": _to_bf16, "of_bf16": of_bf16,
    "to_tf32": _to_tf32, "saturated": _saturated, "reversed_bits": _reversed_bits,
    "leading_zeros": _leading_zeros,
}  # fmt: skip
