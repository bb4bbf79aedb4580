"""Elman RNNs whose state leaks, as continuous-time models of neurons do: LeakyRNN and its cell."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from rnnext import _C, _deploy, _errors, _layers, ops
from rnnext._layers import _Sequence
from rnnext._leak import Leak, PerLayer
from rnnext.functional import recurrence
from rnnext.rnn import CELL_WEIGHTS, RNNBase, attributes_of, weights_of

__all__ = ["LeakyRNN", "LeakyRNNCell"]


class LeakyRNN(Leak, RNNBase):
    """Multi-layer leaky Elman RNN, with :class:`rnnext.RNN`'s parameters and calls.

    Each layer computes, with ``p_t = W_ih x_t + b_ih + W_hh o_{t-1} + b_hh + noise`` and a = alpha:

    - ``form="rate"``: ``h_t = (1 - a) h_{t-1} + a f(p_t)``, output ``o_t = h_t``;
    - ``form="voltage"``: ``v_t = (1 - a) v_{t-1} + a p_t``, output ``o_t = f(v_t)``; states are v;
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
        generator: a generator of the CPU's, whose numbers the noise comes from in place of torch's.
            ``torch.compile(fullgraph=True)`` and noise on a GPU refuse it. Default: None.
        device, dtype: as :class:`rnnext.RNN`'s.

    Attributes:
        weight_ih_l[k]: as :class:`rnnext.RNN`'s, and so weight_hh_l[k], bias_ih_l[k], bias_hh_l[k].
        alpha: the leak, ``[]``, ``[H]`` or, of a list, ``[L, 1]`` or ``[L, H]``; where it is
            learned, that of each layer and direction, ``[L * D, H]``. Settable if given and fixed.
        dt: a float; None where alpha was given, else it can be set: tau stays, and alpha changes.
        tau: ``dt / alpha``, or None; it can be set where it was given and is not learned.
        logit_alpha_l[k]: ``[]`` or ``[H]``, where it is; ``_reverse`` of the second direction.
        nonlinearity, form, noise_std, noise_scale, noise_in_eval, generator: as given; can be set.

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

    _weight = property(lambda self: self.weight_hh_l0)

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
        alpha: PerLayer | None = None,
        dt: float | None = None,
        tau: PerLayer | None = None,
        learn_alpha: bool = False,
        form: str = "rate",
        noise_std: float | Tensor = 0.0,
        noise_scale: str = "sqrt_2_over_alpha",
        noise_in_eval: bool = False,
        generator: torch.Generator | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        num_layers = _layers.as_integer("num_layers", num_layers, "; alpha is given by name")
        super().__init__(
            "RNN_TANH",  # RNNBase takes the number of gates from it
            input_size, hidden_size, num_layers=num_layers, bias=bias, batch_first=batch_first,
            dropout=dropout, bidirectional=bidirectional, device=device, dtype=dtype,
        )  # fmt: skip
        self._begin(
            nonlinearity, alpha, dt, tau, learn_alpha, form, noise_std, noise_scale, noise_in_eval,
            generator,
        )  # fmt: skip

    def forward(
        self,
        input: _Sequence,
        hx: Tensor | None = None,
        lengths: _layers.Lengths | None = None,
        reset: Tensor | None = None,
        reset_state: Tensor | None = None,
    ) -> tuple[_Sequence, Tensor]:
        """Run the layers over whole sequences: :meth:`rnnext.RNN.forward`, with a leak.

        With ``form="voltage"`` the states ``hx``, ``reset_state`` and ``h_n`` are v. An alpha that
        was written to and is outside (0, 1] raises ValueError.
        """
        if type(input) is not Tensor:
            node: tuple[_Sequence, Tensor] | None
            options = {"lengths": lengths, "reset": reset, "reset_state": reset_state}
            node = _deploy.leaf(self, input, hx=hx, **options)
            if node is not None:
                return node
        alphas = self.alphas()
        noise = self._noise_stds(alphas) if self.training or self.noise_in_eval else []
        return _layers.run(
            attributes_of(self), weights_of(self, self._flat_weights_names), input, hx, lengths,
            reset, reset_state, self.form, self.nonlinearity, alphas, noise,
            noise_keys=self._own_keys(noise),
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
            ValueError: another form, several layers, two directions, or shapes that do not fit.
        """
        if self.form != "voltage" or self.num_layers > 1 or self.bidirectional:
            raise ValueError(
                'potentials are of one layer and direction of form="voltage", got '
                f"num_layers={self.num_layers}, bidirectional={self.bidirectional}, "
                f"form={self.form!r}"
            )
        _errors.refuse_others({"input": input}, hx=hx)
        if input.dim() != 3:
            raise ValueError(f"input must have 3 dimensions, got {input.dim()}")
        x = input.transpose(0, 1) if self.batch_first else input
        if hx is not None:
            _errors.refuse_shape("hx", hx, (1, x.shape[-2], self.hidden_size))
        (alpha,), noise = self.alphas(), None
        own: dict[str, Any] = {"nonlinearity": self.nonlinearity}
        if (self.training or self.noise_in_eval) and (stds := self._noise_stds([alpha])):
            keys = self._noise_keys(1)
            own |= {"noise_std": stds[0], "noise_scale": "none", "noise_key": keys[0]}
            numbers = ops.noise(keys, x.shape[0], x.shape[1], 1, self.hidden_size)
            noise = stds[0] * numbers[0].to(stds[0])
        weight_ih, weight_hh, *biases = weights = weights_of(self, self._flat_weights_names)
        start = weight_hh.new_zeros(x.shape[-2], len(weight_hh)) if hx is None else hx.squeeze(0)
        output, h_n = recurrence(x, start, *weights, alpha=alpha, form=self.form, **own)
        zeros = torch.zeros_like(weight_hh)
        first, _ = recurrence(start[None], None, None, zeros, nonlinearity=self.nonlinearity)
        bias_ih, bias_hh = biases or (None, None)
        p = nn.functional.linear(x, weight_ih, bias_ih)
        p = p + nn.functional.linear(torch.cat([first, output[:-1]]), weight_hh, bias_hh)
        p = p if noise is None else p + noise
        v, _ = recurrence(p, start, None, zeros, nonlinearity="identity", alpha=alpha)
        if self.batch_first:
            v, output = v.transpose(0, 1), output.transpose(0, 1)
        return v, (output, h_n.unsqueeze(0))


class LeakyRNNCell(Leak, nn.RNNCellBase):
    """One step of a :class:`rnnext.LeakyRNN`, to the bit, as torch.nn.RNNCell is one of an RNN's.

    Args:
        input_size, hidden_size, bias, device, dtype: as :class:`rnnext.RNNCell`'s.
        nonlinearity, alpha, dt, tau, learn_alpha, form: as :class:`rnnext.LeakyRNN`'s.
        noise_std, noise_scale, noise_in_eval, generator: likewise; each call draws noise anew.

    Attributes:
        weight_ih, weight_hh, bias_ih, bias_hh: as :class:`rnnext.RNNCell`'s.
        logit_alpha: of a learned alpha, ``[]`` or ``[H]``. The others, and the errors, are
            :class:`rnnext.LeakyRNN`'s.
    """

    num_layers, bidirectional = 1, False
    _weight = property(lambda self: self.weight_hh)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *,
        alpha: PerLayer | None = None,
        dt: float | None = None,
        tau: PerLayer | None = None,
        learn_alpha: bool = False,
        form: str = "rate",
        noise_std: float | Tensor = 0.0,
        noise_scale: str = "sqrt_2_over_alpha",
        noise_in_eval: bool = False,
        generator: torch.Generator | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self._begin(
            nonlinearity, alpha, dt, tau, learn_alpha, form, noise_std, noise_scale, noise_in_eval,
            generator,
        )  # fmt: skip

    def _logit_names(self) -> list[str]:
        return ["logit_alpha"]

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Compute the next state, or raise what :meth:`rnnext.RNNCell.forward` does.

        With ``form="voltage"`` states are v: f(v) is the caller's to compute.
        """
        if type(input) is not Tensor:
            node: Tensor | None = _deploy.leaf(self, input, hx=hx)
            if node is not None:
                return node
        weight_ih, weight_hh, *biases = weights_of(self, CELL_WEIGHTS)
        biases = [b for b in _layers.both_biases(weight_hh, *biases) if b is not None]
        weights = [weight_ih, weight_hh, *biases]
        alphas, states = self.alphas(), () if hx is None else (hx,)
        noise = self._noise_stds(alphas) if self.training or self.noise_in_eval else []
        try:
            _, (h_n,) = (_layers.rnn_op if is_compiling() else _C.rnn)(
                input.unsqueeze(0), [h.unsqueeze(0) for h in states], weights, bool(biases),
                1, False, False, 0.0, False, None, None, None, None, (), alphas, self.form, noise,
                self._own_keys(noise), self.nonlinearity,
            )  # fmt: skip
        except (AttributeError, RuntimeError, ValueError):
            _errors.raise_of_a_cell(self.form, input, states, *weights)
            raise
        return h_n.squeeze(0)

    if TYPE_CHECKING:  # nn.Module's takes and gives anything
        __call__ = forward
