"""Delivery: what this process has logged in a run, and whether the Hub has it.

    event files      bytes on disk; records that wait in memory, or were dropped, because the disk refuses them. At the
                     end a process answers for its own. The reporter answers for all that no live worker has open, if
                     it is no rank, or the last member
    attachments      where the patterns ask for them: rank 0 or a process alone counts all, others their own. At the
                     end the reporter answers for all, as they are then or have become since

`push`, `status` and the Future of `scheduler.trigger` all start from `logged`. The logdir of a staged run gets all
event files, the Hub those that the patterns allow. Who tells the user of it is in `messages/reporter`.

Invariants:
- Delivered means: the record of every call that had returned is on the Hub if the run has a destination, and in the
  logdir if it is staged. What waits in memory is not, and what was dropped never will be. Of an event file that was
  damaged, the Hub has all or not.
- It counts what this process has logged in this run directory, by whichever writer.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from hf_mpwriter.base.names import is_embedding, is_ours, worker_dir
from hf_mpwriter.base.settings import DEFAULT_ALLOW_PATTERNS
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.snapshot.event_files import Damage, EventFileScan, sizes
from hf_mpwriter.spool import progress
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.progress import Logged, Progress, Status, size_text
from hf_mpwriter.spool.staging.logdir import Logdir
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.spool.workers.peers import Share
from hf_mpwriter.system.directory import Place
from hf_mpwriter.worker.files import WorkerFiles
from hf_mpwriter.worker.membership import Membership

MEMORY_POLL = 0.2  # seconds between two looks at whether the disk takes what waits in memory


def logged(membership: Membership, files: WorkerFiles) -> Logged:
    """What a process has logged until now."""
    in_memory = files.in_memory  # before the lengths: a record that is written in between counts twice, not never
    written = files.written()
    allowed = {path: length for path, length in written.items() if membership.settings.allows(path)}
    lengths = allowed | _attachments(membership)
    return Logged(lengths, in_memory, files.dropped, files.disk_error, files.damaged, written | _embeddings(membership))


def _embeddings(membership: Membership) -> dict[str, int]:
    """Of a staged run, the files that `add_embedding` has written in the directory of this worker."""
    if not Logdir(membership.spool).is_staged:
        return {}
    own = worker_dir(membership.name or membership.role.worker)
    return attachments.sizes(membership.spool.run, lambda path: is_embedding(path) and path.startswith(own))


def status(membership: Membership, now: Logged) -> Status:
    """How much of what a process has logged is on the Hub, and in the logdir of a staged run."""
    view, logdir = Progress(membership.spool), Logdir(membership.spool)
    found = progress.status(view, membership.destination, now)
    if not logdir.is_staged:
        return found
    shortfall = logdir.shortfall(now.written)
    missing = view.missing(now.lengths) if membership.destination else {}
    total, late = sum(now.written.values()), sum(shortfall.missing.values())
    return dataclasses.replace(
        found,
        waiting=sum({**shortfall.missing, **missing}.values()),
        error=" ".join(filter(None, [found.error, shortfall.trouble])),
        logdir=logdir.to,
        in_logdir=total - late,
    )


def _attachments(membership: Membership) -> dict[str, int]:
    settings = membership.settings
    if membership.destination is None or settings.allow_patterns == DEFAULT_ALLOW_PATTERNS:
        return {}
    found = attachments.sizes(membership.spool.run, Share(membership.spool).of(settings.allows))
    if membership.role.answers_for_attachments or not membership.name:
        return found
    own = f"{worker_dir(membership.name)}/"
    return {path: size for path, size in found.items() if path.startswith(own)}


def push(
    membership: Membership, request: Callable[[], Logged], timeout: float, keep_house: Callable[[], object]
) -> bool:
    """Ask for a push and wait for it; whether everything is delivered."""
    end = time.monotonic() + timeout
    while (asked_for := request()).in_memory and (left := end - time.monotonic()) > 0:
        time.sleep(min(MEMORY_POLL, left))
    view, logdir = Progress(membership.spool), Logdir(membership.spool)
    lengths, damaged = (asked_for.lengths, asked_for.damaged) if membership.uploads else ({}, {})
    is_there = not progress.wait(view, lengths, max(0.0, end - time.monotonic()), keep_house)
    is_there = not logdir.wait(asked_for.written, max(0.0, end - time.monotonic()), keep_house) and is_there
    return is_there and asked_for.is_on_disk and not (view.missing(damaged) or logdir.missing(asked_for.damaged))


class Awaited(NamedTuple):
    """What is to be on the Hub before a process ends."""

    lengths: dict[str, int]  # bytes per path
    damage: tuple[Damage, ...] = ()  # ends of event files that no reader reaches
    # bytes per path that are to be in the logdir of a staged run, whatever the patterns
    there: Mapping[str, int] = MappingProxyType({})


def to_await(
    membership: Membership, written: dict[str, int], view: Progress, *, reports: bool, is_last: bool = False
) -> Awaited:
    """What is to be on the Hub, and in the logdir, before a process ends."""
    spool, settings, logdir = membership.spool, membership.settings, Logdir(membership.spool)
    own = {path: length for path, length in written.items() if settings.allows(path)}
    is_staged = logdir.is_staged
    written = written | _embeddings(membership) if is_staged else {}
    if not settings.exit_timeout or not reports:
        return Awaited(own, there=written)
    allows = Share(spool).of(settings.allows)
    lengths = attachments.sizes(spool.run, allows) | own
    if membership.role.rank is not None and not is_last:
        return Awaited(lengths, there=written)
    ledger = view.ledger()
    # what Hub or logdir have, or this process has written, is not read again: that may take minutes
    there = logdir.mirrored().files
    known = lambda path: max(own.get(path, 0), there.get(path, 0), ledger.length(path) if ledger else 0)  # noqa: E731
    scan = EventFileScan(spool.run, known)
    try:
        files = scan.files(Share(spool).of(lambda _: True) if is_staged else allows, Members(spool).growing)
    except OSError as error:
        logger.warning("%s: cannot find out what others have written: %s", spool.run_dir, error)
        return Awaited(lengths, there=written)
    damage = tuple(damage for damage in scan.damage(time.time()) if not damage.is_incomplete)
    final = {file.path: file.length for file in files if not file.growing}
    lengths = {path: length for path, length in final.items() if allows(path)} | lengths
    return Awaited(lengths, damage, final | written if is_staged else {})


def final_sizes(membership: Membership) -> dict[str, int]:
    """Bytes of our event files that no living worker has open; none is read. {} where that cannot be found out.

    What others write, as torch's writer does, may grow for ever: nothing tells when they are done.
    """
    spool, allows = membership.spool, membership.settings.allows
    try:
        growing = Members(spool).growing()
        return sizes(spool.run, lambda path: is_ours(os.path.basename(path)) and allows(path) and path not in growing)
    except OSError:
        return {}


def without_removed(spool: Spool, view: Progress | Logdir, lengths: dict[str, int], *, tells: bool) -> dict[str, int]:
    """Leave out files that were removed, such as those of a temporary directory: they cannot be uploaded."""
    missing = view.missing(lengths)
    gone = {path: missing[path] for path in missing if _is_gone(spool.run / path)}
    if gone and tells:
        logger.warning("%s were removed before they were known to be on the Hub", amount(gone, spool.run_dir))
    return {path: length for path, length in lengths.items() if path not in gone}


def _is_gone(place: Place) -> bool:
    try:
        place.stat()
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return False


def amount(missing: Mapping[str, int], run_dir: str) -> str:
    """What is missing: bytes, files and the run directory, for people."""
    return f"{size_text(sum(missing.values()))} in {len(missing)} file{'s' * (len(missing) > 1)} of {run_dir}"
