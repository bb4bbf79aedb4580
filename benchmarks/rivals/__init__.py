"""Who takes part: rnnext, torch's own modules, and the runtimes beside them that are installed."""

from __future__ import annotations

import importlib.util

from .contract import Rival
from .jax_scan import Jax
from .onnx_runtime import OnnxRuntime
from .openvino_runtime import OpenVino
from .torch_modules import CompiledLoop, ours, theirs

__all__ = ["installed", "ours", "theirs"]

_NEEDS: dict[type, tuple[str, ...]] = {
    OnnxRuntime: ("onnxruntime", "onnx"),
    OpenVino: ("openvino",),
    Jax: ("jax",),
}


def installed() -> list[Rival]:
    """All of them; ours comes first, since the results of the others are checked against it."""
    found: list[Rival] = [ours(), theirs(), CompiledLoop()]
    for rival, packages in _NEEDS.items():
        if all(importlib.util.find_spec(package) for package in packages):
            found.append(rival())
    return found
