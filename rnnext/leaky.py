"""LeakyRNN: an Elman RNN whose state leaks, as continuous-time models of neurons do."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnext import _C, _deploy, _layers, ops
from rnnext.functional import NOISE_SCALES, recurrence, scaled_noise
from rnnext.rnn import drop_flat_weights, weights_of

__all__ = ["LeakyRNN"]

_Sequence = TypeVar("_Sequence", Tensor, PackedSequence)
_PerLayer = float | Tensor | Sequence[float | Tensor]


def _word(name: str, known: Sequence[str]) -> Any:
    """A property that is one of these words, checked when it is set."""

    def assign(self: nn.Module, value: str) -> None:
        _layers.refuse_word(name, value, known)
        self.__dict__[name] = value

    return property(lambda self: self.__dict__[name], assign)


class LeakyRNN(nn.RNNBase):
    """Multi-layer leaky Elman RNN, with :class:`rnnext.RNN`'s parameters and calls.

    Each layer computes, with ``p_t = W_ih x_t + b_ih + W_hh o_{t-1} + b_hh + noise`` and a = alpha:

    - ``form="rate"``: ``h_t = (1 - a) h_{t-1} + a f(p_t)``, output ``o_t = h_t``;
    - ``form="voltage"``: ``v_t = (1 - a) v_{t-1} + a p_t``, output ``o_t = f(v_t)``; hx and h_n are
      v;
    - ``form="blend"``: ``h_t = f((1 - a) h_{t-1} + a p_t)``, output ``o_t = h_t``.

    Where alpha is 1, there is no noise and states are finite, the first and the last are
    :class:`rnnext.RNN`, to the bit. (0 times an infinite state is NaN.)

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as
            :class:`rnnext.RNN`'s.
        nonlinearity: f, ``"tanh"``, ``"relu"``, ``"sigmoid"``, ``"softplus"`` or ``"identity"``.
            Default: ``"tanh"``.
        alpha: the leak in (0, 1]: a float, or a tensor ``[]``, or ``[H]`` for one of each unit; or
            a list of these, one for each layer.
        dt: the length of a step, in the unit of ``tau``; given in place of ``alpha``.
        tau: the time constant, at least dt, given as ``alpha``: that is then ``dt / tau``.
        learn_alpha: whether alpha is learned, by each layer and direction for itself: the parameter
            is its logit, and ``alpha = sigmoid(logit)``, in (0, 1]. One for each unit if ``alpha``
            or ``tau`` has one for each, else one for all units. Default: ``False``.
        form: as above. Default: ``"rate"``.
        noise_std: standard deviation of the noise added to p_t, drawn anew for every step, sequence
            and unit from torch's generator: a float, or a tensor ``[H]``. Default: 0.
        noise_scale: what multiplies ``noise_std``: ``"sqrt_2_over_alpha"``, as Song et al. (2016)
            scale noise that alpha is to multiply, ``"sqrt_2_alpha"`` or ``"none"``.
            Default: ``"sqrt_2_over_alpha"``.
        noise_in_eval: whether there is noise in ``eval()`` too. Default: ``False``.
        device, dtype: as :class:`rnnext.RNN`'s.

    Attributes:
        weight_ih_l[k]: as :class:`rnnext.RNN`'s, and so weight_hh_l[k], bias_ih_l[k], bias_hh_l[k].
        alpha: the leak, ``[]``, ``[H]`` or, of a list, ``[L, 1]`` or ``[L, H]``; where it is
            learned, that of each layer and direction, ``[L * D, H]``. It can be set where it was
            given and is not learned.
        dt: a float; None where alpha was given, else it can be set: tau stays, and alpha changes.
        tau: ``dt / alpha``, or None; it can be set where it was given and is not learned.
        logit_alpha_l[k]: ``[]`` or ``[H]``, where it is; ``_reverse`` of the second direction.
        nonlinearity, form, noise_std, noise_scale, noise_in_eval: as given; they can be set.

    The state dict holds weights and biases, and of the leak ``_alpha``, or ``_tau`` and ``_dt``, or
    logits and ``_dt``; form and noise are not in it. A module keeps its own dt when it loads tau,
    and so gets an alpha of its own; logits of another dt are refused.

    Raises:
        TypeError, ValueError: an argument of the wrong type or outside its range; neither ``alpha``
            nor ``dt`` and ``tau``, or both; ``alpha`` 1 that is to be learned.
        AttributeError: alpha, dt or tau is set where it cannot be.

    G. R. Yang et al., "Task representations in neural networks trained to perform many cognitive
    tasks", Nature Neuroscience 22, 2019 (rate). H. F. Song, G. R. Yang, X.-J. Wang, "Training
    excitatory-inhibitory recurrent neural networks for cognitive tasks", PLoS Comput. Biol. 12(2),
    2016 (voltage; noise). N. Y. Masse et al., "Circuit mechanisms for the maintenance and
    manipulation of information in working memory", Nature Neuroscience 22, 2019 (blend).
    """

    nonlinearity: str = _word("nonlinearity", _C.nonlinearities())
    form: str = _word("form", _C.forms())
    noise_scale: str = _word("noise_scale", list(NOISE_SCALES))
    weight_hh_l0: Tensor
    _step: float | None
    _dt: Tensor
    _noise_std: float | Tensor
    _first: dict[str, Tensor] = {}  # noqa: RUF012  replaced, by what reset_parameters gives back
    __prepare_scriptable__ = _deploy.refuse_script
    _slow_forward = _deploy.slow_forward
    _init_flat_weights = _update_flat_weights = drop_flat_weights

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        alpha: _PerLayer | None = None,
        dt: float | None = None,
        tau: _PerLayer | None = None,
        learn_alpha: bool = False,
        form: str = "rate",
        noise_std: float | Tensor = 0.0,
        noise_scale: str = "sqrt_2_over_alpha",
        noise_in_eval: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        num_layers = _layers.as_integer("num_layers", num_layers, "; alpha is given by name")
        super().__init__(
            "RNN_TANH",  # RNNBase takes the number of gates from it
            input_size, hidden_size, num_layers=num_layers, bias=bias, batch_first=batch_first,
            dropout=dropout, bidirectional=bidirectional, device=device, dtype=dtype,
        )  # fmt: skip
        self.nonlinearity = nonlinearity
        self.form = form
        self._set_noise_std(noise_std)
        self.noise_scale = noise_scale
        self.noise_in_eval = noise_in_eval
        self.learn_alpha = learn_alpha
        if not learn_alpha:
            self._set_leak(alpha, dt, tau)
            return
        self._step, value = self._leak(alpha, dt, tau)
        value = value if self._step is None else self._step / value
        if bool((value == 1).any()):
            raise ValueError("alpha must be less than 1 to be learned: its logit is infinite")
        logits = [each.logit() for each in self._of_each(value)]
        first = dict(zip(self._logit_names(), logits, strict=True))
        for name, logit in first.items():
            own = logit.to(self.weight_hh_l0.device, copy=True)
            self.register_parameter(name, nn.Parameter(own))
        self._first = self._first | first
        self._keep_dt()

    def _keep(self, name: str, value: Tensor, persistent: bool = True) -> None:
        """Hold a copy in a buffer; the value is what reset_parameters gives back."""
        # New dicts: a copy.copy of the module has the old ones, and keeps its own.
        self._buffers, self._first = dict(self._buffers), self._first | {name: value}
        own = value.to(self.weight_hh_l0, copy=True)
        self.register_buffer(name, own, persistent=persistent)

    def _keep_dt(self) -> None:
        if self._step is not None:
            self._keep("_dt", torch.tensor(self._step, dtype=torch.float64, device="cpu"))

    def _set_leak(self, alpha: _PerLayer | None, dt: float | None, tau: _PerLayer | None) -> None:
        self._step, value = self._leak(alpha, dt, tau)
        self._keep("_alpha" if self._step is None else "_tau", value)
        self._keep_dt()

    def _leak(
        self, alpha: _PerLayer | None, dt: float | None, tau: _PerLayer | None
    ) -> tuple[float | None, Tensor]:
        return _leak(
            alpha, dt, tau, self.learn_alpha, self.num_layers, self.hidden_size,
            self.weight_hh_l0.dtype,
        )  # fmt: skip

    @property
    def alpha(self) -> Tensor:
        """The leak of all layers."""
        buffers: dict[str, Any] = self._buffers  # twice as fast as nn.Module.__getattr__
        alpha: Tensor | None = buffers.get("_alpha")
        if alpha is not None:
            return alpha
        if (tau := buffers.get("_tau")) is not None:
            return torch.div(buffers["_dt"], tau)  # a third of the time of a number's
        return torch.stack(self.alphas())

    @alpha.setter
    def alpha(self, value: _PerLayer) -> None:
        self._refuse_learned("alpha")
        if self._step is not None:
            raise AttributeError("alpha is dt / tau: set these")
        self._set_leak(value, None, None)

    @property
    def dt(self) -> float | None:
        """The length of a step, if it was given."""
        return self._step

    @dt.setter
    def dt(self, value: float) -> None:
        if self._step is None:
            raise AttributeError("dt must be given with tau, in the place of alpha, to be set")
        if not self.learn_alpha:
            self._set_leak(None, value, self.tau)
            return
        dt = _length(value)
        names = self._logit_names()
        logits = [getattr(self, name) for name in names] + [self._first[name] for name in names]
        with torch.no_grad():
            alphas = [logit.double().sigmoid() * (dt / self._step) for logit in logits]
            if any(bool((alpha >= 1).any()) for alpha in alphas):
                raise ValueError(f"dt must be less than the learned tau, got {value}")
            for logit, alpha in zip(logits, alphas, strict=True):
                logit.copy_(alpha.logit())
        self._step = dt
        self._keep_dt()

    @property
    def tau(self) -> Tensor | None:
        """The time constant of all layers, if dt was given."""
        if self._step is None or not self.learn_alpha:
            return self._buffers.get("_tau")
        return self._step / self.alpha

    @tau.setter
    def tau(self, value: _PerLayer) -> None:
        self._refuse_learned("tau")
        if self._step is None:
            raise AttributeError("tau must be given with dt, in the place of alpha, to be set")
        self._set_leak(None, self._step, value)

    def _refuse_learned(self, name: str) -> None:
        if self.learn_alpha:
            raise AttributeError(f"{name} is learned: set the parameters logit_alpha_l[k]")

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        dt, own = state_dict.get(prefix + "_dt"), self._step
        if dt is not None and own is not None:
            far = not dt.is_meta and not math.isclose(dt, own, rel_tol=0.01)  # of a bfloat16
            if far and self.learn_alpha:
                raise RuntimeError(
                    f"{prefix}logit_alpha_l[k] were learned at dt = {dt:g}, and this module has "
                    f"{own:g}: load them at theirs, then set dt"
                )
            state_dict[prefix + "_dt"] = torch.full_like(dt, own)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def noise_std(self) -> float | Tensor:
        """Standard deviation of the noise, of all units or ``[H]``."""
        return self._noise_std

    @noise_std.setter
    def noise_std(self, value: float | Tensor) -> None:
        self._set_noise_std(value)

    def _set_noise_std(self, value: float | Tensor) -> None:
        _layers.refuse_no_number("noise_std", value)
        if isinstance(value, Tensor):
            _layers.refuse_shape("noise_std", value, (), (self.hidden_size,))
            if value.requires_grad:
                raise ValueError("noise_std must not require a gradient: none reaches it")
        fits = (value >= 0) & (value < math.inf)
        if not (fits.all() if isinstance(fits, Tensor) else fits):
            raise ValueError(f"noise_std must be finite and not negative, got {value}")
        self.__dict__.pop("_noise_std", None)
        self._buffers = {name: b for name, b in self._buffers.items() if name != "_noise_std"}
        self._first = {name: t for name, t in self._first.items() if name != "_noise_std"}
        if isinstance(value, Tensor):
            self._keep("_noise_std", value.clone(), persistent=False)
        else:
            self._noise_std = float(value)

    def _logit_names(self) -> list[str]:
        directions = ["", "_reverse"] if self.bidirectional else [""]
        return [f"logit_alpha_l{k}{d}" for k in range(self.num_layers) for d in directions]

    def _of_each(self, alpha: Tensor) -> list[Tensor]:
        """The alpha of each layer and, within it, direction."""
        D = 2 if self.bidirectional else 1
        if alpha.dim() < 2:
            return [alpha] * (self.num_layers * D)
        return [row for row in alpha.squeeze(1) for _ in range(D)]

    def reset_parameters(self) -> None:
        """Draw weights and biases anew, as torch.nn.RNN; alpha and noise are those last given."""
        bound = self.hidden_size**-0.5
        for name, parameter in self.named_parameters():  # of a parametrized weight, the originals
            if "logit_alpha_l" not in name:
                nn.init.uniform_(parameter, -bound, bound)
        with torch.no_grad():
            for name, value in self._first.items():
                own = getattr(self, name)
                if hasattr(own, "placements"):  # a DTensor, of FSDP2
                    from torch.distributed.tensor import distribute_tensor

                    value = distribute_tensor(value, own.device_mesh, own.placements)
                own.copy_(value)

    def alphas(self) -> list[Tensor]:
        """The leak of each layer and, within it, direction: ``[H]`` each."""
        H = self.hidden_size
        if self.learn_alpha:
            logits = [getattr(self, name) for name in self._logit_names()]
            least = torch.finfo(logits[0].dtype).tiny  # sigmoid underflows to 0
            return [logit.sigmoid().clamp_min(least).expand(H) for logit in logits]
        return [each.expand(H) for each in self._of_each(self.alpha)]

    def _noise_stds(self, alphas: Sequence[Tensor]) -> list[Tensor]:
        """``noise_std`` scaled, ``[H]`` for each layer and direction; none where it is 0."""
        std = self._noise_std
        if not isinstance(std, Tensor) and std == 0:
            return []
        return [scaled_noise(std, alpha, self.noise_scale) for alpha in alphas]

    def forward(
        self,
        input: _Sequence,
        hx: Tensor | None = None,
        lengths: _layers.Lengths | None = None,
        reset: Tensor | None = None,
        reset_state: Tensor | None = None,
    ) -> tuple[_Sequence, Tensor]:
        """Run the layers over whole sequences: :meth:`rnnext.RNN.forward`, with a leak.

        With ``form="voltage"`` the states ``hx``, ``reset_state`` and ``h_n`` are v.

        Raises:
            ValueError, TypeError, RuntimeError: as :func:`rnnext.functional.rnn`, and ValueError
                for an alpha outside (0, 1].
        """
        if type(input) is not Tensor:
            node: tuple[_Sequence, Tensor] | None
            options = {"lengths": lengths, "reset": reset, "reset_state": reset_state}
            node = _deploy.leaf(self, input, hx=hx, **options)
            if node is not None:
                return node
        alphas, noise = self.alphas(), []
        if self.training or self.noise_in_eval:
            noise = self._noise_stds(alphas)
            if noise and lengths is not None and isinstance(input, Tensor) and not input.is_cpu:
                lengths = _layers.as_lengths(lengths, input.device)
                input = self._without_padding(input, lengths)
        return _layers.run(
            self, weights_of(self, self._flat_weights_names), input, hx, lengths, reset,
            reset_state, self.form, self.nonlinearity, alphas, noise,
        )  # fmt: skip

    if TYPE_CHECKING:  # nn.Module's takes and gives anything
        __call__ = forward

    def potentials(
        self, input: Tensor, hx: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run the layer of the form ``"voltage"``, and say what its potentials are at each step.

        A call gives the rates f(v), and of v the last. Here gradients flow through both, and the
        noise is that of a call from the same seed.

        Args:
            input: ``[T, B, I]``, or ``[B, T, I]`` with ``batch_first``.
            hx: the first potentials, ``[1, B, H]``. Default: zeros.

        Returns:
            ``(v, (output, h_n))``: the potentials, laid out as ``output``, and what a call returns.

        Raises:
            ValueError: another form, several layers, two directions, or an input that is not 3-D.
        """
        if self.form != "voltage" or self.num_layers > 1 or self.bidirectional:
            raise ValueError(
                'potentials are of one layer and direction of form="voltage", got '
                f"num_layers={self.num_layers}, bidirectional={self.bidirectional}, "
                f"form={self.form!r}"
            )
        _layers.refuse_others({"input": input}, hx=hx)
        x = input.transpose(0, 1) if self.batch_first and input.dim() == 3 else input
        (alpha,), noise = self.alphas(), None
        own: dict[str, Any] = {"nonlinearity": self.nonlinearity}
        if (self.training or self.noise_in_eval) and (stds := self._noise_stds([alpha])):
            keys = torch.randint(2**63 - 1, (1,), device="cpu")
            own |= {"noise_std": stds[0], "noise_scale": "none", "noise_key": keys[0]}
            numbers = ops.noise(keys, x.shape[0], x.shape[1], 1, self.hidden_size)
            noise = stds[0] * numbers[0].to(stds[0])
        weight_ih, weight_hh, *biases = weights_of(self, self._flat_weights_names)
        start = weight_hh.new_zeros(x.shape[-2], len(weight_hh)) if hx is None else hx.squeeze(0)
        output, h_n = recurrence(
            x, start, weight_ih, weight_hh, *biases, alpha=alpha, form=self.form, **own
        )
        zeros = torch.zeros_like(weight_hh)
        first, _ = recurrence(start[None], None, None, zeros, nonlinearity=self.nonlinearity)
        bias_ih, bias_hh = biases or (None, None)
        before = torch.cat([first, output[:-1]])
        p = nn.functional.linear(x, weight_ih, bias_ih)
        p = p + nn.functional.linear(before, weight_hh, bias_hh)
        p = p if noise is None else p + noise
        v, _ = recurrence(p, start, None, zeros, nonlinearity="identity", alpha=alpha)
        if self.batch_first:
            v, output = v.transpose(0, 1), output.transpose(0, 1)
        return v, (output, h_n.unsqueeze(0))

    def _without_padding(self, input: Tensor, lengths: Tensor) -> Tensor:
        """The input with zeros past each row's end: padding must not reach the gradients of W_ih
        where noise is added to products with it.

        Lengths that do not fit are left to the op to refuse.
        """
        batch, time = (0, 1) if self.batch_first else (1, 0)
        if input.dim() != 3 or lengths.shape != (input.shape[batch],):
            return input
        steps = torch.arange(input.shape[time], device=input.device)
        exists = steps.unsqueeze(batch) < lengths.unsqueeze(time)
        return torch.where(exists.unsqueeze(2), input, 0)

    def extra_repr(self) -> str:
        """The arguments, as torch.nn's modules show them."""
        parts = [super().extra_repr(), f"nonlinearity={self.nonlinearity}", f"form={self.form}"]
        parts.append(f"alpha={_range(torch.stack(self.alphas()))}")
        if self._step is not None:
            parts.append(f"dt={self._step:g}")
        if self.learn_alpha:
            parts.append("learn_alpha=True")
        if isinstance(self.noise_std, Tensor) or self.noise_std:
            parts.append(f"noise_std={_range(self.noise_std)}, noise_scale={self.noise_scale}")
            parts.append(f"noise_in_eval={self.noise_in_eval}")
        return ", ".join(parts)


