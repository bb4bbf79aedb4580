"""The CUDA recurrence on the CPU: its structs for ctypes, its choice, and calls of its kernels."""

import ctypes
import functools
from typing import Any

import reference
import torch
from cuda_host import host
from torch import Tensor

PATHS = {"step": 0, "block": 1, "cluster": 2, "grid": 3}
COMPUTES = {"f32": 0, "f64": 1, "bf16": 2, "f16": 3, "tf32": 4}
DTYPES = {
    "f32": torch.float32,
    "f64": torch.float64,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "tf32": torch.float32,
}
# capability, SMs, shared memory of a block, clusters of 2, 4, 8 and 16 blocks that fit at once
# (where there are clusters: what the sizes of a GPU's SM groups allow, to be asked of the driver).
DEVICES = {
    "A100": (80, 108, 163 * 1024, 0, 0, 0, 0),
    "H100": (90, 132, 227 * 1024, 66, 32, 16, 8),
    "RTX 4090": (89, 128, 99 * 1024, 0, 0, 0, 0),
    "T4": (75, 40, 64 * 1024, 0, 0, 0, 0),
    "small": (90, 12, 227 * 1024, 6, 3, 1, 1),  # few SMs: tests meet several tiles a group
    "tight": (90, 12, 40 * 1024, 6, 3, 1, 1),  # little shared memory
}


def _fields(text: str) -> list[tuple[str, Any]]:
    kinds = {"p": ctypes.c_void_p, "q": ctypes.c_int64, "i": ctypes.c_int, "b": ctypes.c_bool}
    kinds |= {"pp": ctypes.c_void_p * 2, "bb": ctypes.c_bool * 2, "qq": ctypes.c_int64 * 2}
    kinds |= {"d": ctypes.c_double}
    pairs = (word.split(":") for word in text.split())
    return [(name, kinds[kind]) for name, kind in pairs]


class Params(ctypes.Structure):
    """RecurrenceParams of csrc/cuda/launch.h."""

    _fields_ = _fields(
        "T:q B:q H:q D:i reverse:bb cell:i paired:b step_row:p lengths:p weight:pp weight_stride:q "
        "input:p input_stride_t:q input_stride_b:q index:p bias_ih:pp bias_hh:pp "
        "h0:p h_n:p output:p grad_output:p grad_h_n:p grad_pre:p grad_h0:p flags:p exchange:p"
    )


class Step(ctypes.Structure):
    """StepParams of csrc/cuda/launch.h."""

    _fields_ = _fields("step:q product:p state:p grad_step:p first_row:qq batch:qq")


class Geometry(ctypes.Structure):
    """Geometry of csrc/cuda/choice.h."""

    _fields_ = _fields(
        "path:i blocks:i groups:i rows:i slice:i pairs:i row_step:i pair_step:i unit_workers:i k_workers:i k_blocks:i parts:i "
        "part_stride:i vector_stride:i part_offset:i input_offset:i bias_offset:i length_offset:i "
        "weight_offset:i shared_bytes:i cycles:d"
    )


def _address(struct: ctypes.Structure) -> int:
    return ctypes.addressof(struct)


@functools.cache
def choice_library() -> host.Library:
    """csrc/cuda/choice.cpp alone."""
    return host.library(host.CUDA / "choice.cpp", host.ROOT / "tests" / "cuda_choice.cpp")


@functools.cache
def library() -> host.Library:
    """The recurrence's kernels, compiled for the CPU."""
    names = ["float", "double", "half", "bfloat16", "tf32", "step"]
    sources = [host.CUDA / f"rnn_kernel_{name}.cu" for name in names]
    lib = host.library(*sources, host.ROOT / "tests" / "cuda_rnn.cpp")
    lib.run("rnn_check_sizes", *map(ctypes.sizeof, (Params, Step, Geometry)))
    return lib


def choose(
    device: tuple[int, ...],
    T: int,
    B: int,
    H: int,
    D: int = 1,
    compute: str = "f32",
    backward: bool = False,
    path: str | None = None,
) -> Geometry:
    """The choice for a problem on a device; ValueError where it throws."""
    geometry, message = Geometry(), ctypes.create_string_buffer(256)
    problem = torch.tensor([T, B, H, D, COMPUTES[compute], int(backward)])
    word = ctypes.create_string_buffer(path.encode()) if path is not None else None
    choice_library().run(
        "rnn_choose",
        problem,
        torch.tensor(device),
        None if word is None else ctypes.addressof(word),
        _address(geometry),
        ctypes.addressof(message),
        256,
    )
    if message.value:
        raise ValueError(message.value.decode())
    return geometry


def capacity(path: str, compute: str, device: tuple[int, ...], backward: bool = False) -> int:
    """The largest H that a path holds on the chip."""
    result = torch.zeros(1, dtype=torch.int64)
    choice_library().run(
        "rnn_capacity", PATHS[path], COMPUTES[compute], int(backward), torch.tensor(device), result
    )
    return int(result)


