"""The modules' answers to TorchScript's compiler, torch's legacy ONNX exporter and torch.fx."""

from typing import Any, NoReturn

import torch
from torch import nn
from torch.fx import Proxy
from torch.nn.utils import parametrize


class Module(nn.Module):
    """What rnnext's modules have in common."""

    def __prepare_scriptable__(self) -> NoReturn:  # torch.jit.script calls it first
        others = "torch.jit.trace, torch.export or torch.compile"
        raise _cannot("torch.jit.script cannot compile", self, others)

    def _slow_forward(self, *args: Any, **kwargs: Any) -> Any:
        """What stands in for ``forward`` while torch.jit traces."""
        if torch.onnx.is_in_onnx_export():
            raise _cannot(
                "the legacy ONNX exporter (dynamo=False) cannot export", self,
                "torch.onnx.export(..., dynamo=True, "
                "custom_translation_table=rnnext.onnx.translation_table())",
            )  # fmt: skip
        return super()._slow_forward(*args, **kwargs)  # type: ignore[no-untyped-call]


def leaf(module: nn.Module, input: Any, **optional: Any) -> Any:
    """The node by which torch.fx records the call of a module as a whole, as of torch.nn's.

    None where torch.fx does not trace, or should trace into the module: the model itself, a user's
    subclass, a module whose hooks it has already called. (By itself it treats as a whole only what
    says that it is from ``torch.nn``.)
    """
    if not isinstance(input, Proxy):
        return None
    tracer: Any = input.tracer
    root = getattr(tracer, "root", None)  # proxies may be made without a Tracer
    hooked = module._forward_pre_hooks or module._forward_hooks
    if root in (None, module) or hooked or not type(module).__module__.startswith("rnnext."):
        return None
    given = {name: value for name, value in optional.items() if value is not None}
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (input,), given)


def class_of(module: nn.Module) -> type[nn.Module]:
    """The module's class; of a parametrized module, the class that it was an instance of before.

    Registering a parametrization derives a class from that, with a property for each weight.
    """
    cls = type(module)
    return cls.__mro__[1] if parametrize.is_parametrized(module) else cls


def name_of(cls: type) -> str:
    """Where users find a class."""
    if getattr(nn, cls.__name__, None) is cls:
        return f"torch.nn.{cls.__name__}"
    ours = cls.__module__.startswith("rnnext.")
    return f"{'rnnext' if ours else cls.__module__}.{cls.__qualname__}"


def _cannot(what: str, module: nn.Module, instead: str) -> NotImplementedError:
    from rnnext.convert import to_torch  # which imports this module

    name, theirs = name_of(class_of(module)), to_torch().get(class_of(module))
    if theirs is None:
        return NotImplementedError(f"{what} {name}; torch.nn has no such module: use {instead}")
    return NotImplementedError(
        f"{what} {name}: call rnnext.revert(model) first, which makes it {name_of(theirs)}, "
        f"or use {instead}"
    )
