"""The errors of arguments that do not fit, among them torch.nn's."""

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_NAMES = {"gru": "GRU", "lstm": "LSTM"}  # torch's errors say RNN for all others


def by_name(name: str, states: Sequence[Tensor]) -> dict[str, Tensor]:
    """These tensors of a state as errors call them."""
    if len(states) == 1:
        return {name: states[0]}
    return {f"{name}[{place}]": state for place, state in enumerate(states)}


def kind_of(name: str, value: object) -> str:
    """Its type, and how to make a tensor of it."""
    kind = type(value)
    if kind.__module__ == "numpy":
        return f"{kind.__name__}: give torch.from_numpy({name})"
    if isinstance(value, (list, tuple)) and value and value[0] is not None:
        if any(isinstance(each, Tensor) for each in value):
            return f"a {kind.__name__} of tensors"
        return f"{kind.__name__}: give torch.tensor({name})"
    return kind.__name__


def refuse_others(required: Mapping[str, Any], **optional: Any) -> None:
    """Raise TypeError for an argument that is no tensor; the optional ones may be None."""
    for name, value in {**required, **optional}.items():
        if not isinstance(value, Tensor) and (value is not None or name in required):
            raise TypeError(f"{name} must be a tensor, got {kind_of(name, value)}") from None


def refuse_no_number(name: str, value: object) -> None:
    """Raise TypeError unless the value of this argument is a real number or a tensor of them."""
    if isinstance(value, Tensor) and (value.is_complex() or value.dtype == torch.bool):
        raise TypeError(f"{name} must be of real numbers, got {str(value.dtype)[6:]}")
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, Tensor)):
        raise TypeError(f"{name} must be a number or a tensor, got {kind_of(name, value)}")


def refuse_no_generator(value: object) -> None:
    if value is not None and not isinstance(value, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(value).__name__}")


def refuse_shape(
    name: str, tensor: Tensor, *shapes: Sequence[int], error: type[Exception] = ValueError
) -> None:
    """Raise unless the tensor has one of these shapes."""
    if tuple(tensor.shape) not in shapes:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise error(f"{name} must have shape {expected}, got {list(tensor.shape)}") from None


def refuse_word(name: str, value: str, known: Sequence[str]) -> None:
    """Raise ValueError unless the argument is one of these."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def refuse_devices(weight: Tensor, **arguments: Tensor | None) -> None:
    """Raise where a tensor is sparse or not on the weights' device."""
    for name, value in arguments.items():
        if value is not None and value.device != weight.device:
            must = f"on the device of the weights, {weight.device}, got {value.device}"
            raise RuntimeError(f"{name} must be {must}") from None
        if value is not None and value.layout is not torch.strided:
            raise RuntimeError(f"{name} must be a dense tensor, got {value.layout}") from None


