"""Looking: what is in the logdir of a staged run is known by name before a process joins it.

    a member lives         nothing is asked: the record of its look counts
    none does              a look: a copy that only lists, see `mirror/copy`, a process of its own, as a mount may hang
    mirror.json            published, so all other processes know that the run is staged

A run may have gone on elsewhere since it was here. So each attempt asks the logdir, however much is here. The content
comes while training goes on, see `mirror/returning`.

Training waits for `Timing.logdir_wait` in all. Of processes that start together one looks, and the others wait for its
answer. A look that failed is not tried again for RETRY_AFTER seconds, whichever process asks.

Invariants:
- This process never touches the logdir, and starts a look by `posix_spawn`.
- Training goes on without what is not known, and says so.
- What is made from here on sorts behind all that was listed, see `Listing.last`.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import NamedTuple

from hf_mpwriter.base.errors import HfMpWriterError, LogdirError, SettingsError
from hf_mpwriter.base.storage import is_url
from hf_mpwriter.base.timing import USUAL
from hf_mpwriter.base.words import command_line
from hf_mpwriter.daemon.starts import opened
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.spool.copies import CopyHandle, CopyJob, Failure, Listed, Task
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging import LastPlace, Listing, MirrorRecord, look_lock
from hf_mpwriter.spool.storage import leave_note
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.filesystem import Mount, find_mount
from hf_mpwriter.system.interrupts import ours, suppress
from hf_mpwriter.system.process import host_id
from hf_mpwriter.system.redaction import printable

RETRY_AFTER = 300.0  # seconds
LOCK_POLL = 0.05  # seconds
END_PATIENCE = 0.5  # seconds of a wait that a killed look may take to end; one that hangs in the kernel takes longer

_mounts: dict[str, Mount | None] = {}  # of logdirs, which are not touched again: they may hang
_left: list[CopyHandle] = []  # looks that were killed and have not ended yet


def is_staged(spool: Spool) -> bool:
    """Whether a run has a logdir beside its run directory."""
    return spool.logdir != spool.run_dir


def publish_record(spool: Spool) -> None:
    """Make a run a staged one for all processes, if its event files are not in its logdir; OSError if the disk
    refuses.
    """
    if is_staged(spool):
        _leave_note(spool)
        _publish(spool)


def _publish(spool: Spool, made_at: float | None = None) -> None:
    if record := MirrorRecord.read(spool):
        _mounts[spool.logdir] = record.mount
        return
    if spool.logdir not in _mounts:
        _mounts[spool.logdir] = _mount_of(spool)
    MirrorRecord(spool.logdir, time.time() if made_at is None else made_at, _mounts[spool.logdir]).publish(spool)


def _leave_note(spool: Spool) -> None:
    """Have it found by processes with another environment, and tell of where it stood before."""
    if lost := leave_note(spool):
        logger.warning("%s: %s", spool.logdir, printable(lost))


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
    is_behind: bool = False  # whether something in the logdir may not be here


def prepare(spool: Spool, *, is_joined: bool, longest: float = USUAL.logdir_wait) -> Staged:
    """Make a staged run ready for this process, which joins it next; wait `longest` seconds for the logdir."""
    if not is_staged(spool):
        return Staged()
    try:
        return _prepare(spool, longest, is_joined=is_joined)
    except ours(OSError) as error:
        if isinstance(error, HfMpWriterError):
            raise
        text = f"{spool.run_dir}, in which the run of {spool.logdir} is kept, cannot be written: {error.strerror}."
        raise LogdirError(text, hint="Set HF_MPWRITER_STAGING to a directory on another disk.") from error


def _prepare(spool: Spool, longest: float, *, is_joined: bool) -> Staged:
    _left[:] = [child for child in _left if not child.has_ended()]
    _leave_note(spool)  # before the look, which takes seconds
    found = Listing.read(spool)
    if not is_joined and not any(member.works for member in Members(spool).all()):
        _note_mount(spool)
        found = _looked(spool, longest)
    _publish(spool, float(found.first) if 0 < found.first < time.time() else None)
    record = MirrorRecord.read(spool)
    return Staged(record.made_at if record else time.time(), found.last, bool(found.missing or found.failure))


def _looked(spool: Spool, longest: float) -> Listing:
    """What is in the logdir, as far as it tells."""
    started, end = time.time(), time.monotonic() + longest
    found = Listing.read(spool)
    while (lock := locks.try_exclusive(look_lock(spool))) is None and time.monotonic() < end:
        if _has_failed(found):  # what hangs may hold the lock for long
            return found
        time.sleep(LOCK_POLL)
        found = Listing.read(spool)
    if lock is None:
        return _told(spool, replace(found, failure="another process that asks for it gets no answer"))
    found, now = Listing.read(spool), time.time()
    try:
        return found if _has_failed(found) or started <= found.at <= now else _look(spool, lock, end, found)
    finally:
        locks.release(lock)


def _has_failed(found: Listing) -> bool:
    """Whether a look has failed a short while ago."""
    return bool(found.failure) and 0.0 <= time.time() - found.at < RETRY_AFTER


def _look(spool: Spool, lock: int, end: float, before: Listing) -> Listing:
    """Ask the logdir, and record the answer."""
    try:
        answer = _asked(spool, lock, end)
    except ours(OSError) as error:  # no interpreter, no memory
        answer = Failure(str(error), is_refused=False)
    if isinstance(answer, Failure):
        if answer.is_setting:
            hint = "Install the package that fsspec needs for it, or use a directory."
            raise SettingsError(f"The logdir {spool.logdir!r} cannot be used: {answer.reason.rstrip('.')}.", hint=hint)
        found = _told(spool, replace(before, failure=answer.reason, at=time.time()))
    else:
        found = Listing.of(spool, answer.files, time.time())
        found = replace(found, last=max(found.last, before.last))
        if answer.place is not None and not before.first:
            _tell_place(spool, answer.place)
    with suppress(OSError):  # the next process asks again
        found.save(spool)
    return found


def _told(spool: Spool, found: Listing) -> Listing:
    """Tell what is not known, what follows from that, and what helps."""
    why = found.failure.rstrip(".")
    text = f"{spool.logdir}: what earlier attempts logged there is not known yet: {why}"
    then = "Training goes on, nothing there is overwritten, and it comes back when the logdir answers"
    lack = "Until then `last_step` and counted steps lack it. If they matter, see to the mount or the network, and"
    helps = f"bring it back before training: {command_line('pull', spool.logdir)}"
    logger.warning("%s", printable(f"{text}. {then}. {lack} {helps}"))
    logger.flush()
    return found


def _tell_place(spool: Spool, place: LastPlace) -> None:
    """Tell, at the first look that finds files, which place of another host is out of reach; of this one is a note."""
    if place.host == host_id():
        return
    sync = command_line("sync", place.run_dir)
    text = f"{spool.logdir}: it was kept on another host, {place.host}, in {place.run_dir}. If it was killed there,"
    logger.warning("%s", printable(f"{text} what it had not copied or sent comes by this command on that host: {sync}"))
    logger.flush()


def _asked(spool: Spool, lock: int, end: float) -> Listed | Failure:
    """Start a look, and wait for it."""
    host, left = spool.host(host_id()), end - time.monotonic()
    disk.make_dirs(host.root)
    job = CopyJob(Task.LIST, spool.run_dir, spool.logdir)
    with opened(spool, host.daemon("mirror").log) as given:
        copy = CopyHandle(spool, job, left + END_PATIENCE, lock=lock, descriptors=given)
    try:
        return heard(copy, left - END_PATIENCE)
    finally:
        if not copy.end(END_PATIENCE):  # it hangs in the kernel
            _left.append(copy)


def heard(copy: CopyHandle, longest: float) -> Listed | Failure:
    """What a look says until it ends, for so many seconds at most."""
    listed, until = None, time.monotonic() + longest
    while (left := until - time.monotonic()) > 0:
        copy.wait(left)
        told, end = copy.listen()
        listed = next((message for message in told if isinstance(message, Listed)), listed)
        if end is not None:
            return listed or (end if isinstance(end, Failure) else Failure("it tells nothing"))
    return listed or Failure(f"it did not answer within {math.ceil(longest)} s")
