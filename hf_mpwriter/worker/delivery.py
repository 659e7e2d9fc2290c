"""Delivery: what this process has logged in a run, whether the Hub has it, and who tells the user what is known.

    event files      bytes on disk; records that wait in memory, or were dropped, because the disk refuses them. At the
                     end a rank answers for its own, the first lone process for all that no other live worker has
                     open, a child for none
    attachments      where the patterns ask for them: rank 0 or a process alone counts all, others their own. At the
                     end the first answers for all, as they are then or have become since
    notices          told as warnings whenever a worker keeps house, and at the end of a wait, see `telling/notices`
    voices           claims/<worker>.voice, locked: members that may speak. The first of them does: rank 0 or the
                     process alone, then the other ranks in their order. Children never speak

    told.json        {"numbers": {"<host>": 1795236610123}, "unsent": 1795236610.0,
                      "start": ..., "outage": ..., "why": "...", "done": ...}

`push`, `status` and the Future of `scheduler.trigger` all start from `logged`.

Invariants:
- Delivered means: the record of every call that had returned is on the Hub if the run has a destination, and in the
  logdir if it is staged. What waits in memory is not, and what was dropped never will be. Of an event file that was
  damaged, the Hub has all or not.
- It counts what this process has logged in this run directory, by whichever writer.
- When the first member ends or dies, the kernel frees its lock, and the next one tells what was not told yet.
- What ends leave unsent is told once as well: not by a process that waits while another one tells it. A rank that fails
  is not silent because an earlier one lives, as the launcher may kill that one; nor is a process of no launcher.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from hf_mpwriter.base import state
from hf_mpwriter.base.names import MAIN_WORKER, worker_dir
from hf_mpwriter.base.settings import DEFAULT_ALLOW_PATTERNS
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.snapshot.event_files import Damage, EventFileScan
from hf_mpwriter.spool import progress
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.progress import Logged, Progress, size_text
from hf_mpwriter.spool.staging.logdir import Logdir
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.spool.workers.share import Share
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.directory import Place
from hf_mpwriter.worker.files import WorkerFiles
from hf_mpwriter.worker.membership import Membership

MEMORY_POLL = 0.2  # seconds between two looks at whether the disk takes what waits in memory


def logged(membership: Membership, files: WorkerFiles) -> Logged:
    """What a process has logged until now.

    Args:
        membership: of the process.
        files: its event files.
    """
    in_memory = files.in_memory  # before the lengths: a record that is written in between counts twice, not never
    lengths = files.lengths() | _attachments(membership)
    return Logged(lengths, in_memory, files.dropped, files.disk_error, files.damaged)


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
    """Ask for a push and wait for it.

    Args:
        membership: of the process.
        request: asks for a push; what was logged until then.
        timeout: seconds.
        keep_house: has the disk tried again, and makes sure that an uploader lives, and a mirror.

    Returns:
        Whether everything is delivered.
    """
    end = time.monotonic() + timeout
    while (asked_for := request()).in_memory and (left := end - time.monotonic()) > 0:
        time.sleep(min(MEMORY_POLL, left))
    view, logdir = Progress(membership.spool), Logdir(membership.spool)
    lengths, damaged = (asked_for.lengths, asked_for.damaged) if membership.uploads else ({}, {})
    is_there = not progress.wait(view, lengths, max(0.0, end - time.monotonic()), keep_house)
    is_there = not logdir.wait(asked_for.lengths, max(0.0, end - time.monotonic()), keep_house) and is_there
    return is_there and asked_for.is_on_disk and not (view.missing(damaged) or logdir.missing(asked_for.damaged))


class Awaited(NamedTuple):
    """What is to be on the Hub before a process ends.

    Attributes:
        lengths: bytes per path.
        damage: ends of event files that no reader reaches.
    """

    lengths: dict[str, int]
    damage: tuple[Damage, ...] = ()


def to_await(membership: Membership, own: dict[str, int], view: Progress, *, is_first: bool) -> Awaited:
    """What is to be on the Hub before a process ends.

    Args:
        membership: of the process.
        own: bytes per path that it has written itself.
        view: of the run.
        is_first: whether it speaks for the run directory.
    """
    spool, settings = membership.spool, membership.settings
    if not settings.exit_timeout or not is_first:
        return Awaited(own)
    allows = Share(spool).of(settings.allows)
    lengths = attachments.sizes(spool.run, allows) | own
    if membership.role.rank is not None:
        return Awaited(lengths)
    ledger = view.ledger()
    # what Hub or logdir have, or this process has written, is not read again: that may take minutes
    there = Logdir(spool).mirrored().files
    known = lambda path: max(own.get(path, 0), there.get(path, 0), ledger.length(path) if ledger else 0)  # noqa: E731
    scan = EventFileScan(spool.run, known)
    try:
        files = scan.files(allows, Members(spool).growing)
    except OSError as error:
        logger.warning("%s: cannot find out what others have written: %s", spool.run_dir, error)
        return Awaited(lengths)
    damage = tuple(damage for damage in scan.damage(time.time()) if not damage.is_incomplete)
    return Awaited({file.path: file.length for file in files if not file.growing} | lengths, damage)


def without_removed(
    spool: Spool, view: Progress | Logdir, lengths: dict[str, int], *, is_first: bool
) -> dict[str, int]:
    """Leave out files that were removed, such as those of a temporary directory: they cannot be uploaded.

    Args:
        spool: of the run directory.
        view: of the run.
        lengths: bytes per path.
        is_first: whether this process speaks for the run directory, and logs it.
    """
    missing = view.missing(lengths)
    gone = {path: missing[path] for path in missing if _is_gone(spool.run / path)}
    if gone and is_first:
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


@dataclass(frozen=True)
class ToldRecord:
    """What `told.json` holds.

    Attributes:
        numbers: of the last notice that was told, per host.
        unsent: unix time when the user was told last what is not on the Hub, 0 if all of that has arrived.
        start: unix time when it was told last where the run goes.
        outage: unix time when the outage that goes on was told, 0 if none does.
        why: what was told of it.
        done: unix time when it was told last that all is on the Hub.
    """

    numbers: dict[str, int] = field(default_factory=dict)
    unsent: float = 0.0
    start: float = 0.0
    outage: float = 0.0
    why: str = ""
    done: float = 0.0

    @classmethod
    def read(cls, place: Place) -> Self:
        """The record; an empty one if there is none, or if it cannot be read."""
        try:
            return state.load(cls, disk.read(place) or b"")
        except (state.DamagedError, OSError):
            return cls()

    def save(self, place: Place) -> None:
        """Write the record; where the disk refuses, something is told again."""
        with contextlib.suppress(OSError):
            disk.replace(place, state.dump(self), "told.save", durable=False)


class Voice:
    """The part of one process in who speaks for a run directory.

    A member that may speak holds the lock `claims/<worker>.voice`: while it logs, and while it waits at its end.

    Args:
        membership: of the process.
    """

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self.forget()

    def forget(self) -> None:
        """After fork: the lock is the parent's."""
        self._lock: int | None = None
        self._unsent = 0.0  # of the record, as this process has seen or written it

    @property
    def _spool(self) -> Spool:
        return self._membership.spool

    @property
    def _worker(self) -> str:
        return self._membership.name or self._membership.role.worker

    def take(self, *, at_end: bool = False) -> None:
        """Be one of those that may speak, until `give_up`, if this process has joined; children never are.

        Args:
            at_end: whether it waits at its end, when it has left.
        """
        if self._lock is None and self._membership.role.waits and (at_end or self._membership.is_joined):
            with contextlib.suppress(OSError):
                self._lock = locks.try_exclusive(self._spool.claim(self._worker, "voice"))

    def give_up(self) -> None:
        """Leave it to the others."""
        if self._lock is not None:
            locks.release(self._lock)
            self._lock = None

    def is_first(self) -> bool:
        """Whether no earlier member may speak; where the disk cannot tell, all of them speak."""
        worker, spool = self._worker, self._spool
        if not self._membership.role.waits:
            return False
        try:
            voices = (name.removesuffix(".voice") for name in spool.claims.names() if name.endswith(".voice"))
            earlier = sorted((other for other in voices if _order(other) < _order(worker)), key=_order)
            if self._lock is None:  # an earlier process of this name may wait at its end
                earlier.append(worker)
            return not any(locks.is_held(spool.claim(other, "voice")) for other in earlier)
        except OSError:
            return True

    @contextlib.contextmanager
    def last_word(self) -> Iterator[bool]:
        """Whether no member may speak any more; while the block lasts, that is so for one process only."""
        spool, lock = self._spool, None
        with contextlib.suppress(OSError):
            voices = [name.removesuffix(".voice") for name in spool.claims.names() if name.endswith(".voice")]
            if not any(locks.is_held(spool.claim(voice, "voice")) for voice in sorted(voices, key=_order)):
                lock = locks.try_exclusive(spool.claim(MAIN_WORKER, "voice"))
        try:
            yield lock is not None
        finally:
            if lock is not None:
                locks.release(lock)

    def begin_end(self) -> None:
        """Begin to wait: what was told until now concerned other ends."""
        self._unsent = ToldRecord.read(self._spool.told).unsent

    def may_tell_unsent(self, *, failed: bool) -> bool:
        """Whether this process is to tell what is not on the Hub, and no other has told it meanwhile.

        Args:
            failed: whether it ends after an exception: the launcher may kill the others before they tell anything.
        """
        role, told = self._membership.role, ToldRecord.read(self._spool.told).unsent
        speaks = role.waits and (failed or role.rank is None or self.is_first())
        return speaks and told in (0.0, self._unsent)

    def told_unsent(self, unix_time: float) -> None:
        """Record when it was told; as unix time 0.0 if all has arrived that was told to be missing."""
        self._unsent = unix_time
        dataclasses.replace(ToldRecord.read(self._spool.told), unsent=unix_time).save(self._spool.told)


def _order(worker: str) -> tuple[bool, int, str]:
    """Rank 0 or a process alone first, then ranks by their number."""
    return worker != "main", len(worker), worker
