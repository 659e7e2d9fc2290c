"""The workers of this process, one per run directory: how writers get theirs, and how all of them end.

enter               of a writer: the worker of its run directory, made if it is the first
end of the process  atexit, and multiprocessing's hook, which children have instead: every worker leaves
fork                the child forgets what is its parent's
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import threading
import time
from multiprocessing import parent_process, util

from hf_mpwriter.base.errors import ForeignSpoolError, LogdirError
from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.events.limits import Limits
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import locks
from hf_mpwriter.worker.worker import Worker

logger = logging.getLogger("hf_mpwriter")

_workers: dict[str, Worker] = {}
_registry_lock = threading.RLock()


_limits = Limits()


def enter(
    user: object,
    spool: Spool,
    destination: Destination | None,
    settings: Settings,
    token: str | None,
    memory_limit: int | None = None,
    *,
    began: float | None = None,
) -> Worker:
    """The worker of this process for a run directory; one more writer uses it now.

    Args:
        user: stands for the writer.
        spool: of the run directory.
        destination: None for a local run.
        settings: how it is uploaded.
        token: for the Hub, None leaves it to the environment.
        memory_limit: bytes of records that may wait in memory while the disk refuses them, None for no wish.
        began: of a writer that came from another process, when that one entered; it takes a name at its first event,
            because a spawned child does not know its own while it unpickles.

    Raises:
        LogdirError, SpoolFormatError, DestinationError: see `Spool`. A spool that is not this user's own is no error:
            what is logged is kept in the run directory and not uploaded.
    """
    spool, stopped = _usable(spool)
    _check_locks(spool)
    destination = None if stopped else destination
    if destination is not None:
        spool.record_destination(destination)
    with _registry_lock:
        if not _workers:
            _leave_at_the_end()
        worker = _workers.get(spool.run_dir)
        if worker is None:
            worker = _workers[spool.run_dir] = Worker(spool, _limits, began)
        worker.configure(destination, settings, token)
        worker.stopped = worker.stopped or stopped
        worker.users.add(user)
        if memory_limit is not None:
            _limits.memory = memory_limit
    worker.check_files()
    if began is None:
        worker.try_to_join()
    return worker


def _usable(spool: Spool) -> tuple[Spool, bool]:
    """A spool that is made, and whether nothing may be uploaded: it is not the one in the run directory then."""
    try:
        spool.create()
    except ForeignSpoolError as error:
        if not os.access(spool.run_dir, os.W_OK | os.X_OK):
            raise
        if spool.run_dir not in _workers:
            logger.warning("%s What is logged is kept in %s and not uploaded.", error, spool.run_dir)
        spool = spool.aside()
        spool.create()
        return spool, True
    return spool, False


def _check_locks(spool: Spool) -> None:
    try:
        if locks.work_in(spool.root):
            return
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            return  # a full disk, no free descriptor: that passes, and the first event tries again
        raise LogdirError(
            f"The logdir {spool.run_dir!r} cannot be written: {error.strerror}.", hint="Give another logdir."
        ) from error
    raise LogdirError(
        f"The filesystem of {spool.run_dir!r} has no file locks.",
        hint="Use another one (Lustre: mount with flock).",
    )


def _at_exit() -> None:
    """The end of the interpreter, or of a child's work in it: leave, then wait; children leave only."""
    with _registry_lock:
        everyone = list(_workers.values())
    for worker in everyone:
        if worker.users if worker.role.waits else worker.is_active:
            worker.users.clear()
            worker.leave_all()
    began = time.monotonic()
    for worker in everyone:
        try:
            worker.wait(time.monotonic() - began)
        except KeyboardInterrupt:
            return


def _leave_at_the_end() -> None:
    """Children of multiprocessing do not run what was registered with atexit, unless they were spawned."""
    atexit.register(_at_exit)
    util.register_after_fork(_at_exit, _leave_at_the_end_of_a_child)
    if parent_process() is not None:
        _leave_at_the_end_of_a_child()


def _leave_at_the_end_of_a_child(*_: object) -> None:
    util.Finalize(None, _at_exit, exitpriority=0)


def _after_fork_in_child() -> None:
    global _registry_lock, _limits
    _registry_lock, _limits = threading.RLock(), Limits(_limits.memory)
    for worker in _workers.values():
        worker.after_fork(_limits)


os.register_at_fork(after_in_child=_after_fork_in_child)
