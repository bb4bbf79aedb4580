"""The rivals: rnnext, torch's own modules, and the runtimes beside them that are installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from ..cases import Case
from .contract import Data, Prepared, Rival, Unsupported
from .onnx_runtime import OnnxRuntime
from .openvino_runtime import OpenVino
from .torch_modules import CompiledLoop, ours, theirs

__all__ = ["installed", "ours", "theirs"]


class Jax:
    """lax.scan over the steps, jit-compiled, its input projection one matmul before."""

    name = "jax"

    def prepare(self, case: Case, data: Data, threads: int) -> Prepared:
        if case.kind not in ("rnn", "step") or case.device != "cpu" or case.precision != "highest":
            raise Unsupported("sequences at full precision on the CPU only")
        from . import jax_scan

        return jax_scan.prepare(case, data)


def installed() -> list[Rival]:
    """All of them; ours comes first, since the results of the others are checked against it."""
    needing: dict[tuple[str, ...], Callable[[], Rival]] = {
        ("onnxruntime", "onnx"): OnnxRuntime,
        ("openvino", "onnx"): OpenVino,
        ("jax",): Jax,
    }
    others = [rival() for packages, rival in needing.items() if all(map(find_spec, packages))]
    return [ours(), theirs(), CompiledLoop(), *others]
