"""Mounts that tests leave behind: a killed test unmounts nothing, and pytest cannot remove what is below a mount."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from pathlib import Path

_DETACH = 2  # of umount2
_MOUNTS = Path("/proc/self/mountinfo")


def detach_below(*tops: Path) -> list[str]:
    """Detach every mount below these directories, the innermost first; return their places."""
    found = [place for place in places() if any(Path(place).is_relative_to(top) for top in tops)]
    for place in reversed(found):
        ctypes.CDLL(None).umount2(os.fsencode(place), _DETACH)
    return found


def contents(directory: Path) -> dict[str, bytes]:
    """All files below a directory: content by relative path. What goes meanwhile is left out."""
    found = {}
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and not path.is_symlink():
                found[str(path.relative_to(directory))] = path.read_bytes()
    return found


def detach(place: Path) -> None:
    """Detach what is mounted at a place, also twice, also while files are open there."""
    while ctypes.CDLL(None).umount2(os.fsencode(place), _DETACH) == 0:
        pass


def places() -> list[str]:
    """Where something is mounted, in the order of mounting."""
    if not _MOUNTS.exists():
        return []
    fields = [line.split()[4] for line in _MOUNTS.read_text(errors="surrogateescape").splitlines()]
    return [re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field) for field in fields]
