"""The operations as functions: parameters are arguments, nothing is kept between calls."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from rnnext import _C, _errors, _layers
from rnnext._layers import _Sequence

__all__ = [
    "check_indices",
    "embedding",
    "gru",
    "gru_cell",
    "lstm",
    "lstm_cell",
    "recurrence",
    "rnn",
    "rnn_cell",
    "rnn_ensemble",
]

# The same ops twice: torch.compile puts these into its graph, eager calls take _C's short way.
_embedding: Callable[..., Tensor] = torch.ops.rnnext.embedding.default
_FORMS = _C.forms()  # once: torch.compile does not follow the call
_Recurrence = Callable[..., tuple[Tensor, Tensor, list[Tensor]]]
_recurrence: _Recurrence = torch.ops.rnnext.recurrence.default
_ensemble: _Recurrence = torch.ops.rnnext.recurrence_ensemble.default

# The factor of noise_std, given alpha. (2 / alpha would overflow in float16.)
NOISE_SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "sqrt_2_over_alpha": lambda alpha: math.sqrt(2) * alpha.rsqrt(),
    "sqrt_2_alpha": lambda alpha: (2 * alpha).sqrt(),
    "none": torch.ones_like,
}


def rnn(
    input: _Sequence,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    lengths: _layers.Lengths | None = None,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
) -> tuple[_Sequence, Tensor]:
    """Elman RNN over whole sequences, as :class:`torch.nn.RNN` computes it.

    Each layer and direction computes ``h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)``.
    Below, T is the number of steps, B the batch size, I the input size, H the hidden size,
    L the number of layers and D that of directions; L and the biases are known by ``weights``.

    Args:
        input: the features, ``[T, B, I]``, ``[B, T, I]`` with ``batch_first``, ``[T, I]`` for one
            sequence, or a :class:`~torch.nn.utils.rnn.PackedSequence` of ``[N, I]`` data. float32,
            float64, bfloat16 or float16. T must be at least 1, B may be 0.
        hx: the state before the first step, ``[L * D, B, H]``, or ``[L * D, H]`` for one sequence;
            ``None`` for zeros.
        weights: all tensors in one list, in the order of ``torch.nn.RNN.parameters()``: for each
            layer and, within it, each direction ``weight_ih [H, I]`` (``[H, D * H]`` after the
            first layer), ``weight_hh [H, H]``, and ``bias_ih [H]``, ``bias_hh [H]`` or neither.
            Same dtype and device as ``input``.
        nonlinearity: f, ``"tanh"``, ``"relu"``, ``"sigmoid"``, ``"softplus"`` or ``"identity"``.
            Default: ``"tanh"``.
        batch_first: whether the batch is the first dimension of a 3-D ``input`` and of the output
            (not of ``hx`` and ``h_n``). Default: ``False``.
        dropout: probability of zeroing an output of each layer but the last. Default: 0.
        training: whether dropout applies. Default: ``False``.
        bidirectional: whether D is 2: a second set of weights reads each layer's input from its
            end. Default: ``False``.
        lengths: the number of steps of each sequence of a 3-D ``input``, a tensor ``[B]`` or a
            list of integers, each in 0..T: later steps are not computed, their output is 0, and
            ``h_n`` is the state after its own last step. Default: all have T steps.
        reset: where a new episode begins, bool ``[T, B]`` (``[B, T]`` with ``batch_first``, ``[T]``
            for one sequence): the state before that step is ``reset_state``, not what went before,
            nor hx. A direction that reads from the end starts anew where it leaves that step, so
            that a sequence of several episodes gives what they give one by one. Default: nowhere.
        reset_state: the state of each layer and direction before such a step, ``[L * D, H]``, or
            ``[L * D, B, H]`` for one of each sequence; it gets gradients. Default: zeros.

    Returns:
        ``(output, h_n)``: the last layer's states ``[T, B, D * H]`` in the layout of ``input``
        (packed for a packed input), and the last state of each layer and direction
        ``[L * D, B, H]``, or ``[L * D, H]`` for one sequence.

    Raises:
        ValueError: ``weights`` that are not as many as layers and directions have; ``input`` is not
            2-D or 3-D, its dtype is not that of ``weights``, an unknown ``nonlinearity``,
            ``lengths`` of another shape, outside 0..T, or with one sequence or a packed input, or
            ``reset`` of another shape or with a packed input, or ``reset_state`` of another shape
            or alone.
        TypeError: ``reset`` is not bool, ``lengths`` are no integers, or an argument, or one of
            ``weights``, is no tensor.
        RuntimeError: sizes, dtypes or devices do not fit together, T is 0, the dtype unsupported.

    J. L. Elman, "Finding structure in time", Cognitive Science 14, 1990. The interface follows
    ``torch.nn.RNN`` and its ``torch._VF.rnn_tanh``.
    """
    of, flat = _layers.stack_of(weights, bidirectional, batch_first, dropout, training)
    return _layers.run(of, flat, input, hx, lengths, reset, reset_state, "elman", nonlinearity)


def gru(
    input: _Sequence,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    lengths: _layers.Lengths | None = None,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
) -> tuple[_Sequence, Tensor]:
    """GRU over whole sequences, as :class:`torch.nn.GRU` computes it: :class:`rnnext.GRU`.

    Arguments, results and errors are :func:`rnn`'s, but weights and biases have 3 H rows, of the
    gates r, z and n.
    """
    of, flat = _layers.stack_of(weights, bidirectional, batch_first, dropout, training)
    return _layers.run(of, flat, input, hx, lengths, reset, reset_state, "gru")


def lstm(
    input: _Sequence,
    hx: _layers.Pair | None,
    weights: Sequence[Tensor],
    *,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    lengths: _layers.Lengths | None = None,
    reset: Tensor | None = None,
    reset_state: _layers.Pair | None = None,
) -> tuple[_Sequence, _layers.Pair]:
    """LSTM over whole sequences, as :class:`torch.nn.LSTM` computes it: :class:`rnnext.LSTM`.

    Arguments, results and errors are :func:`rnn`'s, but weights and biases have 4 H rows, of the
    gates i, f, g and o, and ``hx``, ``reset_state`` and the last states are pairs ``(h, c)``.
    """
    of, flat = _layers.stack_of(weights, bidirectional, batch_first, dropout, training)
    return _layers.run(of, flat, input, hx, lengths, reset, reset_state, "lstm")


def rnn_ensemble(
    input: Tensor,
    hx: Any,
    weights: Sequence[Tensor],
    *,
    cell: str = "rnn",
    nonlinearity: str = "tanh",
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    lengths: _layers.Lengths | None = None,
    reset: Tensor | None = None,
    reset_state: Any = None,
) -> tuple[Tensor, Any]:
    """:func:`rnn` of M members, each with weights of its own, one call a layer.

    Results and gradients are those of :func:`rnn` for each member. On the CPU as many members run
    at once as there are threads. :func:`torch.vmap` over weights comes to the same.

    Args:
        input: the features of each member, ``[M, T, B, I]`` (``[M, B, T, I]`` with
            ``batch_first``), or, one dimension less, of all of them.
        hx: the states before the first step, ``[M, L * D, B, H]``, or ``None`` for zeros; of an
            LSTM a pair of these.
        weights: as :func:`rnn`'s, each tensor with one more dimension in front, M.
        cell: ``"rnn"``, ``"gru"`` or ``"lstm"``: whose members, and weights. Default: ``"rnn"``.
        nonlinearity: as :func:`rnn`'s. Default: ``"tanh"``.
        batch_first: whether the batch comes before the time. Default: ``False``.
        dropout: as :func:`rnn`'s, drawn for each member. Default: 0.
        training: whether dropout applies. Default: ``False``.
        bidirectional: as :func:`rnn`'s. Default: ``False``.
        lengths: the number of steps of each sequence, ``[M, B]``, or ``[B]`` for all members, as
            :func:`rnn`'s. Default: all have T steps.
        reset: where a new episode begins, bool, of the shape of ``input`` without its features, for
            each member or for all. Default: nowhere.
        reset_state: as :func:`rnn`'s, with M in front. Default: zeros.

    Returns:
        ``(output, h_n)``: the last layer's states ``[M, T, B, D * H]`` (``[M, B, T, D * H]`` with
        ``batch_first``), and the last state of each layer and direction, ``[M, L * D, B, H]``.

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`rnn`, but ValueError for ``hx`` of another
            shape and an ``input`` of other members, RuntimeError for ``weights`` of other members.
    """
    cell = _layers.cell_named(cell)
    of, flat = _layers.stack_of(weights, bidirectional, batch_first, dropout, training, members=1)
    states, starts = (
        _errors.by_name(name, () if given is None else _layers.as_states(name, cell, given))
        for name, given in (("hx", hx), ("reset_state", reset_state))
    )
    _errors.refuse_others({"input": input, **states, **starts}, reset=reset)
    if flat[1].dim() != 3:
        raise RuntimeError(f"weights[1] must have 3 dimensions, got {flat[1].dim()}")
    M, H, D = flat[1].shape[0], flat[1].shape[-1], 2 if bidirectional else 1
    if input.dim() not in (3, 4):
        raise ValueError(f"input must have 3 or 4 dimensions, got {input.dim()}")
    if not 0 <= dropout <= 1:
        raise RuntimeError(f"dropout must be between 0 and 1, got {dropout}")
    batch = input.shape[-3 if batch_first else -2]
    shape = (M, of["num_layers"] * D, batch, H)
    for name, state in states.items():
        _errors.refuse_shape(name, state, shape)
    for name, start in starts.items():
        _errors.refuse_shape(name, start, (*shape[:2], H), shape)
        starts[name] = start.unsqueeze(-2).expand(shape) if start.dim() == 3 else start

    def of_layer(tensors: Mapping[str, Tensor], first: int) -> Tensor | None:
        own = [tensor[:, first : first + D] for tensor in tensors.values()]
        return torch.cat(own, 1) if own else None

    def of_each(tensor: Tensor, dims: int) -> Tensor:
        """A tensor with M in front and, where it has both, the time before the batch."""
        every = tensor.expand(M, *tensor.shape) if tensor.dim() < dims else tensor
        return every.transpose(1, 2) if batch_first and dims > 2 else every

    if reset is not None:
        _errors.refuse_shape("reset", reset, input.shape[-3:-1], (M, *input.shape[-3:-1]))
        reset = of_each(reset, 3)
    if lengths is not None:
        lengths = _layers.as_lengths(lengths, flat[0].device)
        _errors.refuse_shape("lengths", lengths, (batch,), (M, batch))
        lengths = of_each(lengths, 2)
    _errors.refuse_shape("input", input, input.shape[-3:], (M, *input.shape[-3:]))
    x = of_each(input, 4)
    if x.shape[1] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    per_direction, h_n = 4 if of["bias"] else 2, []
    for first in range(0, of["num_layers"] * D, D):
        own = flat[first * per_direction : (first + D) * per_direction]
        lists = [own[i::per_direction] if i < per_direction else [] for i in range(4)]
        x, h, _ = _ensemble(
            x, of_layer(states, first), *lists, None, lengths, None, reset,
            of_layer(starts, first), [], cell, [], None, nonlinearity, [False, True][:D], False,
        )  # fmt: skip
        h_n.append(torch.split(h, D, 1))
        if dropout > 0 and training and first + D < of["num_layers"] * D:
            x = torch.dropout(x, dropout, training)
    last = _layers.as_given(cell, [torch.cat(each, 1) for each in zip(*h_n, strict=True)])
    return x.transpose(1, 2) if batch_first else x, last


def recurrence(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    batch_first: bool = False,
    reverse: bool = False,
    lengths: _layers.Lengths | None = None,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    alpha: float | Tensor | None = None,
    form: str = "rate",
    noise_std: float | Tensor | None = None,
    noise_scale: str | None = None,
    noise_key: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One layer and direction of an Elman RNN, with what loops over time are written for.

    ``h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)``, or, with ``alpha``, a leaky RNN. Its forms,
    where ``p_t = W_ih x_t + b_ih + W_hh o_{t-1} + b_hh`` and a is alpha:

    - ``"rate"``: ``h_t = (1 - a) h_{t-1} + a f(p_t)``, output ``o_t = h_t`` (Yang et al. 2019);
    - ``"voltage"``: ``v_t = (1 - a) v_{t-1} + a p_t``, output ``o_t = f(v_t)``; hx, h_n and
      reset_state are v (Song et al. 2016);
    - ``"blend"``: ``h_t = f((1 - a) h_{t-1} + a p_t)``, output ``o_t = h_t`` (Masse et al. 2019).

    Gradients reach every tensor but ``lengths``, ``reset`` and the noise's, to any order.

    Args:
        input: the features, ``[T, B, I]`` (``[B, T, I]`` with ``batch_first``), or, without
            ``weight_ih``, precomputed ``W_ih x_t``, ``[T, B, H]``. float32, float64, bfloat16 or
            float16.
        hx: the state before the first step, ``[B, H]``, or ``None`` for zeros.
        weight_ih: W_ih, ``[H, I]``, or ``None``: ``input`` is precomputed.
        weight_hh: W_hh, ``[H, H]``.
        bias_ih, bias_hh: b_ih and b_hh, ``[H]``. Default: none.
        nonlinearity: f, as :func:`rnn`'s. Default: ``"tanh"``.
        batch_first: whether the batch is the first dimension of ``input``, ``reset`` and the
            output. Default: ``False``.
        reverse: whether it runs from the end of each sequence. Default: ``False``.
        lengths: the number of steps of each sequence, ``[B]``, as :func:`rnn`'s.
        reset: where a new episode begins, bool ``[T, B]`` (``[B, T]`` with ``batch_first``): the
            state before that step is ``reset_state``. With ``reverse``, the state that leaves that
            step is dropped. Default: nowhere.
        reset_state: ``[H]`` or ``[B, H]``. Default: zeros.
        alpha: the leak, a float, ``[]`` or ``[H]``, in (0, 1]; 1 is no leak. ``dt / tau`` where the
            RNN is an equation in time. Default: none.
        form: of the leak, given with ``alpha``. Default: ``"rate"``.
        noise_std: standard deviation of the noise that is added to p_t (to what f takes, without a
            leak), before it is scaled, on the CPU: a float, or a tensor ``[]`` or ``[H]`` that
            requires no gradient. Default: no noise.
        noise_scale: what multiplies ``noise_std`` where there is an ``alpha``, as
            :class:`rnnext.LeakyRNN`'s. Default: ``"sqrt_2_over_alpha"``, and 1 without ``alpha``.
        noise_key: the key of the noise, int64 ``[]`` on the CPU: :func:`rnnext.ops.noise` gives its
            numbers. ``torch.randint(2**63 - 1, (), generator=...)`` draws one. Default: drawn
            from torch's generator.

    Returns:
        ``(output, h_n)``: the outputs, ``[T, B, H]`` in the layout of ``input``, and the state
        after each row's last step, ``[B, H]``.

    Raises:
        ValueError: ``alpha`` outside (0, 1] (checked on the CPU, or where it is a float) or of
            another shape, ``noise_std`` negative, not finite, of another shape or requiring a
            gradient, ``noise_key`` without it, an unknown ``nonlinearity`` or ``form``, ``reset``,
            ``reset_state`` or ``lengths`` of another shape, ``reset_state`` alone, or a length
            outside 0..T, or a ``form`` or ``noise_scale`` without ``alpha``.
        TypeError: ``reset`` is not bool, ``lengths`` are no integers, ``alpha`` or
            ``noise_std`` is neither a number nor a tensor, or another argument no tensor.
        RuntimeError: sizes, dtypes or devices do not fit together.

    :class:`rnnext.LeakyRNN` has the papers' titles.
    """
    _errors.refuse_others(
        {"input": input, "weight_hh": weight_hh},
        hx=hx, weight_ih=weight_ih, bias_ih=bias_ih, bias_hh=bias_hh,
        reset=reset, reset_state=reset_state, noise_key=noise_key,
    )  # fmt: skip
    if input.dim() != 3:
        raise ValueError(f"input must have 3 dimensions, got {input.dim()}")
    if weight_hh.dim() != 2 or weight_hh.shape[0] != weight_hh.shape[1]:
        raise RuntimeError(f"weight_hh must have shape [H, H], got {list(weight_hh.shape)}")
    x = input.transpose(0, 1) if batch_first else input
    hidden = weight_hh.shape[0]
    state = (x.shape[1], hidden)
    if hx is not None:
        _errors.refuse_shape("hx", hx, state, error=RuntimeError)
    if reset is not None:
        _errors.refuse_shape("reset", reset, input.shape[:2])
        reset = reset.transpose(0, 1) if batch_first else reset
    bias_ih, bias_hh = _layers.both_biases(weight_hh, bias_ih, bias_hh)
    if reset_state is not None:
        _errors.refuse_shape("reset_state", reset_state, (hidden,), state)
        reset_state = reset_state.expand(1, *state)
    alphas, noise = [], []
    _errors.refuse_word("form", form, _FORMS)
    if alpha is not None:
        alphas = [_of_units("alpha", alpha, weight_hh, lambda a: 0 < a <= 1, "in (0, 1]")]
    elif form != "rate":
        raise ValueError(f"form must not be given without alpha, got {form!r}")
    if noise_scale is not None and (alpha is None or noise_std is None):
        raise ValueError(f"noise_scale must be given with alpha and noise_std, got {noise_scale!r}")
    if noise_std is not None:
        must = "finite and not negative"
        most = torch.finfo(weight_hh.dtype).max if weight_hh.is_floating_point() else math.inf
        std = _of_units("noise_std", noise_std, weight_hh, lambda s: 0 <= s <= most, must)
        if std.requires_grad and torch.is_grad_enabled():
            raise ValueError("noise_std must not require a gradient: none reaches it")
        noise = [scaled_noise(std, alphas[0], noise_scale)] if alphas else [std]
    if noise and noise_key is None:
        noise_key = torch.randint(2**63 - 1, (), device="cpu")
    if noise_key is not None and not noise:
        raise ValueError("noise_key must not be given without noise_std")
    if lengths is not None:
        lengths = _layers.as_lengths(lengths, weight_hh.device)
    output, h_n, _ = _recurrence(
        x, None if hx is None else hx.unsqueeze(0),
        *([] if each is None else [each] for each in (weight_ih, weight_hh, bias_ih, bias_hh)),
        None, lengths, None, reset, reset_state,
        alphas, form if alphas else "elman", noise, noise_key, nonlinearity, [reverse], False,
    )  # fmt: skip
    return output.transpose(0, 1) if batch_first else output, h_n.squeeze(0)


