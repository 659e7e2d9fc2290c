"""The writers that are compared: ours, tensorboardX's and torch's."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

OURS, TBX, TORCH = "ours", "tensorboardX", "torch"


def has_torch() -> bool:
    """Return whether torch's writer can be imported; it needs tensorboard."""
    return bool(importlib.util.find_spec("torch") and importlib.util.find_spec("tensorboard"))


def make_writer(name: str, directory: Path) -> Any:
    """Construct one of the writers on a directory; the others are not imported."""
    if name == TORCH:
        from torch.utils.tensorboard import SummaryWriter as TorchWriter

        return TorchWriter(str(directory))
    if name == TBX:
        import tensorboardX

        return tensorboardX.SummaryWriter(str(directory))
    from hf_mpwriter import SummaryWriter

    return SummaryWriter(directory)
