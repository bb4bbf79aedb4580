"""The CUDA recurrence in the interpreter: cases of it, and calls of its kernels."""

import concurrent.futures
import ctypes
import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import cpp_extension

from cuda_ptx import build
from cuda_ptx.choice import COMPUTES, DEVICES, DTYPES, EXCHANGES, PATHS, choose
from cuda_ptx.library import Library, library
from cuda_ptx.structs import STRUCTS, DeviceCall, Geometry, Step, address_of
from helpers.samples import Recurrence
from reference.elman import ACTIVATIONS

NONLINEARITIES = list(ACTIVATIONS)  # in the order of the enum
FORMS = [None, "rate", "voltage", "blend"]  # likewise
TABLE_ROWS = 11
KERNELS = sorted((build.CUDA / "recurrence").glob("*.cu"))


@functools.cache
def kernels() -> Library:
    """The recurrence's kernels."""
    lib = library(*KERNELS, build.HERE / "rnn_entries.cpp")
    lib.run("rnn_check_sizes", torch.tensor([ctypes.sizeof(struct) for struct in STRUCTS]))
    return lib


@functools.cache
def binding() -> Library:
    """The kernels with csrc/cuda/binding/recurrence.cpp, whose ops this registers; the device is
    "small"."""
    include = [f"-I{build.HERE / 'torch'}", "-Wno-unused-parameter", "-DRNNEXT_CUDA_TAGGED"]
    include += [f"-isystem{path}" for path in cpp_extension.include_paths()]
    # For the cache: another torch in the same place is another build.
    include += [f"-DTORCH_VERSION={torch.__version__.split('+')[0]}", "-std=c++20"]
    depends = [*build.headers(), *(build.HERE / "torch").rglob("*.h"), *build.CSRC.glob("ops/*.h")]
    depends += [build.CUDA / "binding" / name for name in ("recurrence.cpp", "call.cpp")]
    source = build.HERE / "rnn_binding.cpp"
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        host = pool.submit(build.compile_host, source, include, sorted(depends))
        others = [build.CUDA / "recurrence" / "choice.cpp", build.HERE / "runtime.cpp"]
        objects = [*build.compile_all([*KERNELS, *others]), host.result()]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    path = build.link("binding", objects, [*libraries, "-ltorch", "-ltorch_cpu", "-lc10"])
    lib = Library(path, objects, checked=False)
    lib.set_device(*DEVICES["small"][:3])
    return lib


