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
from rnnext._errors import refuse_shape
from rnnext._layers import Lengths, as_given, as_lengths, as_states
from rnnext.embedding import Embedding
from rnnext.embedding_rnn import EmbeddingRNN
from rnnext.gated import GRU, LSTM, GRUCell, LSTMCell
from rnnext.rnn import RNN, RNNCell, cell_of

__all__ = ["convert", "revert", "summary"]

_logger = logging.getLogger(__name__)
_Model = TypeVar("_Model", bound=nn.Module)
_Classes = Mapping[type[nn.Module], type[nn.Module]]


class _TakesLengths(nn.RNNBase):
    """A layer of torch.nn that takes ``lengths``, by torch's operators alone, as ``revert`` leaves.

    Past the end of a row steps are computed and thrown away.
    """

    __prepare_scriptable__ = _deploy.Module.__prepare_scriptable__

    def forward(self, input: Tensor, hx: Any = None, lengths: Lengths | None = None) -> Any:
        """As :meth:`rnnext.RNN.forward`."""
        if lengths is None:
            return super().forward(input, hx)
        if isinstance(input, PackedSequence) or input.dim() != 3:
            reason = "one sequence or a packed input has its own"
            raise ValueError(f"lengths needs a 3-D input: {reason}")
        x = input.transpose(0, 1) if self.batch_first else input
        lengths = _checked(lengths, x)
        directions, cell = 2 if self.bidirectional else 1, cell_of(self)
        if hx is None:
            zeros = x.new_zeros(directions * self.num_layers, x.shape[1], self.hidden_size)
            hx = (zeros, zeros) if cell == "lstm" else zeros
        starts = as_states("hx", cell, hx)
        self.check_forward_args(input, hx, None)
        steps = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
        exists = (steps < lengths).unsqueeze(2)
        last = (lengths - 1).clamp(min=0)
        x = torch.where(exists, x, 0)  # NaN there would reach the weights' gradients
        turned = torch.where(exists, (last - steps).unsqueeze(2), 0)  # each row from its own end
        states: list[list[Tensor]] = []
        while len(states) < directions * self.num_layers:
            outputs = []
            for turn in [False, True][:directions]:
                weights: list[Any] = self.all_weights[len(states)]
                own = x.gather(0, turned.expand_as(x)) if turn else x
                start = [h[len(states)] for h in starts]
                output, *c = self._one_layer(own, start, weights, exists)
                end = [output.gather(0, last.view(1, -1, 1).expand(1, *start[0].shape))[0], *c]
                some = (lengths > 0).unsqueeze(1)
                pairs = zip(end, start, strict=True)
                states.append([torch.where(some, e, s.to(e.dtype)) for e, s in pairs])
                if turn:
                    output = output.gather(0, turned.expand_as(output))
                outputs.append(torch.where(exists, output, 0))
            x = torch.cat(outputs, 2)
            if len(states) < directions * self.num_layers:
                x = nn.functional.dropout(x, self.dropout, self.training)
        h_n = as_given(cell, [torch.stack(each) for each in zip(*states, strict=True)])
        return x.transpose(0, 1) if self.batch_first else x, h_n

    def _one_layer(
        self, x: Tensor, start: list[Tensor], weights: list[Any], exists: Tensor
    ) -> list[Tensor]:
        """The output of a layer and direction and, of an LSTM, each row's last c."""
        hx: Any = [h.unsqueeze(0) for h in start]
        options = (self.bias, 1, 0.0, False, False, False)
        if len(hx) == 2:
            # One more feature is 1 past the end of a row; its weights make f 1 and i 0, so c stays.
            past = torch.where(exists, 0, 1).to(x.dtype).expand(*x.shape[:2], 1)
            gates = x.new_tensor([-1e4, 1e4, 0, 0]).repeat_interleave(self.hidden_size)
            widened = torch.cat([weights[0], gates.unsqueeze(1).to(weights[0].dtype)], 1)
            x, weights = torch.cat([x, past], 2), [widened, *weights[1:]]
            output, _, c = torch._VF.lstm(x, hx, weights, *options)
            return [output, c[0]]
        kinds = {"GRU": torch._VF.gru, "RNN_RELU": torch._VF.rnn_relu}
        output, _ = kinds.get(self.mode, torch._VF.rnn_tanh)(x, hx[0], weights, *options)
        return [output]


