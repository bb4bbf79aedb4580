from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

def cpu_isa() -> str: ...
def set_cpu_isa(name: str) -> None: ...
def check_indices(device: int) -> None: ...
def build_info() -> dict[str, Any]: ...
def nonlinearities() -> list[str]: ...
def onnx_nonlinearities() -> list[str]: ...
def forms() -> list[str]: ...
def plan(
    *,
    T: int,
    B: int,
    I: int,
    H: int,
    directions: int = 1,
    layers: int = 1,
    dtype: torch.dtype,
    threads: int,
    train: bool = False,
    hx: bool = False,
    lengths: Sequence[int] = (),
    machine: str | None = None,
) -> dict[str, Any]: ...

# The ops of the same names, arguments by position.
def rnn(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    dropout: float,
    training: bool,
    index: Tensor | None,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    reset_state: Tensor | None,
    alpha: Sequence[Tensor],
    form: str,
    noise: Sequence[Tensor],
    nonlinearity: str,
    /,
) -> tuple[Tensor, Tensor]: ...
def rnn_cell(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    nonlinearity: str,
    /,
) -> Tensor: ...
def embedding(
    weight: Tensor,
    indices: Tensor,
    padding_idx: int,
    scale_grad_by_freq: bool,
    sparse: bool,
    /,
) -> Tensor: ...
def occurring(tokens: Tensor, num_rows: int, most: int, /) -> tuple[Tensor, Tensor]: ...

# Checks of the ops. What an op returns without data is fake_ and its name.
def check_embedding(weight: Tensor, indices: Tensor) -> None: ...
def check_embedding_gradient(grad: Tensor, indices: Tensor) -> None: ...
def check_index_dtype(indices: Tensor) -> None: ...

# layers: W_ih, W_hh, b_ih, b_hh and alpha of each.
def stepper(
    layers: Sequence[Sequence[Tensor | None]],
    table: Tensor | None,
    watched: Sequence[tuple[str, Tensor]],
    nonlinearity: str,
    form: str,
    batch_size: int,
) -> Stepper: ...

class Stepper:
    def step(self, input: Tensor, /) -> Tensor: ...
    def step_from(self, input: Tensor, state: Tensor, /) -> tuple[Tensor, Tensor]: ...
    def get_state(self) -> Tensor: ...
    def set_state(self, state: Tensor, /) -> None: ...
    def reset(self, mask: Tensor | None, /) -> None: ...