@dataclass
class Case:
    """One layer's random tensors: float64 on the CPU, all representable in the case's dtype.

    ``sequence``: "full", "lengths" (0..T) or "packed". ``leak``: a form of the leak. ``reset``:
    what resets start from, "zeros" or "state".
    """

    compute: str
    T: int
    B: int
    H: int
    reverse: tuple[bool, ...] = (False,)
    nonlinearity: str = "tanh"
    source: str = "ready"
    sequence: str = "full"
    bias: bool = True
    hx: bool = True
    leak: str | None = None
    reset: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self.dtype, self.D = DTYPES[self.compute], len(self.reverse)
        self.rng = torch.Generator().manual_seed(self.seed)
        lengths = torch.randint(
            int(self.sequence == "packed"), self.T + 1, (self.B,), generator=self.rng
        )
        lengths[self.B // 2] = self.T
        self.lengths = lengths if self.sequence == "lengths" else None
        self.batch_sizes: Tensor | None = None
        self.rows: tuple[int, ...] = (self.T, self.B)
        if self.sequence == "packed":
            self.batch_sizes = (lengths > torch.arange(self.T).unsqueeze(1)).sum(1)
            self.rows = (int(lengths.sum()),)
        self.width = self.D * self.H
        self.index = None
        if self.source == "table":
            self.index = torch.randint(0, TABLE_ROWS, self.rows, generator=self.rng)
        shape = (TABLE_ROWS,) if self.source == "table" else self.rows
        self.input = self.random(*shape, self.width)
        scale = self.H**-0.5
        self.weight_hh = [self.random(self.H, self.H, scale=scale) for _ in self.reverse]
        self.bias_ih = [self.random(self.H) for _ in self.reverse] if self.bias else []
        self.bias_hh = [self.random(self.H) for _ in self.reverse] if self.bias else []
        self.state = self.random(self.D, self.B, self.H) if self.hx else None
        self.alpha = [self.random(self.H).abs() / 2 + 0.5 for _ in self.reverse if self.leak]
        self.alpha = [a.to(self.dtype).double() for a in self.alpha]
        self.marks = self.reset_state = None
        if self.reset:
            self.marks = torch.rand(self.T, self.B, generator=self.rng) < 1 / 3
        if self.reset == "state":
            self.reset_state = self.random(self.D, self.B, self.H)

    def random(self, *shape: int, scale: float = 1) -> Tensor:
        values = torch.empty(shape, dtype=torch.float64)
        return values.uniform_(-scale, scale, generator=self.rng).to(self.dtype).double()

    def arguments(self) -> Recurrence:
        """The layer as arguments of the op."""
        return Recurrence(
            input=self.input,
            hx=self.state,
            weight_hh=self.weight_hh,
            bias_ih=self.bias_ih,
            bias_hh=self.bias_hh,
            index=self.index,
            lengths=self.lengths,
            batch_sizes=self.batch_sizes,
            reset=self.marks,
            reset_state=self.reset_state,
            alpha=self.alpha,
            form=self.leak or "rate",
            nonlinearity=self.nonlinearity,
            reverse=list(self.reverse),
        )

    def expected(self) -> tuple[Tensor, Tensor]:
        """Output and h_n."""
        return self.arguments().expected()

    def expected_gradients(
        self, output: Tensor, grad_output: Tensor | None, grad_h_n: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the pre-activations and of h0, from the saved output."""
        grad_pre, grad_hx = self._gradients(output, grad_output, grad_h_n)[:2]
        return grad_pre, grad_hx

    def expected_by_autograd(
        self, grad_output: Tensor | None, grad_h_n: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Output and h_n; gradients of the pre-activations and of hx. Of any call."""
        rows = self.input if self.index is None else self.input[self.index]
        state = torch.zeros(self.D, self.B, self.H) if self.state is None else self.state
        leaves = [rows.clone().requires_grad_(), state.double().clone().requires_grad_()]
        ready = replace(self.arguments(), input=leaves[0], hx=leaves[1], index=None)
        results = list(ready.expected(stored=self.dtype))
        grads = [grad_output, grad_h_n]
        used = [(r, g) for r, g in zip(results, grads, strict=True) if g is not None]
        of_leaves = torch.autograd.grad([r for r, _ in used], leaves, [g for _, g in used])
        return [r.detach() for r in results], list(of_leaves)

    def expected_weight_gradients(self, output: Tensor, grad_output: Tensor) -> list[Tensor]:
        """Gradients of W_hh, one a direction."""
        grad_weight_hh: list[Tensor] = self._gradients(output, grad_output, None)[3]
        return grad_weight_hh

    def _gradients(
        self, output: Tensor, grad_output: Tensor | None, grad_h_n: Tensor | None
    ) -> tuple[Any, ...]:
        ready = replace(self.arguments(), input=torch.empty_like(output), index=None)
        return ready.backward(output, grad_output, grad_h_n).expected()


class Run:
    """Runs the kernels of a case: the binding's part, with torch on the CPU.

    ``path``: the exchange may follow it, as in "grid tagged". ``lib``: the kernels and their
    memory, by default the interpreter's.
    """

    def __init__(
        self,
        case: Case,
        path: str,
        device: str,
        seed: int = 0,
        paired: bool = True,
        lib: Library | None = None,
    ) -> None:
        self.path, _, exchange = path.partition(" ")
        self.exchanged = exchange or "fenced"
        self.case, self.seed = case, seed
        self.saved: Tensor | None = None  # by forward(), of a leak
        self.device = DEVICES[device]
        self.lib = lib or kernels()
        self.lib.set_device(*self.device[:3])
        self.call = p = DeviceCall()
        p.T, p.B, p.H, p.D = case.T, case.B, case.H, case.D
        p.reverse = (ctypes.c_bool * 2)(*case.reverse)
        p.nonlinearity = NONLINEARITIES.index(case.nonlinearity)
        p.paired = paired and case.H % 2 == 0
        p.source_step = case.H
        if self.path != "step" and case.dtype.itemsize == 2:
            p.source_step += case.H % 2
        if case.batch_sizes is not None:
            ends = case.batch_sizes.cumsum(0)
            p.step_row = self.put(torch.cat([torch.zeros(1, dtype=torch.int64), ends]))
            self.copied_ahead(p.step_row, 2, case.T - 2)
            p.lengths = self.put((case.batch_sizes.unsqueeze(1) > torch.arange(case.B)).sum(0))
        elif case.lengths is not None:
            p.lengths = self.put(case.lengths)
        p.form = FORMS.index(case.leak)
        p.hx, p.reset_state = self.put(case.state), self.put(case.reset_state)
        if case.leak:
            p.alpha[0] = self.put(torch.cat(case.alpha))
        if case.marks is not None:
            p.reset, p.marks = self.put(case.marks), self.put(case.marks.int())

    def put(self, values: Tensor | None, writable: bool = False) -> int | None:
        """The address of a copy in device memory, in the case's dtype."""
        if values is None:
            return None
        if values.is_floating_point():
            values = values.to(self.case.dtype)
        return self.lib.tensor(values.contiguous(), writable=writable).data_ptr()

    def put_sources(self, rows: Tensor | None) -> int | None:
        """The same of rows that a step reads; by asynchronous copies alone where they stay long."""
        if rows is None:
            return None
        padding = (0, self.call.source_step - self.case.H)
        rows = torch.nn.functional.pad(rows.unflatten(-1, (self.case.D, -1)), padding)
        address = self.put(rows)
        if self.path != "step":
            self.lib.asynchronous_only(address, rows.numel() * self.case.dtype.itemsize)
        return address

    def copied_ahead(self, address: int | None, begin: int, end: int) -> None:
        """Says that resident kernels wait for none of these int64: steps past the first are copied
        before they are needed."""
        if self.path != "step" and address and begin < end:
            self.lib.asynchronous_only(address + 8 * begin, 8 * (end - begin))

    def empty(self, *shape: int) -> Tensor:
        return self.lib.empty(*shape, dtype=self.case.dtype)

    def rows(self) -> Tensor:
        """Rows that a kernel writes where a sequence has the step: zeros elsewhere."""
        zeros = torch.zeros(*self.case.rows, self.case.width, dtype=self.case.dtype)
        return self.lib.tensor(zeros, writable=True)

    def enter(self) -> Tensor | None:
        """What enters W_hh first, where there is a leak or a reset."""
        p, case = self.call, self.case
        if not case.leak and case.marks is None:
            return None
        first, anew = self.empty(case.D, case.B, case.H), None
        if case.marks is not None:
            anew = self.empty(case.D, case.B, case.H)
            p.reset_output = anew.data_ptr()
        self.lib.run("rnn_enter", address_of(p), first, anew, COMPUTES[case.compute])
        p.hx = first.data_ptr()
        return first

    def resident(self, backward: bool) -> None:
        case, p = self.case, self.call
        per = 64 // case.dtype.itemsize
        p.matrix_stride = -(-case.H // per) * per
        for d, weight in enumerate(case.weight_hh):
            matrix = weight.t() if backward else weight
            p.matrix[d] = self.put(torch.nn.functional.pad(matrix, (0, p.matrix_stride - case.H)))
        # The same geometry for either exchange: they must give the same bits in it.
        g = choose(self.device, case.T, case.B, case.H, case.D, case.compute, backward, self.path)
        self.exchange(g)
        self.launch(g, backward)

    def exchange(self, g: Geometry) -> Tensor | None:
        """Says how a step's vector goes around, and makes room for what a grid exchanges.

        Returns what must be zeros before each launch.
        """
        g.exchange = EXCHANGES.index(self.exchanged)
        if g.path != PATHS["grid"]:
            return None
        tagged = self.exchanged == "tagged"
        row = 16 * g.row_words if tagged else g.vector_stride
        flags = torch.zeros(g.groups * g.blocks, dtype=torch.int32)
        words = torch.zeros(2 * g.groups * g.rows * row, dtype=torch.uint8)
        flags, words = (self.lib.tensor(zeros, writable=True) for zeros in (flags, words))
        self.call.flags, self.call.exchange = flags.data_ptr(), words.data_ptr()
        return words if tagged else flags

    def launch(self, g: Geometry, backward: bool) -> None:
        """Starts a resident kernel once more; what it reads and writes is there."""
        compute = COMPUTES[self.case.compute]
        self.lib.run("rnn_run", address_of(self.call), address_of(g), compute, int(backward))

    def steps(self, backward: bool, v: Tensor) -> None:
        """The step path; `v` lies in device memory."""
        case, at = self.case, Step()
        weights = torch.stack(case.weight_hh)
        matrix = weights if backward else weights.mT
        at.v = v.data_ptr()
        for number in range(case.T + int(backward and self.call.grad_out.hx is not None)):
            if number > 0 or not backward:
                at.product = self.put(v.double() @ matrix)
            at.number = number
            args = (address_of(self.call), address_of(at), COMPUTES[case.compute], int(backward))
            self.lib.run("rnn_run_step", *args)

    def forward(self, batch_first: bool = False) -> tuple[Tensor, Tensor]:
        """Output and h_n, in device memory; the input may lie there as [B,T,width]."""
        case, p = self.case, self.call
        p.input.data = self.put_sources(case.input.transpose(0, 1) if batch_first else case.input)
        p.input.index = self.put(case.index)
        # Rows of all steps but the first of either direction.
        first, last = case.B, (case.T - 1) * case.B
        if case.batch_sizes is not None:
            first, last = int(case.batch_sizes[0]), int(case.batch_sizes[:-1].sum())
        self.copied_ahead(p.input.index, first, last)
        width = case.D * p.source_step
        p.input.stride_b, p.input.stride_t = width, case.B * width
        if batch_first:
            p.input.stride_b, p.input.stride_t = case.T * width, width
        for d in range(case.D if case.bias else 0):
            p.bias_ih[d], p.bias_hh[d] = self.put(case.bias_ih[d]), self.put(case.bias_hh[d])
        output = self.empty(*case.rows, case.width)
        p.output = output.data_ptr()
        if case.leak:
            self.saved = self.rows()
            p.saved = self.saved.data_ptr()
        step = self.path == "step"
        if step and not case.leak and case.marks is None:
            start = torch.zeros(case.D, case.B, case.H) if case.state is None else case.state
            h_n = self.lib.tensor(start.to(case.dtype), writable=True)
        else:
            h_n = self.empty(case.D, case.B, case.H)
        p.h_n = h_n.data_ptr()
        first = self.enter()
        if step:
            self.steps(False, h_n if first is None else first)
        else:
            self.resident(False)
        return output, h_n

    def backward(
        self,
        output: Tensor,
        grad_output: Tensor | None,
        grad_h_n: Tensor | None,
        saved: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the pre-activations and of h0, in device memory."""
        case, p = self.case, self.call
        p.output = self.put_sources(output)
        p.grad.grad_output = self.put_sources(grad_output)
        p.grad.grad_h_n = self.put(grad_h_n)
        grad_pre = self.empty(*case.rows, case.width)
        grad_hx = self.empty(case.D, case.B, case.H)
        p.grad_out.pre, p.grad_out.hx = grad_pre.data_ptr(), grad_hx.data_ptr()
        p.saved = self.put_sources(saved)
        self.enter()
        if case.leak:
            dtype = torch.float64 if case.compute == "f64" else torch.float32
            carry = torch.zeros(case.D, case.B, case.H, dtype=dtype)
            p.carry = self.lib.tensor(carry, writable=True).data_ptr()
            p.mixed = self.rows().data_ptr()
        if self.path == "step":
            self.steps(True, self.empty(case.D, case.B, case.H))
        else:
            self.resident(True)
        return grad_pre, grad_hx
