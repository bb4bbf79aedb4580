"""RNN and RNNCell, and what they share with GRU and LSTM: the call of rnnext's ops."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from rnnext import _C, _deploy, _layers
from rnnext._layers import _Sequence, as_states

__all__ = ["RNN", "RNNCell"]

_State = TypeVar("_State", Tensor, _layers.Pair)
_NONLINEARITIES = ("tanh", "relu")
# A layer's cell and nonlinearity by its mode.
_CALLED = {f"RNN_{f.upper()}": ("elman", f) for f in _NONLINEARITIES}
_CALLED |= {"GRU": ("gru", "tanh"), "LSTM": ("lstm", "tanh")}
_KEYS = ("_parameters", "_flat_weights_names", *_layers.Stack.__annotations__)
CELL_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def weights_of(module: nn.Module, names: Sequence[str]) -> list[Any]:
    """The module's weights by attribute name.

    Looked up where nn.Module keeps plain Parameters, ten times faster than through its
    ``__getattr__``; a weight that is not there is an attribute made by a parametrization.
    """
    try:
        return list(map(module._parameters.__getitem__, names))
    except KeyError:
        return [getattr(module, name) for name in names]


def attributes_of(module: nn.Module) -> dict[str, Any]:
    """What :func:`_layers.run` reads of an RNN, wherever the module keeps it."""
    return {n: getattr(module, n) for n in (*_layers.Stack.__annotations__, "hidden_size")}


class RNNBase(_deploy.Module, nn.RNNBase):
    """torch.nn's, but for the list of weights that its own forward reads.

    Of a parametrized weight it would hold a result with a graph, which cannot be copied.
    """

    def _init_flat_weights(self) -> None:
        self._flat_weights = [None] * len(self._flat_weights_names)
        self._flat_weight_refs: list[Any] = list(self._flat_weights)

    _update_flat_weights = _init_flat_weights

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """torch.nn's method, which reads the dtype of the first of the flat weights."""
        first = weights_of(self, self._flat_weights_names[:1])
        read: Any = SimpleNamespace(_flat_weights=first, input_size=self.input_size)
        nn.RNNBase.check_input(read, input, batch_sizes)


def cell_of(module: nn.Module) -> str:
    """The ops' name for the cell of a module of torch.nn's or rnnext's."""
    if isinstance(module, (Layers, Cell)):
        return module._cell
    gated = {"gru": (nn.GRU, nn.GRUCell), "lstm": (nn.LSTM, nn.LSTMCell)}
    return next((cell for cell, kinds in gated.items() if isinstance(module, kinds)), "elman")


def nonlinearity_of(module: nn.RNNBase | nn.RNNCellBase) -> str:
    """``"tanh"`` or ``"relu"``, by an RNN's ``mode``, as in torch.nn, or a cell's attribute."""
    if cell_of(module) != "elman":
        return "tanh"
    if isinstance(module, nn.RNNCell):
        if module.nonlinearity not in _NONLINEARITIES:
            raise RuntimeError(f"Unknown nonlinearity: {module.nonlinearity}")
        return module.nonlinearity
    mode: Any = module.mode
    if _CALLED.get(mode, ("",))[0] != "elman":
        raise AssertionError(f"mode must be RNN_TANH or RNN_RELU, got {mode}")
    return _CALLED[mode][1]


# Not an nn.RNN, nn.GRU or nn.LSTM: torch.compile(fullgraph=True) refuses those, subclasses too.
class Layers(RNNBase, Generic[_State]):
    """The common part of RNN, GRU and LSTM; an LSTM's states are pairs ``(h, c)``."""

    _cell: str

    def forward(
        self,
        input: _Sequence,
        hx: _State | None = None,
        lengths: _layers.Lengths | None = None,
        reset: Tensor | None = None,
        reset_state: _State | None = None,
    ) -> tuple[_Sequence, _State]:
        """Run the layers over whole sequences.

        Args:
            input: ``[T, B, I]``, ``[B, T, I]`` with ``batch_first``, ``[T, I]``, or packed.
            hx: the first states, ``[L * D, B, H]``, or ``[L * D, H]`` for a 2-D input; of an LSTM
                two of these, ``(h, c)``. Default: zeros.
            lengths: the number of steps of each sequence, a tensor ``[B]`` or a list of integers;
                see :func:`rnnext.functional.rnn`. Default: all have T steps.
            reset: bool ``[T, B]`` (``[B, T]`` with ``batch_first``, ``[T]`` for a 2-D input), where
                a new episode begins: every layer's state before that step is ``reset_state``; see
                :func:`rnnext.functional.rnn`. Default: nowhere.
            reset_state: ``[L * D, H]`` or ``[L * D, B, H]``, the states that episodes begin with,
                which may be learned; of an LSTM two of these. Default: zeros.

        Returns:
            ``(output, h_n)``: the last layer's states, laid out as ``input`` with ``D * H``
            features, and the last states, of the shape of ``hx``; of an LSTM
            ``(output, (h_n, c_n))``.

        Raises:
            ValueError, TypeError, RuntimeError: as :func:`rnnext.functional.rnn`.
        """
        own = self.__dict__
        cell, nonlinearity = _CALLED.get(own["mode"]) or (self._cell, nonlinearity_of(self))
        refused: list[Exception] | None = None
        if type(input) is not Tensor:
            node: tuple[_Sequence, _State] | None
            options = {"lengths": lengths, "reset": reset, "reset_state": reset_state}
            node = _deploy.leaf(self, input, hx=hx, **options)
            if node is not None:
                return node
        elif lengths is None and not is_compiling():
            states = () if hx is None else as_states("hx", cell, hx)
            starts = () if reset_state is None else as_states("reset_state", cell, reset_state)
            try:
                found = _C.rnn_of_module(
                    own, _KEYS, input, states, reset, starts, cell, nonlinearity
                )
                if found is not NotImplemented:
                    last: Any = found[1][0] if cell != "lstm" else tuple(found[1])
                    return found[0], last
            except (RuntimeError, ValueError) as error:
                refused = [error]  # raised below, or what torch.nn raises for such a call
        # (Not in a try block, where Dynamo cannot break a graph, as it does for a packed input.)
        return _layers.run(
            attributes_of(self), weights_of(self, self._flat_weights_names), input, hx,
            lengths, reset, reset_state, cell, nonlinearity, refused=refused,
        )  # fmt: skip

    if TYPE_CHECKING:  # nn.Module's takes and gives anything
        __call__ = forward


