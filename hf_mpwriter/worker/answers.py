"""Answers: what this process has logged in a run, and what of it, and of others, it answers for at its end.

    event files      bytes on disk; records that wait in memory, or were dropped, because the disk refuses them. At the
                     end a process answers for its own. The reporter answers for all that no live worker has open, if
                     it is no rank, or the last member
    attachments      where the patterns ask for them: rank 0 or a process alone counts all, others their own. At the
                     end the reporter answers for all, as they are then or have become since

`push`, `status` and the Future of `scheduler.trigger` all start from `logged`. The logdir of a staged run gets all
event files, the Hub those that the patterns allow. Who tells the user of it is in `reporter`.

Invariants:
- Delivered means: the record of every call that had returned is on the Hub if the run has a destination, and in the
  logdir if it is staged. What waits in memory is not, and what was dropped never will be. A damaged event
  file counts as delivered only if the Hub has all that was written to it.
- It counts what this process has logged in this run directory, by whichever writer.
- A push that says so has asked the Hub within its last seconds, by its uploader: others may have changed what it has.
  One that does not wait has no answer yet: that to an earlier one of this process counts, see `Asks`.
  What others have deleted there is not to be there, so it is not missing; but `status` does not count it as there.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from hf_mpwriter.base.names import is_embedding, is_ours, worker_dir
from hf_mpwriter.base.settings import DEFAULT_ALLOW_PATTERNS
from hf_mpwriter.delivery.sentences import amount, damage_text, trouble
from hf_mpwriter.delivery.sinks import HubSink, LogdirSink
from hf_mpwriter.delivery.status import Logged, Status
from hf_mpwriter.delivery.wait import Wanted, wait_for
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.snapshot.event_files import Damage, EventFileScan, sizes
from hf_mpwriter.snapshot.search import SECONDS_OF_A_WAIT, Named
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.spool.workers.peers import Share
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.interrupts import ours
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


def scans_until(end: float = math.inf) -> float:
    """Monotonic seconds until which a search in training goes on, of a caller that has time until `end`."""
    return min(end, time.monotonic() + SECONDS_OF_A_WAIT)


def _embeddings(membership: Membership) -> dict[str, int]:
    """Of a staged run, the files that `add_embedding` has written in the directory of this worker."""
    if not LogdirSink(membership.spool).is_staged:
        return {}
    own = worker_dir(membership.name or membership.role.worker)
    allows = lambda path: is_embedding(path) and path.startswith(own)  # noqa: E731
    return attachments.sizes(membership.spool.run, allows, until=scans_until())


def _attachments(membership: Membership) -> dict[str, int]:
    settings = membership.settings
    if membership.destination is None or settings.allow_patterns == DEFAULT_ALLOW_PATTERNS:
        return {}
    allows = Share(membership.spool).of(settings.allows)
    found = attachments.sizes(membership.spool.run, allows, until=scans_until())
    if membership.role.answers_for_attachments or not membership.name:
        return found
    own = f"{worker_dir(membership.name)}/"
    return {path: size for path, size in found.items() if path.startswith(own)}


def status(membership: Membership, now: Logged) -> Status:
    """How much of what a process has logged is on the Hub, and in the logdir of a staged run."""
    hub, logdir = HubSink(membership.spool), LogdirSink(membership.spool)
    there, destination = logdir.look(now.written), membership.destination
    late, page, on_hub, failure = dict(there.missing), "", 0, ""
    if destination is not None:
        uploaded = hub.look(now.lengths)
        late |= uploaded.missing
        page, failure = uploaded.to or membership.spool.destination_of(destination).url, uploaded.carrier.why
        there_no_more = hub.deleted(now.lengths)
        on_hub = uploaded.total - sum((there_no_more | dict(uploaded.missing)).values())
    disk = f"the disk refuses records: {now.disk_error}." if now.disk_error else ""
    lost = damage_text(now.damaged if destination is None else hub.missing(now.damaged))
    return Status(
        page,
        sum(now.lengths.values()),
        on_hub,
        waiting=sum(late.values()),
        dropped=now.dropped,
        error=" ".join(filter(None, [disk, lost, failure, trouble(there)])),
        in_memory=now.in_memory,
        logdir=there.to,
        in_logdir=there.total - sum(there.missing.values()) if there.to else 0,
    )


@dataclass
class Asks:
    """After what the Hub has to be asked, so that a push of this process is True."""

    within: float = 0.0  # seconds: who was asked so lately need not be asked
    unanswered: float = math.inf  # the number in the ledgers at the first push since the last that was True

    def since(self, hub: HubSink, timeout: float) -> float:
        """After which number it has to be asked, for a push that is about to request that."""
        now, lately = hub.asked(0.0), hub.asked(self.within)
        earlier, self.unanswered = self.unanswered, min(now, self.unanswered)
        return min(now, lately, math.inf if timeout > 0 else earlier)


def push(
    membership: Membership,
    request: Callable[[], Logged],
    timeout: float,
    keep_house: Callable[[], object],
    asks: Asks,
) -> bool:
    """Ask for a push and wait for it; whether everything is delivered, as the Hub has said when it was asked."""
    end, hub = time.monotonic() + timeout, HubSink(membership.spool)
    asked = asks.since(hub, timeout)  # before the request: an answer to that is news
    while (asked_for := request()).in_memory and (left := end - time.monotonic()) > 0:
        time.sleep(min(MEMORY_POLL, left))
    logdir = LogdirSink(membership.spool)
    lengths, damaged = (asked_for.lengths, asked_for.damaged) if membership.uploads else ({}, {})
    of_hub = Wanted(hub, lengths, replace(hub.question(lengths), asked=asked))
    wanted = of_hub, Wanted.now(logdir, asked_for.written)
    for look in wait_for(wanted, end):
        if look.is_due:
            keep_house()
    if any(one.missing() for one in wanted) or not asked_for.is_on_disk:
        return False
    if hub.missing(damaged) or logdir.missing(asked_for.damaged):
        return False
    asks.unanswered = math.inf
    return True


class Awaited(NamedTuple):
    """What is to be on the Hub, and in the logdir, before a process ends."""

    of_hub: Wanted
    of_logdir: Wanted  # whatever the patterns
    damage: tuple[Damage, ...] = ()  # ends of event files that no reader reaches

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        """Of each sink that something is to be in."""
        return tuple(one for one in (self.of_hub, self.of_logdir) if one.lengths)

    def is_as(self, other: Awaited) -> bool:
        """Whether nothing else is to be there."""
        return all(
            mine.lengths == theirs.lengths and mine.question.changes == theirs.question.changes
            for mine, theirs in ((self.of_hub, other.of_hub), (self.of_logdir, other.of_logdir))
        )


def to_await(
    membership: Membership, written: dict[str, int], *, reports: bool, is_last: bool = False, end: float = math.inf
) -> Awaited:
    """What a process answers for, that has written these bytes per path itself and ends at monotonic seconds."""
    spool, settings, damage = membership.spool, membership.settings, tuple[Damage, ...]()
    hub, logdir = HubSink(spool), LogdirSink(spool)
    lengths = {path: length for path, length in written.items() if settings.allows(path)}
    there = written | _embeddings(membership) if logdir.is_staged else {}
    if settings.exit_timeout and reports:
        allows = Share(spool).of(settings.allows)
        lengths = attachments.sizes(spool.run, allows, named=_named(spool, hub), until=scans_until(end)) | lengths
        if membership.role.rank is None or is_last:
            final, damage = _final(spool, hub, logdir, written, allows, scans_until(end))
            lengths = {path: length for path, length in final.items() if allows(path)} | lengths
            there = final | there if logdir.is_staged else {}
    return Awaited(Wanted.now(hub, lengths if membership.uploads else {}), Wanted.now(logdir, there), damage)


def _named(spool: Spool, hub: HubSink) -> Named:
    """What no search leaves out."""
    members, ledger = Members(spool), hub.ledger()
    members.all()
    return members.named(ledger.files if ledger else ())


def _final(
    spool: Spool,
    hub: HubSink,
    logdir: LogdirSink,
    written: dict[str, int],
    allows: Callable[[str], bool],
    until: float,
) -> tuple[dict[str, int], tuple[Damage, ...]]:
    """Bytes per path of our event files that no live worker has open, and what no reader reaches.

    What Hub or logdir have, or this process has written, is not read again: that may take minutes. A file that cannot
    be read in time counts as whole. What others may have made is not read at all.
    """
    ledger, mirrored = hub.ledger(), logdir.mirrored().files

    def known(path: str) -> int:
        by_hub = ledger.length(path) if ledger else 0
        return max(written.get(path, 0), mirrored.get(path, 0), by_hub)

    scan = EventFileScan(spool.run, known, foreign_bytes=0, seconds=until - time.monotonic())
    allowed = Share(spool).of(lambda _: True) if logdir.is_staged else allows
    try:
        files = scan.files(allowed, Members(spool).growing, named=_named(spool, hub))
    except ours(OSError) as error:
        logger.warning("%s: cannot find out what others have written: %s", spool.run_dir, error)
        return {}, ()
    damage = tuple(damage for damage in scan.damage(time.time()) if not damage.is_incomplete)
    return {file.path: file.length for file in (*files, *scan.unread) if not file.growing}, damage


def final_sizes(membership: Membership, end: float = math.inf) -> dict[str, int]:
    """Bytes of our event files that no living worker has open; none is read. {} where that cannot be found out.

    What others write, as torch's writer does, may grow for ever: nothing tells when they are done.
    """
    spool, allows = membership.spool, membership.settings.allows
    try:
        members = Members(spool)
        growing = members.growing()
        is_final = lambda path: is_ours(os.path.basename(path)) and allows(path) and path not in growing  # noqa: E731
        return sizes(spool.run, is_final, named=members.named(), until=scans_until(end))
    except ours(OSError):
        return {}


def without_removed(spool: Spool, wanted: Wanted, *, tells: bool) -> Wanted:
    """Leave out files that were removed, such as those of a temporary directory: they cannot be uploaded.

    Where the mount is away nothing is known to be removed.
    """
    missing: Mapping[str, int] = {} if spool.is_away() else wanted.missing()
    gone = {path: missing[path] for path in missing if _is_gone(spool.run / path)}
    if gone and tells:
        logger.warning("%s were removed before they were known to be on the Hub", amount(gone, spool.run_dir))
    return wanted._replace(lengths={path: length for path, length in wanted.lengths.items() if path not in gone})


def _is_gone(place: Place) -> bool:
    try:
        place.stat()
    except ours(OSError) as error:
        return isinstance(error, FileNotFoundError)
    return False
