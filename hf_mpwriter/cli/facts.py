"""The facts of one run, gathered from the disk once, and the judgement on them. Nothing is asked of the Hub.

run.json, ledger   -->  destination, visibility, bytes on the Hub, last commit
member files       -->  workers that live, ended or died
event files        -->  bytes logged, the age of the oldest record that is not on the Hub
status files       -->  uploader and mirror, last failure, next commit

The judgement is a pure function of the facts: whether the run is complete, waits, or needs a person, and what that
person types.

| what is found, the first counts                          | state    | next                              |
|----------------------------------------------------------|----------|-----------------------------------|
| records wait in memory: the disk refuses them            | person   | free space                        |
| the uploader's disk is full, or the Hub refuses all      | person   | what helps, then sync             |
| uploader or mirror is stopped, or silent                 | person   | kill -CONT, or stop and sync      |
| a file is refused by the Hub or by the logdir            | person   | sync, once the reason is fixed    |
| an event file is damaged                                 | person   | restore it, then sync             |
| others have put more there than is looked at             | person   | move it out of the run directory  |
| something is missing, and no process lives that sends it | person   | sync                              |
| it stands in a second place, with what is only there     | person   | sync of that place                |
| the disk has refused records for good                    | person   | status --seen                     |
| something is missing                                     | waiting  |                                   |
| all is there, or there is nowhere to send it             | complete |                                   |
"""

from __future__ import annotations

import contextlib
import enum
import os
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.names import (
    event_host,
    event_second,
    is_attachment,
    is_of_no_worker,
    is_ours,
    is_worker,
    worker_of,
)
from hf_mpwriter.base.settings import Destination, full_bucket
from hf_mpwriter.base.state import DamagedError
from hf_mpwriter.base.verdicts import Cause, Refused
from hf_mpwriter.base.words import command_line
from hf_mpwriter.cli.runs import newest_settings
from hf_mpwriter.delivery.sentences import lost_text
from hf_mpwriter.delivery.sinks import HubSink, LogdirSink
from hf_mpwriter.snapshot.attachments import NEVER_SENT, Attachments
from hf_mpwriter.snapshot.event_files import Damage, EventFileScan
from hf_mpwriter.spool.causes import cure_here
from hf_mpwriter.spool.layout import RUN_JSON, Spool, unusable
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.pulled import THEIRS, Whose, pulled_files, whose
from hf_mpwriter.spool.staging import MirrorStatus
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.spool.storage import other_places
from hf_mpwriter.spool.workers.losses import Loss, losses
from hf_mpwriter.spool.workers.member_lines import Member
from hf_mpwriter.spool.workers.members import Members, last_of
from hf_mpwriter.spool.workers.peers import Share
from hf_mpwriter.system import disk
from hf_mpwriter.system.process import host_id, safe_name

_WALL_TIME = struct.Struct("<12xBd")  # behind the header of a record: the key of this field, then it


@dataclass(frozen=True)
class FileFacts:
    """A file of the run directory."""

    path: str  # relative to the run directory
    bytes: int  # up to the end of the last whole record
    on_hub: int  # of these, bytes that the Hub is known to hold
    in_logdir: int | None  # of these, bytes that are in the logdir; None unless the run is staged, and of attachments
    growing: bool  # whether its writer may append more
    pulled: bool  # whether it came from the Hub: another machine wrote it
    beginning: bool  # whether it is only the beginning of what that machine wrote: elsewhere is more


@dataclass(frozen=True)
class WorkerFacts:
    """A worker that has logged, or lives."""

    name: str  # of the worker
    state: str  # alive, ended or died
    host: str | None  # id of its host, without the digits of the machine; None if it is not known
    pid: int | None  # process id, None if it is not known
    is_here: bool  # whether that is this host
    in_memory: int = 0  # records that wait in memory because the disk refuses them


@dataclass(frozen=True)
class LastCommit:
    """The commit that was acknowledged last."""

    id: str
    time: float  # unix time
    url: str  # its page on the Hub


