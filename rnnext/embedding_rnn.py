"""EmbeddingRNN: tokens in, states out, the embedding multiplied with W_ih once a token."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling, is_exporting
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils.rnn import PackedSequence

from rnnext import _C, _deploy, _errors, _layers
from rnnext._C import COUNTED_ROWS, COUNTED_WORK, PROJECTED_SHARE  # csrc/cpu/rnn/tuning.h
from rnnext._layers import _Sequence
from rnnext.embedding import Embedding
from rnnext.gated import LAYERS
from rnnext.rnn import attributes_of, nonlinearity_of, weights_of

__all__ = ["EmbeddingRNN"]


class EmbeddingRNN(_deploy.Module):
    """An embedding and an RNN, GRU or LSTM over it: ``rnn(embedding(tokens))``, in another way.

    The rows of the table that occur are multiplied with the first layer's W_ih once, however often
    they occur, and each step picks its product by token: neither the embedded sequence
    ``[T, B, E]`` nor its product is ever made. Where tokens hardly repeat, it is computed as it is
    written. Results and gradients are equal but for rounding.

    Args:
        num_embeddings: V, the number of tokens.
        embedding_dim: E, the size of a row of the table.
        hidden_size: H.
        num_layers: L. Default: 1.
        nonlinearity: ``"tanh"`` or ``"relu"``; of a GRU or an LSTM ``"tanh"``.
            Default: ``"tanh"``.
        bias: whether the RNN has biases. Default: ``True``.
        batch_first: whether tokens are ``[B, T]`` and the output ``[B, T, D * H]``.
            Default: ``False``.
        dropout, bidirectional: as :class:`rnnext.RNN`'s. Default: 0 and ``False``.
        padding_idx: the row, in -V..V-1, that starts as zeros and gets no gradient. Default: none.
        device, dtype: as :class:`rnnext.RNN`'s.
        cell: ``"rnn"``, ``"gru"`` or ``"lstm"``. Default: ``"rnn"``.

    Attributes:
        embedding: the :class:`rnnext.Embedding`.
        rnn: the :class:`rnnext.RNN`, :class:`rnnext.GRU` or :class:`rnnext.LSTM`.

    Raises:
        TypeError, ValueError, AssertionError: as the two modules'.
    """

    embedding: Embedding
    rnn: Any

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        padding_idx: int | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        cell: str = "rnn",
    ) -> None:
        super().__init__()
        of_rnn = _layers.cell_named(cell) == "elman"
        if not of_rnn and nonlinearity != "tanh":
            raise ValueError(f"nonlinearity must be 'tanh' of a {cell}, got {nonlinearity!r}")
        if isinstance(embedding_dim, int) and embedding_dim <= 0:
            raise ValueError(f"embedding_dim must be greater than zero, got {embedding_dim}")
        self.embedding = Embedding(
            num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype
        )
        self.rnn = LAYERS[cell](
            embedding_dim, hidden_size, num_layers, bias=bias, batch_first=batch_first,
            dropout=dropout, bidirectional=bidirectional, device=device, dtype=dtype,
            **({"nonlinearity": nonlinearity} if of_rnn else {}),
        )  # fmt: skip

    def forward(
        self,
        tokens: _Sequence,
        hx: Any = None,
        lengths: _layers.Lengths | None = None,
        reset: Tensor | None = None,
        reset_state: Any = None,
    ) -> tuple[_Sequence, Any]:
        """Run over whole sequences of tokens.

        Args:
            tokens: int32 or int64, each in 0..V-1: ``[T, B]``, ``[B, T]`` with ``batch_first``,
                ``[T]`` for one sequence, or a packed sequence of ``[N]`` data.
            hx: the first states, ``[L * D, B, H]``, or ``[L * D, H]`` for one sequence; of an LSTM
                two of these, ``(h, c)``. Default: zeros.
            lengths: the number of steps of each row, as :meth:`rnnext.RNN.forward`'s.
            reset: where a new episode begins, as :meth:`rnnext.RNN.forward`'s.
            reset_state: the states that it begins with, as :meth:`rnnext.RNN.forward`'s.

        Returns:
            ``(output, h_n)``: as :meth:`rnnext.RNN.forward`'s.

        Raises:
            IndexError: a token is outside 0..V-1; the message names it and its position.
            TypeError: tokens that are no integers.
            ValueError, TypeError, RuntimeError: as :meth:`rnnext.RNN.forward`.
        """
        options = {"lengths": lengths, "reset": reset, "reset_state": reset_state}
        data = tokens.data if isinstance(tokens, PackedSequence) else tokens
        if not isinstance(data, Tensor):
            node: tuple[_Sequence, Any] | None
            node = _deploy.leaf(self, data, hx=hx, **options)
            if node is not None:
                return node
            _errors.refuse_others({"tokens": data})
        if data.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"tokens must be int32 or int64, got {str(data.dtype)[6:]}")
        most, dims = (1, "1") if isinstance(tokens, PackedSequence) else (2, "1 or 2")
        if not 1 <= data.dim() <= most:
            raise ValueError(f"tokens must have {dims} dimensions, got {data.dim()}")
        if lengths is not None and data.dim() < 2:
            raise ValueError("lengths needs 2-D tokens: one sequence or a packed input has its own")
        table = self._table(data)
        if table is None:
            features: Any = self.embedding(data)
            if isinstance(tokens, PackedSequence):
                features = PackedSequence(features, *tokens[1:])  # Dynamo loses _replace's fields
            given: dict[str, Any] = {k: v for k, v in options.items() if v is not None}
            result: tuple[_Sequence, Any] = self.rnn(features, hx, **given)
            return result
        rnn = self.rnn
        rows, index = table
        batch = PackedSequence(index, *tokens[1:]) if isinstance(tokens, PackedSequence) else index
        try:
            return _layers.run(
                attributes_of(rnn), weights_of(rnn, rnn._flat_weights_names), batch, hx, lengths,
                reset, reset_state, rnn._cell, nonlinearity_of(rnn), table=rows,
            )  # fmt: skip
        except IndexError:
            if data.is_cpu:  # (A GPU's is of an earlier call.)
                self.embedding(data)  # names the token's place in the layout that was given
            raise

    if TYPE_CHECKING:  # nn.Module's takes and gives anything
        __call__ = forward

    def _table(self, tokens: Tensor) -> tuple[Tensor, Tensor] | None:
        """The rows of the table to multiply with W_ih, ``[U, E]``, and which of them each token is.

        None where the two modules must be called as they are: they do more than this class
        computes, or the call is recorded for inputs of any size. Also None where it would not save
        time (measured): the rows are nearly as many as the tokens, or few products are to be saved.
        """
        modules: dict[str, Any] = self._modules  # faster than through nn.Module.__getattr__
        embedding, rnn = modules["embedding"], modules["rnn"]
        if not (_is_plain(embedding, Embedding) and _is_plain(rnn, *LAYERS.values())):
            return None
        if _has_any_global_hook():  # type: ignore[no-untyped-call]
            return None
        if embedding.max_norm is not None or embedding.scale_grad_by_freq or embedding.sparse:
            return None  # these attributes, if set later, need the indices of all tokens
        recorded = torch._C._get_tracing_state() is not None or is_exporting()
        if recorded or (tokens.is_cuda and rnn._cell != "elman"):  # torch's op takes no table
            return None
        V, N = embedding.weight.shape[0], tokens.numel()
        uncounted = (
            N * embedding.embedding_dim * rnn.hidden_size < COUNTED_WORK
            or V > COUNTED_ROWS
            or is_compiling()
            or type(tokens) is not Tensor
            or not tokens.is_cpu
            # The calls that vmap joins may have different numbers of rows.
            or torch._C._are_functorch_transforms_active()
        )
        if V * (3 if uncounted else 8) <= N:  # the table is small: nearly all of its rows occur
            if embedding.padding_idx is None:
                return embedding.weight, tokens
            return embedding(torch.arange(V, device=tokens.device)), tokens
        if uncounted:
            return None
        rows, index = _C.occurring(tokens, V, int(N * PROJECTED_SHARE))
        return (embedding(rows), index) if len(rows) else None


def _is_plain(module: Any, *classes: type[nn.Module]) -> bool:
    """Whether calling a module runs the forward of its class, one of these, on its parameters, and
    nothing else.

    A parametrization gives a module a class of its own; torch's older spectral_norm, weight_norm
    and prune are hooks.
    """
    return type(module) in classes and not (
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        or "forward" in module.__dict__
    )
