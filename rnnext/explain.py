"""How a call would run on this CPU, in words: what ``python -m rnnext explain`` prints."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rnnext import _C

__all__ = ["explain"]


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
    machine: str | Mapping[str, float] | None = None,
) -> str:
    """Say how the CPU kernels would share out and run a call of an RNN of these sizes.

    Args:
        T: steps.
        B: sequences.
        I: features of the input; 0 for ready pre-activations.
        H: hidden units.
        num_layers: layers, for calls without gradients. Default: 1.
        bidirectional: whether there are two directions. Default: ``False``.
        dtype: float32, float64, bfloat16 or float16. Default: float32.
        train: explain the backward pass, all gradients wanted, instead of the forward pass.
            Default: ``False``.
        hx: whether first states are given. Default: ``False``.
        lengths: B lengths in 0..T. Default: all T.
        threads: the most threads. Default: ``torch.get_num_threads()``.
        machine: the processor to plan for: a name from ``csrc/cpu/rnn/tuning.h`` (zen4, zen5,
            xeon-amx); numbers that differ from this one's, as ``"far_rate=10,wait=900"`` or as a
            mapping; or both: ``"zen5,far_rate=10"``. Default: this one, as calls do: what
            ``RNNEXT_CPU_MACHINE`` says in the same words, or the row that is nearest, with this
            one's caches.

    Returns:
        A few sentences, one a line.

    Raises:
        ValueError: a size below 1, lengths that do not fit, or a machine that is unknown.
        NotImplementedError: another dtype.
    """
    directions = 2 if bidirectional else 1
    plan = _C.plan(
        T=T,
        B=B,
        I=I,
        H=H,
        directions=directions,
        layers=num_layers,
        dtype=dtype,
        threads=torch.get_num_threads() if threads is None else threads,
        train=train,
        hx=hx,
        lengths=list(lengths),
        machine=_written(machine),
    )
    what = "backward" if train else "forward"
    lines = [
        f"{what}, T={T} B={B} I={I} H={H}, {directions} direction(s), {str(dtype)[6:]}, on "
        f"{plan['isa']}",
        _planned_for(plan),
        f"weights of a direction, packed: {plan['weight_bytes'] / 1024:.0f} KiB in panels of "
        f"{plan['panel']} columns; {'AMX ' if plan['amx'] else ''}tiles of up to "
        f"{plan['tile_rows']} rows",
        f"threads: {plan['threads']}",
    ]
    if plan["wavefront"]:
        lines.append("layers: a wavefront, each thread a layer, some steps behind the one below")
    if plan.get("one_step"):
        lines.append("one step: multiplied with the weights as they lie, nothing is packed")
        return "\n".join(lines)
    if plan.get("from_zeros"):
        lines.append("one step from zeros: a product of rows, shared out by sequences")
        return "\n".join(lines)
    if plan.get("packed"):
        lines.append("padding is left out: rows are copied, the longest sequences first in a step")
    parts = plan["batch_parts"]
    if plan["hidden_parts"] > 1:
        wait = "piece by piece of the state" if plan["pieces"] > 1 else "for the whole state"
        lines.append(
            f"shared out: {parts} part(s) of the batch a direction, the hidden units of each among "
            f"{plan['hidden_parts']} threads, which wait for each other at every step, {wait}"
        )
    else:
        lines.append(
            f"shared out: {parts} part(s) of the batch a direction, {plan['unit_rows']} "
            "sequence(s) at most, which need not wait for each other"
        )
    if plan["joined"]:
        lines.append("a thread takes both directions of its sequences, one after the other")
    packs = "each part for itself" if plan["own_weights"] else "together, once for all"
    if plan["streams"] and not train:
        packs = "panel by panel, each when it is multiplied"
    if train and T == 1 and not plan["amx"]:
        how = "multiplied as it lies" if hx else "not read: no state came before"
        lines.append(f"W_hh is {how}")
    else:
        lines.append(f"weights are packed {packs}")
    if train:
        place = "rows of the gradient" if plan["state"] == "rows" else "scratch"
        lines.append(f"the gradient of the pre-activations passes from step to step in {place}")
        sums = "each part over its own rows" if plan["own_sums"] else "by hidden units, at the end"
        where = ", where they are returned" if plan["direct_sums"] else ""
        lines.append(f"gradients of the weights are summed {sums}{where}")
        if plan["streams"]:
            how = "packs their W_ih" if plan["amx"] else "multiplies with their W_ih as it lies"
            lines.append(f"a thread takes some features for their gradient, and {how}")
        if plan["own_rows"]:
            lines.append(f"in chunks of up to {plan['chunk_rows']} rows, which stay in cache")
    else:
        place = "hx" if plan["from_hx"] else "the output" if plan["state"] == "rows" else "scratch"
        lines.append(f"a step reads the state before it from {place}")
        if plan["projects"]:
            lines.append(f"W_ih x comes first, in chunks of up to {plan['chunk_rows']} rows")
        else:
            lines.append("W_ih x is added in the same tile as W_hh h")
        if plan["held_steps"]:
            lines.append(f"{plan['held_steps']} steps of the output are written together")
        if plan["far"]:
            lines.append("the output is prefetched before it is written")
    what = "the product with the state, and packing"
    lines.append(f"estimate: {plan['cycles']:.0f} cycles a step for {what}")
    return "\n".join(lines)


def _written(machine: str | Mapping[str, float] | None) -> str | None:
    if isinstance(machine, Mapping):
        return ",".join(f"{name}={number}" for name, number in machine.items())
    return machine


def _planned_for(plan: Mapping[str, Any]) -> str:
    tiles = f", {plan['tiles']:.0f} on AMX tiles" if plan["tiles"] else ""
    return (
        f"planned for {plan['machine']}, told by {plan['origin']}; in bytes a cycle of one core: "
        f"multiply-adds {plan['multiply']:g} ({plan['pairs']:g} of bfloat16 pairs{tiles}), weights "
        f"of up to {plan['first_bytes'] / 1024:.0f} KiB are read at {plan['first_rate']:g}, of up "
        f"to {plan['second_bytes'] / 1024:.0f} KiB at {plan['second_rate']:g}, larger ones at "
        f"{plan['far_rate']:g}; waiting at a step costs {plan['wait']:g} cycles, a line from "
        f"another core {plan['line']:g}"
    )
