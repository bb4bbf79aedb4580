"""Swap torch.nn's modules of a model for rnnext's, and back."""

import logging
from typing import TypeVar

from torch import nn
from torch.nn.utils import parametrize

from rnnext.embedding import Embedding
from rnnext.rnn import RNN, RNNCell

__all__ = ["convert", "revert"]

_logger = logging.getLogger(__name__)
_Model = TypeVar("_Model", bound=nn.Module)

_TO_RNNEXT: dict[type[nn.Module], type[nn.Module]] = {
    nn.RNN: RNN,
    nn.RNNCell: RNNCell,
    nn.Embedding: Embedding,
}
_TO_TORCH = {ours: theirs for theirs, ours in _TO_RNNEXT.items()}


def convert(model: _Model) -> _Model:
    """Turn every torch.nn RNN, RNNCell and Embedding of a model into rnnext's, in place.

    The modules stay the same objects and change their class, so Parameters, buffers, hooks,
    training flags, devices, parametrizations and references to them stay as they are. Instances of
    other subclasses are left alone: they may override what rnnext replaces. Each change is logged
    at level INFO.

    Args:
        model: any module; it may itself be one of the three.

    Returns:
        The same model.
    """
    return _swap_classes(model, _TO_RNNEXT)


def revert(model: _Model) -> _Model:
    """Undo :func:`convert`: every rnnext RNN, RNNCell and Embedding becomes torch.nn's, in place.

    Args:
        model: any module; it may itself be one of the three.

    Returns:
        The same model.
    """
    return _swap_classes(model, _TO_TORCH)


def _swap_classes(model: _Model, classes: dict[type[nn.Module], type[nn.Module]]) -> _Model:
    for name, module in model.named_modules():
        old = type(module)
        parametrized = parametrize.is_parametrized(module)
        base = old.__mro__[1] if parametrized else old
        new = classes.get(base)
        if new is None:
            continue
        if parametrized:
            # Registering a parametrization gave the module a class of its own, derived from
            # `base`, that holds a property for each parametrized weight: derive it from `new`.
            members = {k: v for k, v in vars(old).items() if k not in ("__dict__", "__weakref__")}
            module.__class__ = type(old.__name__, (new,), members)
        else:
            module.__class__ = new
        _logger.info(
            "%s: %s.%s -> %s.%s",
            name or "(the model)",
            base.__module__,
            base.__qualname__,
            new.__module__,
            new.__qualname__,
        )
    return model