class Cell(_deploy.Module, nn.RNNCellBase, Generic[_State]):
    """The common part of RNNCell, GRUCell and LSTMCell; an LSTM's states are pairs ``(h, c)``."""

    _cell: str

    def forward(self, input: Tensor, hx: _State | None = None) -> _State:
        """Compute the next state.

        Args:
            input: x, ``[B, I]`` or ``[I]``.
            hx: h, ``[B, H]`` or ``[H]``; of an LSTM two of these, ``(h, c)``. Default: zeros.

        Returns:
            h', ``[B, H]`` or ``[H]``; of an LSTM ``(h', c')``.

        Raises:
            ValueError, TypeError, RuntimeError: as :func:`rnnext.functional.rnn_cell`.
        """
        if type(input) is not Tensor:
            node: _State | None = _deploy.leaf(self, input, hx=hx)
            if node is not None:
                return node
        weight_ih, weight_hh, bias_ih, bias_hh = weights_of(self, CELL_WEIGHTS)
        cell = self._cell
        nonlinearity: Any = "tanh"
        if cell == "elman":
            nonlinearity = self.nonlinearity
            if nonlinearity not in _NONLINEARITIES:
                nonlinearity_of(self)  # raises
        result: _State = _layers.step(
            cell, input, hx, weight_ih, weight_hh, bias_ih, bias_hh, nonlinearity
        )
        return result

    if TYPE_CHECKING:  # nn.Module's takes and gives anything
        __call__ = forward


class RNN(Layers[Tensor]):
    """Multi-layer Elman RNN, a drop-in for :class:`torch.nn.RNN`.

    Each layer computes ``h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)``. Arguments, attributes,
    state dict, initial values and errors are torch.nn.RNN's; but it is no ``nn.RNN``, only an
    ``nn.RNNBase``, and an output changed in place before ``backward()`` makes that raise.

    Args:
        input_size: I, the number of features of x_t.
        hidden_size: H, the number of features of h_t.
        num_layers: L; each layer after the first reads the outputs of the one before. Default: 1.
        nonlinearity: f, ``"tanh"`` or ``"relu"``. Default: ``"tanh"``.
        bias: whether there are b_ih and b_hh. Default: ``True``.
        batch_first: whether input and output are ``[B, T, features]`` instead of
            ``[T, B, features]``; hx and h_n are not affected. Default: ``False``.
        dropout: probability that training zeroes an output of each layer but the last. Default: 0.
        bidirectional: whether each layer also reads its input from the end; D is then 2, and the
            outputs of both directions stand side by side. Default: ``False``.
        device: where the parameters are made. Default: torch's default device.
        dtype: of the parameters: float32, float64, bfloat16 or float16. Default: torch's default.

    Attributes:
        weight_ih_l[k]: ``[H, I]``, for k > 0 ``[H, D * H]``; ``_reverse`` of the second direction.
        weight_hh_l[k]: ``[H, H]``.
        bias_ih_l[k], bias_hh_l[k]: ``[H]``.

    Raises:
        TypeError, ValueError: an argument of the wrong type or outside its range.
    """

    nonlinearity: str
    _cell = "elman"

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
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if nonlinearity not in _NONLINEARITIES:
            known = "Select from 'tanh' or 'relu'."
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. {known}")
        self.nonlinearity = nonlinearity
        nn.RNNBase.__init__(  # by name: super() would call nn.RNN's in a subclass of both
            self, f"RNN_{nonlinearity.upper()}", input_size, hidden_size, num_layers=num_layers,
            bias=bias, batch_first=batch_first, dropout=dropout, bidirectional=bidirectional,
            device=device, dtype=dtype, **kwargs,
        )  # fmt: skip


class RNNCell(Cell[Tensor], nn.RNNCell):
    """One step of an Elman RNN, a drop-in for (and a kind of) :class:`torch.nn.RNNCell`.

    Computes ``h' = f(W_ih x + b_ih + W_hh h + b_hh)``.

    Args:
        input_size: I, the number of features of x.
        hidden_size: H, the number of features of h.
        bias: whether there are b_ih and b_hh. Default: ``True``.
        nonlinearity: f, ``"tanh"`` or ``"relu"``. Default: ``"tanh"``.
        device: where the parameters are made. Default: torch's default device.
        dtype: of the parameters: float32, float64, bfloat16 or float16. Default: torch's default.

    Attributes:
        weight_ih: ``[H, I]``.
        weight_hh: ``[H, H]``.
        bias_ih, bias_hh: ``[H]``, or ``None``.
    """

    _cell = "elman"
