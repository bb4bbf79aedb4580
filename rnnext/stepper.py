"""Stepper: an RNN that is fed one step at a time."""

import math
from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from rnnext import _C, _errors, _layers, functional
from rnnext._C import PROJECTED_ROWS as _PROJECTED_ROWS  # csrc/cpu/rnn/tuning.h
from rnnext._leak import Leak
from rnnext.convert import LengthsRNN
from rnnext.embedding import Embedding
from rnnext.embedding_rnn import EmbeddingRNN
from rnnext.leaky import LeakyRNN, LeakyRNNCell
from rnnext.rnn import CELL_WEIGHTS, Cell, Layers, cell_of, nonlinearity_of, weights_of

__all__ = ["Stepper"]

_Cells = nn.RNNCell | nn.GRUCell | nn.LSTMCell | LeakyRNNCell
_Module = Layers[Any] | LeakyRNN | EmbeddingRNN | nn.RNN | nn.GRU | nn.LSTM | _Cells
_KINDS = (Layers, LeakyRNN, EmbeddingRNN, nn.RNN, nn.GRU, nn.LSTM, *get_args(_Cells))
_FORWARDS = [kind.forward for kind in (*_KINDS, LengthsRNN, Cell, Embedding, nn.Embedding)]


class Stepper:
    """An RNN fed one step at a time: its weights are packed once, its states are kept.

    ``y_t = stepper(x_t)`` gives what the module gives for the whole sequence, to the bit
    (docs/numerics.md), without gradients, several times as fast as torch.nn.RNNCell
    (docs/performance.md). A Stepper of an :class:`rnnext.EmbeddingRNN` takes tokens, and gives, to
    the bit but under noise, ``rnn(embedding(tokens))``.

    What it is made from is read then: the weights, float32 matmul precision and the largest number
    of threads. A step raises RuntimeError if a parameter or buffer of the module has been written
    since, as by an optimizer; :meth:`refresh` reads the module anew. (torch does not count writes
    through ``.data`` or by a fused optimizer: of those a Stepper sees what changes the value in the
    middle of a tensor. It does not see that the module was given another tensor, form or dt.)

    Dropout, autocast and hooks do not apply: a weight that a hook computes, as torch's older
    ``spectral_norm`` does, is that of the module's last call. There is noise only where the module
    has ``noise_in_eval``. It is the noise of one call of the module, seeded when the module was
    read, and each step, also one from a state of the caller's, takes that of the next step.

    It is no module and has no place in compiled code. It can be copied and pickled: the copy reads
    the module, or its copy, as it is then, and goes on from the same states. A call keeps Python's
    lock, so threads may share it if they take turns.

    Args:
        module: an RNN, GRU, LSTM, LeakyRNN or EmbeddingRNN of one direction, or a cell, of rnnext
            or of torch.nn, on the CPU.
        batch_size: B, the number of sequences that go forward together. Default: 1.

    Raises:
        TypeError: ``module`` is something else, lacks a weight, or it or a part of it has a forward
            of its own; ``batch_size`` is no integer.
        ValueError: the module has two directions, ``batch_size`` is below 1, alpha not in (0, 1].
        RuntimeError: its weights are not on the CPU, or of a dtype that :class:`rnnext.RNN` lacks.

    Example::

        stepper = rnnext.Stepper(rnn)
        for x in stream:  # each [1, I]
            y = stepper(x)  # [1, H]
    """

    # So that `stepper.state = h` is refused, which would change nothing.
    __slots__ = ("__weakref__", "_cell", "_module", "_sent", "_sizes", "_stepper")

    def __init__(self, module: _Module, batch_size: int = 1) -> None:
        if not isinstance(module, _KINDS):
            raise TypeError(
                "module must be an RNN, GRU, LSTM, LeakyRNN, EmbeddingRNN or a cell, "
                f"got {type(module).__name__}"
            )
        rnn: Any = module.rnn if isinstance(module, EmbeddingRNN) else module
        for part in (module, *(module.children() if isinstance(module, EmbeddingRNN) else ())):
            if type(part).forward not in _FORWARDS or "forward" in vars(part):
                found = f"as no step calls it: {_name(part)} has"
                raise TypeError(f"module must have no forward of its own, {found}")
        if getattr(rnn, "bidirectional", False):
            raise ValueError("module must have one direction: the other starts at the end")
        if getattr(rnn, "proj_size", 0):
            raise ValueError(f"module must have proj_size 0, got {rnn.proj_size}")
        batch_size = _layers.as_integer("batch_size", batch_size)
        words = isinstance(module, EmbeddingRNN)
        inputs: int = module.embedding.num_embeddings if words else rnn.input_size
        layers: int = getattr(rnn, "num_layers", 1)
        self._sizes: tuple[int, ...] = (layers, inputs, rnn.hidden_size, batch_size)
        self._module, self._cell = module, cell_of(rnn)
        self._stepper = _packed(module, rnn, batch_size)

    num_layers = property(lambda self: self._sizes[0], doc="L, the number of layers.")
    input_size = property(lambda self: self._sizes[1], doc="I, or V of tokens.")
    hidden_size = property(lambda self: self._sizes[2], doc="H, the number of hidden units.")
    batch_size = property(lambda self: self._sizes[3], doc="B, the number of sequences.")

    def __call__(
        self, input: Tensor, reset: Tensor | None = None, reset_state: Any = None
    ) -> Tensor:
        """Go one step forward.

        Args:
            input: x_t, ``[B, I]``, or ``[I]`` if B is 1; of the weights' dtype, on the CPU. Of an
                EmbeddingRNN, the tokens, int32 or int64 ``[B]``, or ``[]`` if B is 1.
            reset: bool ``[B]``, which sequences begin anew with this step. Default: none.
            reset_state: what these begin with, ``[L, H]`` or ``[L, B, H]``. Default: zeros.

        Returns:
            The last layer's new output, ``[B, H]`` or ``[H]``. (It is the new state, but for a leak
            of the form ``"voltage"``.)

        Raises:
            IndexError: a token is outside 0..V-1; the message names it and its position.
            TypeError: not a tensor, tokens that are not integers, or a mask that is not bool.
            ValueError: ``reset`` or ``reset_state`` of another shape, or the second alone.
            RuntimeError: another shape, dtype or device, an input that requires a gradient while
                gradients are enabled, or weights that have changed. The states stay as they were.
        """
        before: tuple[Tensor, ...] = ()
        if reset is not None or reset_state is not None:
            before = self._own()
            self._stepper.set_state(self._anew(before, reset, reset_state))
        try:
            return self._stepper.step(input)
        except Exception:
            if before:
                self._stepper.set_state(_layers.as_given(self._cell, before))
            raise

    def step(
        self, input: Tensor, state: Any, reset: Tensor | None = None, reset_state: Any = None
    ) -> tuple[Tensor, Any]:
        """Go one step forward from a state of the caller's; the Stepper's own stays as it is.

        Args:
            input: as of a call; B may be less than the Stepper's here.
            state: each layer's state, ``[L, B, H]``; of an LSTM two of these, ``(h, c)``, here and
                below. It stays as it is, too.
            reset, reset_state: as of a call.

        Returns:
            ``(output, state)``: the output as of a call, and the new state, ``[L, B, H]``.

        Raises:
            IndexError, TypeError, ValueError, RuntimeError: as a call and :meth:`set_state`.
        """
        if reset is not None or reset_state is not None:
            first = state[0] if isinstance(state, (list, tuple)) and state else state
            many = isinstance(first, Tensor) and first.dim() == 3
            B = min(first.shape[1], self.batch_size) if many else self.batch_size
            state = self._anew(self._parts("state", state, B), reset, reset_state)
        return self._stepper.step_from(input, self._given(state))

    def _given(self, state: Any) -> Any:
        return state if self._cell != "lstm" else _layers.as_states("state", "lstm", state)

    def _parts(self, name: str, state: Any, B: int, *shapes: tuple[int, ...]) -> list[Tensor]:
        """The tensors, ``[L, B, H]``, of a state of B sequences."""
        L, H = self.num_layers, self.hidden_size
        parts = _errors.by_name(name, _layers.as_states(name, self._cell, state))
        _errors.refuse_others(parts)
        for name, part in parts.items():
            error = ValueError if shapes else RuntimeError
            _errors.refuse_shape(name, part, *shapes, (L, B, H), error=error)
        rows = [part if part.dim() == 3 else part.unsqueeze(1) for part in parts.values()]
        return [row.expand(L, B, H) for row in rows]

    def _anew(
        self,
        before: Sequence[Tensor],
        mask: Tensor | None,
        state: Any,
        names: tuple[str, str] = ("reset", "reset_state"),
    ) -> Any:
        """The states of before, with another, or zeros, where the mask marks a sequence."""
        _errors.refuse_others({}, **{names[0]: mask})
        if mask is None and names[0] == "reset":
            raise ValueError("reset_state needs a reset")
        begin = [h.new_zeros(()) for h in before]
        if state is not None:
            shared = (self.num_layers, self.hidden_size)
            begin = [p.detach() for p in self._parts(names[1], state, before[0].shape[1], shared)]
        for part, old in zip(begin, before, strict=True):  # torch.where would convert them
            _errors.refuse_devices(old, **{names[0]: mask, names[1]: part})
            if part.dtype != old.dtype:
                kind, given = str(old.dtype)[6:], str(part.dtype)[6:]
                raise RuntimeError(f"{names[1]} must have the weights' dtype, {kind}, got {given}")
        if mask is not None:
            if mask.dtype != torch.bool:
                raise TypeError(f"{names[0]} must be a bool tensor, got {str(mask.dtype)[6:]}")
            _errors.refuse_shape(names[0], mask, before[0].shape[1:2])
            rows = mask.unsqueeze(1)
            begin = [torch.where(rows, new, old) for new, old in zip(begin, before, strict=True)]
        return _layers.as_given(self._cell, begin)

    def _own(self) -> tuple[Tensor, ...]:
        return _layers.as_states("state", self._cell, self._stepper.get_state())

    def get_state(self) -> Any:
        """A copy of each layer's last state, ``[L, B, H]``: ``h_n`` of the module. First zeros."""
        return self._stepper.get_state()

    def set_state(self, state: Any) -> None:
        """Go on from these states, say from the ``h_n`` of a sequence that went before.

        Args:
            state: ``[L, B, H]``, of the weights' dtype, on the CPU. It is copied.

        Raises:
            TypeError: not a tensor.
            RuntimeError: another shape, dtype or device.
        """
        self._stepper.set_state(self._given(state))

    def reset(self, mask: Tensor | None = None, state: Any = None) -> None:
        """Begin anew: all sequences, or those that have ended.

        Args:
            mask: bool ``[B]``, which ones. Default: all.
            state: what they begin with, ``[L, H]`` or ``[L, B, H]``: the module's ``reset_state``.
                Default: zeros.

        Raises:
            TypeError: a mask that is no bool tensor, or a state that is no tensor.
            ValueError, RuntimeError: another shape, dtype or device.
        """
        if state is None:
            self._stepper.reset(mask)
            return
        self._stepper.set_state(self._anew(self._own(), mask, state, ("mask", "state")))

    def refresh(self) -> None:
        """Read the module's weights anew; the states stay, in the weights' dtype."""
        fresh = Stepper(self._module, self.batch_size)
        states, dtype = self._own(), fresh._own()[0].dtype
        fresh.set_state(_layers.as_given(self._cell, [state.to(dtype) for state in states]))
        self._stepper, self._sizes = fresh._stepper, fresh._sizes

    @torch.no_grad()
    def generate(
        self,
        score: Callable[[Tensor], Tensor],
        n: int,
        temperature: float = 1.0,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Go n steps forward, each with a token drawn from the scores of the output before.

        The first one is drawn from the scores of the present state: feed a prompt first. The last
        one is fed, too, so that another call goes on where this one ended.

        Args:
            score: gives the scores of the tokens, ``[B, V]``, for an output ``[B, H]``; such as the
                ``nn.Linear`` that the RNN was trained with.
            n: how many tokens.
            temperature: what the scores are divided by before the softmax that says how likely each
                token is; 0 takes the token of the highest score. Default: 1.
            generator: of the random numbers, for ``torch.multinomial``. Default: torch's.

        Returns:
            The tokens, int64 ``[n, B]``.

        Raises:
            TypeError: the Stepper is not of an EmbeddingRNN; an argument, or what ``score`` gives,
                is of another type.
            ValueError: ``n`` or ``temperature`` is negative, or the scores' shape is another.
            RuntimeError: as a call; a score is NaN, or, with a temperature, infinite. (One of -inf
                is that of a token that is never drawn.)
        """
        module = self._module
        if not isinstance(module, EmbeddingRNN):
            raise TypeError(f"generate needs a Stepper of an EmbeddingRNN, not {_name(module)}")
        if not callable(score):
            raise TypeError(f"score must be a function of the output, got {_name(score)}")
        n = _layers.as_integer("n", n)
        if n < 0:
            raise ValueError(f"n must not be negative, got {n}")
        _errors.refuse_no_generator(generator)
        _errors.refuse_no_number("temperature", temperature)
        if isinstance(temperature, Tensor):
            _errors.refuse_shape("temperature", temperature, (), (1,))
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature must be finite and not negative, got {temperature}")
        shape = (self.batch_size, self.input_size)
        tokens = torch.empty(n, self.batch_size, dtype=torch.int64, device="cpu")
        output = self._own()[0][-1]
        if isinstance(module.rnn, LeakyRNN) and module.rnn.form == "voltage":
            output = _stateless(output, module.rnn.nonlinearity, None)
        for token in tokens:
            scores = score(output)
            if not isinstance(scores, Tensor):
                raise TypeError(f"score must give a tensor, got {_name(scores)}")
            if scores.shape != shape:
                raise ValueError(f"score must give shape {list(shape)}, got {list(scores.shape)}")
            token.copy_(_draw(scores, temperature, generator))
            output = self._stepper.step(token)
        return tokens

    def __reduce__(self) -> tuple[Any, ...]:
        # torch.load(weights_only=True) knows the class. The state is kept alive here: torch sends
        # its memory to another process after that process has started.
        self._sent = self.get_state()
        return type(self), (self._module, self.batch_size), self._sent

    __setstate__ = set_state

    def __repr__(self) -> str:
        return (
            f"Stepper({self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, "
            f"batch_size={self.batch_size})"
        )


def _name(value: Any) -> str:
    return type(value).__name__


def _draw(scores: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """A token of each row of scores ``[B, V]``."""
    highest, tokens = scores.max(-1, keepdim=True)
    bad = highest.isnan() | highest.isneginf()
    if temperature > 0:
        dtype = torch.promote_types(scores.dtype, torch.float32)
        divisor = max(temperature, torch.finfo(dtype).tiny)  # less would become 0
        chances = ((scores - highest) / divisor).softmax(-1, dtype=dtype)
        bad = chances.isnan().any(-1)
    if bad.any():
        row = int(bad.flatten().nonzero()[0])
        raise RuntimeError(f"the scores of sequence {row} are not finite")
    if temperature > 0:
        tokens = torch.multinomial(chances, 1, generator=generator)
    return tokens.squeeze(-1)


@torch.no_grad()
def _packed(module: _Module, rnn: Any, batch_size: int) -> _C.Stepper:
    layers, table = _layers_of(rnn), None
    if isinstance(module, EmbeddingRNN):
        table = _table_of(module.embedding)
        weight_ih, weight_hh, bias_ih, bias_hh, *others = layers[0]
        # Multiplies W_ih ahead where that keeps the bits of the sum and saves time.
        fits = table.dtype == weight_hh.dtype and table.shape[1:] == weight_ih.shape[1:]
        if fits and table.element_size() >= 4 and len(table) <= _PROJECTED_ROWS:
            gates = len(weight_hh) // weight_hh.shape[1]
            left: list[Any] = [None, None]
            if gates > 1 and bias_ih is not None:  # b_hh joins W_hh h before that joins W_ih x
                left, bias_hh = [torch.zeros_like(bias_ih), bias_hh], torch.zeros_like(bias_ih)
            parts = [
                [None] * gates if each is None else each.chunk(gates)
                for each in (weight_ih, bias_ih, bias_hh)
            ]
            rows = [_stateless(table, "identity", *part) for part in zip(*parts, strict=True)]
            table = torch.cat(rows, 1)
            layers[0] = [None, weight_hh, *left, *others]
    leaks = isinstance(rnn, Leak)
    return _C.stepper(
        layers,
        table,
        [*module.named_parameters(), *module.named_buffers()],
        rnn.nonlinearity if leaks else nonlinearity_of(rnn),
        rnn.form if leaks else cell_of(rnn),
        batch_size,
    )


def _layers_of(rnn: Any) -> list[list[Any]]:
    """W_ih, W_hh, b_ih, b_hh, alpha, noise and its key of each layer, None where there is none."""
    is_cell = isinstance(rnn, nn.RNNCellBase)
    names = CELL_WEIGHTS if is_cell else rnn._flat_weights_names
    weights = weights_of(rnn, names)
    for place, (name, weight) in enumerate(zip(names, weights, strict=True)):
        if not isinstance(weight, Tensor) and not (is_cell and place >= 2):
            raise TypeError(f"{name} must be a tensor, got {_name(weight)}")
    if is_cell:
        n, L = 4, 1
        weights[2:] = _layers.both_biases(*weights[1:])  # a cell takes one alone
    else:
        n, L = 4 if rnn.bias else 2, rnn.num_layers
    alphas: list[Any] = [None] * L
    noise = keys = alphas
    if isinstance(rnn, Leak):
        alphas = rnn.alphas()
        if rnn.noise_in_eval and (stds := rnn._noise_stds(alphas)):
            noise, keys = stds, list(rnn._noise_keys(L))
    return [
        [*weights[n * k : n * k + n], *[None] * (4 - n), *others]
        for k, others in enumerate(zip(alphas, noise, keys, strict=True))
    ]


def _table_of(embedding: nn.Embedding) -> Tensor:
    if embedding.max_norm is None:
        return embedding.weight.detach()
    every = torch.arange(embedding.num_embeddings, device="cpu")
    rows: Tensor = embedding(every)  # max_norm scales them
    return rows


def _stateless(
    rows: Tensor, nonlinearity: str, weight_ih: Tensor | None, *biases: Tensor | None
) -> Tensor:
    """The output of one step from a state of zeros for each row, in the kernels' arithmetic."""
    H = rows.shape[-1] if weight_ih is None else len(weight_ih)
    with torch.autocast("cpu", enabled=False):
        output, _ = functional.recurrence(
            rows[None], None, weight_ih, rows.new_zeros(H, H), *biases, nonlinearity=nonlinearity
        )
    return output[0]
