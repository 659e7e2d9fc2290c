#!/usr/bin/env python3
"""A training loop with Accelerate and our tracker; arrows mark the only lines that differ.

python scripts/examples/train_accelerate.py --repo-id me/digits
torchrun --nproc-per-node 2 scripts/examples/train_accelerate.py --repo-id me/digits
"""

from __future__ import annotations

import argparse
import os

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from digits import Network, digits
from torch.utils.data import DataLoader

import hf_mpwriter.integrations.accelerate  # noqa: F401 - registers the name


def main() -> None:
    """Train, from the last checkpoint if there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo-id", required=True)
    parser.add_argument("--output", default="digits-accelerate")
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    set_seed(1)
    accelerator = Accelerator(log_with="hf_mpwriter", project_dir=options.output, cpu=True)  # <- this name
    train(accelerator, options)
    accelerator.free_memory()  # torch may hang if the model is the last to hold the process group
    accelerator.end_training()


def train(accelerator: Accelerator, options: argparse.Namespace) -> None:
    """Train some epochs and save a checkpoint after each."""
    rows, _ = digits()
    network = Network()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    network, optimizer, batches = accelerator.prepare(network, optimizer, DataLoader(rows, 16))
    first = 0
    while os.path.isdir(checkpoint(options.output, first + 1)):
        first += 1
    if first:
        accelerator.load_state(checkpoint(options.output, first))
    settings = {"repo_id": options.repo_id, "purge_step": first * len(batches) if first else None}  # <- this
    accelerator.init_trackers("run", {"rate": 0.1}, {"hf_mpwriter": settings})  # <- and its arguments
    for epoch in range(first, options.epochs):
        for number, batch in enumerate(batches):
            loss = network(**batch)["loss"]
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            accelerator.log({"loss": loss.item()}, step=epoch * len(batches) + number)
        save(accelerator, checkpoint(options.output, epoch + 1))


def checkpoint(output: str, epochs: int) -> str:
    """Return the directory of the checkpoint after so many epochs."""
    return os.path.join(output, f"after-{epochs}")


def save(accelerator: Accelerator, directory: str) -> None:
    """Save a checkpoint that is complete or not there."""
    accelerator.save_state(directory + ".part")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        os.rename(directory + ".part", directory)


if __name__ == "__main__":
    main()
