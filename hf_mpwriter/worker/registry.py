"""The registry: the workers of this process, one per run directory.

    enter               a writer gets the worker of its run directory; the first one makes it
    end of the process  every worker leaves, then waits: by atexit, or by multiprocessing's hook in children
    after that          what hooks and `__del__` still log: an uploader comes at once, and no status says "died"
    fork                the child forgets what is its parent's

Invariant: the registry lock is never held while a worker joins, leaves, waits or logs.
"""

from __future__ import annotations

import atexit
import errno
import os
import sys
import time
from multiprocessing import parent_process, util

from hf_mpwriter.base.errors import ForeignSpoolError, LogdirError
from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.base.storage import Layout, Storage
from hf_mpwriter.base.timing import Timing
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.events.limits import Limits
from hf_mpwriter.spool.layout import Spool, without_locks
from hf_mpwriter.spool.storage import aside, spool_of
from hf_mpwriter.system import locks, process_state
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.interrupts import ours
from hf_mpwriter.worker import looking, messages
from hf_mpwriter.worker.looking import Staged
from hf_mpwriter.worker.patience import is_failure
from hf_mpwriter.worker.role import Attempt
from hf_mpwriter.worker.worker import Worker

_workers: dict[str, Worker] = {}
_registry_lock = process_state.thread_lock()
_limits = Limits()


def enter(
    user: object,
    storage: Storage,
    destination: Destination | None,
    settings: Settings,
    token: str | None,
    memory_limit: int | None = None,
    *,
    attempt: Attempt | None = None,
    rank: int | None = None,
    parent_rank: int | None = None,
) -> Worker:
    """Add a writer to the worker of this process for a run directory.

    `attempt`: that of the process in which a writer was pickled. Such a writer joins at its first event, because a
    spawned child does not know its name while it unpickles.
    """
    timing = Timing.of(os.environ)
    try:
        spool, is_foreign, staged = _prepared(storage, destination, timing)
    except ours(LogdirError):
        if storage.layout is not Layout.STAGED or spool_of(storage).exists():
            raise
        spool, is_foreign, staged = _prepared(storage, destination, timing)  # `clean` has removed what was there
    destination, before = None if is_foreign else destination, _workers.get(spool.run_dir)
    if attempt is None and before is None:
        messages.tell_storage(storage, settings, rank, uploads=destination is not None)
        messages.tell_idle(settings, rank)
    with _registry_lock:
        if not _workers:
            _leave_at_the_end()
        worker = _workers.get(spool.run_dir)
        if worker is None:
            is_late = any(other.membership.is_late for other in _workers.values())
            worker = _workers[spool.run_dir] = Worker(spool, _limits, attempt, timing=timing)
            worker.membership.is_late = is_late
        worker.membership.descends_from(parent_rank)
        worker.membership.check_rank(rank, is_free=not worker.users)
        worker.configure(destination, settings, token)
        if worker.membership.is_late:
            worker.end()
        worker.files.after, worker.sealing.made_at = max(worker.files.after, staged.after), staged.made_at
        if is_foreign:
            worker.stop()
        worker.users.add(user)
        if memory_limit is not None:
            _limits.memory = memory_limit
    worker.files.check()
    if attempt is None:
        worker.try_to_join(is_behind=staged.is_behind)
    return worker


def _prepared(storage: Storage, destination: Destination | None, timing: Timing) -> tuple[Spool, bool, Staged]:
    """A spool in which this process can join; for the second see `_usable`."""
    spool, is_foreign = _usable(spool_of(storage))
    if destination is not None and not is_foreign:
        spool.record_destination(destination)
    before = _workers.get(spool.run_dir)
    is_joined = before is not None and before.membership.is_joined
    return spool, is_foreign, looking.prepare(spool, is_joined=is_joined, longest=timing.logdir_wait)


def _usable(spool: Spool) -> tuple[Spool, bool]:
    """A spool that exists, where locks work; True if it lies aside because the one in the run directory is foreign."""
    is_aside = False
    try:
        has_locked = spool.create()
    except ours(ForeignSpoolError) as error:
        if not os.access(spool.run_dir, os.W_OK | os.X_OK):
            raise
        if spool.run_dir not in _workers:
            logger.warning("%s What is logged goes to %s and is not uploaded.", error, spool.run_dir)
        spool, is_aside = aside(spool), True
        has_locked = spool.create()
    if not has_locked:
        _check_locks(spool)
    return spool, is_aside


def _check_locks(spool: Spool) -> None:
    try:
        if locks.work_in(Place(spool.directory)):
            return
    except ours(OSError) as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            return  # a full disk or no free descriptor may pass; the first event tries again
        raise LogdirError(
            f"The logdir {spool.logdir!r} cannot be written: {error.strerror}.", hint="Give another logdir."
        ) from error
    raise without_locks(spool.run_dir)


def _at_exit() -> None:
    """At the end of the interpreter, or of a child's work in it: leave, then wait; see `Worker.wait`."""
    with _registry_lock:
        workers = list(_workers.values())
    try:
        _leave_and_wait(workers)
    finally:  # a handler of the program that raises meanwhile is not the last that logs
        for worker in workers:
            worker.end()


def _leave_and_wait(workers: list[Worker]) -> None:
    for worker in workers:
        worker.membership.is_late = True
        with worker.boundary:
            if worker.is_active if worker.role.is_child else worker.users:  # a child has the users of its parent
                worker.users.clear()
                worker.leave_all()
    started, failed = time.monotonic(), _has_failed()
    for worker in workers:
        spent, after_failure = time.monotonic() - started, failed or worker.has_failed
        try:
            worker.wait(spent, failed=after_failure)
        except ours(KeyboardInterrupt):
            break


def _has_failed() -> bool:
    """Whether an exception ends this process: printed by the interpreter, or on its way through multiprocessing."""
    is_interactive = hasattr(sys, "ps1") or sys.flags.interactive
    printed = None if is_interactive else getattr(sys, "last_value", None)
    return is_failure(printed) or is_failure(sys.exc_info()[1])


def _leave_at_the_end() -> None:
    """Register `_at_exit`; children of multiprocessing run atexit functions only if they were spawned."""
    atexit.register(_at_exit)
    util.register_after_fork(_at_exit, _leave_at_the_end_of_a_child)
    if parent_process() is not None:
        _leave_at_the_end_of_a_child()


def _leave_at_the_end_of_a_child(*_: object) -> None:
    util.Finalize(None, _at_exit, exitpriority=0)


def _leave_to_parent() -> None:
    _limits.forget()
    for worker in _workers.values():
        worker.after_fork()


process_state.after_fork(_leave_to_parent)
