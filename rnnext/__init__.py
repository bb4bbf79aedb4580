"""RNN, GRU, LSTM and embedding gather as fused, hand-written kernels for PyTorch."""

from importlib.metadata import version as _version
from pathlib import Path as _Path

import torch as _torch

try:
    from rnnext import _build
except ImportError as _error:  # only an unbuilt source tree lacks it, which a cwd may put first
    raise ImportError(
        f"Python found the unbuilt sources in {_Path(__file__).resolve().parents[1]} before an "
        "installed rnnext: change directory, or build them there with `pip install -e .`"
    ) from _error

if not f"{_torch.__version__}.".startswith(f"{_build.torch_version}."):
    raise ImportError(
        f"rnnext was built for torch {_build.torch_version}, but torch {_torch.__version__} is "
        "installed. Install the wheel of rnnext that has this version of torch in its name, or "
        "build again: pip install --force-reinstall --no-deps . in a clone of rnnext"
    )

from rnnext import functional, ops
from rnnext.convert import (
    LengthsGRU,
    LengthsLSTM,
    LengthsRNN,
    TorchGRU,
    TorchLSTM,
    TorchRNN,
    convert,
    revert,
    summary,
)
from rnnext.embedding import Embedding
from rnnext.embedding_rnn import EmbeddingRNN
from rnnext.gated import GRU, LSTM, GRUCell, LSTMCell
from rnnext.leaky import LeakyRNN, LeakyRNNCell
from rnnext.rnn import RNN, RNNCell
from rnnext.stepper import Stepper

# torch.load(weights_only=True) may then make these from a file: their state is data.
_torch.serialization.add_safe_globals(
    [
        *(RNN, GRU, LSTM, RNNCell, GRUCell, LSTMCell, LeakyRNN, LeakyRNNCell),
        *(Embedding, EmbeddingRNN, Stepper),
        *(LengthsRNN, LengthsGRU, LengthsLSTM, TorchRNN, TorchGRU, TorchLSTM),
    ]
)

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Embedding",
    "EmbeddingRNN",
    "GRUCell",
    "LSTMCell",
    "LeakyRNN",
    "LeakyRNNCell",
    "RNNCell",
    "Stepper",
    "convert",
    "functional",
    "ops",
    "revert",
    "summary",
]
__version__ = _version("rnnext")