class LengthsRNN(_TakesLengths, nn.RNN):  # type: ignore[misc]
    """A torch.nn.RNN that takes ``lengths``."""


class LengthsGRU(_TakesLengths, nn.GRU):  # type: ignore[misc]
    """A torch.nn.GRU that takes ``lengths``."""


class LengthsLSTM(_TakesLengths, nn.LSTM):  # type: ignore[misc]
    """A torch.nn.LSTM that takes ``lengths``."""


class TorchRNN(RNN, nn.RNN):
    """An rnnext.RNN that is a torch.nn.RNN too, so that torch.compile breaks the graph at it."""


class TorchGRU(GRU, nn.GRU):
    """An rnnext.GRU that is a torch.nn.GRU too, so that torch.compile breaks the graph at it."""


class TorchLSTM(LSTM, nn.LSTM):
    """An rnnext.LSTM that is a torch.nn.LSTM too, so that torch.compile breaks the graph at it."""


def _checked(lengths: Lengths, x: Tensor) -> Tensor:
    """The lengths of x, ``[T, B, I]``, or what rnnext's op raises for them."""
    lengths = as_lengths(lengths, x.device)
    refuse_shape("lengths", lengths, x.shape[1:2])
    if not is_compiling():  # else it has no values
        for row, length in enumerate(lengths.tolist()):
            if not 0 <= length <= x.shape[0]:
                must = f"expected 0 <= length <= {len(x)}"
                raise ValueError(f"lengths[{row}] = {length} is out of range: {must}")
    return lengths


# torch.nn's layers: rnnext's, that as a subclass of torch.nn's, and what takes lengths.
_LAYERS = {
    nn.RNN: (RNN, TorchRNN, LengthsRNN),
    nn.GRU: (GRU, TorchGRU, LengthsGRU),
    nn.LSTM: (LSTM, TorchLSTM, LengthsLSTM),
}
_CELLS: _Classes = {nn.RNNCell: RNNCell, nn.GRUCell: GRUCell, nn.LSTMCell: LSTMCell}
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def convert(
    model: _Model, *, embedding: bool = True, subclass: bool = False, dry_run: bool = False
) -> _Model:
    """Turn every torch.nn RNN, GRU, LSTM, cell and Embedding of a model into rnnext's, in place.

    The modules stay the same objects and change their class, so Parameters, buffers, hooks,
    training flags, devices, parametrizations and references to them stay as they are. Left alone
    are instances of other subclasses, which may override what rnnext replaces, modules whose
    forward has been replaced, LSTMs with ``proj_size``, and those whose dtype, device or kind of
    tensor rnnext has no kernels for: :func:`summary` says which. Changes are logged at level INFO.

    Args:
        model: any module; it may itself be one of them.
        embedding: whether Embeddings are among them. Default: ``True``.
        subclass: whether layers stay instances of ``nn.RNN``, ``nn.GRU`` and ``nn.LSTM``, for
            libraries that ask; torch.compile then breaks its graph at them. Default: ``False``.
        dry_run: whether to change nothing, and print :func:`summary`. Default: ``False``.

    Returns:
        The same model.

    Raises:
        TypeError: ``model`` is no module.
    """
    if dry_run:
        print(summary(model, embedding=embedding, subclass=subclass))
        return model
    return _swap_classes(model, _to_rnnext(embedding, subclass))