def raise_of_layers(
    cell: str,
    data: Tensor,
    hx: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    layers: int,
    D: int,
    batch_first: bool,
    hidden_size: int | None = None,  # of a module
) -> None:
    """Raise torch.nn's error for these arguments of the op, or return if it has none for them."""
    dims, module = data.dim(), _NAMES.get(cell, "RNN")
    if batch_sizes is None:
        if dims not in (2, 3):
            found = f"{dims}D instead" if cell in _NAMES else f"{dims}D tensor instead"
            raise ValueError(f"{module}: Expected input to be 2D or 3D, got {found}") from None
        if any(h.dim() != dims for h in hx):
            kind = "unbatched 2-D" if dims == 2 else "batched 3-D"
            which, found = "hx", f"{hx[0].dim()}-D tensor"
            if len(hx) == 2:
                which, found = "hx and cx", f"({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
            must = f"{which} should also be {dims}-D but got {found}"
            raise RuntimeError(f"For {kind} input, {must}") from None
    if len(weights) < 2 or any(not isinstance(w, Tensor) or w.dim() != 2 for w in weights[:2]):
        return
    refuse_devices(weights[0], input=data, **by_name("hx", hx))
    dtype, H = weights[0].dtype, hidden_size or weights[1].size(-1)
    if data.dtype != dtype and not torch._C._is_any_autocast_enabled():
        raise ValueError(
            f"RNN input dtype ({data.dtype}) does not match weight dtype ({dtype}). "
            f"Convert input: input.to({dtype}), or convert model: model.to({data.dtype})"
        ) from None
    if batch_sizes is not None and dims != 2:
        raise RuntimeError(f"input must have 2 dimensions, got {dims}") from None
    if data.size(-1) != weights[0].size(-1):
        raise RuntimeError(
            "input.size(-1) must be equal to input_size. "
            f"Expected {weights[0].size(-1)}, got {data.size(-1)}"
        ) from None
    for name, h in by_name("hidden", hx).items():
        got = list(h.size())
        if batch_sizes is not None:
            batch = int(batch_sizes[0])
        elif dims == 2:
            batch = 1
            got.insert(1, 1)
        else:
            batch = data.size(0 if batch_first else 1)
        expected = (layers * D, batch, H)
        if got != list(expected):
            raise RuntimeError(f"Expected {name} size {expected}, got {got}") from None
    each, rows = len(weights) // (layers * D or 1), H * {"gru": 3, "lstm": 4}.get(cell, 1)
    fits = hidden_size or rows == weights[1].size(0)  # else the op names this weight
    if not fits or each not in (2, 4) or len(weights) != each * layers * D:
        return
    for place, weight in enumerate(weights):
        if not isinstance(weight, Tensor):
            return
        number, k = divmod(place, each)
        name = f"{_WEIGHTS[k]}_l{number // D}{'_reverse' * (number % D)}"
        width = H if k else D * H if number >= D else weights[0].size(-1)
        refuse_shape(name, weight, (rows, width) if k < 2 else (rows,), error=RuntimeError)
        if weight.dtype != dtype and not torch._C._is_any_autocast_enabled():
            found = f"weight_ih_l0, {str(dtype)[6:]}, got {str(weight.dtype)[6:]}"
            raise RuntimeError(f"{name} must have the dtype of {found}") from None


def raise_of_a_cell(
    cell: str,
    input: Tensor,
    hx: Sequence[Tensor],
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> None:
    """Raise the error of torch.nn's cell for these arguments, or return if it has none for them."""
    given = {"input": input, "weight_ih": weight_ih, "weight_hh": weight_hh, **by_name("hx", hx)}
    refuse_others(given, bias_ih=bias_ih, bias_hh=bias_hh)
    refuse_devices(weight_hh, input=input, **by_name("hx", hx))
    if weight_ih.dim() != 2 or weight_hh.dim() != 2:
        return
    states = by_name("hx" if len(hx) == 2 else "hidden", hx)
    for name, value in ({"input": input} | states).items():
        if value.dim() not in (1, 2):
            found = f"{name} to be 1D or 2D, got {value.dim()}D instead"
            raise ValueError(f"{_NAMES.get(cell, 'RNN')}Cell: Expected {found}") from None
    if input.size(-1) != weight_ih.size(-1):
        found = f"got {input.size(-1)} expected {weight_ih.size(-1)}"
        raise RuntimeError(f"input has inconsistent input_size: {found}") from None
    rows = input.size(0) if input.dim() == 2 else 1
    for place, h in enumerate(hx):
        batch = h if input.dim() == 2 else h.unsqueeze(0)
        if batch.size(0) != rows:
            found = f"hidden{place} batch size {batch.size(0)}"
            raise RuntimeError(f"Input batch size {rows} doesn't match {found}") from None
        if batch.size(1) != weight_hh.size(-1):
            found = f"got {batch.size(1)}, expected {weight_hh.size(-1)}"
            raise RuntimeError(f"hidden{place} has inconsistent hidden_size: {found}") from None
