"""DTensors on two processes: tables and batches in shards, against torch.nn on whole tensors."""

import pytest
import torch
import torch.multiprocessing
from torch import distributed, nn

import rnnext
from helpers.common import assert_close, leave_group, pair

RANKS = 2


def run(rank, port, check):
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS
    )
    torch.set_num_threads(1)
    check(distributed.init_device_mesh("cpu", (RANKS,)))
    leave_group()


def on_ranks(check):
    port = distributed.TCPStore("127.0.0.1", 0, is_master=True).port
    torch.multiprocessing.spawn(run, (port, check), nprocs=RANKS)


def whole(tensor):
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def embeddings(mesh):
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    for style in (RowwiseParallel, ColwiseParallel):
        for options in ({}, {"padding_idx": 2}, {"scale_grad_by_freq": True}):
            theirs, ours = pair("Embedding", 7, 4, **options, dtype=torch.float64)
            parallelize_module(
                ours, mesh, style(input_layouts=Replicate(), output_layouts=Replicate())
            )
            torch.manual_seed(3)
            tokens = torch.randint(7, (5, 3))
            result, expected = whole(ours(tokens)), theirs(tokens)
            assert_close(result, expected)
            cotangent = torch.rand_like(expected)
            (result * cotangent).sum().backward()
            (expected * cotangent).sum().backward()
            assert_close(whole(ours.weight.grad), theirs.weight.grad)
    theirs, ours = pair("Embedding", 7, 4, dtype=torch.float64)
    table = nn.Parameter(distribute_tensor(ours.weight.detach(), mesh, [Replicate()]))
    tokens = torch.randint(7, (4, 3), generator=torch.Generator().manual_seed(1))
    for dim in (0, 1):
        for weight in (table, theirs.weight):
            weight.grad = None
        rows = rnnext.functional.embedding(distribute_tensor(tokens, mesh, [Shard(dim)]), table)
        assert rows.placements == (Shard(dim),)
        assert_close(whole(rows), theirs(tokens))
        rows.square().sum().backward()
        theirs(tokens).square().sum().backward()
        assert_close(whole(table.grad), theirs.weight.grad)


def recurrences(mesh):
    from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor

    for options in (
        {},
        {"num_layers": 2, "bidirectional": True, "batch_first": True},
        {"num_layers": 2, "bias": False},
    ):
        theirs, ours = pair("RNN", 4, 6, **options, dtype=torch.float64)
        distribute_module(ours, mesh)
        torch.manual_seed(3)
        x = torch.rand(5, 5, 4, dtype=torch.float64)
        states = theirs.num_layers * (1 + theirs.bidirectional)
        hx = torch.rand(states, 5, 6, dtype=torch.float64)
        batch = 0 if theirs.batch_first else 1
        expected = theirs(x, hx)
        for place, of_hx in ((Shard(batch), Shard(1)), (Replicate(), Replicate())):
            ours.zero_grad()
            given = distribute_tensor(x, mesh, [place]), distribute_tensor(hx, mesh, [of_hx])
            result = ours(*given)
            assert_close([whole(each) for each in result], expected)
            with torch.no_grad():
                assert_close([whole(each) for each in ours(*given)], expected)
            sum(each.square().sum() for each in result).backward()
            theirs.zero_grad()
            sum(each.square().sum() for each in theirs(x, hx)).backward()
            for mine, wanted in zip(ours.parameters(), theirs.parameters(), strict=True):
                assert_close(whole(mine.grad), wanted.grad)


@pytest.mark.parametrize("check", [embeddings, recurrences])
def test_on_two_processes(check):
    on_ranks(check)
