"""How the ops work on :class:`torch.distributed.tensor.DTensor`.

The embedding's table may be sharded by rows or by columns, and its indices by any dimension, as
torch.nn.Embedding's. The recurrence's batch may be sharded; its weights are gathered.
"""

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from rnnext._fake import Recurrence

_MODULE = "torch.distributed.tensor"  # half as long to import as torch: not before it is needed
_ops = torch.ops.rnnext


def register_when_imported() -> None:
    """Register all strategies now, or after the first import of torch's module."""
    if _MODULE in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing, but sees when the module is looked for."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def _register() -> None:
    try:
        _register_strategies()
    except (ImportError, AttributeError):  # a torch without these names, which are not stable
        return


def _register_strategies() -> None:
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
    from torch.distributed.tensor.experimental import register_sharding
    from torch.distributed.tensor.placement_types import _MaskPartial

    everywhere = Replicate()

    @register_sharding(_ops.embedding.default)  # type: ignore[untyped-decorator]
    def embedding(
        weight: Any,
        indices: Any,
        padding_idx: int = -1,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> list[Any]:
        rows = len(indices.shape)
        table = torch.Size(map(int, weight.shape))
        masked = _MaskPartial(offset_shape=table, offset_dim=0)  # type: ignore[no-untyped-call]
        return [
            ([everywhere], [everywhere, everywhere]),
            ([Shard(rows)], [Shard(1), everywhere]),
            ([masked], [Shard(0), masked]),
            *(([Shard(i)], [everywhere, Shard(i)]) for i in range(rows)),
        ]

    @register_sharding(_ops.embedding_backward.default)  # type: ignore[untyped-decorator]
    def embedding_backward(
        grad: Any, indices: Any, num_weights: int, padding_idx: int, scale_grad_by_freq: bool
    ) -> list[Any]:
        rows = len(indices.shape)
        found = [
            ([everywhere], [everywhere, everywhere]),
            ([Shard(1)], [Shard(rows), everywhere]),
            ([Partial()], [Partial(), everywhere]),
        ]
        if not scale_grad_by_freq:  # how often a row occurs is known where all indices are
            found += [([Partial()], [Shard(i), Shard(i)]) for i in range(rows)]
        return found

    def call_on_shards(op: Any, arguments: Sequence[Any], keywords: dict[str, Any]) -> Any:
        backward = op is _ops.recurrence_backward.default
        given = list(arguments[:4]) if backward else []
        last = arguments[-1]
        call = Recurrence(*arguments[len(given) : -1])
        tensors = [t for t in (*given, *vars(call).values()) if isinstance(t, DTensor)]
        tensors += [w for w in (*call.weight_ih, *call.weight_hh) if isinstance(w, DTensor)]
        mesh = tensors[0].device_mesh
        rows = call.input if call.index is None else call.index
        packed = call.batch_sizes is not None
        shards = [
            not packed and isinstance(rows, DTensor) and rows.placements[i] == Shard(1)
            for i in range(mesh.ndim)
        ]

        def placed(where: Any) -> list[Any]:
            return [where if shard else everywhere for shard in shards]

        def local(value: Any, where: Any = everywhere) -> Any:
            if isinstance(value, (list, tuple)):
                return [local(each, where) for each in value]
            if not isinstance(value, Tensor):
                return value
            if not isinstance(value, DTensor):
                value = DTensor.from_local(value, mesh, [everywhere] * mesh.ndim, run_check=False)
            return value.redistribute(mesh, placed(where)).to_local()

        def whole(value: Any, where: Any) -> Any:
            if isinstance(value, list):
                return [whole(each, where) for each in value]
            shape = list(value.shape)
            if where == Shard(1) and any(shards):
                shape[1] = rows.shape[1]
            strides = torch.empty(shape, device="meta").stride()
            return DTensor.from_local(
                value, mesh, placed(where), run_check=False, shape=torch.Size(shape), stride=strides
            )

        batch = Shard(1)
        with torch.no_grad():
            own = replace(
                call,
                input=local(call.input, batch if call.index is None else everywhere),
                hx=local(call.hx, batch),
                weight_ih=local(call.weight_ih),
                weight_hh=local(call.weight_hh),
                bias_ih=local(call.bias_ih),
                bias_hh=local(call.bias_hh),
                index=local(call.index, batch),
                lengths=local(call.lengths, Shard(0)),
                reset=local(call.reset, batch),
                reset_state=local(call.reset_state, batch),
                alpha=local(call.alpha),
            )
            results = op(*local(given, batch), *vars(own).values(), last)
        if not backward:
            return tuple(whole(each, batch) for each in results)
        of_rows = batch if call.index is None else Partial()
        where = (of_rows, batch, Partial(), Partial(), Partial(), batch, Partial())
        wanted = (last[0], last[1], True, True, True, last[4] and call.reset is not None, True)
        return tuple(
            whole(each, place) if want else whole(each, everywhere)
            for each, place, want in zip(results, where, wanted, strict=True)
        )

    handlers: Any = DTensor._op_dispatcher._custom_op_handlers
    for name in ("recurrence", "recurrence_stack", "recurrence_backward"):
        handlers[getattr(_ops, name).default] = call_on_shards