class Case:
    """One layer's random tensors, on the CPU in float64 but representable in the case's dtype."""

    def __init__(
        self,
        compute: str,
        T: int,
        B: int,
        H: int,
        reverse: tuple[bool, ...] = (False,),
        cell: str = "tanh",
        source: str = "ready",
        bias: bool = True,
        state: bool = True,
        sequence: str = "full",
        seed: int = 0,
    ) -> None:
        self.compute, self.T, self.B, self.H = compute, T, B, H
        self.dtype, self.reverse, self.D = DTYPES[compute], reverse, len(reverse)
        self.cell, self.source, self.seed = cell, source, seed
        self.rng = torch.Generator().manual_seed(seed)
        width = self.D * H
        self.lengths: Tensor | None = None
        self.batch_sizes: Tensor | None = None
        rows: tuple[int, ...] = (T, B)
        if sequence != "full":
            lengths = torch.randint(
                0 if sequence == "lengths" else 1, T + 1, (B,), generator=self.rng
            )
            lengths[B // 2] = T
            if sequence == "lengths":
                self.lengths = lengths
            else:
                lengths = lengths.sort(descending=True).values
                self.batch_sizes = (lengths > torch.arange(T).unsqueeze(1)).sum(1)
                self.packed_lengths = lengths
                rows = (int(lengths.sum()),)
        self.rows = rows
        self.index: Tensor | None = None
        if source == "table":
            self.index = torch.randint(0, 11, rows, generator=self.rng)
            self.input = self.random(11, width)
        else:
            self.input = self.random(*rows, width)
        self.weight_hh = [self.random(H, H) * (H**-0.5) for _ in reverse]
        self.weight_hh = [w.to(self.dtype).double() for w in self.weight_hh]
        self.bias_ih = [self.random(H) for _ in reverse] if bias else []
        self.bias_hh = [self.random(H) for _ in reverse] if bias else []
        self.h0 = self.random(self.D, B, H) if state else None

    def random(self, *shape: int) -> Tensor:
        values = torch.empty(shape, dtype=torch.float64)
        return values.uniform_(-1, 1, generator=self.rng).to(self.dtype).double()

    def forward(self) -> tuple[Tensor, Tensor]:
        """The right output and h_n."""
        return reference.recurrence(
            self.input, self.index, [], self.weight_hh, self.bias_ih, self.bias_hh, self.h0,
            self.lengths, self.batch_sizes, self.cell, list(self.reverse),
        )  # fmt: skip

    def backward(
        self, output: Tensor, grad_output: Tensor | None, grad_h_n: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The right gradients of the pre-activations and of h0."""
        ready = torch.empty_like(output)
        grads = reference.recurrence_backward(
            grad_output, grad_h_n, output, ready, None, [], self.weight_hh, self.h0, self.lengths,
            self.batch_sizes, self.cell, list(self.reverse), [True] * 4,
        )  # fmt: skip
        return grads[0], grads[4]


class Device:
    """Runs a case's kernels on the host layer."""

    def __init__(self, case: Case, backward: bool, lib: host.Library) -> None:
        self.case, self.is_backward, self.lib = case, backward, lib
        c, p = case, Params()
        self.params = p
        p.T, p.B, p.H, p.D = c.T, c.B, c.H, c.D
        p.reverse = (ctypes.c_bool * 2)(*c.reverse)
        p.cell = ["tanh", "relu"].index(c.cell)
        p.paired = c.H % 2 == 0
        self.keep: list[Tensor] = []
        if c.batch_sizes is not None:
            p.step_row = self.put(
                torch.cat([torch.zeros(1, dtype=torch.int64), c.batch_sizes.cumsum(0)])
            )
            p.lengths = self.put(c.packed_lengths)
        elif c.lengths is not None:
            p.lengths = self.put(c.lengths)
        per = 64 // c.dtype.itemsize
        p.weight_stride = -(-c.H // per) * per
        for d, w in enumerate(c.weight_hh):
            padded = torch.zeros(c.H, p.weight_stride, dtype=torch.float64)
            padded[:, : c.H] = w.t() if backward else w
            p.weight[d] = self.put(padded.to(c.dtype))

    def put(self, values: Tensor | None, writable: bool = False) -> int | None:
        """The address of a copy in device memory."""
        if values is None:
            return None
        values = values.to(self.case.dtype) if values.is_floating_point() else values
        self.keep.append(self.lib.tensor(values, writable=writable))
        return self.keep[-1].data_ptr()

    def empty(self, *shape: int) -> Tensor:
        return self.lib.empty(*shape, dtype=self.case.dtype)

    def resident(self, geometry: Geometry, seed: int) -> None:
        flags = torch.zeros(geometry.groups * geometry.blocks, dtype=torch.int32)
        exchange = torch.zeros(
            2 * geometry.groups * geometry.rows * geometry.vector_stride, dtype=torch.uint8
        )
        if geometry.path == PATHS["grid"]:
            self.params.flags = self.put(flags, writable=True)
            self.params.exchange = self.put(exchange, writable=True)
        compute = COMPUTES[self.case.compute]
        self.lib.run(
            "rnn_run", _address(self.params), _address(geometry), compute, int(self.is_backward),
            seed=seed,
        )  # fmt: skip
