#!/usr/bin/env python3
"""The Trainer of Lightning with our logger; an arrow marks the only line that differs.

python scripts/examples/train_lightning.py --repo-id me/digits
python scripts/examples/train_lightning.py --repo-id me/digits --devices 2
"""

from __future__ import annotations

import argparse
import os

import lightning as L  # noqa: N812 - as in its documentation
import torch
from digits import Network, digits
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from hf_mpwriter.integrations.lightning import HubTensorBoardLogger


class Digits(L.LightningModule):
    """The network and its training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.rate = rate
        self.network = Network()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.network.body(pixels)

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        """Return the loss of a batch."""
        loss = Network.loss(self(batch["pixels"]), batch["labels"])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor], _: int) -> None:
        """Log the loss of a batch of the test set."""
        self.log("validation", Network.loss(self(batch["pixels"]), batch["labels"]), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Use plain gradient descent."""
        return torch.optim.SGD(self.parameters(), self.rate)


def main() -> None:
    """Train, from the last checkpoint if there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo-id", required=True)
    parser.add_argument("--output", default="digits-lightning")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--devices", type=int, default=1)
    options = parser.parse_args()
    L.seed_everything(1)
    train, test = digits()
    trainer = L.Trainer(
        max_epochs=options.epochs,
        logger=HubTensorBoardLogger(options.output, "runs", "1", repo_id=options.repo_id),  # <- this line
        callbacks=[ModelCheckpoint(os.path.join(options.output, "checkpoints"), save_last=True)],
        accelerator="cpu",
        devices=options.devices,
        log_every_n_steps=5,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = os.path.join(options.output, "checkpoints", "last.ckpt")
    resume = last if os.path.isfile(last) else None
    trainer.fit(Digits(0.1), DataLoader(train, 16), DataLoader(test, 64), ckpt_path=resume)


if __name__ == "__main__":
    main()
