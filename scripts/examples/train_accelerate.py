#!/usr/bin/env python3
"""A loop with Accelerate, with our tracker: the only lines that differ are marked.

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

import hf_mpwriter.integrations.accelerate  # noqa: F401 - this line registers the name


def main() -> None:
    """Train, and go on from the last checkpoint if there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo-id", required=True)
    parser.add_argument("--output", default="digits-accelerate")
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    set_seed(1)
    train, _ = digits()
    network = Network()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    accelerator = Accelerator(log_with="hf_mpwriter", project_dir=options.output, cpu=True)  # <- this name
    network, optimizer, batches = accelerator.prepare(network, optimizer, DataLoader(train, 16))
    checkpoint = os.path.join(options.output, "checkpoint")
    epochs = range(options.epochs)
    if os.path.isfile(os.path.join(checkpoint, "epoch")):
        accelerator.load_state(checkpoint)
        with open(os.path.join(checkpoint, "epoch"), encoding="utf-8") as file:
            epochs = range(int(file.read()), options.epochs)
    steps = len(batches)
    settings = {"repo_id": options.repo_id, "purge_step": epochs.start * steps if epochs.start else None}
    accelerator.init_trackers("run", {"rate": 0.1}, {"hf_mpwriter": settings})  # <- and its arguments
    for epoch in epochs:
        for number, batch in enumerate(batches):
            loss = network(**batch)["loss"]
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            accelerator.log({"loss": loss.item()}, step=epoch * steps + number)
        accelerator.wait_for_everyone()
        accelerator.save_state(checkpoint)
        if accelerator.is_main_process:
            with open(os.path.join(checkpoint, "epoch"), "w", encoding="utf-8") as file:
                file.write(str(epoch + 1))
    accelerator.end_training()


if __name__ == "__main__":
    main()
