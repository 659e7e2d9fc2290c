"""File locks: the table of lock descriptors of this process, and the only caller of filelock.

    try_exclusive, is_held      a lock that is held for life, and the question whether it is
    adopt, renew, free          a lock that came from another process, by its descriptor

A lock is a whole-file `flock` on an open file description. The kernel frees it when the last descriptor of that
description is closed, however the process ends. So a lock that is held for life tells exactly which process lives.

Invariants:
- Every lock descriptor of ours is in one table under the fork mutex, so a child knows every descriptor that it
  inherited. It closes them and never unlocks: an unlock through an inherited descriptor would free the parent's lock.
  Only `free` and `renew` unlock, in a process that alone acts by the lock.
- A program may close our descriptors, and have files of its own on their numbers. These are never closed.
- Lock files that other processes may open are never unlinked. After locking, the descriptor and the place are the same
  file; else the lock is worthless and given back.
- Nothing here waits for another process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from typing import NamedTuple

from filelock import lock_descriptor

from hf_mpwriter.system import disk, failpoints, process
from hf_mpwriter.system.directory import Place, identity
from hf_mpwriter.system.interrupts import ours, suppress
from hf_mpwriter.system.process_state import after_fork, fork_mutex

PROBE_TRIES = 20  # tries while observers probe; a probe holds a shared lock for some microseconds


class _Lock(NamedTuple):
    """What is known of a descriptor."""

    file: tuple[int, int]  # that it was opened on
    thread: int  # that has opened it


_table: dict[int, _Lock] = {}


def _open(place: Place, flags: int) -> int:
    """Open a lock file under the mutex, so that no fork comes between opening and registering."""
    fd = disk.open_ours(place, flags)
    try:
        _note(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _note(fd: int) -> None:
    _table[fd] = _Lock(identity(os.fstat(fd)), threading.get_ident())


def _close(fd: int) -> None:
    process.close_if(fd, _table[fd].file)  # first, so that what a signal handler interrupts can be done once more
    del _table[fd]


class taking:  # noqa: N801 - a block
    """A block that opens locks: if it fails, this thread has none of them; a signal handler may raise anywhere."""

    def __enter__(self) -> None:
        """Begin the block."""
        self._before = _table.copy()

    def __exit__(self, kind: object, *_: object) -> None:
        """Close the descriptors that no owner knows of."""
        for fd, lock in [] if kind is None else [*_table.items()]:
            if lock.thread == threading.get_ident() and self._before.get(fd) is not lock:
                release(fd)


def check(fd: int) -> None:
    """Check that a descriptor of a lock is still ours to write to."""
    if fd not in _table or not process.is_still(fd, _table[fd].file):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def try_exclusive(place: Place) -> int | None:
    """Take the lock at a place without waiting.

    The descriptor that holds it, or None if another process or descriptor does.
    """
    fd = -1
    try:
        with fork_mutex:
            fd = _open(place, os.O_RDWR | os.O_CREAT)
            if _take(fd) and disk.same_file(fd, place):
                return fd
            _close(fd)
            return None
    except BaseException:  # a signal handler's, too, which may come as late as the mutex is free
        release(fd)
        raise


def work_in(directory: Place) -> bool:
    """Whether the filesystem of a directory has locks; Lustre without `-o flock` and some of FUSE have none."""
    place = directory / f".lock-probe.{os.getpid()}.{os.urandom(4).hex()}"
    with fork_mutex, taking():
        fd = _open(place, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ours(OSError):
            return False
        else:
            return True
        finally:
            _close(fd)
            place.unlink()


def adopt(fd: int) -> None:
    """Add a descriptor to the table that this process inherited with a lock."""
    with fork_mutex:
        os.set_inheritable(fd, False)
        _note(fd)


def release(fd: int) -> None:
    """Close the descriptor of a lock. The lock stays held where another process has a duplicate."""
    with fork_mutex:
        if fd in _table:
            _close(fd)


def free(fd: int) -> None:
    """Free a lock, duplicates of its descriptor or not: for the one process that acts by it."""
    with fork_mutex:
        if fd in _table and process.is_still(fd, _table[fd].file):
            with suppress(OSError):
                failpoints.reach("lock.free")
                fcntl.flock(fd, fcntl.LOCK_UN)
            _close(fd)


def renew(fd: int) -> bool:
    """Hold a lock, on the same number, by a new description: no other process has a duplicate of that.

    The lock is free for a moment; False if another process got it. Where that cannot be done, it stays as it is.
    """
    with fork_mutex, contextlib.ExitStack() as stack:
        try:
            new = process.open_above(f"/proc/self/fd/{fd}", os.O_RDWR)
            stack.callback(os.close, new)
            fcntl.flock(fd, fcntl.LOCK_UN)
        except ours(OSError):
            return True
        try:
            is_ours = _take(new)
        except ours(OSError):  # the filesystem refuses: the lock is free
            return False
        if is_ours:
            os.dup2(new, fd, inheritable=False)
        return is_ours


def _take(fd: int) -> bool:
    """Take the lock, and try again while only observers hold it: they share it, an owner does not."""
    for _ in range(PROBE_TRIES):
        if lock_descriptor(fd, blocking=False):
            return True
        if not _can_share(fd):
            return False
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.sched_yield()
    return False


def _can_share(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except ours(BlockingIOError):
        return False
    return True


def is_held(place: Place) -> bool:
    """Whether a process holds the lock at a place.

    The probe asks for a shared lock, so two observers never mistake each other for the owner.
    """
    with fork_mutex, taking():
        try:
            fd = _open(place, os.O_RDONLY)
        except ours(FileNotFoundError):
            return False
        try:
            return not _can_share(fd)
        finally:
            _close(fd)


def _close_in_child() -> None:
    for fd, lock in _table.items():
        process.close_if(fd, lock.file)
    _table.clear()


after_fork(_close_in_child)
