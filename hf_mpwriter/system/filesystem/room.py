"""Room: whether a disk takes nothing more."""

from __future__ import annotations

import errno
import os

FULL = (errno.ENOSPC, errno.EDQUOT)  # what a disk says that takes nothing more
LEAST = 16 * 1024  # bytes; a few small files need as much


def is_full(directory: int | str | os.PathLike[str]) -> bool:
    """Whether the disk of a directory, by descriptor or path, takes not even a few small files; False if unknown."""
    try:
        status = os.statvfs(directory)
    except OSError:
        return False
    free = status.f_bavail if os.geteuid() else status.f_bfree
    has_no_name = bool(status.f_files) and not status.f_ffree
    return bool(status.f_blocks) and (free * status.f_frsize < LEAST or has_no_name)


def explained(error: OSError, what: str) -> str:
    """Why something could not be done on this disk."""
    return "the disk is full: free some space" if error.errno in FULL else f"{what}: {error}"