def revert(model: _Model, *, lengths: bool = False) -> _Model:
    """Undo :func:`convert`: rnnext's RNNs, GRUs, LSTMs, cells and Embeddings become torch.nn's.

    The two of an :class:`rnnext.EmbeddingRNN`, which torch.nn has no module for, stay, and so do
    instances of subclasses and modules whose forward has been replaced. torch.nn has nothing for
    ``reset`` either.

    Args:
        model: any module; it may itself be one of them.
        lengths: whether the model passes ``lengths``, which torch.nn's layers do not take: they
            then become subclasses that do, and that torch.jit.script cannot compile; ``revert``
            without it makes those torch.nn's. Default: ``False``.

    Returns:
        The same model.

    Raises:
        TypeError: ``model`` is no module.
    """
    return _swap_classes(model, to_torch(lengths))


def summary(model: nn.Module, *, embedding: bool = True, subclass: bool = False) -> str:
    """The changes that :func:`convert` would make, a line for each module it may be about.

    Args:
        model: any module.
        embedding, subclass: as :func:`convert`'s.

    Returns:
        Lines such as ``encoder.rnn: torch.nn.RNN -> rnnext.RNN``, or, for a recurrent layer, a cell
        or an Embedding that is left alone, why.

    Raises:
        TypeError: ``model`` is no module.
    """
    of_interest = (nn.RNNBase, nn.RNNCellBase, nn.Embedding)
    steps = _steps(model, _to_rnnext(embedding, subclass))
    lines = [str(step) for step in steps if isinstance(step.module, of_interest)]
    return "\n".join(lines) or "no recurrent layer, cell or Embedding"


def _to_rnnext(embedding: bool = True, subclass: bool = False) -> _Classes:
    classes = {**_CELLS, nn.Embedding: Embedding} if embedding else dict(_CELLS)
    for theirs, (ours, of_theirs, of_lengths) in _LAYERS.items():
        wanted, other = (of_theirs, ours) if subclass else (ours, of_theirs)
        classes |= dict.fromkeys((theirs, other, of_lengths), wanted)
    return classes


def to_torch(lengths: bool = False) -> _Classes:
    """The classes that :func:`revert` changes, and to which."""
    classes: dict[type[nn.Module], type[nn.Module]] = {v: k for k, v in _CELLS.items()}
    classes[Embedding] = nn.Embedding
    for theirs, others in _LAYERS.items():
        classes |= dict.fromkeys(others, others[-1] if lengths else theirs)
    return classes


class _Step(NamedTuple):
    """The change to a module."""

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
    wholes = [module for module in model.modules() if isinstance(module, EmbeddingRNN)]
    parts = {id(part) for whole in wholes for part in whole.children()}
    theirs = {*to_torch().values(), *to_torch(lengths=True).values()}
    for name, module in model.named_modules():
        old = class_of(module)
        new = classes.get(old)
        if new is None:
            reason = _no_counterpart(old, classes)
        elif "forward" in vars(module):
            reason = "its forward has been replaced"
        elif new in theirs or old not in theirs:
            reason = "it is part of an EmbeddingRNN" if id(module) in parts else ""
        else:
            reason = _no_kernel(module)
        yield _Step(name, module, old, None if reason else new, reason)


def _no_counterpart(cls: type[nn.Module], classes: _Classes) -> str:
    if any(base.__module__.startswith("rnnext.") for base in cls.__mro__):
        return "it is rnnext's"
    if cls is nn.Embedding:
        return "embedding=False"
    for base in classes:
        if issubclass(cls, base):
            return f"a subclass of {name_of(base)} may override what rnnext replaces"
    return "rnnext has none of this kind"


def _no_kernel(module: nn.Module) -> str:
    """Why rnnext cannot compute a module of torch.nn, if so."""
    if getattr(module, "proj_size", 0):
        return f"proj_size is {module.proj_size}; rnnext has no projections"
    for name, weight in module.named_parameters():
        inert = isinstance(module, nn.Embedding) and not weight.requires_grad
        if weight.dtype not in _FLOATS and not inert:
            known = "float32, float64, bfloat16 and float16"
            return f"{name} is {str(weight.dtype)[6:]}; rnnext has {known}"
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
        else:  # parametrized: its own class now derives from the new one
            members = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
            module.__class__ = type(cls.__name__, (step.new,), members)
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()  # torch.nn's kind needs them, ours does not
        _logger.info("%s", step)
    return model
