"""The status of a daemon: what it publishes about itself, here an uploader; for the writing see `daemon/status_file`.

    hosts/<host>/<kind>_status.json
    {"process": {...}, "started_at": 1795236610.0, "token_issued_at": ..., "beat": ..., "phase": "idle",
     "waiting": 0, "push": 0, "commits": 3, "serves": 1, "blocked_until": 0.0, "in_line": false, "blocked_for": 0.0,
     "next_in": 271.0, "elsewhere": [], "asked_at": 0.0, "is_answered": false, "kind": "Retry", "cause": "hub",
     "reason": "...", "hint": "", "failures": 2, "failed_at": ..., "failing_since": ...,
     "live": {"bucket": "me/run-live", "safe": 4711, "lacks": 0, "seen": 1795236622.0, "interval": 3.1, "size": 9422,
              "at": 1795236621.3, "why": ""},                                              of a live bucket
     "succeeded_at": ..., "repo_id": "me/run", "private": false,                          "" and 0 without a failure
     "starts": {"boot": "...", "count": 4, "last": 90.6},
     "notices": [{"number": 1795236610123, "time": 1795236610.1, "text": "created https://..."}, ...],
     "died": ["rank_00001/events.out...", ...]}

Invariants:
- It is for display. It is not made durable, so it may be older after a power cut, or damaged; then it counts as empty.
  One decision rests on it: who may start the next uploader, and how soon, see `daemon/election`.
- Only the holder of the lock reads and writes the count of starts. So all workers of a host together start no more
  daemons than one of them alone: STARTS_LIMIT that did not do well, then with pauses that double. Its times are
  monotonic seconds of one boot. A count of another boot, of the future, or without a start for FORGET_AFTER seconds
  counts as none. So no clock prevents starts for ever.
- Of several hosts, the one counts that was heard of last, by the clock of the filesystem. Who counts a start leaves the
  time of the file as it was.
- A full disk takes no newer status, and no ledger. So the reader sees for itself whether the disk is full: `or_full`.
- Numbers of notices grow, from one uploader to the next, and also after the file was lost: the first one of a file is
  the time in milliseconds. So a reader that knows the last number it has told tells each notice once.
- A notice is on disk before the ledger has what the push did that found it out. A process that has waited for the Hub
  knows them all.
- A text that is found out again and again is one notice for SAME_WITHIN seconds. A repository that is created is always
  news, and what is found out about it afterwards is, too.
- No secret stands in it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Self

from hf_mpwriter.base import state
from hf_mpwriter.base.errors import ForeignSpoolError
from hf_mpwriter.base.timing import USUAL
from hf_mpwriter.base.verdicts import CREATED, Cause, Refused, Retry
from hf_mpwriter.base.words import typed, with_cure
from hf_mpwriter.spool.causes import TABLE
from hf_mpwriter.spool.layout import HostSpool, Spool
from hf_mpwriter.system import disk, filesystem
from hf_mpwriter.system.interrupts import suppress
from hf_mpwriter.system.process import Process, boot_id
from hf_mpwriter.system.process import host_id as this_host
from hf_mpwriter.system.redaction import printable

STARTS_LIMIT = 3  # daemons in a row that did not do well; after one more there are pauses
SOUND_AFTER = 60.0  # seconds of a life that does well
FIRST_PAUSE = 5.0  # seconds
LONGEST_PAUSE = 300.0  # seconds
FORGET_AFTER = 2 * LONGEST_PAUSE  # seconds without a start
_DOUBLINGS = 20  # more than there are between the two pauses
NOTICES_KEPT = 20
DEATHS_KEPT = 1000
SAME_WITHIN = 3600.0  # seconds in which a text is one notice
SHOWN = 500  # characters of a notice
SILENT_FOR = 2 * USUAL.heartbeat_every
LINGER = 600.0  # seconds that an uploader stays without workers and without any progress
LINGER_IN_VAIN = 10.0  # the same of one that has no token; a request of the last worker is tried before
LONGEST_STAY = 86_400.0  # seconds that it stays to wait for its share, or for what the Hub asks for, before those
FULL_DISK = TABLE[Cause.DISK_FULL][0]
SILENCE = 60.0  # seconds without a heartbeat, after which an uploader that lives counts as stuck


@dataclass(frozen=True)
class Starts:
    """The starts on a host, in a row, of daemons that did not do well."""

    boot: str = ""  # boot id
    count: int = 0
    last: float = 0.0  # monotonic seconds of the last one

    def as_of(self, now: float, boot: str) -> Starts:
        """What of it counts now."""
        counts = self.boot == boot and self.count > 0 and now - FORGET_AFTER <= self.last <= now
        return self if counts else Starts(boot)

    def with_start(self, now: float) -> Starts:
        """The count with one more start."""
        return Starts(self.boot, self.count + 1, now)

    @property
    def quiet_until(self) -> float:
        """Monotonic seconds; no start before."""
        doublings = self.count - STARTS_LIMIT - 1
        if doublings < 0:
            return 0.0
        return self.last + min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(doublings, _DOUBLINGS))


@dataclass(frozen=True)
class DaemonStatus:
    """What a daemon publishes about itself."""

    daemon: ClassVar[str]  # its kind, see `system/launch`

    phase: str = ""  # what it does, "left" if it has left in good order; "" if none was here
    beat: float = 0.0  # unix time of the last heartbeat
    started_at: float = 0.0  # unix time
    process: Process | None = None  # None if there was none
    waiting: int = 0  # batches, or files, that are to go
    reason: str = ""  # why the last try failed, or why the next one waits; "" if it does not
    failures: int = 0  # in a row
    failed_at: float = 0.0  # unix time of the last failure
    starts: Starts = Starts()  # before this one does well

    @classmethod
    def read(cls, host: HostSpool) -> Self:
        """The status of the last daemon of a host; an empty one if there is none, or if it cannot be read."""
        return state.read(cls, host.daemon(cls.daemon).status)

    def save(self, host: HostSpool) -> None:
        """Write the status; OSError if the disk refuses."""
        disk.replace(host.daemon(self.daemon).status, state.dump(self), "status", durable=False)

    @property
    def pid(self) -> int:
        """Its process id, 0 if there was none."""
        return self.process.pid if self.process else 0

    @property
    def is_over(self) -> bool:
        """Whether it left in good order."""
        return self.phase == "left"

    def stillness(self, now: float) -> str:
        """What keeps a living one from its work, "" if nothing is known."""
        if not self.is_over and self.process and self.process.is_stopped():
            return f"process {self.pid} is stopped; to let it go on: {typed('kill', '-CONT', str(self.pid))}"
        return self._hindrance(now)

    def _hindrance(self, now: float) -> str:
        """The same of one that is not stopped."""
        if self.beat and now - self.beat > SILENCE:
            where = self.process.place if self.process else ""
            return f"process {self.pid}{where} has said nothing for {now - self.beat:.0f} s"
        return ""


@dataclass(frozen=True)
class NumberedNotice:
    """What the user should know."""

    number: int  # greater than that of all earlier ones of the host
    time: float  # unix time
    text: str  # for people

    @property
    def line(self) -> str:
        """The text as it may be shown: the file may come from anywhere."""
        return printable(self.text)[:SHOWN]


Notices = tuple[NumberedNotice, ...]  # the newest last


def with_notice(notices: Notices, text: str, now: float) -> Notices:
    """These notices and one more, unless it is known."""
    if _is_known(notices, text, now):
        return notices
    last = notices[-1].number if notices else int(1000 * now)
    return (*notices, NumberedNotice(last + 1, now, text))[-NOTICES_KEPT:]


def _is_known(notices: Notices, text: str, now: float) -> bool:
    if text.startswith(CREATED):
        return False
    for notice in reversed(notices):
        if notice.text.startswith(CREATED):
            return False
        if notice.text == text:
            return abs(now - notice.time) < SAME_WITHIN
    return False


@dataclass(frozen=True)
class SamplerStatus(DaemonStatus):
    """What a sampler publishes about itself: which process it is."""

    daemon = "sampler"


@dataclass(frozen=True)
class LiveStatus:
    """What a live bucket has of the run."""

    bucket: str = ""  # "" if the run asks for none
    safe: int = 0  # bytes of event files that it has, whatever request may still come late
    lacks: int = 0  # bytes of event files that it has not got
    seen: float = 0.0  # unix time when that was seen; it may lack what was logged later. 0 before the first look
    interval: float = 0.0  # seconds between the last two rounds, 0 before the second one
    size: int = 0  # bytes of the whole bucket, as of the last answer; 0 if that is not known
    at: float = 0.0  # unix time of the last round that went well, 0 if none has
    why: str = ""  # why the last round failed, "" if it went well


@dataclass(frozen=True)
class UploaderStatus(DaemonStatus):
    """What an uploader publishes about itself; its phases are idle, pushing, waiting and left."""

    daemon = "uploader"

    token_issued_at: float = 0.0  # unix time when the worker that brought its token joined
    push: int = 0  # process id of the push that runs, 0 if none does
    # unix time when the push that runs, of this run or of others, has sent its first request, 0 before that
    asked_at: float = 0.0
    is_answered: bool = False  # whether the Hub has answered that push
    commits: int = 0  # made by this uploader
    serves: int = 0  # runs that its process serves at the time of the heartbeat; once it has left this one, others
    kind: str = ""  # of the verdict on the last push, "" if it did not fail
    cause: Cause | None = None  # of that failure
    hint: str = ""  # what helps, "" if nothing is known
    failing_since: float = 0.0  # unix time when the outage began, 0 if event files get to the Hub
    succeeded_at: float = 0.0  # unix time of the last push that succeeded, 0 if none of this uploader has
    live: LiveStatus = LiveStatus()
    repo_id: str = ""  # full name of the repository, "" until a push has resolved it
    private: bool | None = None  # visibility of the repository, None until a push has seen it
    # monotonic seconds; the Hub, or the turn of this node among others, allows no request before
    blocked_until: float = 0.0
    in_line: bool = False  # whether that is because the repository has got many commits in a short time
    blocked_for: float = 0.0  # seconds from the heartbeat until then, for readers with another monotonic clock
    # seconds from the heartbeat until the next commit or the next try is due; 0 if that is not known
    next_in: float = 0.0
    # other hosts with a living uploader of their own, None if it has not looked yet
    elsewhere: tuple[str, ...] | None = None
    notices: Notices = ()  # what the user should know
    # the last event file of each worker that died and whose member file has gone, the newest last; a later life of the
    # worker makes a later file
    died: tuple[str, ...] = ()

    @classmethod
    def read(cls, host: HostSpool) -> Self:
        """The status of the last uploader of a host; an empty one if there is none, or if it cannot be read."""
        status = super().read(host)
        if status.process is None or status.process.boot != boot_id():  # its monotonic clock is another one
            return dataclasses.replace(status, blocked_until=status.blocked_until_here(time.monotonic(), time.time()))
        return status

    @classmethod
    def newest(cls, spool: Spool) -> Self:
        """The status of this host's uploader if it works, else of that which was heard of last, on whichever host.

        It is empty if there is none.
        """
        heard: list[tuple[int, str]] = []
        with suppress(OSError):
            for host_id in spool.host_ids():
                with suppress(OSError):
                    heard.append((spool.host(host_id).daemon("uploader").status.stat().st_mtime_ns, host_id))
        return cls.newest_of(heard, lambda host: cls.read(spool.host(host)))

    @classmethod
    def newest_of(cls, heard: Iterable[tuple[int, str]], read: Callable[[str], Self]) -> Self:
        """The same, of hosts, each with the time (ns) when its uploader was heard of last."""
        order = sorted(heard, reverse=True)
        own = [host for at, host in order if host == this_host() and order[0][0] - at < 1e9 * SILENT_FOR]
        if own and (status := read(own[0])).process and not status.is_over:
            return status
        found = (read(host) for _, host in order)
        return next((status for status in found if status.process), cls())

    def or_full(self, spool: Spool, now: float, silent_for: float = 0.0) -> Self:
        """This status; if what comes after it has no room on a full disk, one that says so."""
        is_full, is_known = False, self.kind == Refused.__name__ or now - self.beat < silent_for
        with suppress(OSError, ForeignSpoolError):
            is_full = not is_known and filesystem.is_full(spool.directory.fd)
        if not is_full:
            return self
        since = self.failing_since or self.beat or now - SILENT_FOR
        hint = f"free space on the disk of {spool.directory.path}"
        failure = {"kind": Retry.__name__, "cause": Cause.DISK_FULL, "reason": FULL_DISK, "hint": hint}
        times = {"failed_at": now, "failing_since": since, "failures": max(1, self.failures)}
        return dataclasses.replace(self, **failure, **times)  # type: ignore[arg-type]

    def blocked_until_here(self, now: float, unix_time: float) -> float:
        """What `blocked_until` is by a clock of another boot; 0 if it is not known."""
        age = unix_time - self.beat
        if self.is_over or not self.blocked_for or abs(age) > SILENCE:
            return 0.0
        return now + self.blocked_for - age

    def tries_until(self, since: float, now: float, unix_time: float) -> float:
        """Unix time until which this uploader tries at least, if it is not ended."""
        waits_until = unix_time + self.blocked_until - now if self.blocked_until > now and not self.is_over else 0.0
        return max(since, min(waits_until, since + LONGEST_STAY)) + self.linger

    @property
    def reaches_hub(self) -> bool:
        """Whether the Hub has taken a push of this uploader, and refuses none since."""
        return self.succeeded_at > 0 and not self.failing_since

    @property
    def linger(self) -> float:
        """Seconds that it stays without workers and without any progress."""
        return LINGER_IN_VAIN if self.cause is Cause.NO_TOKEN else LINGER

    @property
    def why(self) -> str:
        """Why the last push failed and what helps, "" if it did not fail."""
        return with_cure(self.reason, self.hint)

    @property
    def left_to_younger_than(self) -> float:
        """Unix time; the uploader left because its token was refused, to workers that join later. 0 if it did not."""
        return self.token_issued_at if self.is_over and self.kind == Refused.__name__ else 0.0

    def _hindrance(self, now: float) -> str:
        return "" if self.cause is Cause.DISK_FULL else super()._hindrance(now)  # a full disk takes no status
