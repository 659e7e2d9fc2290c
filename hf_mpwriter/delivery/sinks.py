"""Sinks: the places where what is logged is to be. The Hub is one, the logdir of a staged run another.

    ledgers of all hosts            -->  HubSink      missing, refused    per path
    uploader_status.json            -->               carrier             the uploader of each host
    mirror.json, mirrored.json      -->  LogdirSink   missing, refused
    mirror_status.json              -->               carrier             the mirror

`look` makes of both one `Delivery`; all that waits or tells knows no more of a sink. CONTRIBUTING says what else a
third sink needs.

Invariants:
- It only reads the spool. It makes no request to the Hub, reads no event file, and never touches the logdir, which may
  hang.
- A ledger of 200,000 paths takes seconds to read. So it is not read when that would end too late, and it takes a part
  of the time only.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from hf_mpwriter.base.errors import SpoolFormatError
from hf_mpwriter.base.names import is_attachment, is_embedding, is_ours
from hf_mpwriter.base.settings import OFFLINE, Destination, Settings, is_offline
from hf_mpwriter.base.verdicts import Cause, Refused, Retry, Unknown
from hf_mpwriter.base.words import with_cure
from hf_mpwriter.daemon.starts import MirrorStart
from hf_mpwriter.snapshot.attachments import NEVER_SENT, sizes, stamp_of
from hf_mpwriter.snapshot.event_files import writer_of
from hf_mpwriter.spool.causes import TABLE
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import NOWHERE, Ledger, Quarantined, load
from hf_mpwriter.spool.pulled import pulled_files
from hf_mpwriter.spool.staging import Mirrored, MirrorRecord, MirrorStatus, mirrored_place
from hf_mpwriter.spool.status import LiveStatus, UploaderStatus
from hf_mpwriter.system import locks
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.interrupts import ours, suppress

NEVER = -1  # before any comparison of what is here with what is there
STAYS_DELETED = "it was deleted there; sync --again sends it"
LOAD_PAUSE = 4.0  # times as long as the processor was busy with reading the ledgers, until they are read again
_DOWN = frozenset(verdict.__name__ for verdict in (Refused, Retry, Unknown))  # of a push: nothing gets to the Hub


@dataclass(frozen=True)
class Question:
    """What was known when something was asked for. What is older does not answer it."""

    at: float = 0.0  # unix time; a refusal of the whole sink counts from then on
    # ctime (ns) of each attachment when it was asked for; the version of then, or a later one, is an answer
    changes: Mapping[str, int] = field(default_factory=dict)
    refusals: Mapping[str, Quarantined] = field(default_factory=dict)  # of then: they may be over
    compared: float = NEVER  # only what the sink was compared after counts; by its own measure, see `has_compared`
    asked: float = NEVER  # only what the Hub was asked after counts; by the number in the ledger


ANY = Question()


class Outlook(NamedTuple):
    """Whether it helps to wait for the process that brings something."""

    fails: bool = False  # whether its last try has failed, and nothing has answered since
    stands: bool = False  # whether none is at work
    unanswered: float = 0.0  # seconds since it has asked a Hub that has not answered yet
    turn_in: float = 0.0  # seconds until it may try
    in_line: bool = False  # whether it waits because the repository has got many commits in a short time
    safe_soon: bool = False  # whether a live bucket is about to get all that is missing


@dataclass(frozen=True)
class Carrier:
    """The process that brings files to a sink."""

    name: str = "uploader"
    is_alive: bool = False
    stillness: str = ""  # what keeps a living one from its work, "" if nothing is known
    reason: str = ""  # why its last try failed, "" if it did not
    hint: str = ""  # what helps, "" if nothing is known
    failed_at: float = 0.0  # unix time of the failure, 0 if its last try was none
    is_refused: bool = False  # whether the sink refuses all, so that a person has to help
    next_try: float = 0.0  # unix time, 0 if it is not known
    until: float = 0.0  # unix time until which it tries at least, or has tried if none lives; 0 if it is not known
    outlook: Outlook = field(default_factory=Outlook)

    @property
    def why(self) -> str:
        """Why its last try failed and what helps, "" if it did not."""
        return with_cure(self.reason, self.hint)

    def is_news(self, since: float) -> bool:
        """Whether the reason is not that of an earlier attempt: it failed since, or a wait that it names goes on."""
        return bool(self.reason) and (self.failed_at >= since or self.outlook.turn_in > 0)


@dataclass(frozen=True)
class Delivery:
    """What one sink has of what is to be there, and what keeps the rest from it."""

    place: str = "on the Hub"  # as it stands behind "is"
    to: str = ""  # the page on the Hub, or the logdir
    total: int = 0  # bytes that are to be there
    missing: Mapping[str, int] = field(default_factory=dict)  # bytes per path
    refused: Mapping[str, str] = field(default_factory=dict)  # of these, what will not come by itself soon: the reason
    is_compared: bool = True  # whether that is an answer to the question
    is_final: bool = False  # whether nothing of it comes by itself soon
    comes_in: float = 0.0  # seconds, before which nothing comes
    safe_in: str = ""  # the live bucket that has all that is missing, "" if none has
    step: tuple[object, ...] = ()  # another one after each progress
    carrier: Carrier = field(default_factory=Carrier)

    @property
    def is_complete(self) -> bool:
        """Whether all is known to be there."""
        return not self.missing and self.is_compared


class Sink(Protocol):
    """A place where what is logged is to be."""

    until: float  # monotonic seconds; what takes longer to read is not read

    def question(self, paths: Iterable[str]) -> Question:
        """A question that begins now."""

    def missing(self, lengths: Mapping[str, int], question: Question = ANY) -> dict[str, int]:
        """Bytes that are not there yet, per path."""

    def refused(self, missing: Mapping[str, int], question: Question = ANY) -> dict[str, str]:
        """The missing paths that will not get there by themselves soon, with the reason."""

    def look(self, lengths: Mapping[str, int], question: Question = ANY) -> Delivery:
        """All that is known."""


class HubSink:
    """The Hub, as it is known of one run. The ledgers are read again when one of them changes."""

    def __init__(self, spool: Spool, clock: Callable[[], float] = time.monotonic) -> None:
        self._spool, self._clock = spool, clock
        self.until = math.inf
        self._load_took = self._next_load = 0.0
        self._seen: list[tuple[str, int, int]] | None = None
        self._ledger: Ledger | None = None

    def ledger(self) -> Ledger | None:
        """What the Hub is known to hold; None while the run has no destination, or if that was never read."""
        with suppress(OSError):  # the disk fails, or the spool is another user's now: nothing new is known
            self._read()
        return self._ledger

    def _read(self) -> None:
        seen = [(host, *_stamp(self._spool.host(host).ledger)) for host in self._spool.host_ids()]
        if self._ledger is None or (seen != self._seen and self._may_load()):
            started, busy = self._clock(), time.thread_time()
            destination = self._destination()
            self._ledger, self._seen = load(self._spool, destination) if destination else None, seen
            now, busy = self._clock(), time.thread_time() - busy
            self._load_took, self._next_load = now - started, now + LOAD_PAUSE * busy

    def _may_load(self) -> bool:
        now = self._clock()
        return now >= self._next_load and now + self._load_took <= self.until

    def _destination(self) -> Destination | None:
        try:
            return self._spool.destination()
        except ours(SpoolFormatError, OSError):
            return None

    @property
    def page(self) -> str:
        """The page of the run, with the full name of the repository if that is known; "" of a local run."""
        if (destination := self._destination()) is None:
            return ""
        return destination.resolved(ledger.repo_id if (ledger := self.ledger()) else "").url

    def changes(self, paths: Iterable[str]) -> dict[str, int]:
        """The ctime (ns) of each attachment, without those that do not exist."""
        found = {}
        for path in filter(is_attachment, paths):
            with suppress(OSError):
                found[path] = (self._spool.run / path).stat().st_ctime_ns
        return found

    def refusals(self) -> dict[str, Quarantined]:
        """What is quarantined now, to see later what was refused since."""
        ledger = self.ledger()
        return dict(ledger.quarantined) if ledger else {}

    def question(self, paths: Iterable[str]) -> Question:
        """A question that begins now: what is refused until now may be over."""
        return Question(time.time(), self.changes(paths), self.refusals())

    @property
    def has_arrived(self) -> bool:
        """Whether anything of the run was seen there."""
        ledger = self.ledger()
        return ledger is not None and ledger.has_arrived

    def has_compared(self, question: Question = ANY) -> bool:
        """Whether an uploader has compared all copies with the Hub's since, or asked it; by numbers that grow."""
        return _answers(self.ledger(), question)

    def asked(self, within: float) -> float:
        """After which number the Hub has to be asked; NEVER if it was within these seconds, or has nothing yet."""
        if (ledger := self.ledger()) is None or not ledger.has_arrived:
            return NEVER
        return NEVER if ledger.was_asked_at(time.time(), within) else ledger.asked

    def missing(self, lengths: Mapping[str, int], question: Question = ANY) -> dict[str, int]:
        """Bytes that the Hub does not have yet, per path."""
        ledger = self.ledger()
        if ledger is None or not _answers(ledger, question):
            return {path: length for path, length in lengths.items() if length or is_attachment(path)}
        missing = {}
        for path, length in lengths.items():
            if is_attachment(path):
                if not self._has_arrived(ledger, path, question.changes.get(path)):
                    missing[path] = length
            elif length > ledger.length(path) and not self._stays_deleted(ledger, path):
                missing[path] = length - ledger.length(path)
        return missing

    def late(self, lengths: Mapping[str, int]) -> dict[str, int]:
        """The same of event files and all attachments, as far as the newest settings of the run send them."""
        allows = (((ledger := self.ledger()) and ledger.settings) or Settings()).allows
        wanted = {path: length for path, length in lengths.items() if allows(path)}
        return self.missing(wanted | sizes(self._spool.run, allows))

    def deleted(self, lengths: Mapping[str, int]) -> dict[str, int]:
        """Bytes per path of what others have deleted there: that is not missing."""
        ledger = self.ledger()
        return {path: lengths[path] for path in ledger.deleted.intersection(lengths)} if ledger else {}

    def _stays_deleted(self, ledger: Ledger, path: str) -> bool:
        """Whether an event file was deleted there, and has nothing that was logged since."""
        held = ledger.files.get(path, NOWHERE)
        try:
            return held.deleted and (self._spool.run / path).stat().st_mtime <= held.time
        except ours(OSError):
            return True

    def _has_arrived(self, ledger: Ledger, path: str, asked: int | None) -> bool:
        """Whether the Hub has an attachment as it is now, or as it became after `asked`.

        The ledger knows the stamp of the file that was sent, so the file is not read, and times are compared only with
        times of the same file. A removed file is not waited for.
        """
        refused = ledger.quarantined.get(path)
        if refused is not None and refused.reason == NEVER_SENT:
            return True
        held = ledger.files.get(path)
        if held is not None and held.deleted:
            return True
        try:
            status = (self._spool.run / path).stat()
        except ours(FileNotFoundError):
            return True
        except ours(OSError):
            return False
        if held is None or not held.stamp or held.sent.is_gone or refused is not None or path in ledger.uncertain:
            return False
        return held.stamp == stamp_of(status) or (asked is not None and held.stamp[-1] >= asked)

    def refused(self, missing: Mapping[str, int], question: Question = ANY) -> dict[str, str]:
        """The missing paths that are quarantined, and the later event files of their writers, which wait for them."""
        quarantined = self.refusals().items()
        new = {path: entry.reason for path, entry in quarantined if entry != question.refusals.get(path)}
        known = ledger.files if (ledger := self.ledger()) else {}
        deleted = (path for path in missing if known.get(path, NOWHERE).deleted)
        return _held_up(self._spool, missing, new) | dict.fromkeys(deleted, STAYS_DELETED)

    def look(self, lengths: Mapping[str, int], question: Question = ANY) -> Delivery:
        """All that is known of what is on the Hub, and of the uploader."""
        missing, status = self.missing(lengths, question), self.status()
        refused, is_compared = self.refused(missing, question), not missing or self.has_compared(question)
        carrier = self._carrier(status, question)
        if missing and is_offline():
            failure = {"reason": OFFLINE, "hint": TABLE[Cause.OFFLINE][1], "failed_at": time.time()}
            carrier = dataclasses.replace(carrier, **failure, is_refused=True)  # type: ignore[arg-type]
        is_refused = carrier.is_refused and carrier.failed_at >= question.at
        # no commit is needed for an answer
        is_asked = carrier.outlook.in_line and not self.missing(lengths, dataclasses.replace(question, asked=NEVER))
        is_live = bool(status.live.bucket) and self._may_be_live(status, missing)
        is_safe = is_live and self._is_safe(status.live, missing)
        if is_live and not is_safe and carrier.is_alive and not status.live.why:
            carrier = dataclasses.replace(carrier, outlook=carrier.outlook._replace(safe_soon=True))
        return Delivery(
            to=self.page,
            total=sum(lengths.values()),
            missing=missing,
            refused=refused,
            is_compared=is_compared,
            is_final=is_refused or _is_hopeless(missing, refused, is_compared=is_compared),
            comes_in=0.0 if is_asked or carrier.outlook.safe_soon else carrier.outlook.turn_in,
            safe_in=status.live.bucket if is_safe else "",
            step=(missing, status.process, status.push, status.commits),
            carrier=carrier,
        )

    def _may_be_live(self, status: UploaderStatus, missing: Mapping[str, int]) -> bool:
        """Whether all that is missing is to be in a live bucket, too, and this uploader is to bring it there."""
        return bool(missing) and status.elsewhere == () and all(is_ours(os.path.basename(path)) for path in missing)

    def _is_safe(self, live: LiveStatus, missing: Mapping[str, int]) -> bool:
        """Whether it is there: the bucket lacked nothing when that was seen, and nothing was logged since."""
        try:
            return not live.lacks and all((self._spool.run / path).stat().st_mtime < live.seen for path in missing)
        except ours(OSError):
            return False

    def _carrier(self, status: UploaderStatus, question: Question) -> Carrier:
        now, is_alive, stillness = time.time(), self.is_alive(), status.stillness(time.time())
        tries_until = status.tries_until(question.at or now, time.monotonic(), now)
        return Carrier(
            is_alive=is_alive,
            stillness=stillness,
            reason=status.reason,
            hint=status.hint,
            failed_at=status.failed_at,
            is_refused=status.kind == Refused.__name__,
            next_try=status.beat + status.next_in if status.next_in and not status.is_over else 0.0,
            until=tries_until if is_alive else status.beat if status.is_over else 0.0,
            outlook=Outlook(
                fails=status.kind in _DOWN and not status.is_over and not status.is_answered,
                stands=bool(stillness) or not is_alive,
                unanswered=now - status.asked_at if status.asked_at and not status.is_answered else 0.0,
                turn_in=max(0.0, status.blocked_until - time.monotonic()),
                in_line=status.in_line and is_alive,
            ),
        )

    def status(self) -> UploaderStatus:
        """The status of the uploader that was heard of last, on whichever host."""
        return UploaderStatus.newest(self._spool).or_full(self._spool, time.time())

    def is_alive(self) -> bool:
        """Whether an uploader lives."""
        return _is_held(self._spool.uploader_lock)


