"""Sharing with a group: what is made in a directory that is open to its group is open to that group too.

    directory            what is made in it
    drwxrws---  group    -rw-rw----, drwxrws---    whatever the umask says
    any other            -rw-------, drwx------    as it is made

A directory is open to its group if it is setgid, the group may write, and others may not. The spool itself does not
follow its parent: it is shared when the user asks for it.
"""

from __future__ import annotations

import contextlib
import os
import stat

SHARED_FILE = 0o060  # mode bits that are added to a file
SHARED_DIR = 0o2070  # mode bits that are added to a directory


def is_shared(status: os.stat_result) -> bool:
    """Whether a directory with this status is open to its group, and to no other user."""
    return status.st_mode & (stat.S_ISGID | stat.S_IWGRP | stat.S_IWOTH) == stat.S_ISGID | stat.S_IWGRP


def share(file: int | str, path: str) -> None:
    """Open what is at `path` to its group if its directory is open to it.

    Args:
        file: a descriptor of it, or its path.
        path: its path.
    """
    if is_shared(os.stat(os.path.dirname(path))):
        mode = os.stat(file).st_mode
        wanted = mode | (SHARED_DIR if stat.S_ISDIR(mode) else SHARED_FILE)
        if wanted != mode:
            with contextlib.suppress(PermissionError):  # a colleague owns it and has opened it already
                os.chmod(file, stat.S_IMODE(wanted))


def share_tree(top: str, group: int) -> None:
    """Open a directory and all below it to a group. The top comes last: once it is open, all is."""
    for directory, _, names in os.walk(top, topdown=False):
        for path in [os.path.join(directory, name) for name in names] + [directory]:
            with contextlib.suppress(FileNotFoundError):  # a temporary file of a process that starts at this moment
                _share_one(path, group)


def _share_one(path: str, group: int) -> None:
    mode = os.lstat(path).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        os.chown(path, -1, group, follow_symlinks=False)
        os.chmod(path, stat.S_IMODE(mode) | (SHARED_DIR if stat.S_ISDIR(mode) else SHARED_FILE))