@dataclass(frozen=True)
class RunFacts:
    """What the disk knows of a run."""

    logdir: str  # path or URL by which its user names the run
    run_dir: str  # absolute path
    now: float  # unix time at which it was gathered
    destination: Destination | None = None  # with the full name of the repository; None for a local run
    visibility: str = "unknown"  # of the repository: public, private or unknown, as it was seen last
    last_commit: LastCommit | None = None  # None before the first
    quarantined: Mapping[str, str] = field(default_factory=dict)  # what the Hub does not get: the reason, per path
    deleted: tuple[str, ...] = ()  # what others have deleted on the Hub: it is not sent again unasked
    uploader: UploaderStatus = field(default_factory=UploaderStatus)  # as it last described itself
    bucket: str = ""  # the live bucket that its writers ask for, "" for none
    uploader_is_alive: bool = False  # whether one holds the uploader lock
    to: str = ""  # the logdir to which a staged run is brought, "" for any other
    mirror: MirrorStatus = field(default_factory=MirrorStatus)  # as it last described itself
    mirror_is_alive: bool = False  # whether one holds the mirror lock
    refused_there: Mapping[str, str] = field(default_factory=dict)  # what the logdir refuses: the reason, per path
    workers: tuple[WorkerFacts, ...] = ()  # by name
    files: tuple[FileFacts, ...] = ()  # event files and attachments, by path
    lag: float | None = None  # seconds since the oldest record that is not on the Hub was logged, None if all are
    notices: tuple[str, ...] = ()  # what the uploaders of all hosts have found out, the newest last
    damage: tuple[Damage, ...] = ()  # what is behind the last whole record of event files
    left_out: tuple[str, ...] = ()  # what others have put there and was not looked at, see `snapshot/search`
    lost: tuple[Loss, ...] = ()  # what the disk has refused for good, and no person has seen
    apart: tuple[str, ...] = ()  # other run directories of it on this host that have something which is nowhere else

    @property
    def unsafe(self) -> int:
        """Bytes of event files of our writers that the live bucket is not known to hold."""
        ours = sum(file.bytes for file in self.files if not file.pulled and is_ours(os.path.basename(file.path)))
        return max(0, ours - self.uploader.live.safe)

    @property
    def logged(self) -> int:
        """Bytes that are to be uploaded."""
        return sum(file.bytes for file in self.files)

    @property
    def on_hub(self) -> int:
        """Of these, bytes that the Hub is known to hold."""
        return sum(file.on_hub for file in self.files)

    @property
    def waiting(self) -> int:
        """Of these, bytes that it does not hold; 0 for a local run. What is never sent does not wait."""
        if self.destination is None:
            return 0
        never = self.quarantined.keys() - self.refused.keys() | set(self.deleted)
        return sum(file.bytes - file.on_hub for file in self.files if file.path not in never)

    @property
    def refused(self) -> dict[str, str]:
        """What is quarantined and may come to the Hub all the same: the reason, per path."""
        return {path: reason for path, reason in self.quarantined.items() if reason != NEVER_SENT}

    @property
    def missing_there(self) -> int:
        """Bytes of complete files that are not in the logdir."""
        files = (file for file in self.files if file.in_logdir is not None and not file.growing)
        return sum(file.bytes - (file.in_logdir or 0) for file in files)

    @property
    def damaged(self) -> tuple[str, ...]:
        """The event files that are damaged; an incomplete last record is ordinary after a kill."""
        return tuple(one.path for one in self.damage if not one.is_incomplete)

    @property
    def alive(self) -> tuple[WorkerFacts, ...]:
        """The workers that live."""
        return tuple(worker for worker in self.workers if worker.state == "alive")

    @property
    def in_memory(self) -> int:
        """Records of living workers that wait in memory."""
        return sum(worker.in_memory for worker in self.alive)

    @property
    def next_in(self) -> float | None:
        """Seconds until the next commit or try is due; None if no uploader lives, or nothing is known."""
        if not self.uploader_is_alive or self.uploader.is_over or not self.uploader.next_in:
            return None
        return max(0.0, self.uploader.beat + self.uploader.next_in - self.now)


def gather(spool: Spool) -> RunFacts:
    """Gather the facts of a run."""
    return replace(_gather(spool), apart=apart(spool))


def apart(spool: Spool) -> tuple[str, ...]:
    """The other run directories of a run on this host that have something which is nowhere else."""
    return tuple(path for path in other_places(spool) if _has_rest(Spool.of(path)))


def _has_rest(spool: Spool) -> bool:
    try:
        facts = _gather(spool)
    except (HfMpWriterError, OSError):
        return True
    return bool(facts.waiting or facts.missing_there or facts.in_memory or facts.lost)


def apart_text(places: Sequence[str]) -> str:
    """What helps where a run stands in other places, too, "" if it does not."""
    return f"part of it is only in {_named(places)}; run: {command_line('sync', places[0])}" if places else ""


