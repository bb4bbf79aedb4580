"""The common part of LeakyRNN and LeakyRNNCell: alpha, dt, tau, the noise, and their checks."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rnnext import _C, _deploy, _errors
from rnnext.functional import NOISE_SCALES, scaled_noise

PerLayer = float | Tensor | Sequence[float | Tensor]


def _checked(name: str, check: Callable[[Any], None], doc: str | None = None) -> Any:
    """A property that is checked when it is set."""

    def assign(self: nn.Module, value: Any) -> None:
        check(value)
        self.__dict__[name] = value

    return property(lambda self: self.__dict__[name], assign, doc=doc)


def _word(name: str, known: Sequence[str]) -> Any:
    return _checked(name, lambda value: _errors.refuse_word(name, value, known))


class Leak(_deploy.Module):
    """The base that LeakyRNN and LeakyRNNCell have beside nn.RNNBase and nn.RNNCellBase."""

    nonlinearity: str = _word("nonlinearity", _C.nonlinearities())
    form: str = _word("form", _C.forms())
    noise_scale: str = _word("noise_scale", list(NOISE_SCALES))
    generator: torch.Generator | None = _checked(
        "generator", _errors.refuse_no_generator, "Where the noise comes from; None: torch's."
    )
    learn_alpha = property(lambda self: self.__dict__["learn_alpha"])
    hidden_size: int
    num_layers: int
    bidirectional: bool
    _weight: Tensor  # one of its weights, of their dtype and device
    _step: float | None
    _noise_std: float | Tensor
    _first: dict[str, Tensor] = {}  # noqa: RUF012  replaced, by what reset_parameters gives back

    def _begin(
        self,
        nonlinearity: str,
        alpha: PerLayer | None,
        dt: float | None,
        tau: PerLayer | None,
        learn_alpha: bool,
        form: str,
        noise_std: float | Tensor,
        noise_scale: str,
        noise_in_eval: bool,
        generator: torch.Generator | None,
    ) -> None:
        """The second part of the constructors, which needs the weights."""
        self.nonlinearity, self.form, self.__dict__["learn_alpha"] = nonlinearity, form, learn_alpha
        self.noise_std, self.noise_scale, self.noise_in_eval = noise_std, noise_scale, noise_in_eval
        self.generator = generator
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
            self.register_parameter(name, nn.Parameter(logit.to(self._weight.device, copy=True)))
        self._first = self._first | first
        self._keep_dt()

    def __setattr__(self, name: str, value: Any) -> None:
        own = name in ("alpha", "dt", "tau", "noise_std")  # nn.Module's would register a Parameter
        super(nn.Module if own else Leak, self).__setattr__(name, value)

    def _keep(self, name: str, value: Tensor, persistent: bool = True) -> None:
        """Hold a copy in a buffer; the value is what reset_parameters gives back."""
        # New dicts: a copy.copy of the module has the old ones, and keeps its own.
        self._buffers, self._first = dict(self._buffers), self._first | {name: value}
        self.register_buffer(name, value.to(self._weight, copy=True), persistent=persistent)

    def _keep_dt(self) -> None:
        if self._step is not None:
            self._keep("_dt", torch.tensor(self._step, dtype=torch.float64, device="cpu"))

    def _set_leak(self, alpha: PerLayer | None, dt: float | None, tau: PerLayer | None) -> None:
        self._step, value = self._leak(alpha, dt, tau)
        self._keep("_alpha" if self._step is None else "_tau", value)
        self._keep_dt()

    def _leak(
        self, alpha: PerLayer | None, dt: float | None, tau: PerLayer | None
    ) -> tuple[float | None, Tensor]:
        """Dt, if given, and alpha or else tau, on the CPU: [] or [H], of a list [L, 1 or H]."""
        L, H, dtype = self.num_layers, self.hidden_size, self._weight.dtype

        def exact(name: str, number: float | Tensor, *shapes: tuple[int, ...]) -> Tensor:
            _errors.refuse_no_number(name, number)
            if isinstance(number, Tensor) and number.requires_grad and not self.learn_alpha:
                reason = "without learn_alpha=True: none reaches it"
                raise ValueError(f"{name} must not require a gradient {reason}")
            value = torch.as_tensor(number, dtype=torch.float64, device="cpu").detach()
            _errors.refuse_shape(name, value, (), *shapes)
            return value

        def of_layers(name: str, given: Any) -> Tensor:
            if not isinstance(given, (list, tuple)):
                return exact(name, given, (H,), (L, 1), (L, H))
            if len(given) != L:
                raise ValueError(
                    f"{name} must have one entry for each of {L} layers, got {len(given)}; for one "
                    f"of each unit give torch.tensor({name})"
                )
            rows = [exact(f"{name}[{k}]", each, (H,)) for k, each in enumerate(given)]
            return torch.stack([row.expand(max(map(torch.numel, rows))) for row in rows])

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
            found = torch.where(stored.isinf(), used, value)
            raise ValueError(f"{name} must be in (0, 1], got {_range(found)}, as {dtype}")
        return step, stored

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
    def alpha(self, value: PerLayer) -> None:
        self._refuse_learned("alpha")
        if self._step is not None:
            raise AttributeError("alpha is dt / tau: set these")
        self._set_leak(value, None, None)

    @property
    def dt(self) -> float | None:
        """The length of a step, if it was given; a change writes to learned logits, in place."""
        return self._step

    @dt.setter
    def dt(self, value: float) -> None:
        if self._step is None:
            raise AttributeError("dt must be given with tau, in the place of alpha, to be set")
        if not self.learn_alpha:
            self._set_leak(None, value, self.tau)
            return
        dt, names = _length(value), self._logit_names()
        logits = [getattr(self, name) for name in names] + [self._first[name] for name in names]
        with torch.no_grad():
            alphas = [logit.double().sigmoid() * (dt / self._step) for logit in logits]
            if any(bool((alpha >= 1).any()) for alpha in alphas):
                raise ValueError(f"dt must be less than the learned tau, got {value}")
            new = [alpha.logit() for alpha in alphas]
            for name, logit in zip(names, new, strict=False):
                self._write(name, logit)
        self._first = self._first | dict(zip(names, new[len(names) :], strict=True))
        self._step = dt
        self._keep_dt()

    @property
    def tau(self) -> Tensor | None:
        """The time constant of all layers, if dt was given."""
        if self._step is None or not self.learn_alpha:
            return self._buffers.get("_tau")
        return self._step / self.alpha

    @tau.setter
    def tau(self, value: PerLayer) -> None:
        self._refuse_learned("tau")
        if self._step is None:
            raise AttributeError("tau must be given with dt, in the place of alpha, to be set")
        self._set_leak(None, self._step, value)

    def _write(self, name: str, value: Tensor) -> None:
        own, parts = getattr(self, name), getattr(self, "parametrizations", {})
        (parts[name].right_inverse if name in parts else own.copy_)(value.to(own))

    def _refuse_learned(self, name: str) -> None:
        if self.learn_alpha:
            raise AttributeError(f"{name} is learned: set {', '.join(self._logit_names())}")

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        dt, own = state_dict.get(prefix + "_dt"), self._step
        if dt is not None and own is not None:
            far = not dt.is_meta and not math.isclose(dt, own, rel_tol=0.01)  # of a bfloat16
            learned = any("logit_alpha" in key and key.startswith(prefix) for key in state_dict)
            if far and self.learn_alpha and learned:
                raise RuntimeError(
                    f"{prefix}alpha was learned at dt = {dt:g}, and this module has {own:g}: "
                    "load it at its own, then set dt"
                )
            state_dict[prefix + "_dt"] = torch.full_like(dt, own)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def noise_std(self) -> float | Tensor:
        """Standard deviation of the noise, of all units or ``[H]``."""
        return self._noise_std

    @noise_std.setter
    def noise_std(self, value: float | Tensor) -> None:
        _errors.refuse_no_number("noise_std", value)
        if isinstance(value, Tensor):
            _errors.refuse_shape("noise_std", value, (), (self.hidden_size,))
            if value.requires_grad:
                raise ValueError("noise_std must not require a gradient: none reaches it")
        fits = (value >= 0) & (value <= torch.finfo(self._weight.dtype).max)
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
            if "logit_alpha" not in name:
                nn.init.uniform_(parameter, -bound, bound)
        with torch.no_grad():
            for name, value in self._first.items():
                own = getattr(self, name)
                if hasattr(own, "placements"):  # a DTensor, of FSDP2
                    from torch.distributed.tensor import distribute_tensor

                    value = distribute_tensor(value, own.device_mesh, own.placements)
                self._write(name, value)

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

    def _noise_keys(self, layers: int) -> Tensor:
        return torch.randint(2**63 - 1, (layers,), device="cpu", generator=self.generator)

    def _own_keys(self, noise: Sequence[Tensor]) -> Tensor | None:
        """Keys of a call's noise from the module's generator; None: torch's draws, or no noise."""
        return self._noise_keys(self.num_layers) if noise and self.generator is not None else None

    def extra_repr(self) -> str:
        """The arguments, as torch.nn's modules show them."""
        sizes = super().extra_repr().partition(", nonlinearity")[0]  # which a cell may name
        parts = [sizes, f"nonlinearity={self.nonlinearity}", f"form={self.form}"]
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
    """The value that all have, or the least and the largest."""
    if not isinstance(values, Tensor):
        return f"{values:g}"
    if values.is_meta or type(values) is not Tensor:  # a fake one, say, which has no values
        return "?"
    low, high = (each.item() for each in values.aminmax())
    return f"{low:g} to {high:g}" if low < high else f"{low:g}"


def _length(dt: Any) -> float:
    _errors.refuse_no_number("dt", dt)
    if isinstance(dt, Tensor):
        _errors.refuse_shape("dt", dt, ())
        if dt.requires_grad:
            raise ValueError("dt must not require a gradient: none reaches it")
    if not dt > 0:
        raise ValueError(f"dt must be positive, got {dt}")
    return float(dt)
