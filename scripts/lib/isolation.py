"""What keeps a script away from the user's files, account and settings, and others away from its disks."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from pathlib import Path

UNLIMITED = "1000000"  # commits per hour: only the script decides when to push
_NEW_MOUNTS = 0x20000  # CLONE_NEWNS


def variables(directory: Path) -> dict[str, str]:
    """Return what the processes of a script need in their environment."""
    return {
        "HF_HOME": str(directory / "home"),
        "XDG_CACHE_HOME": str(directory / "cache"),
        "XDG_STATE_HOME": str(directory / "state"),  # notes of where runs stand
        "HF_HUB_DISABLE_EXPERIMENTAL_WARNING": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_MPWRITER_COMMITS_PER_HOUR": UNLIMITED,
        "NO_PROXY": "127.0.0.1",
    }


def isolate(directory: Path) -> None:
    """Set these variables for this process and its children; call it before huggingface_hub is imported."""
    os.environ |= variables(directory)


def own_mounts() -> None:
    """Give this process mounts of its own, if it may: a disk without power would live on in a copy of them.

    Any `unshare` or container that starts meanwhile makes such a copy.
    """
    with contextlib.suppress(AttributeError, OSError, subprocess.CalledProcessError):
        if ctypes.CDLL(None).unshare(_NEW_MOUNTS) == 0:
            subprocess.run(["mount", "--make-rprivate", "/"], check=True)  # noqa: S607 - found on PATH
