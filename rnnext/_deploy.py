"""What the modules answer to TorchScript's compiler and to torch's legacy ONNX exporter."""

from typing import Any, NoReturn

import torch
from torch import nn


def refuse_script(module: nn.Module) -> NoReturn:
    """A module's ``__prepare_scriptable__``, which torch.jit.script calls first."""
    raise _cannot(
        "torch.jit.script cannot compile", module, "torch.jit.trace, torch.export or torch.compile"
    )


def slow_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """A module's ``_slow_forward``, which stands in for ``forward`` while torch.jit traces."""
    if torch.onnx.is_in_onnx_export():
        raise _cannot(
            "the legacy ONNX exporter (dynamo=False) cannot export",
            module,
            "torch.onnx.export(..., dynamo=True, "
            "custom_translation_table=rnnext.onnx.translation_table())",
        )
    return nn.Module._slow_forward(module, *args, **kwargs)  # type: ignore[no-untyped-call]


def _cannot(what: str, module: nn.Module, instead: str) -> NotImplementedError:
    from rnnext.convert import class_of, counterpart, name_of  # it imports the modules, they this

    name, theirs = name_of(class_of(module)), counterpart(module)
    if theirs is None:
        return NotImplementedError(f"{what} {name}; torch.nn has no such module: use {instead}")
    return NotImplementedError(
        f"{what} {name}: call rnnext.revert(model) first, which makes it "
        f"{name_of(theirs)}, or use {instead}"
    )
