"""Ownership: whether a spool may be used.

To use a spool is to send a token to the endpoint in its `run.json`, and to read and write at its names. So it must be
a directory into which no stranger may write:

    owner this user, mode 0700                    used
    owner this user, open to its group (2770)     used: HF_MPWRITER_GROUP=1 has made it so
    owner another user, open to its group (2770)  used with HF_MPWRITER_GROUP=1, if this user is in the group
    anything else                                 refused
"""

from __future__ import annotations

import os
import pwd
import stat

from hf_mpwriter.base.errors import ForeignSpoolError
from hf_mpwriter.base.settings import group_access
from hf_mpwriter.system import disk, sharing


def check_ownership(root: str) -> None:
    """Refuse a spool into which strangers may write; one that is not there yet is fine.

    Args:
        root: directory of the spool.

    Raises:
        ForeignSpoolError: it says what is wrong and what helps.
    """
    try:
        status = os.lstat(root)
    except OSError:
        return
    if stat.S_ISREG(status.st_mode):  # `Spool.create` has the better message
        return
    if trouble := _objection(root, status):
        raise ForeignSpoolError(f"{root} {trouble[0]}, so it is not used.", hint=trouble[1])


def _objection(root: str, status: os.stat_result) -> tuple[str, str] | None:
    """What is wrong with a spool, and what helps."""
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link", "Remove the link; the next start makes a directory."
    if status.st_mode & stat.S_IWOTH:
        return "can be written by everybody", f"Run: chmod o-w {root}"
    shared = sharing.is_shared(status)
    if shared and group_access() and status.st_gid in (os.getegid(), *os.getgroups()):
        return None
    if status.st_uid == os.geteuid() or status.st_uid == _made_by_us(root):
        if shared or not status.st_mode & stat.S_IWGRP:
            return None
        return "can be written by its group", f"Run: chmod g-w {root}"
    return (
        f"belongs to {_name_of(status.st_uid)}",
        "Use another logdir, or share it within a group: HF_MPWRITER_GROUP=1, also for the next start of its owner.",
    )


def _made_by_us(directory: str) -> int:
    """The user id that this filesystem gives our files, which may know root by another number; -1 if it takes none."""
    path = os.path.join(directory, f".owner-probe.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        fd = disk.open_ours(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except OSError:
        return -1
    try:
        return os.fstat(fd).st_uid
    finally:
        os.close(fd)
        os.unlink(path)


def _name_of(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"
