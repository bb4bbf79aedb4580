"""Swap torch.nn's modules of a model for rnnext's, and back."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from rnnext import _C, _deploy
from rnnext._deploy import class_of, name_of
from rnnext._layers import Lengths, as_lengths, refuse_shape
from rnnext.embedding import Embedding
from rnnext.embedding_rnn import EmbeddingRNN
from rnnext.rnn import RNN, RNNCell

__all__ = ["convert", "revert", "summary"]

_logger = logging.getLogger(__name__)
_Model = TypeVar("_Model", bound=nn.Module)
_Classes = Mapping[type[nn.Module], type[nn.Module]]


class LengthsRNN(nn.RNN):
    """A torch.nn.RNN that takes ``lengths``, by torch's operators alone: what ``revert`` leaves.

    Past the end of a row steps are computed and thrown away.
    """

    __prepare_scriptable__ = _deploy.refuse_script

    def forward(  # type: ignore[override]
        self, input: Tensor, hx: Tensor | None = None, lengths: Lengths | None = None
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`rnnext.RNN.forward`."""
        if lengths is None:
            output, h_n = super().forward(input, hx)
            return output, h_n
        if isinstance(input, PackedSequence) or input.dim() != 3:
            raise ValueError(
                "lengths needs a 3-D input: one sequence or a packed input has its own"
            )
        x = input.transpose(0, 1) if self.batch_first else input
        lengths = _checked(lengths, x)
        directions = 2 if self.bidirectional else 1
        if hx is None:
            hx = x.new_zeros(directions * self.num_layers, x.shape[1], self.hidden_size)
        self.check_forward_args(input, hx, None)
        steps = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
        exists = (steps < lengths).unsqueeze(2)
        last = (lengths - 1).clamp(min=0)
        x = torch.where(exists, x, 0)  # NaN there would be one in the gradients of the weights
        turned = torch.where(exists, (last - steps).unsqueeze(2), 0)  # each row from its own end
        one_layer = torch._VF.rnn_tanh if self.nonlinearity == "tanh" else torch._VF.rnn_relu
        states: list[Tensor] = []
        while len(states) < directions * self.num_layers:
            outputs = []
            for turn in [False, True][:directions]:
                weights: list[Any] = self.all_weights[len(states)]
                own = x.gather(0, turned.expand_as(x)) if turn else x
                start = hx[len(states)]
                output, _ = one_layer(
                    own, start.unsqueeze(0), weights, self.bias, 1, 0.0, False, False, False
                )
                end = output.gather(0, last.view(1, -1, 1).expand(1, *start.shape))[0]
                states.append(torch.where(lengths.unsqueeze(1) > 0, end, start.to(end.dtype)))
                if turn:
                    output = output.gather(0, turned.expand_as(output))
                outputs.append(torch.where(exists, output, 0))
            x = torch.cat(outputs, 2)
            if len(states) < directions * self.num_layers:
                x = nn.functional.dropout(x, self.dropout, self.training)
        return x.transpose(0, 1) if self.batch_first else x, torch.stack(states)


def _checked(lengths: Lengths, x: Tensor) -> Tensor:
    """The lengths of x, ``[T, B, I]``, or what rnnext's op raises for them."""
    lengths = as_lengths(lengths, x.device)
    if lengths.dtype != torch.int64:
        dtype = str(lengths.dtype).removeprefix("torch.")
        raise TypeError(f"lengths must be an int64 tensor, got {dtype}")
    refuse_shape("lengths", lengths, x.shape[1:2])
    if not is_compiling():  # else it has no values
        for row, length in enumerate(lengths.tolist()):
            if not 0 <= length <= x.shape[0]:
                raise ValueError(
                    f"lengths[{row}] = {length} is out of range: expected 0 <= length <= {len(x)}"
                )
    return lengths


_TO_RNNEXT: _Classes = {
    LengthsRNN: RNN,
    nn.RNN: RNN,
    nn.RNNCell: RNNCell,
    nn.Embedding: Embedding,
}
_TO_TORCH: _Classes = {ours: theirs for theirs, ours in _TO_RNNEXT.items()} | {LengthsRNN: nn.RNN}
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def convert(model: _Model, *, embedding: bool = True, dry_run: bool = False) -> _Model:
    """Turn every torch.nn RNN, RNNCell and Embedding of a model into rnnext's, in place.

    The modules stay the same objects and change their class, so Parameters, buffers, hooks,
    training flags, devices, parametrizations and references to them stay as they are. Left alone
    are instances of other subclasses, which may override what rnnext replaces, modules whose
    forward has been replaced, and those whose dtype, device or kind of tensor rnnext has no kernels
    for: :func:`summary` says which. Each change is logged at
    level INFO.

    Args:
        model: any module; it may itself be one of the three.
        embedding: whether Embeddings are among them. Default: ``True``.
        dry_run: whether to change nothing, and print :func:`summary`. Default: ``False``.

    Returns:
        The same model.

    Raises:
        TypeError: ``model`` is no module.
    """
    if dry_run:
        print(summary(model, embedding=embedding))
        return model
    return _swap_classes(model, _to_rnnext(embedding))