def _gather(spool: Spool) -> RunFacts:
    """The facts of what is in one run directory."""
    recorded = spool.destination()
    if recorded is None and spool.has_destination():
        raise unusable(spool.directory / RUN_JSON, DamagedError("it is empty, or ends too soon"))
    all_members, hub, there = Members(spool), HubSink(spool), LogdirSink(spool)
    members, ledger, mirrored = all_members.all(), hub.ledger(), there.mirrored()
    settings = newest_settings(members, ledger)
    allows = Share(spool).of(settings.allows)
    named = all_members.named(ledger.files if ledger else ())
    # what the Hub has is not read again
    attached, now = Attachments(spool.run, _as_sent(ledger)).scan(allows, named), time.time()
    scan = EventFileScan(spool.run, ledger.length if ledger else lambda _: 0)
    found = scan.files(allows, all_members.growing, named=named) + attached.files
    found = list({file.path: file for file in (*found, *scan.unread)}.values())
    pulled, destination = pulled_files(spool), recorded and recorded.resolved(ledger.repo_id if ledger else "")
    private, deleted = (ledger.private, ledger.deleted) if ledger else (None, set[str]())
    is_staged = there.is_staged

    def facts_of(path: str, size: int, on_hub: int = 0, *, growing: bool = False) -> FileFacts:
        in_logdir = mirrored.files.get(path, 0) if is_staged and not is_attachment(path) else None
        elsewhere = 0 if is_attachment(path) else max(ledger.length(path) if ledger else 0, in_logdir or 0)
        owner = whose(path, size, pulled, elsewhere, growing=growing)
        there = None if in_logdir is None else min(size, in_logdir)
        return FileFacts(path, size, on_hub, there, growing, owner in THEIRS, owner is Whose.BEGINNING)

    files = tuple(facts_of(file.path, file.length, _bytes_on_hub(file, ledger), growing=file.growing) for file in found)
    files += tuple(facts_of(path, size) for path, size in attached.unread.items())
    return RunFacts(
        spool.logdir,
        spool.run_dir,
        now,
        destination=destination,
        visibility="unknown" if private is None else "private" if private else "public",
        last_commit=_last_commit(ledger, destination),
        quarantined=attached.refused | (ledger.reasons if ledger else {}),
        deleted=tuple(file.path for file in files if file.path in deleted),
        uploader=_as_seen_here(hub.status()),
        bucket=full_bucket(settings.live, ledger.repo_id if ledger else ""),
        uploader_is_alive=hub.is_alive(),
        to=there.to,
        mirror=there.status(),
        mirror_is_alive=there.is_alive(),
        refused_there=mirrored.refused,
        workers=tuple(_workers(spool, members, files)),
        files=files,
        lag=_lag(spool, [file for file in files if file.path not in deleted], now) if recorded else None,
        notices=_notices(spool),
        damage=tuple(scan.damage(now)),
        left_out=tuple(dict.fromkeys([*scan.left_out, *attached.left_out])),
        lost=tuple(losses(spool, members)),
    )


def _as_seen_here(status: UploaderStatus) -> UploaderStatus:
    """What an uploader tells of itself, with what helps in this environment."""
    return replace(status, hint=cure_here(status.cause, status.hint, status.failed_at, os.environ))


def _as_sent(ledger: Ledger | None) -> Iterator[LocalFile]:
    """The attachments as they were when they were sent."""
    for path, held in ledger.files.items() if ledger else ():
        if held.stamp and held.sha256 and held.blob_id:
            with contextlib.suppress(ValueError):  # a damaged record: the file is read again
                yield LocalFile(path, held.length, False, held.sha256, held.blob_id, held.stamp)


def _bytes_on_hub(file: LocalFile, ledger: Ledger | None) -> int:
    """The bytes of a file that the Hub holds; of an attachment, all or none."""
    if ledger is None or (file.sha256 and (file.path in ledger.quarantined or not ledger.covers(file))):
        return 0
    return min(file.length, ledger.length(file.path))


def _notices(spool: Spool) -> tuple[str, ...]:
    found = [notice for host in spool.host_ids() for notice in UploaderStatus.read(spool.host(host)).notices]
    return tuple(notice.line for notice in sorted(found, key=lambda notice: notice.time))


def _last_commit(ledger: Ledger | None, destination: Destination | None) -> LastCommit | None:
    held = [entry for entry in ledger.files.values() if entry.commit and entry.length] if ledger else []
    newest = max(held, key=lambda entry: entry.time, default=None)
    if newest is None or destination is None:
        return None
    return LastCommit(newest.commit, newest.time, destination.commit_url(newest.commit))


# workers


def _workers(spool: Spool, members: Iterable[Member], files: Iterable[FileFacts]) -> Iterator[WorkerFacts]:
    """Those with a member file, the living one of each name; and those whose member file is gone, by their files."""
    best: dict[str, Member] = {}
    for member in sorted(members, key=lambda member: (member.alive, member.started_at)):
        if is_worker(member.name.worker):
            best[member.name.worker] = member
    found = {name: _of_member(member) for name, member in best.items()}
    died = {path for host in spool.host_ids() for path in UploaderStatus.read(spool.host(host)).died}
    for name, paths in _by_worker(spool, files).items():
        if name not in found:
            last = last_of(paths)
            host = safe_name(event_host(last.rpartition("/")[2]).partition(".")[0])
            state = "died" if last in died else "ended"
            found[name] = WorkerFacts(name, state, host or None, None, host == host_id().rpartition("-")[0])
    yield from sorted(found.values(), key=lambda worker: (worker.name != "main", worker.name))


