"""The CUDA ops as tests call them: in the interpreter, with real kernels, launchers and bindings,
past the dispatcher; or, where $RNNEXT_CHECK_DEVICE names one, on a device.

Arguments and results lie on the CPU.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterable
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from torch import Tensor
from torch.utils import cpp_extension
from torch.utils._pytree import tree_map

from cuda_ptx import build
from cuda_ptx.library import Library
from cuda_ptx.memory import ASYNCHRONOUS
from helpers import samples
from helpers.common import TOLERANCE, assert_close
from helpers.device import DEVICE, device_paths, tf32_by
from helpers.samples import HALVES

INTERPRETED = "RNNEXT_CHECK_DEVICE" not in os.environ
KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1)
TF32_TOLERANCE = 2e-3  # 11 bits of the factors, as a part of the largest value


@functools.cache
def kernels() -> Library:
    """All kernels with their bindings, and those of wrappers.cu. On a device, a mock ignores all
    calls: neither schedules nor other devices can be chosen."""
    if not INTERPRETED:
        return MagicMock(spec=Library, arena=MagicMock())
    ours = [build.HERE / name for name in ("bindings.cpp", "runtime.cpp", "wrappers.cu")]
    choice = build.CUDA / "recurrence" / "choice.cpp"
    objects = build.compile_all([*ours, choice, *sorted(build.CUDA.rglob("*.cu"))])
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    path = build.link("kernels", objects, [*libraries, "-ltorch", "-ltorch_cpu", "-lc10"])
    return Library(path, objects)


def placed(values: Tensor) -> Tensor:
    """A copy that kernels can read, in the same layout."""
    if INTERPRETED:
        held = kernels().arena.holds(values.data_ptr())
        return values if held else kernels().put(values.detach())
    storage = torch.empty(0, dtype=torch.uint8).set_(values.untyped_storage()).to(DEVICE)
    copy = torch.empty(0, dtype=values.dtype, device=DEVICE)
    place = values.storage_offset(), values.shape, values.stride()
    return copy.set_(storage.untyped_storage(), *place)


def op(name: str) -> Callable[..., Any]:
    """An op of the CUDA half. Its results and temporary tensors lie in the interpreter's memory."""
    function = getattr(torch.ops.rnnext, name).default

    def place(value):
        return placed(value) if isinstance(value, Tensor) else value

    def call(*arguments, **named):
        on_host = {n: named.pop(n) for n in ("batch_sizes", "noise_key") if n in named}
        arguments, named = tree_map(place, arguments), tree_map(place, named) | on_host
        if INTERPRETED:
            with kernels().tensors():
                return function.redispatch(KEYS, *arguments, **named)
        with torch.no_grad():
            results = function(*arguments, **named)
        return tree_map(lambda t: t.cpu() if isinstance(t, Tensor) else t, results)

    return call


recurrence, recurrence_backward = op("recurrence"), op("recurrence_backward")


def copied_ahead(arguments):
    """Arguments in device memory whose rows asynchronous copies alone may read: a load waits."""
    given = arguments.map(lambda t: kernels().put(t.detach()))
    rows = [getattr(given, name, None) for name in ("input", "grad_output")]
    for tensor in [*rows, *getattr(given, "saved", [])]:
        if tensor is not None:
            kernels().protect(tensor, ASYNCHRONOUS)
    return given


def forced(path: str | None) -> contextlib.AbstractContextManager[Any]:
    """A path; None: as it is chosen."""
    if not INTERPRETED and path not in device_paths():
        path = None
    return patch.dict(os.environ, RNNEXT_CUDA_PATH=path or "")


def check_call(
    arguments: samples.Recurrence,
    grads: Iterable[bool] = (True, True),
    mask: Iterable[bool] = (True,) * samples.GRADIENTS,
    tolerance: float | None = None,
    place: Callable[[Any], Any] = lambda arguments: arguments,
) -> list[Tensor]:
    """Results and gradients of a call, compared with float64. The arguments need gradients.

    ``grads``: which of both results has a gradient; ``mask``: which gradients are asked for.
    """
    exact, dtype = arguments.to_double(), arguments.weight_hh[0].dtype
    tolerance = tolerance or TOLERANCE[dtype] * (4 if dtype in HALVES else 1)
    here = place(arguments.detach())
    *results, saved = recurrence(**vars(here), save=bool(here.alpha))
    expected = exact.expected(stored=dtype)
    assert_close(results, expected, tolerance=tolerance)
    given = [
        (torch.rand(t.shape, dtype=torch.float64) * 2 - 1).to(t.dtype) if g else None
        for t, g in zip(results, grads, strict=True)
    ]
    used = [(e, g.double()) for e, g in zip(expected, given, strict=True) if g is not None]
    torch.autograd.backward(*zip(*used, strict=True))
    backward = here.backward(results[0], *given, output_mask=mask, saved=saved)
    found = [g if isinstance(g, list) else [g] for g in place(backward).call(recurrence_backward)]
    names = ["input", "hx", *samples.WEIGHTS, "reset_state", "alpha"]
    for name, asked, gradients in zip(names, mask, found, strict=True):
        leaves = getattr(exact, name)
        if not asked:
            assert all(g.numel() == 0 for g in gradients)
            continue
        leaves = leaves if isinstance(leaves, list) else [leaves]
        for g, leaf in zip(gradients, leaves, strict="bias" not in name):  # a bias has one always
            if leaf is not None and leaf.grad is not None:
                assert g.dtype == dtype
                assert_close(g, leaf.grad, tolerance=tolerance)
    return [*results, *(g for gradients in found for g in gradients)]


def run(
    path: str | None = None,
    device: str = "small",
    grads: Iterable[bool] = (True, True),
    mask: Iterable[bool] = (True,) * samples.GRADIENTS,
    tf32: bool = False,
    **case,
) -> list[Tensor]:
    """check_call() of what samples.make describes, on a path and a device."""
    kernels().set_device(device)
    arguments = samples.make(**case, requires_grad=True)
    ahead = INTERPRETED and path not in (None, "step")
    place = copied_ahead if ahead else lambda arguments: arguments
    with forced(path), tf32_by("allow_tf32") if tf32 else contextlib.nullcontext():
        return check_call(arguments, grads, mask, TF32_TOLERANCE if tf32 else None, place)
