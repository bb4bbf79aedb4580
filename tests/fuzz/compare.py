"""The common part of the checks of calls: tensors made from plain values, and the comparison."""

import ctypes
import mmap

import torch

from fuzz.rounding import UNITS, Expected
from helpers.common import poison, same

PAIRS = ("avx512_bf16", "amx", "amx_stand_in")  # the ISAs that float32 of lower precision is for

_mprotect = ctypes.CDLL(None, use_errno=True).mprotect
_mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def dtype_of(case):
    return getattr(torch, case["dtype"])


def stored_of(case):
    """The narrower type that the reference rounds states to."""
    return dtype_of(case) if case["dtype"] in ("float16", "bfloat16") else None


def unit_of(case):
    kind, precision = case["dtype"], case["precision"]
    if case.get("noise") and kind == "float64":
        return UNITS["float32"]  # as its numbers are
    lower = {"highest": (), "high": PAIRS[1:], "medium": PAIRS}[precision]
    return UNITS[precision if kind == "float32" and case["isa"] in lower else kind]


def uniform(case, *shape, bound=1.0):
    return ((torch.rand(shape, dtype=torch.float64) * 2 - 1) * bound).to(dtype_of(case))


def guarded(tensor):
    """A copy with the same strides, whose memory ends at a page that nobody may touch."""
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


def arranged(tensor, layout):
    """A tensor of this shape in another layout; "expanded" and "overlapping" repeat values."""
    if tensor.dim() == 0 or not tensor.numel():
        return tensor
    if layout == "expanded":
        return tensor[..., :1, :].expand_as(tensor) if tensor.dim() > 1 else tensor
    if layout == "overlapping":
        return tensor.flatten().as_strided(tensor.shape, (1,) * tensor.dim())
    if layout == "strided":
        return tensor.repeat_interleave(2, -1)[..., ::2]
    if layout == "transposed":
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "misaligned":
        return torch.cat([tensor.flatten()[:1], tensor.flatten()])[1:].view(tensor.shape)
    return guarded(tensor) if layout == "guarded" else tensor


def results(function, leaves, case, cotangents):
    """The values, how many they are, and the gradients of the leaves that want one.

    Cotangents are drawn for the first call, and are those of the next.
    """
    mode = case["mode"]
    with torch.inference_mode(mode == "inference"), torch.set_grad_enabled(mode == "grad"):
        values = function(*leaves)
    cotangents.extend(uniform(case, *v.shape) for v in values[len(cotangents) :])
    wanted = [i for i, v in enumerate(values) if v.requires_grad and case["wanted"] in ("both", i)]
    learned = [leaf for leaf in leaves if leaf.requires_grad]
    assert (learned and mode == "grad") or not any(v.requires_grad for v in values), "a graph"
    gradients = [None] * len(learned)
    if wanted and learned:
        gradients = torch.autograd.grad(
            [values[i] for i in wanted],
            learned,
            [cotangents[i].to(values[i].dtype) for i in wanted],
            allow_unused=True,
        )
        assert all(g is None or not g.is_sparse or g.is_coalesced() for g in gradients)
        gradients = [g.to_dense() if g is not None and g.is_sparse else g for g in gradients]
    return [*(v.detach() for v in values), *gradients]


def compare(case, leaves, ours, theirs):
    """Values and gradients against the reference's; and the bits of one thread and no graph."""
    leaves = [t.detach().requires_grad_(not case["frozen"] >> i & 1) for i, t in enumerate(leaves)]
    cotangents = []

    def exact():
        # (In inference mode `Rounding` would see products of tensors as they are written.)
        mode = {"mode": "no_grad" if case["mode"] == "inference" else case["mode"]}
        doubles = [t.detach().double().requires_grad_(t.requires_grad) for t in leaves]
        return results(theirs, doubles, case | mode, cotangents)

    expected = Expected(exact, unit_of(case))
    poison(expected.exact, dtype_of(case))
    torch.set_num_threads(case["threads"])
    found = results(ours, leaves, case, cotangents)
    torch.set_num_threads(1)
    assert all(v is None or v.dtype == leaves[0].dtype for v in found)
    expected.check(found, len(cotangents))
    with torch.no_grad():
        assert same(ours(*leaves), found[: len(cotangents)]), "one thread gives other bits"