def _by_worker(spool: Spool, files: Iterable[FileFacts]) -> dict[str, list[str]]:
    """The event files of each worker: a claim is never unlinked, so it tells which directories are of workers."""
    claims: set[str] = set()
    with contextlib.suppress(OSError):
        claims = {name.removesuffix(".lock") for name in spool.claims.names() if name.endswith(".lock")}
    found: dict[str, list[str]] = {}
    for file in files:
        if not (is_attachment(file.path) or is_of_no_worker(file.path) or file.pulled):
            top = file.path.partition("/")[0]
            found.setdefault(top if top in claims else worker_of(file.path), []).append(file.path)
    return found


def _of_member(member: Member) -> WorkerFacts:
    state = "alive" if member.alive else "died" if member.has_died else "ended"
    host = member.name.host
    memory = member.in_memory if member.alive else 0
    return WorkerFacts(member.name.worker, state, host.rpartition("-")[0], member.name.pid, host == host_id(), memory)


# lag


def _lag(spool: Spool, files: Iterable[FileFacts], now: float) -> float | None:
    """Seconds since the oldest record that is not on the Hub was logged."""
    times = [_time_at(spool, file) for file in files if file.on_hub < file.bytes and not is_attachment(file.path)]
    return max(0.0, now - min(times)) if times else None


def _time_at(spool: Spool, file: FileFacts) -> float:
    """Unix time of the first record that the Hub does not have; of the file where the record does not tell."""
    with contextlib.suppress(OSError, struct.error):
        (data,) = disk.read_ranges(spool.run / file.path, (file.on_hub, _WALL_TIME.size))
        key, at = _WALL_TIME.unpack(data)
        if key == 0x09 and at > 0:
            return float(at)
    return float(event_second(file.path.rpartition("/")[2]) or time.time())


# judgement


class RunHealth(enum.Enum):
    """What becomes of a run; the value is the exit code."""

    COMPLETE = 0
    WAITING = 3
    PERSON = 4

    @property
    def word(self) -> str:
        """For people, and for programs."""
        return {"COMPLETE": "complete", "WAITING": "waiting", "PERSON": "needs you"}[self.name]


@dataclass(frozen=True)
class Judgement:
    """What becomes of a run."""

    state: RunHealth
    next: str = ""  # what is to be done, "" if nothing is


def judge(facts: RunFacts, logdir: str) -> Judgement:
    """Judge a run."""
    if trouble := next(_troubles(facts, logdir), "") or apart_text(facts.apart) or lost_text(facts.lost, logdir):
        return Judgement(RunHealth.PERSON, trouble)
    is_waiting = facts.waiting or facts.missing_there
    return Judgement(RunHealth.WAITING if is_waiting else RunHealth.COMPLETE)


def _troubles(facts: RunFacts, logdir: str) -> Iterator[str]:
    """What a person has to do, the first thing first."""
    sync, uploader = command_line("sync", logdir), facts.uploader
    if facts.in_memory:
        yield f"free space on the disk of {facts.run_dir}: what waits in memory is lost when its process ends"
    if facts.waiting and (uploader.cause is Cause.DISK_FULL or uploader.kind == Refused.__name__):
        yield "; then: ".join(filter(None, [uploader.hint.rstrip(". "), sync]))
    if still := _stillness(facts):
        yield f"{still}; if that does not help: {command_line('stop', logdir)}; then: {sync}"
    if facts.refused:
        yield f"see why {_named(list(facts.refused))} is refused; then: {sync}"
    if facts.refused_there or (facts.missing_there and facts.mirror.is_refused):
        what = _named(list(facts.refused_there)) if facts.refused_there else "the logdir"
        yield f"see why {what} is refused in {facts.to}; then: {sync}"
    if facts.damaged:
        then = f"; then: {sync}" if facts.destination or facts.to else ""
        copy = f"restore {_named(facts.damaged)} from a copy, if you have one"
        yield f"{copy}: no upload brings what is behind the damage{then}"
    if facts.left_out:
        yield f"move what is not of this run out of {facts.run_dir}: it has {facts.left_out[0]}"
    if facts.waiting and not (facts.uploader_is_alive or facts.alive):
        yield sync
    if facts.missing_there and not (facts.mirror_is_alive or facts.alive):
        yield sync


def _stillness(facts: RunFacts) -> str:
    """What keeps a living process of ours from its work."""
    if facts.uploader_is_alive and facts.waiting and (still := facts.uploader.stillness(facts.now)):
        return still
    if facts.mirror_is_alive and facts.missing_there:
        return facts.mirror.stillness(facts.now)
    return ""


def _named(paths: Sequence[str]) -> str:
    return f"{paths[0]} (and {len(paths) - 1} more)" if paths[1:] else paths[0]