def _of_units(
    name: str, value: float | Tensor, weight_hh: Tensor, fits: Callable[[float], bool], must: str
) -> Tensor:
    """A number, ``[]`` or ``[H]``, as W_hh's ``[H]``; ValueError for a number that does not fit."""
    H = weight_hh.shape[0]
    _errors.refuse_no_number(name, value)
    if isinstance(value, Tensor):
        _errors.refuse_shape(name, value, (), (H,))
        return value.to(weight_hh).expand(H)
    if not fits(value):
        raise ValueError(f"{name} must be {must}, got {value}")
    return weight_hh.new_full((H,), float(value))


def scaled_noise(std: float | Tensor, alpha: Tensor, scale: str | None = None) -> Tensor:
    """The deviation of what is added to p_t; alpha counts as a constant."""
    scale = "sqrt_2_over_alpha" if scale is None else scale
    _errors.refuse_word("noise_scale", scale, list(NOISE_SCALES))
    return std * NOISE_SCALES[scale](alpha.detach())


def rnn_cell(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    nonlinearity: str = "tanh",
) -> Tensor:
    """One step of an Elman RNN: ``f(W_ih x + b_ih + W_hh h + b_hh)``, as torch.nn.RNNCell.

    Args:
        input: the features x, ``[B, I]``, or ``[I]`` for one row. float32, float64, bfloat16 or
            float16.
        hx: the state h, ``[B, H]``, or ``[H]`` for one row; ``None`` for zeros.
        weight_ih: W_ih, ``[H, I]``.
        weight_hh: W_hh, ``[H, H]``.
        bias_ih, bias_hh: b_ih and b_hh, ``[H]``. Default: none.
        nonlinearity: f, as :func:`rnn`'s. Default: ``"tanh"``.

    Returns:
        The next state, ``[B, H]``, or ``[H]`` for one row.

    Raises:
        ValueError: ``input`` or ``hx`` is not 1-D or 2-D, or an unknown ``nonlinearity``.
        TypeError: an argument is no tensor.
        RuntimeError: sizes, dtypes or devices do not fit together, or the dtype is not supported.

    J. L. Elman, "Finding structure in time", Cognitive Science 14, 1990. The interface follows
    ``torch.rnn_tanh_cell``.
    """
    weights = (weight_ih, weight_hh, bias_ih, bias_hh)
    result: Tensor = _layers.step("elman", input, hx, *weights, nonlinearity)
    return result


