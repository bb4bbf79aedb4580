"""The program of each process of test_several_processes.py, under torchrun."""

import copy
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import train_distributed
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import rnnext


class Model(nn.Module):
    """Alpha is learned for each unit: fully_shard refuses parameters of no dimension."""

    def __init__(self):
        super().__init__()
        self.embedding, self.rnn = rnnext.Embedding(11, 6), rnnext.RNN(6, 8, 2, bidirectional=True)
        self.leaky = rnnext.LeakyRNN(16, 8, alpha=torch.full((8,), 0.5), learn_alpha=True)
        self.cell = rnnext.RNNCell(8, 4)

    def forward(self, tokens):
        y, _ = self.rnn(self.embedding(tokens))
        y, _ = self.leaky(y)
        return self.cell(y[-1])


def train(model, batches):
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.02), []
    for tokens in batches:
        optimizer.zero_grad()
        loss = model(tokens).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def sharded(model):
    for part in (model.embedding, model.rnn, model.leaky, model.cell):
        fully_shard(part)
    return fully_shard(model)


def main(out, *demo):
    """The losses of each way, and what the demo does with these options, written into a folder."""
    sys.argv = ["train_distributed.py", *demo]
    train_distributed.main()
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # A store of its own: in torchrun's the first group has left the addresses that it had.
    store = dist.FileStore(str(Path(out) / "store"), processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = Model()
    batches = torch.randint(11, (6, 7, 4))  # steps, T, B
    results = {"alone": train(copy.deepcopy(model), batches)}
    for name, spread in (("ddp", DistributedDataParallel), ("fsdp", sharded)):
        losses = train(spread(copy.deepcopy(model)), batches.chunk(processes, dim=2)[rank])
        dist.all_reduce(losses)
        results[name] = losses / processes
    leaky = sharded(copy.deepcopy(model)).leaky
    torch.nn.init.ones_(leaky.logit_alpha_l0)
    leaky.reset_parameters()
    results["logits"] = leaky.logit_alpha_l0.full_tensor()
    if rank == 0:
        torch.save(results, Path(out) / "losses.pt")
    # Without Python's end: DTensor's caches keep the group past its destruction, and a thread of
    # gloo that still holds a tensor when Python ends aborts the process (pytorch#179291).
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