def _range(values: float | Tensor) -> str:
    """The one value that they have, or the least and the largest."""
    if not isinstance(values, Tensor):
        return f"{values:g}"
    if values.is_meta or type(values) is not Tensor:  # a fake one, say, which has no values
        return "?"
    low, high = (each.item() for each in values.aminmax())
    return f"{low:g} to {high:g}" if low < high else f"{low:g}"


def _length(dt: Any) -> float:
    _layers.refuse_no_number("dt", dt)
    if isinstance(dt, Tensor):
        _layers.refuse_shape("dt", dt, ())
    if not dt > 0:
        raise ValueError(f"dt must be positive, got {dt}")
    return float(dt)


def _leak(
    alpha: _PerLayer | None,
    dt: float | None,
    tau: _PerLayer | None,
    learned: bool,
    L: int,
    H: int,
    dtype: torch.dtype,
) -> tuple[float | None, Tensor]:
    """Dt, if it is given, and alpha or else tau, on the CPU.

    That is [] or [H], or, from a list for the layers, [L, 1] or [L, H].
    """

    def exact(name: str, number: float | Tensor, *shapes: tuple[int, ...]) -> Tensor:
        _layers.refuse_no_number(name, number)
        if isinstance(number, Tensor) and number.requires_grad and not learned:
            raise ValueError(
                f"{name} must not require a gradient without learn_alpha=True: none reaches it"
            )
        value = torch.as_tensor(number, dtype=torch.float64, device="cpu").detach()
        _layers.refuse_shape(name, value, (), *shapes)
        return value

    def of_layers(name: str, given: Any) -> Tensor:
        if not isinstance(given, (list, tuple)):
            return exact(name, given, (H,), (L, 1), (L, H))
        if len(given) != L:
            raise ValueError(
                f"{name} must have one entry for each of {L} layers, got {len(given)}; for one of "
                f"each unit give torch.tensor({name})"
            )
        rows = [exact(f"{name}[{k}]", each, (H,)) for k, each in enumerate(given)]
        units = max(row.numel() for row in rows)
        return torch.stack([row.expand(units) for row in rows])

    step = None
    if alpha is not None:
        if dt is not None or tau is not None:
            raise ValueError("alpha must not be given with dt and tau")
        name, given = "alpha", of_layers("alpha", alpha)
    elif dt is None or tau is None:
        raise ValueError("alpha must be given, or dt and tau")
    else:
        step = _length(dt)
        name, given = "alpha = dt / tau", of_layers("tau", tau)
    stored = given.to(dtype, copy=True)
    value, used = (each if step is None else step / each for each in (given, stored))
    if not bool(((used > 0) & (value <= 1)).all()):
        raise ValueError(f"{name} must be in (0, 1], got {_range(value)}, as {dtype}")
    return step, stored