def gru_cell(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> Tensor:
    """One step of a GRU, as torch.nn.GRUCell: :func:`rnn_cell` of weights of 3 H rows."""
    result: Tensor = _layers.step("gru", input, hx, weight_ih, weight_hh, bias_ih, bias_hh)
    return result


def lstm_cell(
    input: Tensor,
    hx: _layers.Pair | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> _layers.Pair:
    """One step of an LSTM, as torch.nn.LSTMCell: :func:`rnn_cell` of weights of 4 H rows and of
    states ``(h, c)``."""
    result: _layers.Pair = _layers.step("lstm", input, hx, weight_ih, weight_hh, bias_ih, bias_hh)
    return result


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Rows of a table by index: ``output[..., :] = weight[input[...], :]``.

    Args:
        input: the indices, int32 or int64, any shape, each in 0..V-1. Those of a
            nested tensor are looked up by torch's own kernel.
        weight: the table, ``[V, E]``, any strides, any dtype; a gradient needs float32, float64,
            bfloat16 or float16.
        padding_idx: the row, in -V..V-1, that gets no gradient. Default: none.
        max_norm: the rows looked up whose norm exceeds this are scaled down to it, in place in
            ``weight``, before they are read. Default: none.
        norm_type: the p of that p-norm. Default: 2.
        scale_grad_by_freq: divide a row's gradient by its count in ``input``. Default: ``False``.
        sparse: whether the gradient of ``weight`` is a sparse tensor; it is coalesced, with sorted
            rows. Default: ``False``.

    Returns:
        The rows, ``[*input.shape, E]``.

    Raises:
        AssertionError: ``padding_idx`` is outside -V..V-1.
        IndexError: an index is outside 0..V-1; the message names it and its position. On the
            CPU ``weight`` is then unchanged.
        TypeError: ``input`` or ``weight`` is not a tensor, or ``max_norm`` no number.
        RuntimeError: indices that are not int32 or int64, ``weight`` not 2-D, or mixed devices.

    The interface follows ``torch.nn.functional.embedding``.
    """
    if padding_idx is None:
        padding_idx = -1
    elif isinstance(weight, Tensor) and weight.dim():
        rows = weight.size(0)
        if not -rows <= padding_idx < rows:
            raise AssertionError("Padding_idx must be within num_embeddings")
        if padding_idx < 0:
            padding_idx += rows
    gather = _embedding if is_compiling() else _C.embedding
    try:
        if input.is_nested and max_norm is None:
            return torch.embedding(weight, input, padding_idx, scale_grad_by_freq, sparse)
        if max_norm is not None:
            table, known = weight.detach(), input.contiguous()
            if not table.is_cpu:  # torch would write at a bad index, which is only found later
                torch.embedding_renorm_(table, known.clamp(0, len(table) - 1), max_norm, norm_type)
            # Raises on a bad index before any row is written.
            elif _may_exceed(gather(table, input, -1, False, False), max_norm, norm_type):
                torch.embedding_renorm_(table, known, max_norm, norm_type)
        return gather(weight, input, padding_idx, scale_grad_by_freq, sparse)
    except (AttributeError, RuntimeError, TypeError):
        for place, (name, value) in enumerate({"weight": weight, "indices": input}.items(), 1):
            if not isinstance(value, Tensor):
                found = f"(position {place}) must be Tensor, not {type(value).__name__}"
                raise TypeError(f"embedding(): argument '{name}' {found}") from None
        if max_norm is not None:
            _errors.refuse_no_number("max_norm", max_norm)
        _errors.refuse_devices(weight, indices=input)
        raise


def _may_exceed(rows: Tensor, max_norm: float, norm_type: float) -> bool:
    """Whether a row may have to be scaled down. (torch counts the call as a write in any case.)"""
    recorded = is_compiling() or torch._C._get_tracing_state() is not None
    if recorded or torch._C._are_functorch_transforms_active() or type(rows) is not Tensor:
        return True
    norms: Tensor = torch.linalg.vector_norm(rows, norm_type, -1)
    return bool((norms > max_norm).any())


def check_indices(device: torch.device | str | int | None = None) -> None:
    """Wait for a GPU, and raise if a call there has met an index out of range.

    On the CPU the call itself raises. A GPU runs behind Python, so there it is the next call with
    indices that raises; this function is for the last one, and for replays of a CUDA graph, which
    call nothing. The row in question was read as zeros (by an embedding) or as row 0 (by
    ``EmbeddingRNN``), and got no gradient.

    Args:
        device: a CUDA device. Default: the current one.

    Raises:
        IndexError: an index was out of range since the last such error on the device; the message
            names it and its position.
    """
    if device is None and not torch.cuda.is_available():
        return
    index = torch.cuda._utils._get_device_index(device, optional=True, allow_cpu=True)
    if index is not None and index < 0:
        return
    torch.cuda.synchronize(index)
    _C.check_indices(index)
