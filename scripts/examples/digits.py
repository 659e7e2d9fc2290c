"""A small network, and the handwritten digits that come with scikit-learn: what the examples train."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn


class Network(nn.Module):
    """Maps 64 pixels to 10 digits; given labels, it returns the loss too, as the Trainer of transformers expects."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Return the logits, and the loss if there are labels."""
        logits = self.body(pixels)
        return {"logits": logits} if labels is None else {"loss": self.loss(logits, labels), "logits": logits}

    @staticmethod
    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the cross entropy."""
        return nn.functional.cross_entropy(logits, labels)


def digits() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return 1500 digits to train on and 297 to test on."""
    found = load_digits()
    rows = [
        {"pixels": torch.tensor(image / 16, dtype=torch.float32), "labels": int(label)}
        for image, label in zip(found.data, found.target, strict=True)
    ]
    return rows[:1500], rows[1500:]
