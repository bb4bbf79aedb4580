"""GRU, LSTM and their cells: torch.nn's modules, computed by rnnext's ops."""

from typing import Any

import torch
from torch import Tensor, nn

from rnnext._layers import Pair
from rnnext.rnn import RNN, Cell, Layers

__all__ = ["GRU", "LSTM", "GRUCell", "LSTMCell"]


class GRU(Layers[Tensor]):
    """Multi-layer GRU, a drop-in for :class:`torch.nn.GRU`.

    Each layer computes, with ``*`` by elements::

        r_t = sigmoid(W_ir x_t + b_ir + W_hr h_{t-1} + b_hr)
        z_t = sigmoid(W_iz x_t + b_iz + W_hz h_{t-1} + b_hz)
        n_t = tanh(W_in x_t + b_in + r_t * (W_hn h_{t-1} + b_hn))
        h_t = (1 - z_t) * n_t + z_t * h_{t-1}

    Arguments, attributes, state dict, initial values and errors are torch.nn.GRU's; but it is no
    ``nn.GRU``, only an ``nn.RNNBase``, and an output changed in place before ``backward()`` makes
    that raise.

    K. Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical
    machine translation", EMNLP 2014.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first: as :class:`rnnext.RNN`'s.
        dropout, bidirectional, device, dtype: likewise.

    Attributes:
        weight_ih_l[k]: W_ir, W_iz and W_in, one below the other, ``[3 * H, I]``, for k > 0
            ``[3 * H, D * H]``; ``_reverse`` of the second direction.
        weight_hh_l[k]: ``[3 * H, H]``.
        bias_ih_l[k], bias_hh_l[k]: ``[3 * H]``.

    Raises:
        TypeError, ValueError: an argument of the wrong type or outside its range.
    """

    _cell = "gru"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        nn.RNNBase.__init__(
            self, "GRU", input_size, hidden_size, num_layers=num_layers, bias=bias,
            batch_first=batch_first, dropout=dropout, bidirectional=bidirectional,
            device=device, dtype=dtype, **kwargs,
        )  # fmt: skip


class LSTM(Layers[Pair]):
    """Multi-layer LSTM, a drop-in for :class:`torch.nn.LSTM` without ``proj_size``.

    Each layer computes, with ``*`` by elements::

        i_t = sigmoid(W_ii x_t + b_ii + W_hi h_{t-1} + b_hi)
        f_t = sigmoid(W_if x_t + b_if + W_hf h_{t-1} + b_hf)
        g_t = tanh(W_ig x_t + b_ig + W_hg h_{t-1} + b_hg)
        o_t = sigmoid(W_io x_t + b_io + W_ho h_{t-1} + b_ho)
        c_t = f_t * c_{t-1} + i_t * g_t
        h_t = o_t * tanh(c_t)

    Arguments, attributes, state dict, initial values and errors are torch.nn.LSTM's; but it is no
    ``nn.LSTM``, only an ``nn.RNNBase``, and an output changed in place before ``backward()`` makes
    that raise. Its states, ``reset_state`` too, are pairs ``(h, c)``.

    S. Hochreiter, J. Schmidhuber, "Long short-term memory", Neural Computation 9(8), 1997; F. A.
    Gers, J. Schmidhuber, F. Cummins, "Learning to forget", Neural Computation 12(10), 2000.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first: as :class:`rnnext.RNN`'s.
        dropout, bidirectional, device, dtype: likewise.
        proj_size: 0; rnnext has no projections.

    Attributes:
        weight_ih_l[k]: W_ii, W_if, W_ig and W_io, one below the other, ``[4 * H, I]``, for k > 0
            ``[4 * H, D * H]``; ``_reverse`` of the second direction.
        weight_hh_l[k]: ``[4 * H, H]``.
        bias_ih_l[k], bias_hh_l[k]: ``[4 * H]``.

    Raises:
        TypeError, ValueError: an argument of the wrong type or outside its range.
        NotImplementedError: a ``proj_size`` that torch.nn.LSTM would take.
    """

    _cell = "lstm"
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.RNNBase.__init__(
            self, "LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout,
            bidirectional, proj_size, device, dtype,
        )  # fmt: skip
        if proj_size:
            reason = "only torch.nn.LSTM has projections"
            raise NotImplementedError(f"proj_size must be 0, got {proj_size}: {reason}")


LAYERS: dict[str, Any] = {"rnn": RNN, "gru": GRU, "lstm": LSTM}  # as users name the cells


class GRUCell(Cell[Tensor], nn.GRUCell):
    """One step of a GRU, a drop-in for (and a kind of) :class:`torch.nn.GRUCell`.

    Args:
        input_size, hidden_size, bias, device, dtype: as :class:`rnnext.RNNCell`'s.

    Attributes:
        weight_ih, weight_hh, bias_ih, bias_hh: as a :class:`rnnext.GRU`'s; biases may be ``None``.
    """

    _cell = "gru"


class LSTMCell(Cell[Pair], nn.LSTMCell):
    """One step of an LSTM, a drop-in for (and a kind of) :class:`torch.nn.LSTMCell`.

    Args:
        input_size, hidden_size, bias, device, dtype: as :class:`rnnext.RNNCell`'s.

    Attributes:
        weight_ih, weight_hh, bias_ih, bias_hh: as a :class:`rnnext.LSTM`'s; biases may be ``None``.
    """

    _cell = "lstm"
