"""The demo's training on several processes, each with some of the streams of text.

Gradients are averaged by DistributedDataParallel, over nccl on GPUs, else over gloo. Without
dropout, whose masks are drawn by each process, the losses are those of one process.

    torchrun --nproc-per-node 2 examples/train_distributed.py --steps 100 --dropout 0
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

import torch
import torch.distributed as dist
from text_data import Subwords, read_text, streams
from text_model import Learner, perplexity
from torch.nn.parallel import DistributedDataParallel
from train_text import options


def train(argv: Sequence[str] | None = None) -> list[float]:
    """The mean loss over all processes of each step; the first process reports it."""
    config = options().parse_args(argv)
    if config.resume:
        raise SystemExit("--resume: this program writes no checkpoint")
    rank, processes = dist.get_rank(), dist.get_world_size()
    if config.batch % processes:
        raise SystemExit(f"--batch {config.batch} must be a multiple of {processes} processes")
    torch.set_num_threads(max(1, config.threads // processes))
    try:
        text = read_text(config.text)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    cut = int(0.9 * len(text))
    subwords = Subwords(text[:cut], set(text), config.vocab)
    mine = streams(subwords.encode(text[:cut]), config.batch).chunk(processes, dim=1)[rank]
    if len(mine) <= config.length:
        raise SystemExit("the text is too short: lower --batch or --length")

    learner = Learner("rnnext", config, len(subwords.pieces), mine.contiguous())
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        learner.streams = learner.streams.cuda()
        learner.model.cuda()
    alone = learner.model
    learner.model = DistributedDataParallel(alone)
    losses: list[float] = []
    every = max(1, config.steps // 10)
    while learner.step < config.steps:
        learner.train(min(every, config.steps - learner.step))
        new = torch.tensor(learner.losses[len(losses) :], dtype=torch.float64)
        new = new.to(learner.streams.device)
        dist.all_reduce(new)
        losses += (new / processes).tolist()
        if rank == 0:
            print(f"step {learner.step}: loss {losses[-1]:.4f}", flush=True)
    if rank == 0:
        learner.model = alone
        held_out = perplexity(learner, subwords.encode(text[cut:]).to(learner.streams.device))
        print(f"{processes} processes; held-out perplexity {held_out:.2f}")
        config.out.mkdir(parents=True, exist_ok=True)
        part = config.out / "losses.part"
        part.write_text(json.dumps(losses))
        part.replace(config.out / "losses.json")  # which is whole or not there
    return losses


def main() -> int:
    if "RANK" not in os.environ:
        raise SystemExit("start it by torchrun: torchrun --nproc-per-node 2 " + sys.argv[0])
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        train()
        # The first process still measures. One that ends Python while a thread of gloo lets go of
        # the last tensor is aborted (pytorch#179291).
        dist.barrier()
    finally:
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
