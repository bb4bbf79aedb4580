"""How a call would run on this CPU, in words: what ``python -m rnnext explain`` prints."""

from collections.abc import Sequence

import torch

from rnnext import _C
from rnnext._errors import refuse_word
from rnnext._layers import CELLS

__all__ = ["explain"]

# Sentences about fields of the plan that are not 0, or have this value. Fields stand in braces.
_SAID = {
    "wavefront": "layers: a wavefront, each thread a layer, some steps behind the one below",
    "weights=unpacked": "one step: multiplied with the weights as they lie, nothing is packed",
    "unpadded": "padding is left out: rows are copied, the longest sequences first in a step",
    "joined": "a thread takes both directions of its sequences, one after the other",
    "weights=own": "each part packs the weights for itself",
    "weights=streamed": "weights are packed, or read as they lie, by who multiplies with them",
    "from_hx": "the step reads the state before it from hx",
    "projects": "W_ih x comes first, in chunks of up to {chunk_rows} rows",
    "fetches": "each panel of weights is fetched while the one before it is multiplied",
    "far": "the output is prefetched before it is written",
    "past_caches": "gradients of gates are written past the caches",
    "own_sums": "gradients of the weights are summed by each part over its own rows",
    "direct_sums": "gradients of the weights are summed where they are returned",
    "features=streamed": "gradients of the features take W_ih once, as it lies or packed in blocks",
    "features=by_step": "gradients of the features come with each step, those of the weights are "
    "summed in chunks of up to {chunk_rows} rows",
}


def explain(
    T: int,
    B: int,
    I: int,  # noqa: E741 - the field's letter
    H: int,
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    dtype: torch.dtype = torch.float32,
    train: bool = False,
    hx: bool = False,
    lengths: Sequence[int] = (),
    threads: int | None = None,
    machine: str | None = None,
    cell: str = "rnn",
) -> str:
    """Say how the CPU kernels would share out and run a call of an RNN of these sizes.

    Float32 is planned at the precision that ``torch.set_float32_matmul_precision`` has set, or at
    the highest, where that is faster.

    Args:
        T, B, I, H: steps, sequences, features (0: the input is W_ih x already), hidden units.
        num_layers: layers, for calls without gradients (with ``train`` 1). Default: 1.
        train: explain the backward pass, all gradients wanted, instead of the forward pass.
            Default: ``False``.
        hx: whether first states are given. Default: ``False``.
        lengths: B lengths in 0..T. Default: all T.
        threads: the most threads. Default: ``torch.get_num_threads()``.
        machine: the processor to plan for, as ``RNNEXT_CPU_MACHINE`` names it: zen4, zen5 or
            xeon-amx, numbers that differ from its, or both, as ``"zen5,far_rate=10,wait=900"``.
            Default: this one, as calls do.
        cell: ``"rnn"``, ``"gru"``, ``"lstm"`` or a leak's ``form``. Default: ``"rnn"``.

    Returns:
        A few sentences, one a line.

    Raises:
        ValueError: a size below 1 (I: 0), wrong lengths, or an unknown machine or cell.
        NotImplementedError: another dtype.
    """
    D = 2 if bidirectional else 1
    if train and num_layers > 1:
        raise ValueError(f"num_layers must be 1 with train, got {num_layers}")
    refuse_word("cell", cell, [*CELLS, *_C.forms()])
    plan = _C.plan(
        T=T, B=B, I=I, H=H, directions=D, layers=num_layers, dtype=dtype, train=train, hx=hx,
        lengths=list(lengths), machine=machine, cell=CELLS.get(cell, cell),
        threads=torch.get_num_threads() if threads is None else threads,
    )  # fmt: skip
    precision = f" ({plan['precision']})" if "precision" in plan else ""
    cycles = plan.pop("cycles")
    numbers = ",".join(f"{name}={v:g}" for name, v in plan.items() if isinstance(v, float))
    parts = f"{plan['batch_parts']} part(s) of the batch a direction, "
    parts += f"at most {plan['group_rows']} sequence(s) of each at a time"
    estimate = [f"estimate: {cycles:.0f} cycles a step for the product with the state, and packing"]
    if plan["weights"] == "unpacked":
        parts, estimate = "each has some of the hidden units", []
    if plan["hidden_parts"] > 1:
        parts += f"; {plan['hidden_parts']} part(s) of the hidden units of each wait for each other"
    holds = {field for field, value in plan.items() if value and (I or field != "projects")}
    holds |= {f"{field}={value}" for field, value in plan.items()}
    return "\n".join(
        [
            f"{'backward' if train else 'forward'}, T={T} B={B} I={I} H={H}, {D} direction(s), "
            f"{cell}, {str(dtype)[6:]}{precision}, on {plan['isa']}",
            f"planned for {plan['machine']}, told by {plan['origin']}: {numbers}",
            f"weights of a direction, packed: {plan['weight_bytes'] / 1024:.0f} KiB in panels of "
            f"{plan['panel']} columns; {'AMX ' if plan['amx'] else ''}tiles of up to "
            f"{plan['mr']} rows",
            f"{plan['threads']} thread(s): {parts}",
            *(text.format(**plan) for field, text in _SAID.items() if field in holds),
            *estimate,
        ]
    )
