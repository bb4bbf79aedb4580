"""The structs of the CUDA recurrence for ctypes; rnn_entries.cpp compares their sizes."""

import ctypes
from typing import Any


def _fields(text: str) -> list[tuple[str, Any]]:
    kinds = {"p": ctypes.c_void_p, "q": ctypes.c_int64, "i": ctypes.c_int, "b": ctypes.c_bool}
    kinds |= {"pp": ctypes.c_void_p * 2, "bb": ctypes.c_bool * 2, "qq": ctypes.c_int64 * 2}
    kinds |= {"d": ctypes.c_double, "u": ctypes.c_uint}
    pairs = (word.split(":") for word in text.split())
    return [(name, kinds[kind]) for name, kind in pairs]


class Timeline(ctypes.Structure):
    """Timeline of csrc/recurrence/timeline.h."""

    _fields_ = _fields("T:q B:q reverse:bb step_row:p lengths:p reset:p")


class RowSource(ctypes.Structure):
    """RowSource of csrc/recurrence/row_source.h."""

    _fields_ = _fields("data:p stride_t:q stride_b:q index:p")


class Recurrence(Timeline):
    """Recurrence of csrc/recurrence/call.h."""

    _fields_ = [
        *_fields("I:q H:q D:i nonlinearity:i form:i"),
        ("input", RowSource),
        *_fields("weight_ih:pp weight_hh:pp packed:p bias_ih:pp bias_hh:pp alpha:pp hx:p"),
        *_fields("reset_state:p output:p h_n:p saved:p"),
    ]


class RecurrenceGrad(ctypes.Structure):
    """RecurrenceGrad of csrc/recurrence/call.h."""

    _fields_ = _fields("grad_output:p grad_h_n:p")


class RecurrenceGradOut(ctypes.Structure):
    """RecurrenceGradOut of csrc/recurrence/call.h."""

    _fields_ = _fields(
        "pre:p input:p weight_ih:pp weight_hh:pp bias:pp alpha:pp hx:p reset_state:p"
    )


class DeviceCall(Recurrence):
    """DeviceCall of csrc/cuda/recurrence/launch.h."""

    _fields_ = [
        ("grad", RecurrenceGrad),
        ("grad_out", RecurrenceGradOut),
        *_fields("paired:b source_step:q marks:p reset_output:p carry:p mixed:p"),
        *_fields("matrix:pp matrix_stride:q flags:p exchange:p"),
    ]


class Step(ctypes.Structure):
    """Step of csrc/cuda/recurrence/launch.h."""

    _fields_ = _fields("number:q product:p v:p")


class Geometry(ctypes.Structure):
    """Geometry of csrc/cuda/recurrence/choice.h."""

    _fields_ = _fields(
        "path:i exchange:i blocks:i groups:i rows:i tile_step:i slice:i pairs:i pair_divisor:u "
        "row_step:i pair_step:i unit_workers:i k_workers:i k_blocks:i parts:i part_stride:i "
        "vector_stride:i active_blocks:i row_bytes:i row_words:i row_divisor:u wide_words:b "
        "part_offset:i input_offset:i bias_offset:i length_offset:i place_offset:i "
        "barrier_offset:i weight_offset:i shared_bytes:i cycles:d"
    )


class StepCost(ctypes.Structure):
    """StepCost of csrc/cuda/recurrence/choice.h."""

    _fields_ = _fields("fixed:d product:d cell:d exchange:d waves:d")


STRUCTS = [
    Timeline, RowSource, Recurrence, RecurrenceGrad, RecurrenceGradOut, DeviceCall, Step, Geometry,
    StepCost,
]  # fmt: skip


def address_of(struct: ctypes.Structure) -> int:
    """For entry points that take a pointer to the struct."""
    return ctypes.addressof(struct)
