"""The rivals: rnnext, torch's own modules, and the runtimes beside them that are installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from .contract import Rival
from .jax_scan import Jax
from .onnx_runtime import OnnxRuntime
from .openvino_runtime import OpenVino
from .torch_modules import CompiledLoop, ours, theirs

__all__ = ["installed", "ours", "theirs"]


def installed() -> list[Rival]:
    """All of them; ours comes first, since the results of the others are checked against it."""
    needing: dict[tuple[str, ...], Callable[[], Rival]] = {
        ("onnxruntime", "onnx"): OnnxRuntime,
        ("openvino", "onnx"): OpenVino,
        ("jax",): Jax,
    }
    others = [rival() for packages, rival in needing.items() if all(map(find_spec, packages))]
    return [ours(), theirs(), CompiledLoop(), *others]
