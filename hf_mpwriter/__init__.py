"""TensorBoard event files from many training processes, delivered to the Hugging Face Hub.

The exported names are imported on first use. So the package itself loads neither huggingface_hub nor tensorboardX nor
torch, and the uploader, which needs none of them, stays small.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hf_mpwriter._version import __version__

if TYPE_CHECKING:
    from hf_mpwriter.integrations.patching import patch, unpatch
    from hf_mpwriter.writer.hf_summary_writer import HFSummaryWriter
    from hf_mpwriter.writer.summary_writer import SummaryWriter

__all__ = ["HFSummaryWriter", "SummaryWriter", "__version__", "patch", "unpatch"]

_HOMES = {
    "HFSummaryWriter": "writer.hf_summary_writer",
    "SummaryWriter": "writer.summary_writer",
    "patch": "integrations.patching",
    "unpatch": "integrations.patching",
}


def __getattr__(name: str) -> Any:
    """Import an exported name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"hf_mpwriter.{_HOMES[name]}"), name)
