"""A mount that hangs: every look-up in it waits until it is taken away, as on a network filesystem without a server.

It is a FUSE file system that is never answered, made with the kernel's own interface: no library, no second process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from mounts import detach

DEVICE = "/dev/fuse"


@contextlib.contextmanager
def hanging(path: str | os.PathLike) -> Iterator[None]:
    """Mount it on a directory, new or not; all that waits in it fails with ENOTCONN at the end."""
    fd = _mounted(path)
    try:
        yield
    finally:
        detach(Path(path))
        os.close(fd)  # ends the connection: who waits gets an error
        with contextlib.suppress(OSError):
            os.rmdir(path)


@contextlib.contextmanager
def dead(path: str | os.PathLike) -> Iterator[None]:
    """A mount whose server has died: whatever is asked of it fails with ENOTCONN at once."""
    os.close(_mounted(path))
    try:
        yield
    finally:
        detach(Path(path))
        os.rmdir(path)


def _mounted(path: str | os.PathLike) -> int:
    """Mount on a directory; the descriptor of the connection."""
    libc = ctypes.CDLL(None, use_errno=True)
    os.makedirs(path, exist_ok=True)
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    if libc.mount(b"hanging", os.fsencode(path), b"fuse", 0, options):
        os.close(fd)
        raise OSError(ctypes.get_errno(), "mount", str(path))
    return fd


def why_not() -> str:
    """Return why such a mount cannot be made here, "" if it can."""
    if os.geteuid():
        return "only root can mount"
    return "" if os.access(DEVICE, os.R_OK | os.W_OK) else f"there is no {DEVICE}"
