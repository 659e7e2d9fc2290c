"""Environment variables that keep a script away from the user's files, account and settings."""

from __future__ import annotations

import os
from pathlib import Path

UNLIMITED = "1000000"  # commits per hour: only the script decides when to push


def variables(directory: Path) -> dict[str, str]:
    """Return what the processes of a script need in their environment.

    Args:
        directory: where caches and the home of huggingface_hub go.
    """
    return {
        "HF_HOME": str(directory / "home"),
        "XDG_CACHE_HOME": str(directory / "cache"),
        "HF_HUB_DISABLE_EXPERIMENTAL_WARNING": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_MPWRITER_COMMITS_PER_HOUR": UNLIMITED,
        "NO_PROXY": "127.0.0.1",
    }


def isolate(directory: Path) -> None:
    """Set these variables for this process and its children; call it before huggingface_hub is imported."""
    os.environ |= variables(directory)
