#!/usr/bin/env python3
"""Distributed training without a launcher, by torch.multiprocessing.spawn; arrows mark the only lines that differ.

python scripts/examples/train_ddp_spawn.py --repo-id me/digits
python scripts/examples/train_ddp_spawn.py --repo-id me/digits --ranks 4
"""

from __future__ import annotations

import argparse
import glob
import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from digits import Network, digits
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from hf_mpwriter import HFSummaryWriter  # <- this import


def main() -> None:
    """Start the ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo-id", required=True)
    parser.add_argument("--output", default="digits-ddp-spawn")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    os.makedirs(options.output, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    mp.spawn(train, args=(options, port), nprocs=options.ranks)


def train(rank: int, options: argparse.Namespace, port: int) -> None:
    """Train some epochs as one of the ranks, from the last checkpoint if there is one; rank 0 saves one after each."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=options.ranks)
    torch.manual_seed(1)
    rows, _ = digits()
    sampler = DistributedSampler(rows)
    network, batches = DistributedDataParallel(Network()), DataLoader(rows, 16, sampler=sampler)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    first = step = 0
    if saved := glob.glob(os.path.join(options.output, "after-*.pt")):
        checkpoint = torch.load(max(saved, key=os.path.getmtime))
        first, step = checkpoint["epochs"], checkpoint["steps"]
        network.load_state_dict(checkpoint["network"])
        optimizer.load_state_dict(checkpoint["optimizer"])
    logdir = os.path.join(options.output, "run")
    with HFSummaryWriter(options.repo_id, logdir=logdir, purge_step=step or None) as writer:  # <- this, in every rank
        for epoch in range(first, options.epochs):
            sampler.set_epoch(epoch)
            for batch in batches:
                loss = network(**batch)["loss"]
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                writer.add_scalar("loss", loss.item(), step)
                step += 1
            dist.barrier()  # every rank has logged what the checkpoint has seen
            if rank == 0:
                state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
                save(state | {"epochs": epoch + 1, "steps": step}, options.output)
    dist.destroy_process_group()


def save(checkpoint: dict[str, object], output: str) -> None:
    """Save a checkpoint that is complete or not there."""
    path = os.path.join(output, f"after-{checkpoint['epochs']}.pt")
    torch.save(checkpoint, path + ".part")
    os.rename(path + ".part", path)


if __name__ == "__main__":
    main()
