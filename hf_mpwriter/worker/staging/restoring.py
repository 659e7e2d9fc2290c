"""Restoring: a staged run is made ready before a process joins it, and what is in its logdir comes back first.

    restore.lock  held from here until this process has joined; the others wait
      a member lives         nothing: the run goes on
      none does              a restore, see `mirror/restore`: a process of its own, as a mount may hang
      mirror.json            published, so all other processes know that the run is staged

A run may have gone on elsewhere since it was here. So each attempt asks the logdir, however much is here.

How long training waits: PATIENCE seconds for the next sign of a restore, LONGEST in all. A restore that failed is not
tried again for RETRY_AFTER seconds, whichever process asks. Single files that cannot be read are tried by each start.

Invariants:
- This process never touches the logdir, and starts a restore by `posix_spawn`.
- A wait for a lock or for a restore ends. Training goes on without what did not come, and says so.
- What is made from here on sorts behind all that was listed, see `Restoration.last`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from hf_mpwriter.base import state
from hf_mpwriter.base.errors import HfMpWriterError, LogdirError, SettingsError
from hf_mpwriter.base.storage import is_url
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.spool.layout import RunPaths, Spool
from hf_mpwriter.spool.progress import size_text
from hf_mpwriter.spool.staging.record import MirrorPlaces, MirrorRecord
from hf_mpwriter.spool.staging.restoration import Restoration, restore_lock
from hf_mpwriter.spool.starts import has_ended, opened
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.filesystem import Mount, find_mount
from hf_mpwriter.system.launch import Child
from hf_mpwriter.system.process import host_id
from hf_mpwriter.system.redaction import printable

QUIET = 2.0  # seconds; a longer wait is told
PATIENCE = 60.0  # seconds without a sign, after which a restore is given up
LONGEST = 300.0  # seconds, after which it is given up in any case
RETRY_AFTER = 300.0  # seconds
LOCK_POLL = 0.05  # seconds
END_PATIENCE = 2.0  # seconds that a killed restore may take to end; one that hangs in the kernel takes longer
EARLIER = "what earlier attempts logged"

_mounts: dict[str, Mount | None] = {}  # of logdirs, which are not touched again: they may hang
_left: list[int] = []  # restores that were killed and have not ended yet


def is_staged(spool: Spool) -> bool:
    """Whether a run has a logdir beside its run directory."""
    return spool.logdir != spool.run_dir


def publish_record(spool: Spool, made_at: float | None = None) -> None:
    """Make a run a staged one for all processes, if its event files are not in its logdir; OSError if the disk
    refuses.
    """
    if not is_staged(spool):
        return
    if record := MirrorRecord.read(spool):
        _mounts[spool.logdir] = record.mount
        return
    if spool.logdir not in _mounts:
        _mounts[spool.logdir] = _mount_of(spool)
    MirrorRecord(spool.logdir, time.time() if made_at is None else made_at, _mounts[spool.logdir]).publish(spool)


def _mount_of(spool: Spool) -> Mount | None:
    return None if is_url(spool.logdir) else find_mount(spool.logdir)


def _note_mount(spool: Spool) -> None:
    """Record another filesystem that is mounted there now: the run goes on there."""
    record = MirrorRecord.read(spool)
    now = _mount_of(spool) if record and record.mount else None
    if record and record.mount and now and now.is_instead_of(record.mount) and not record.mount.is_again(now):
        replace(record, mount=now).replace(spool)
        logger.warning("%s: it was on %s, and is on %s now: the run goes on there", spool.logdir, record.mount, now)
        logger.flush()


class Staged(NamedTuple):
    """What a worker has to know of a staged run."""

    made_at: float | None = None  # unix time when the run began; None of a run that is not staged
    after: int = 0  # second; names of event files lie behind it


@contextlib.contextmanager
def prepared(spool: Spool, *, is_joined: bool) -> Iterator[Staged]:
    """Make a staged run ready for this process, which joins it in the block."""
    if not is_staged(spool):
        yield Staged()
        return
    with contextlib.ExitStack() as stack:
        try:
            staged = _prepare(spool, stack, is_joined=is_joined)
        except OSError as error:
            if isinstance(error, HfMpWriterError):
                raise
            text = f"{spool.run_dir}, in which the run of {spool.logdir} is kept, cannot be written: {error.strerror}."
            raise LogdirError(text, hint="Set HF_MPWRITER_STAGING to a directory on another disk.") from error
        yield staged


def _prepare(spool: Spool, stack: contextlib.ExitStack, *, is_joined: bool) -> Staged:
    _left[:] = [pid for pid in _left if not has_ended(pid)]
    if not is_joined:
        _lock(spool, stack)
    found = Restoration.read(spool)
    if not is_joined and not any(member.works for member in Members(spool).all()):
        _note_mount(spool)
        found = _restored(spool, found)
    publish_record(spool, float(found.first) if 0 < found.first < time.time() else None)
    record = MirrorRecord.read(spool)
    return Staged(record.made_at if record else time.time(), found.last)


def _lock(spool: Spool, stack: contextlib.ExitStack) -> None:
    """Take the lock until the end of the stack; a process that holds it for too long is not waited for."""
    started, told = time.monotonic(), False
    while (lock := locks.try_exclusive(restore_lock(spool))) is None:
        waited = time.monotonic() - started
        if waited > QUIET and not told:
            told = True
            logger.warning("%s: waiting for another process that brings back what is there", spool.logdir)
            logger.flush()
        if waited > LONGEST + END_PATIENCE:
            return
        time.sleep(LOCK_POLL)
    stack.callback(locks.release, lock)


def _restored(spool: Spool, before: Restoration) -> Restoration:
    """Bring back what is in the logdir, as far as that is possible; how far it came."""
    if before.failure and 0.0 <= time.time() - before.at < RETRY_AFTER:
        return before
    try:
        found = _run(spool)
    except OSError as error:  # no interpreter, no memory
        found = Restoration(failure=str(error))
    if found.is_setting:
        hint = "Install the package that fsspec needs for it, or use a directory."
        raise SettingsError(f"The logdir {spool.logdir!r} cannot be used: {found.failure.rstrip('.')}.", hint=hint)
    found = replace(found, at=time.time(), last=max(found.last, before.last))
    with contextlib.suppress(OSError):  # the next attempt asks again
        found.save(spool)
    if found.failure or found.unread:
        logger.warning("%s", _failure_text(spool, found))
    logger.flush()
    return found


def _failure_text(spool: Spool, found: Restoration) -> str:
    """What did not come, why, and what follows from that."""
    what, why = EARLIER, found.failure
    if found.files:
        what = f"{size_text(found.size - found.came)} of {counted(found.files)}"
    if not found.failure:
        what, why = f"{found.unread} of {counted(found.files)}", found.reason
    text = f"{spool.logdir}: {what} there could not be brought back: {why.rstrip('.')}"
    lack = "Training goes on, and nothing there is overwritten; `last_step` lacks it"
    return printable(f"{text}. {lack}, and uploads of what follows it wait, until a later start brings it")


def counted(files: int) -> str:
    """Return `1 file`, `2 files`."""
    return f"{files} file{'s' * (files != 1)}"


def _run(spool: Spool) -> Restoration:
    """Start a restore, and wait for it."""
    host = spool.host(host_id())
    disk.make_dirs(host.root)
    record = state.dump(RunPaths(spool.run_dir, logdir=spool.logdir))
    with opened(spool, MirrorPlaces.of(host).log) as fds:
        child = Child("restore", record, spool.run_dir, fds, limit=LONGEST + END_PATIENCE)
    try:
        return _Wait(child, lambda report: _tell(spool, report)).end()
    finally:
        if not child.end(END_PATIENCE):  # it hangs in the kernel
            _left.append(child.pid)


def _tell(spool: Spool, report: Restoration) -> None:
    if report.files:
        text = f"bringing back {counted(report.files)} ({size_text(report.size)}) of earlier attempts"
    else:  # nothing is known of it, and there may be nothing
        text = "waiting for it to answer"
    limit = LONGEST if report.files else PATIENCE
    logger.warning("%s: %s before training goes on, for at most %.0f s", spool.logdir, text, limit)
    logger.flush()


class _Wait:
    """The wait for a restore."""

    def __init__(
        self, child: Child, tell: Callable[[Restoration], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._child, self._tell, self._clock = child, tell, clock
        self._report = Restoration()

    def end(self) -> Restoration:
        """What was known when it ended, or was given up."""
        started = heard = self._clock()
        has_told = False
        while True:
            now = self._clock()
            if now - started > QUIET and not has_told:
                has_told = True
                self._tell(self._report)
            until = min(started + LONGEST, heard + PATIENCE)
            if now >= until:
                return replace(self._report, failure=f"it took longer than {now - started:.0f} s")
            self._child.wait((until if has_told else min(until, started + QUIET)) - now)
            has_ended = self._child.has_ended()
            lines = self._child.lines()
            for line in lines:
                self._report = state.from_line((Restoration,), line) or self._report
            heard = self._clock() if lines else heard
            if has_ended:
                report = self._report
                is_told = report.is_over or report.failure
                return report if is_told else replace(report, failure="the process that does it has ended")
