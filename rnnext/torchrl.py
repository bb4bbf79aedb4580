"""RNNs as torchrl's policies take them: modules that read and write TensorDicts.

Needs torchrl, which ``import rnnext`` alone does not.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rnnext._errors import by_name, refuse_others, refuse_shape, refuse_word
from rnnext._layers import as_states
from rnnext.gated import LAYERS
from rnnext.leaky import LeakyRNN
from rnnext.rnn import Layers, cell_of

try:
    from tensordict import TensorDictBase, unravel_key, unravel_key_list
    from tensordict.nn import TensorDictModuleBase, dispatch
    from torchrl.data import Unbounded
    from torchrl.envs import TensorDictPrimer
    from torchrl.modules.tensordict_module.rnn import recurrent_mode
except ImportError as error:
    raise ImportError("rnnext.torchrl needs torchrl: pip install torchrl") from error

__all__ = ["RNNModule"]

_Key = str | tuple[str, ...]


def _keys(
    name: str, key: _Key | None, keys: Sequence[_Key] | None, others: Sequence[_Key]
) -> list[Any]:
    """The keys given, or else the one key followed by the others."""
    if (key is None) == (keys is None):
        raise ValueError(f"{name}s must be given, or {name}, and not both")
    return list(unravel_key_list([key, *others] if keys is None else list(keys)))


class RNNModule(TensorDictModuleBase):
    """An rnnext RNN, GRU, LSTM or LeakyRNN for torchrl, as its ``GRUModule`` and ``LSTMModule``.

    In a collector, every element of the tensordict is one step, and the state goes from step to
    step through the tensordict. Under ``torchrl.modules.set_recurrent_mode(True)``, as in losses,
    the last dimension of the tensordict is time, and all steps are one call. What ``is_init`` means
    is torchrl's: a step that it marks starts from ``reset_state``, but in recurrent mode from the
    state that the tensordict holds for it, unless that is none or zeros, as the primer's are.

    Args:
        rnn: the RNN, of either ``batch_first``.
        in_keys: the keys of the features ``[..., I]`` and of the state ``[..., L * D, H]``, and,
            if it is not ``"is_init"``, the key of the mark ``[..., 1]`` that torchrl's
            ``InitTracker`` makes. An LSTM has two states, h and c, and a key for each.
        out_keys: the keys of the output ``[..., D * H]`` and of the new state. That is
            ``("next", key)`` of the state's key, for torchrl to hand it on.
        reset_state: what episodes begin with, ``[L * D, H]``, of an LSTM ``(h, c)``; a Parameter
            is learned. Default: zeros.
        default_recurrent_mode: the mode outside of ``set_recurrent_mode``. Default: ``False``.
        in_key, out_key: given in place of ``in_keys`` and ``out_keys``: the states' keys are then
            those of torchrl's modules, ``"recurrent_state"`` or ``"recurrent_state_h"``, ``..._c``.
        options: in place of ``rnn``, ``input_size``, ``hidden_size`` and others of its class, which
            is ``cell``: ``"rnn"`` (default), ``"gru"`` or ``"lstm"``; here batch first by default.

    In recurrent mode no state is read but that of the first step and of marked ones, zeros if there
    is none, and the new state is that after the last step; the steps before it have zeros in its
    place. (``GAE`` marks the first of ``next``'s steps; it needs ``deactivate_vmap=True``, as with
    torchrl's modules.)

    When acting, the RNN takes 3.6 us of the module's 28 (H=64, one thread, a Zen 5), so a Stepper,
    which takes 2.0, would gain little.

    Raises:
        TypeError, ValueError: an argument that does not fit.

    Example::

        module = RNNModule(rnnext.GRU(4, 64), in_key="observation", out_key="features")
        env = env.append_transform(InitTracker()).append_transform(module.make_tensordict_primer())
        policy = TensorDictSequential(module, head)
    """

    def __init__(
        self,
        rnn: Layers[Any] | LeakyRNN | None = None,
        in_keys: Sequence[_Key] | None = None,
        out_keys: Sequence[_Key] | None = None,
        reset_state: Any = None,
        default_recurrent_mode: bool = False,
        *,
        in_key: _Key | None = None,
        out_key: _Key | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if rnn is None:
            cell = options.pop("cell", "rnn")
            refuse_word("cell", cell, list(LAYERS))
            if not {"input_size", "hidden_size"} <= options.keys():
                raise TypeError("input_size and hidden_size must be given, or rnn")
            rnn = LAYERS[cell](**{"batch_first": True} | options)
        elif options:
            raise TypeError(f"{next(iter(options))} must not be given with rnn")
        if not isinstance(rnn, (Layers, LeakyRNN)):
            kind = f"{type(rnn).__module__}.{type(rnn).__name__}"
            raise TypeError(f"rnn must be an rnnext.RNN, GRU, LSTM or LeakyRNN, got {kind}")
        kind = cell_of(rnn)
        n, which = (2, "h, c") if kind == "lstm" else (1, "state")
        states = [f"recurrent_state_{each}" for each in "hc"] if n == 2 else ["recurrent_state"]
        in_keys = _keys("in_key", in_key, in_keys, states)
        out_keys = _keys("out_key", out_key, out_keys, [("next", state) for state in states])
        if len(in_keys) not in (n + 1, n + 2):
            raise ValueError(f"in_keys must be of features, {which} and is_init, got {in_keys}")
        if len(out_keys) != n + 1:
            raise ValueError(f"out_keys must be of the output and the new {which}, got {out_keys}")
        self.in_keys = in_keys if len(in_keys) == n + 2 else [*in_keys, "is_init"]
        self.out_keys = out_keys
        self.rnn = rnn
        self._shape = (rnn.num_layers * (2 if rnn.bidirectional else 1), rnn.hidden_size)
        parts = () if reset_state is None else as_states("reset_state", kind, reset_state)
        starts = by_name("reset_state", parts)
        refuse_others(starts)
        for name, start in starts.items():
            refuse_shape(name, start, self._shape)
        self._starts = ["reset_state_h", "reset_state_c"] if n == 2 else ["reset_state"]
        given: list[Any] = list(starts.values()) or [None] * n
        for name, start in zip(self._starts, given, strict=True):
            if isinstance(start, nn.Parameter):
                self.register_parameter(name, start)
            else:
                self.register_buffer(name, start)
        self._default_recurrent_mode = default_recurrent_mode

    @property
    def recurrent_mode(self) -> bool:
        """Whether the last dimension of a tensordict is time."""
        mode = recurrent_mode()
        return self._default_recurrent_mode if mode is None else mode

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform by which an environment's tensordicts have the state, first zeros."""
        for state, new in zip(self.in_keys[1:-1], self.out_keys[1:], strict=True):
            if new != (key := unravel_key(("next", state))):
                raise ValueError(f"the new state's key must be {key}, got {new}")
        dtype: Any = self.rnn.weight_hh_l0.dtype
        specs = {key: Unbounded(self._shape, dtype=dtype) for key in self.in_keys[1:-1]}
        return TensorDictPrimer(specs, expand_specs=True)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> Any:
        """Write the output and the new state into the tensordict, and return it."""
        shape = tensordict.shape
        batch, steps = shape, 1
        if self.recurrent_mode:
            if not shape:
                raise ValueError("tensordict must have a last dimension, time, in recurrent mode")
            batch, steps = shape[:-1], shape[-1]
        elif self.rnn.bidirectional:
            reason = "the other starts at the end"
            raise ValueError(f"rnn must have one direction outside of recurrent mode: {reason}")
        x, begins = tensordict[self.in_keys[0]], tensordict[self.in_keys[-1]]
        refuse_shape(str(self.in_keys[0]), x, (*shape, self.rnn.input_size))
        rows, n = batch.numel(), len(self._starts)
        x, begins = x.reshape(rows, steps, x.shape[-1]), begins.reshape(rows, steps)
        given = {key: tensordict.get(key, None) for key in self.in_keys[1:-1]}
        missing, state = [key for key, each in given.items() if each is None], None
        if 0 < len(missing) < n:
            raise KeyError(f"{missing[0]} is missing beside the other state")
        if not missing:
            for key, each in given.items():
                refuse_shape(str(key), each, (*shape, *self._shape))
            # (An LSTM's c comes after its h.)
            state = torch.cat([v.reshape(rows, steps, *self._shape) for v in given.values()], 2)
        starts = [getattr(self, name) for name in self._starts if getattr(self, name) is not None]
        anew = torch.cat(starts) if starts else None
        if state is not None and self.recurrent_mode and state[begins].any():
            output, h_n = self._by_segment(x, begins, state, anew)
        else:
            start = None if state is None else state[:, 0].transpose(0, 1)
            marks = begins if self.rnn.batch_first else begins.t()
            output, h_n = self._call(x, start, reset=marks, reset_state=self._cut(anew))
        states = nn.functional.pad(h_n.transpose(0, 1).unsqueeze(1), (0, 0, 0, 0, steps - 1, 0))
        tensordict.set(self.out_keys[0], output.reshape(*shape, output.shape[-1]))
        for key, each in zip(self.out_keys[1:], states.chunk(n, 2), strict=True):
            tensordict.set(key, each.reshape(*shape, *self._shape))
        return tensordict

    def _cut(self, state: Tensor | None) -> Any:
        """A state as the RNN takes it."""
        n = len(self._starts)
        return state if state is None or n == 1 else tuple(state.chunk(n))

    def _call(self, x: Tensor, hx: Tensor | None, **options: Any) -> tuple[Tensor, Tensor]:
        """The RNN, of x ``[B, T, I]`` whatever its ``batch_first``."""
        x = x if self.rnn.batch_first else x.transpose(0, 1)
        output, h_n = self.rnn(x, self._cut(hx), **options)
        output = output if self.rnn.batch_first else output.transpose(0, 1)
        return output, torch.cat(h_n) if isinstance(h_n, tuple) else h_n

    def _by_segment(
        self, x: Tensor, begins: Tensor, state: Tensor, anew: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The RNN, where a row is cut at marked steps and each part starts from its own state."""
        rows, steps = begins.shape
        marked, begins = begins.flatten(), begins.clone()
        begins[:, 0] = True
        first = begins.flatten().nonzero().squeeze(1)
        number = begins.flatten().cumsum(0) - 1  # of the segment that a step is in
        step = torch.arange(rows * steps, device=x.device)
        lengths = torch.cat([first[1:], first.new_full((1,), rows * steps)]) - first
        segments = x.new_zeros(len(first), int(lengths.max()), x.shape[-1])
        segments[number, step - first[number]] = x.flatten(0, 1)
        start = state.flatten(0, 1)[first]
        if anew is not None:
            begun = marked[first] & ~start.flatten(1).any(1)
            start = torch.where(begun.view(-1, 1, 1), anew, start)
        output, h_n = self._call(segments, start.transpose(0, 1), lengths=lengths)
        return output[number, step - first[number]], h_n[:, number[steps - 1 :: steps]]
