"""Numbers of PTX in numpy: kinds of elements, and operations that numpy does not have.

The lines that writer.py makes run with these names.
"""

import numpy as np

# The dtype of each kind of element; "p": a predicate.
NUMBERS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")
KINDS = {kind: np.dtype(kind) for kind in NUMBERS} | {"p": np.dtype("?")}
SIZE = {kind: dtype.itemsize for kind, dtype in KINDS.items()}


def fma_f4(a, b, c):
    return (a.astype(np.float64) * b + c).astype(np.float32)


def fma_down_f4(a, b, c):
    exact = a.astype(np.float64) * b + c
    near = exact.astype(np.float32)
    return np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near)


def fma_f8(a, b, c):
    return (a.astype(np.longdouble) * b + c).astype(np.float64)


def toward_zero(a, b):
    exact = a.astype(np.float64) + b
    near = exact.astype(np.float32)
    return np.where(np.abs(near) > np.abs(exact), np.nextafter(near, np.float32(0)), near)


def wide(a, b):
    """The whole product, of twice as many bits."""
    dtype = np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")
    return a.astype(dtype) * b.astype(dtype)


def high(a, b):
    whole = wide(a, b)
    return (whole >> whole.dtype.type(8 * a.dtype.itemsize)).astype(a.dtype)


def quotient(a, b):
    """Of integers rounded to zero."""
    if a.dtype.kind == "f":
        return a / b
    quotient = a // b
    return quotient + ((quotient < 0) & (quotient * b != a)).astype(a.dtype)


def shifted(a, by, left: bool):
    """A shift past the last bit leaves none, or the sign's."""
    bits, number = 8 * a.dtype.itemsize, a.dtype.type
    past = by >= bits
    if past.any():
        by = np.minimum(by, np.uint32(bits - 1))
    result = a << by.astype(number) if left else a >> by.astype(number)
    return np.where(past, number(0), result) if a.dtype.kind == "u" and past.any() else result


def inserted(a, b, at, size):
    """b, of which `size` bits from `at` on are a's."""
    number = a.dtype.type
    mask = number(((1 << int(size)) - 1) << int(at))
    return (b & ~mask) | ((a << number(at)) & mask)


def to_bf16(x):
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(np.uint16)


def of_bf16(x):
    return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_tf32(x):
    """To nearest, ties away from zero: 13 bits of the mantissa go."""
    bits = x.view(np.uint32)
    return np.where(np.isfinite(x), (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000), bits)


def saturated(x):
    return np.where(np.isnan(x), np.float32(0), np.clip(x, np.float32(0), np.float32(1)))
