"""Facts: what the disk knows of one run, gathered once. Nothing is asked of the Hub: the ledger says what it holds.

run.json, ledger   -->  destination, visibility, bytes on the Hub, last commit
member files       -->  workers that live, ended or died
event files        -->  bytes logged, the age of the oldest record that is not on the Hub
status files       -->  uploader and mirror, last failure, next commit
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from hf_mpwriter.base.errors import SpoolFormatError
from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.names import event_host, event_second, is_attachment, is_of_no_worker, is_worker, worker_of
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.cli.destination import newest_settings
from hf_mpwriter.delivery.sinks import HubSink, LogdirSink
from hf_mpwriter.pull.record import pulled_files
from hf_mpwriter.snapshot.attachments import NEVER_SENT, Attachments
from hf_mpwriter.snapshot.event_files import Damage, EventFileScan
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.notices import read_notices
from hf_mpwriter.spool.ownership import RUN_JSON
from hf_mpwriter.spool.staging import MirrorStatus
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.spool.workers.member_lines import Member
from hf_mpwriter.spool.workers.members import Members, last_of, remembered
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


@dataclass(frozen=True)
class WorkerFacts:
    """A worker that has logged, or lives."""

    name: str  # of the worker
    state: str  # alive, ended or died
    host: str | None  # id of its host, without the digits of the machine; None if it is not known
    pid: int | None  # process id, None if it is not known
    is_here: bool  # whether that is this host
    dropped: int = 0  # records that the disk refused for good
    in_memory: int = 0  # records that wait in memory because the disk refuses them


@dataclass(frozen=True)
class LastCommit:
    """The commit that was acknowledged last."""

    id: str
    time: float  # unix time
    url: str  # its page on the Hub


@dataclass(frozen=True)
class HubFacts:
    """What is known of the Hub, and of the uploader."""

    destination: Destination | None = None  # with the full name of the repository; None for a local run
    visibility: str = "unknown"  # public, private or unknown, as it was seen last
    last_commit: LastCommit | None = None  # None before the first
    uploader: UploaderStatus = field(default_factory=UploaderStatus)  # as it last described itself
    is_alive: bool = False  # whether one holds the uploader lock
    quarantined: Mapping[str, str] = field(default_factory=dict)  # the reason, per path


@dataclass(frozen=True)
class LogdirFacts:
    """What is known of the logdir of a staged run, and of the mirror."""

    to: str = ""  # where a staged run is brought to, "" for any other
    mirror: MirrorStatus = field(default_factory=MirrorStatus)  # as it last described itself
    is_alive: bool = False  # whether one holds the mirror lock
    refused: Mapping[str, str] = field(default_factory=dict)  # what the logdir does not take: the reason, per path


@dataclass(frozen=True)
class RunFacts:
    """What the disk knows of a run."""

    logdir: str  # path or URL by which its user names the run
    run_dir: str  # absolute path
    now: float  # unix time at which it was gathered
    hub: HubFacts
    there: LogdirFacts
    workers: tuple[WorkerFacts, ...] = ()  # by name
    files: tuple[FileFacts, ...] = ()  # event files and attachments, by path
    lag: float | None = None  # seconds since the oldest record that is not on the Hub was logged, None if all are
    notices: tuple[str, ...] = ()  # what the uploaders of all hosts have found out, the newest last
    damage: tuple[Damage, ...] = ()  # what is behind the last whole record of event files

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
        if self.hub.destination is None:
            return 0
        never = {path for path, reason in self.hub.quarantined.items() if reason == NEVER_SENT}
        return sum(file.bytes - file.on_hub for file in self.files if file.path not in never)

    @property
    def damaged(self) -> tuple[str, ...]:
        """The event files that are damaged; an incomplete last record is ordinary after a kill."""
        return tuple(one.path for one in self.damage if not one.is_incomplete)

    @property
    def missing_there(self) -> int:
        """Bytes of complete files that are not in the logdir."""
        files = (file for file in self.files if file.in_logdir is not None and not file.growing)
        return sum(file.bytes - (file.in_logdir or 0) for file in files)

    @property
    def alive(self) -> tuple[WorkerFacts, ...]:
        """The workers that live."""
        return tuple(worker for worker in self.workers if worker.state == "alive")

    @property
    def refused(self) -> dict[str, str]:
        """What is quarantined and may come to the Hub all the same: the reason, per path."""
        return {path: reason for path, reason in self.hub.quarantined.items() if reason != NEVER_SENT}

    @property
    def in_memory(self) -> int:
        """Records of living workers that wait in memory."""
        return sum(worker.in_memory for worker in self.alive)

    @property
    def next_in(self) -> float | None:
        """Seconds until the next commit or try is due; None if no uploader lives, or nothing is known."""
        uploader = self.hub.uploader
        if not self.hub.is_alive or uploader.is_over or not uploader.next_in:
            return None
        return max(0.0, uploader.beat + uploader.next_in - self.now)


def gather(spool: Spool) -> RunFacts:
    """Gather the facts of a run."""
    recorded = spool.destination()
    if recorded is None and spool.has_destination():
        text = f"{spool.directory / RUN_JSON} is damaged: it is empty, or ends too soon."
        raise SpoolFormatError(text, hint="Remove that file; the next start writes it again.")
    all_members, hub, there = Members(spool), HubSink(spool), LogdirSink(spool)
    members, ledger, mirrored = all_members.all(), hub.ledger(), there.mirrored()
    allows = Share(spool).of(newest_settings(members, ledger).allows)
    attached, now = Attachments(spool.run).scan(allows), time.time()
    scan = EventFileScan(spool.run, ledger.length if ledger else lambda _: 0)  # what the Hub has is not read again
    found = scan.files(allows, all_members.growing) + attached.files
    pulled, destination = pulled_files(spool), recorded and recorded.resolved(ledger.repo_id if ledger else "")
    files = tuple(
        FileFacts(
            file.path,
            file.length,
            bytes_on_hub(file, ledger),
            None if not there.to or is_attachment(file.path) else min(file.length, mirrored.files.get(file.path, 0)),
            file.growing,
            file.path in pulled,
        )
        for file in found
    )
    return RunFacts(
        spool.logdir,
        spool.run_dir,
        now,
        HubFacts(
            destination,
            visibility(ledger),
            _last_commit(ledger, destination),
            hub.status(),
            hub.is_alive(),
            attached.refused | (ledger.reasons if ledger else {}),
        ),
        LogdirFacts(there.to, there.status(), there.is_alive(), mirrored.refused),
        tuple(_workers(spool, members, files)),
        files,
        _lag(spool, files, now) if recorded else None,
        _notices(spool),
        tuple(scan.damage(now)),
    )


def visibility(ledger: Ledger | None) -> str:
    """Who can read the repository, as it was seen last."""
    private = ledger.private if ledger else None
    return "unknown" if private is None else "private" if private else "public"


def bytes_on_hub(file: LocalFile, ledger: Ledger | None) -> int:
    """The bytes of a file that the Hub holds; of an attachment, all or none."""
    if ledger is None or (file.sha256 and (file.path in ledger.quarantined or not ledger.covers(file))):
        return 0
    return min(file.length, ledger.length(file.path))


def _notices(spool: Spool) -> tuple[str, ...]:
    found = [notice for host in spool.host_ids() for notice in read_notices(spool.host(host))]
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
    found, died = {name: _of_member(member) for name, member in best.items()}, remembered(spool)
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
    return WorkerFacts(
        member.name.worker, state, host.rpartition("-")[0], member.name.pid, host == host_id(), member.dropped, memory
    )


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
