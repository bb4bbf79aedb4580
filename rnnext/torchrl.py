"""RNNs as torchrl's policies take them: modules that read and write TensorDicts.

Needs torchrl, which ``import rnnext`` alone does not.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rnnext._layers import refuse_others, refuse_shape
from rnnext.leaky import LeakyRNN
from rnnext.rnn import RNN

try:
    from tensordict import TensorDictBase, unravel_key_list
    from tensordict.nn import TensorDictModuleBase, dispatch
    from torchrl.data import Unbounded
    from torchrl.envs import TensorDictPrimer
    from torchrl.modules.tensordict_module.rnn import recurrent_mode
except ImportError as error:
    raise ImportError("rnnext.torchrl needs torchrl: pip install torchrl") from error

__all__ = ["RNNModule"]

_Key = str | tuple[str, ...]


class RNNModule(TensorDictModuleBase):
    """An :class:`rnnext.RNN` or :class:`rnnext.LeakyRNN` for torchrl, beside its own ``GRUModule``.

    In a collector, every element of the tensordict is one step, and the state goes from step to
    step through the tensordict. Under ``torchrl.modules.set_recurrent_mode(True)``, as in losses,
    the last dimension of the tensordict is time, and all steps are one call. What ``is_init`` means
    is torchrl's: a step that it marks starts from ``reset_state``, but in recurrent mode from the
    state that the tensordict holds for it, unless that is none or zeros, as the primer's are.

    Args:
        rnn: the RNN, of either ``batch_first``.
        in_keys: the keys of the features ``[..., I]`` and of the state ``[..., L * D, H]``, and,
            unless it is ``"is_init"``, that of the mark ``[..., 1]`` which torchrl's
            ``InitTracker`` makes.
        out_keys: the keys of the output ``[..., D * H]`` and of the new state. That is
            ``("next", key)`` of the state's key, for torchrl to hand it on.
        reset_state: what episodes begin with, ``[L * D, H]``; a Parameter is learned.
            Default: zeros.
        default_recurrent_mode: the mode outside of ``set_recurrent_mode``. Default: ``False``.

    In recurrent mode no state is read but that of the first step and of marked ones, zeros if there
    is none, and the new state is that after the last step; the steps before it have zeros in its
    place. (``GAE`` marks the first of ``next``'s steps; it needs ``deactivate_vmap=True``, as with
    torchrl's modules.)

    Acting, too, calls the RNN: 3.6 us of the module's 28 (H=64, one thread, a Zen 5). A Stepper
    would take 2.0, and a :meth:`rnnext.Stepper.refresh` after each update.

    Raises:
        TypeError, ValueError: an argument that does not fit.

    Example::

        rnn = rnnext.RNN(4, 64)
        module = RNNModule(rnn, ["observation", "state"], ["features", ("next", "state")])
        env = env.append_transform(InitTracker()).append_transform(module.make_tensordict_primer())
        policy = TensorDictSequential(module, head)
    """

    def __init__(
        self,
        rnn: RNN | LeakyRNN,
        in_keys: Sequence[_Key],
        out_keys: Sequence[_Key],
        reset_state: Tensor | None = None,
        default_recurrent_mode: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(rnn, (RNN, LeakyRNN)):
            kind = f"{type(rnn).__module__}.{type(rnn).__name__}"
            raise TypeError(f"rnn must be an rnnext.RNN or LeakyRNN, got {kind}")
        in_keys, out_keys = unravel_key_list(list(in_keys)), unravel_key_list(list(out_keys))
        if len(in_keys) not in (2, 3):
            raise ValueError(f"in_keys must be of features, state and is_init, got {in_keys}")
        if len(out_keys) != 2:
            raise ValueError(f"out_keys must be of the output and the new state, got {out_keys}")
        self.in_keys = in_keys if len(in_keys) == 3 else [*in_keys, "is_init"]
        self.out_keys = out_keys
        self.rnn = rnn
        self._shape = (rnn.num_layers * (2 if rnn.bidirectional else 1), rnn.hidden_size)
        refuse_others({}, reset_state=reset_state)
        if reset_state is not None:
            refuse_shape("reset_state", reset_state, self._shape)
        if isinstance(reset_state, nn.Parameter):
            self.reset_state: Tensor | None = reset_state
        else:
            self.register_buffer("reset_state", reset_state)
        self._default_recurrent_mode = default_recurrent_mode

    @property
    def recurrent_mode(self) -> bool:
        """Whether the last dimension of a tensordict is time."""
        mode = recurrent_mode()
        return self._default_recurrent_mode if mode is None else mode

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform by which an environment's tensordicts have the state, first zeros."""
        state, (_, new) = self.in_keys[1], self.out_keys
        key = state if isinstance(state, tuple) else (state,)
        if new != ("next", *key):
            raise ValueError(f"the new state's key must be {('next', *key)}, got {new}")
        dtype = self.rnn.weight_hh_l0.dtype
        return TensorDictPrimer({state: Unbounded(self._shape, dtype=dtype)}, expand_specs=True)

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
            raise ValueError(
                "rnn must have one direction outside of recurrent mode: the other starts at the end"
            )
        x, begins = tensordict[self.in_keys[0]], tensordict[self.in_keys[2]]
        refuse_shape(str(self.in_keys[0]), x, (*shape, self.rnn.input_size))
        rows = batch.numel()
        x, begins = x.reshape(rows, steps, x.shape[-1]), begins.reshape(rows, steps)
        state = tensordict.get(self.in_keys[1], None)
        if state is not None:
            refuse_shape(str(self.in_keys[1]), state, (*shape, *self._shape))
            state = state.reshape(rows, steps, *self._shape)
        if state is not None and self.recurrent_mode and state[begins].any():
            output, h_n = self._by_segment(x, begins, state)
        else:
            start = None if state is None else state[:, 0].transpose(0, 1)
            marks = begins if self.rnn.batch_first else begins.t()
            output, h_n = self._call(x, start, reset=marks, reset_state=self.reset_state)
        states = nn.functional.pad(h_n.transpose(0, 1).unsqueeze(1), (0, 0, 0, 0, steps - 1, 0))
        tensordict.set(self.out_keys[0], output.reshape(*shape, output.shape[-1]))
        tensordict.set(self.out_keys[1], states.reshape(*shape, *self._shape))
        return tensordict

    def _call(self, x: Tensor, hx: Tensor | None, **options: Any) -> tuple[Tensor, Tensor]:
        """The RNN, of x ``[B, T, I]`` whatever its ``batch_first``."""
        if self.rnn.batch_first:
            return self.rnn(x, hx, **options)
        output, h_n = self.rnn(x.transpose(0, 1), hx, **options)
        return output.transpose(0, 1), h_n

    def _by_segment(self, x: Tensor, begins: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
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
        if self.reset_state is not None:
            anew = marked[first] & ~start.flatten(1).any(1)
            start = torch.where(anew.view(-1, 1, 1), self.reset_state, start)
        output, h_n = self._call(segments, start.transpose(0, 1), lengths=lengths)
        return output[number, step - first[number]], h_n[:, number[steps - 1 :: steps]]
