"""TensorBoard event files from many training processes, delivered to the Hugging Face Hub.

Importing the package loads neither huggingface_hub nor tensorboardX nor torch: names resolve on first use,
so the uploader, which needs none of them, stays small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_mpwriter._version import __version__

if TYPE_CHECKING:
    from hf_mpwriter.hfwriter import HFSummaryWriter
    from hf_mpwriter.writer import SummaryWriter

__all__ = ["HFSummaryWriter", "SummaryWriter", "__version__"]


def __getattr__(name: str) -> Any:
    """Resolve the writers on first use."""
    if name == "HFSummaryWriter":
        from hf_mpwriter.hfwriter import HFSummaryWriter

        return HFSummaryWriter
    if name == "SummaryWriter":
        from hf_mpwriter.writer import SummaryWriter

        return SummaryWriter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
