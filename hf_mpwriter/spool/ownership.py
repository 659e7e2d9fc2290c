"""Ownership: whether a spool may be used.

To use a spool is to send a token to the endpoint in its `run.json`, and to read and write at its names. So a run
directory has one user: its spool must be a directory of this user into which no other user may write. It is checked on
the descriptor by which the spool is used from then on, whatever becomes of its name.
"""

from __future__ import annotations

import os
import pwd
import stat

from hf_mpwriter.base.errors import ForeignSpoolError
from hf_mpwriter.base.storage import STAGING_VARIABLE
from hf_mpwriter.base.words import as_path, typed
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Directory
from hf_mpwriter.system.interrupts import ours
from hf_mpwriter.system.process import open_above

_WITHOUT_MODES = f" (where no mode can be changed: set {STAGING_VARIABLE} to a directory on a local disk)"


def check_descriptor(path: str, fd: int) -> None:
    """Refuse a spool that was opened and into which strangers may write."""
    _refuse(path, _objection(path, os.fstat(fd), fd))


def check_ownership(spool: Directory) -> None:
    """Refuse a spool into which strangers may write; one that is not there yet is fine."""
    try:
        check_descriptor(spool.path, spool.fd)
    except ForeignSpoolError:
        raise
    except ours(OSError):  # it cannot be opened, or is no directory: its status is for the message
        try:
            status = os.lstat(spool.path)
        except ours(OSError):
            return
        if not stat.S_ISREG(status.st_mode):  # `Spool.create` has the better message
            _refuse(spool.path, _objection(spool.path, status, -1))


def _refuse(path: str, trouble: tuple[str, str] | None) -> None:
    if trouble:
        raise ForeignSpoolError(f"{path} {trouble[0]}, so it is not used.", hint=trouble[1])


def _objection(root: str, status: os.stat_result, fd: int) -> tuple[str, str] | None:
    """What is wrong with a spool, and what helps."""
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link", "Remove the link; the next start makes a directory."
    if status.st_mode & stat.S_IWOTH:
        return "can be written by everybody", f"Run: {typed('chmod', 'o-w', as_path(root))}{_WITHOUT_MODES}"
    if status.st_uid != os.geteuid() and _made_by_us(fd) != status.st_uid:
        return f"belongs to {_name_of(status.st_uid)}", "A run directory is for one user: give another logdir."
    if status.st_mode & stat.S_IWGRP:
        return "can be written by its group", f"Run: {typed('chmod', 'g-w', as_path(root))}{_WITHOUT_MODES}"
    return None


def _made_by_us(directory: int) -> int:
    """The user id that this filesystem gives our files, which may know root by another number; -1 if it takes none."""
    name = f".owner-probe.{os.getpid()}.{os.urandom(4).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        fd = open_above(name, flags, disk.FILE_MODE, dir_fd=directory)
    except ours(OSError):
        return -1
    try:
        return os.fstat(fd).st_uid
    finally:
        os.close(fd)
        os.unlink(name, dir_fd=directory)


def _name_of(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except ours(KeyError):
        return f"user {user}"


def others_may_write(directory: Directory) -> bool:
    """Whether other users may rename in a directory, and so put something in place of what is in it."""
    try:
        return bool(os.fstat(directory.fd).st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    except ours(OSError):
        return False


def is_private(run: Directory, spool: Directory) -> bool:
    """Whether run directory and spool belong to this user, and no other user may write into the spool."""
    try:
        statuses = [os.fstat(directory.fd) for directory in (run, spool)]
    except ours(OSError):
        return False
    owned = all(status.st_uid == os.geteuid() for status in statuses)
    return owned and not statuses[1].st_mode & (stat.S_IWGRP | stat.S_IWOTH)