def revert(model: _Model, *, lengths: bool = False) -> _Model:
    """Undo :func:`convert`: every rnnext RNN, RNNCell and Embedding becomes torch.nn's, in place.

    The two of an :class:`rnnext.EmbeddingRNN`, which torch.nn has no module for, stay, and so do
    instances of subclasses and modules whose forward has been replaced. torch.nn has nothing for
    ``reset`` either.

    Args:
        model: any module; it may itself be one of the three.
        lengths: whether the model passes ``lengths``, which torch.nn.RNN does not take: RNNs then
            become a subclass of it that does, and that torch.jit.script cannot compile; ``revert``
            without it makes that torch.nn.RNN. Default: ``False``.

    Returns:
        The same model.
    """
    of_lengths = {RNN: LengthsRNN, LengthsRNN: LengthsRNN}
    return _swap_classes(model, {**_TO_TORCH, **of_lengths} if lengths else _TO_TORCH)


def summary(model: nn.Module, *, embedding: bool = True) -> str:
    """What :func:`convert` would do with a model, a line for each module it may be about.

    Args:
        model: any module.
        embedding: as :func:`convert`'s.

    Returns:
        Lines such as ``encoder.rnn: torch.nn.RNN -> rnnext.RNN``, or, for an RNN, a cell or an
        Embedding that is left alone, why.
    """
    of_interest = (nn.RNNBase, nn.RNNCellBase, nn.Embedding)
    return "\n".join(
        str(step)
        for step in _steps(model, _to_rnnext(embedding))
        if isinstance(step.module, of_interest)
    )


def _to_rnnext(embedding: bool) -> _Classes:
    return {k: v for k, v in _TO_RNNEXT.items() if embedding or k is not nn.Embedding}


class _Step(NamedTuple):
    """What happens to a module."""

    name: str
    module: nn.Module
    old: type[nn.Module]
    new: type[nn.Module] | None
    reason: str  # why not, where it stays as it is

    def __str__(self) -> str:
        where, old = self.name or "(the model)", name_of(self.old)
        if self.new is None:
            return f"{where}: {old} stays: {self.reason}"
        return f"{where}: {old} -> {name_of(self.new)}"


def _steps(model: nn.Module, classes: _Classes) -> Iterator[_Step]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    parts = {
        id(part)
        for module in model.modules()
        if isinstance(module, EmbeddingRNN)
        for part in module.children()
    }
    for name, module in model.named_modules():
        old = class_of(module)
        new = classes.get(old)
        if new is None:
            reason = _no_counterpart(old, classes)
        elif "forward" in vars(module):
            reason = "its forward has been replaced"
        elif new in _TO_RNNEXT:
            reason = "it is part of an EmbeddingRNN" if id(module) in parts else ""
        else:
            reason = _no_kernel(module)
        yield _Step(name, module, old, None if reason else new, reason)


def _no_counterpart(cls: type[nn.Module], classes: _Classes) -> str:
    if any(base.__module__.startswith("rnnext.") for base in cls.__mro__):
        return "it is rnnext's"
    if cls in _TO_RNNEXT:
        return "embedding=False"
    for base in classes:
        if issubclass(cls, base):
            return f"a subclass of {name_of(base)} may override what rnnext replaces"
    return "rnnext has none of this kind"


def _no_kernel(module: nn.Module) -> str:
    """Why rnnext cannot compute a module of torch.nn, if so."""
    for name, weight in module.named_parameters():
        inert = isinstance(module, nn.Embedding) and not weight.requires_grad
        if weight.dtype not in _FLOATS and not inert:
            dtype = str(weight.dtype).removeprefix("torch.")
            return f"{name} is {dtype}; rnnext has float32, float64, bfloat16 and float16"
        if is_traceable_wrapper_subclass(weight):  # a DTensor, say, or quantized
            return f"{name} is a {type(weight).__name__}, for which rnnext has no kernels"
        devices = ["cpu", "meta", "cuda"] if _C.build_info()["cuda_archs"] else ["cpu", "meta"]
        if weight.device.type not in devices:
            return f"{name} is on {weight.device}, for which this build of rnnext has no kernels"
    return ""


def _swap_classes(model: _Model, classes: _Classes) -> _Model:
    for step in list(_steps(model, classes)):
        if step.new in (None, step.old):
            continue
        module, cls = step.module, type(step.module)
        if cls is step.old:
            module.__class__ = step.new
        else:  # parametrized: derive the class of its own from the new one
            members = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
            module.__class__ = type(cls.__name__, (step.new,), members)
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()  # torch.nn's kind needs them, ours none
        _logger.info("%s", step)
    return model
