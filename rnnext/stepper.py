"""Stepper: an RNN that is fed one step at a time."""

from typing import Any

from torch import Tensor, nn

from rnnext import _C
from rnnext.rnn import CELL_WEIGHTS, RNN, nonlinearity_of

__all__ = ["Stepper"]


class Stepper:
    """An RNN fed one step at a time: its weights are packed once, its state is kept.

    ``y_t = stepper(x_t)`` gives what the RNN gives for the whole sequence, to the bit, without
    gradients and, at small sizes, several times as fast as calls of the RNN with one step each.

    What it is made from is fixed then: the weights, which are copied, float32 matmul precision and
    the largest number of threads. Make another one after they have changed. Dropout does not apply,
    as in ``eval()``, nor does autocast. It is no module, cannot be pickled, and has no place in
    compiled code; a call keeps Python's lock, so threads may share it if they take turns.

    Args:
        module: an RNN of one direction, or an RNNCell, of rnnext or of torch.nn, on the CPU.
        batch_size: B, the number of sequences that go forward together. Default: 1.

    Attributes:
        num_layers: L.
        input_size: I.
        hidden_size: H.
        batch_size: B.

    Raises:
        TypeError: ``module`` is something else.
        ValueError: it has two directions, or ``batch_size`` is less than 1.
        RuntimeError: its weights are not on the CPU, or of a dtype that :class:`rnnext.RNN` lacks.

    Example::

        stepper = rnnext.Stepper(rnn)
        for x in stream:  # each [1, I]
            y = stepper(x)  # [1, H]
    """

    def __init__(self, module: RNN | nn.RNN | nn.RNNCell, batch_size: int = 1) -> None:
        if not isinstance(module, (RNN, nn.RNN, nn.RNNCell)):
            raise TypeError(f"module must be an RNN or an RNNCell, got {type(module).__name__}")
        suffixes = [""]
        if not isinstance(module, nn.RNNCell):
            if module.bidirectional:
                raise ValueError("module must have one direction: the other starts at the end")
            suffixes = [f"_l{layer}" for layer in range(module.num_layers)]
        layers: list[list[Any]] = [
            [getattr(module, kind + suffix, None) for kind in CELL_WEIGHTS] for suffix in suffixes
        ]
        bias = any(b is not None for layer in layers for b in layer[2:])
        zeros = layers[0][1].new_zeros(module.hidden_size)  # of a bias that is missing
        params = [
            zeros if weight is None else weight.detach()
            for layer in layers
            for weight in layer[: 4 if bias else 2]
        ]
        self.num_layers = len(suffixes)
        self.input_size = module.input_size
        self.hidden_size = module.hidden_size
        self.batch_size = batch_size
        self._stepper = _C.stepper(params, bias, nonlinearity_of(module), batch_size)

    def __call__(self, input: Tensor) -> Tensor:
        """Go one step forward.

        Args:
            input: x_t, ``[B, I]``, or ``[I]`` if B is 1; of the weights' dtype, on the CPU.

        Returns:
            The last layer's new state, ``[B, H]`` or ``[H]``.

        Raises:
            RuntimeError: another shape, dtype or device, or an input that requires a gradient
                while gradients are enabled.
        """
        return self._stepper.step(input)

    @property
    def state(self) -> Tensor:
        """A copy of each layer's last state, ``[L, B, H]``: ``h_n`` of the RNN. At first zeros.

        Setting it, say to the ``h_n`` of a sequence that went before, copies the values; it raises
        RuntimeError for another shape, dtype or device.
        """
        return self._stepper.state()

    @state.setter
    def state(self, value: Tensor) -> None:
        self._stepper.set_state(value)

    def reset(self) -> None:
        """Set the state to zeros."""
        self._stepper.reset()

    def __repr__(self) -> str:
        return (
            f"Stepper({self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, "
            f"batch_size={self.batch_size})"
        )