def _answers(ledger: Ledger | None, question: Question) -> bool:
    """Whether a ledger is an answer to a question."""
    return ledger is not None and ledger.checked > question.compared and ledger.asked > question.asked


class LogdirSink:
    """The logdir of a staged run; any other run has none, and nothing is missing there."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self.until = math.inf
        self._to = ""
        self._seen: list[tuple[str, int, int]] | None = None
        self._mirrored = Mirrored()

    @property
    def to(self) -> str:
        """Where it is: an absolute path or a URL; "" for a run that is not staged."""
        if not self._to and (record := MirrorRecord.read(self._spool)):
            self._to = record.to
        return self._to

    @property
    def is_staged(self) -> bool:
        """Whether the run has a logdir beside its run directory."""
        return bool(self.to)

    def start(self) -> MirrorStart | None:
        """The start record of a mirror; None for a run that needs none."""
        return MirrorStart(self._spool.run_dir, to=self.to) if self.is_staged else None

    def mirrored(self) -> Mirrored:
        """What is known to be there, by the records of all hosts."""
        with suppress(OSError):  # the disk fails: nothing new is known
            hosts = [self._spool.host(host) for host in self._spool.host_ids()]
            seen = [(host.root.basename, *_stamp(mirrored_place(host))) for host in hosts]
            if seen != self._seen:
                self._mirrored, self._seen = _merged([Mirrored.read(host) for host in hosts]), seen
        return self._mirrored

    def question(self, paths: Iterable[str]) -> Question:  # noqa: ARG002
        """A question that begins now."""
        return Question(time.time())

    def has_compared(self, question: Question = ANY) -> bool:
        """Whether a mirror has compared all that is here with what is there since; by a unix time."""
        return self.status().checked >= question.compared

    def missing(self, lengths: Mapping[str, int], question: Question = ANY) -> dict[str, int]:  # noqa: ARG002
        """Bytes that are not there yet, per path of an event file; a file counts as a whole."""
        if not self.is_staged:
            return {}
        there = self.mirrored().files
        wanted = {path: length for path, length in lengths.items() if not is_attachment(path) or is_embedding(path)}
        return {path: length for path, length in wanted.items() if length > there.get(path, 0)}

    def refused(self, missing: Mapping[str, int], question: Question = ANY) -> dict[str, str]:  # noqa: ARG002
        """The missing paths that cannot be written there, and the later event files of their writers."""
        return _held_up(self._spool, missing, self.mirrored().refused)

    def look(self, lengths: Mapping[str, int], question: Question = ANY) -> Delivery:
        """All that is known of what is in the logdir, and of the mirror."""
        if not self.is_staged:
            return Delivery("in the logdir")
        missing, status = self.missing(lengths), self.status()
        refused, is_compared = self.refused(missing), status.checked >= question.compared
        now, is_alive, stillness = time.time(), self.is_alive(), status.stillness(time.time())
        has_failed = is_alive and status.failures > 0 and status.failed_at >= question.at
        is_refused = has_failed and status.is_refused
        stands = bool(stillness) or not is_alive
        return Delivery(
            "in the logdir",
            self.to,
            sum(lengths.values()),
            missing,
            refused,
            is_compared,
            is_final=is_refused or _is_hopeless(missing, refused, is_compared=is_compared),
            comes_in=max(0.0, status.next_try - now) if has_failed else 0.0,
            step=(missing, status.process, status.copy),
            carrier=Carrier(
                "mirror",
                is_alive,
                stillness,
                status.reason,
                failed_at=status.failed_at if status.failures else 0.0,
                is_refused=status.is_refused,
                next_try=status.next_try,
                outlook=Outlook(fails=status.failures > 0 and not status.is_over, stands=stands),
            ),
        )

    def status(self) -> MirrorStatus:
        """The status of the mirror that was heard of last, on whichever host; an empty one if there is none."""
        found = [MirrorStatus()]
        with suppress(OSError):
            found += [MirrorStatus.read(self._spool.host(host)) for host in self._spool.host_ids()]
        return max(found, key=lambda status: status.beat)

    def is_alive(self) -> bool:
        """Whether a mirror lives."""
        return _is_held(self._spool.lock_of("mirror"))

    @property
    def is_returning(self) -> bool:
        """Whether a mirror lives that still brings something from there, or does not know yet whether it has to."""
        if not self.is_staged:
            return False
        status = self.status()
        is_unlisted = status.listed < status.started_at and not status.failures
        return (status.returning > 0 or is_unlisted) and not status.is_over and self.is_alive()

    def has_come_back(self, since: float) -> str | None:
        """Why not all came back that was there, listed since a unix time; "" if it did, None while it may come."""
        status = self.status()
        if status.listed >= since and not status.returning:
            return next((f"{path}: {reason}" for path, reason in status.unread.items()), "")
        return status.reason if status.failures and status.failed_at >= since else None


def name_of(spool: Spool) -> str:
    """The run as its user knows it: its logdir; where it is kept comes second."""
    return LogdirSink(spool).to or spool.run_dir


def _is_held(lock: Place) -> bool:
    try:
        return locks.is_held(lock)
    except ours(OSError):
        return False


def _stamp(place: Place) -> tuple[int, int]:
    with suppress(FileNotFoundError):
        status = place.stat()
        return status.st_ino, status.st_mtime_ns
    return 0, 0


def _is_hopeless(missing: Mapping[str, int], refused: Mapping[str, str], *, is_compared: bool) -> bool:
    """Whether all that is missing is refused."""
    return bool(missing) and is_compared and len(refused) == len(missing)


def _held_up(spool: Spool, missing: Mapping[str, int], refused: Mapping[str, str]) -> dict[str, str]:
    """The missing paths that are refused, or wait for an earlier event file of their writer that is: the reason."""
    first: dict[tuple[str, str], str] = {}  # writer -> its first refused event file
    theirs = pulled_files(spool) if missing and refused else {}
    for path in sorted(refused.keys() - theirs.keys()):
        if not is_attachment(path):
            first.setdefault(writer_of(path), path)
    found = {}
    for path in missing if refused else ():
        blocker = path
        if path not in refused and not (path in theirs or is_attachment(path)):
            blocker = first.get(writer_of(path), path)
        if blocker in refused and blocker <= path:
            found[path] = f"{blocker}: {refused[blocker]}"
    return found


def _merged(records: list[Mirrored]) -> Mirrored:
    """What several hosts have brought, by the greatest length; what one of them has brought is not refused."""
    files: dict[str, int] = {}
    for record in records:
        files |= {path: max(length, files.get(path, 0)) for path, length in record.files.items()}
    refused = {path: why for record in records for path, why in record.refused.items() if path not in files}
    return Mirrored(files, refused)
