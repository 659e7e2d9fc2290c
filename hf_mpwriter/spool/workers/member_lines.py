"""The lines of a member file: what a worker writes, with its types, and what they say all in all.

    members/<worker>.<host>.<pid>.<ticks>-<n>
    {"process": {...}, "started_at": 1795236610.0, "settings": {...},          first line: who it is, and the supervisor
     "agent": {...}, "launcher": {...}, "rank": 1, "is_daemon": false,         or launcher without which it is an orphan
     "task": null, "is_late": false, "says_again": ""}
    {"requests": 7, "dropped": 3, "in_memory": 0, "since": ..., "why": ""}      second line: counters, of a fixed length
    {"open": "rank_00001/events.out..."}                                        before the file exists
    {"seal": "rank_00001/events.out..."}                                        complete, never grows again
    {"wish": "create"}                                                          make a repository that is gone anew
    {"wish": "again"}                                                           send what was deleted there

    requests   so many pushes were asked for, each of all that the worker had written by then
    dropped    so many records were refused by the disk for good
    in_memory  so many records wait in memory, because the disk refuses them
    since, why  unix time when the first of both was counted, and what the disk said; 0 and "" while there are none

Invariants:
- The first two lines are written at once. The counters are the only bytes that are ever written again, in their place;
  all other lines are appended. So a file grows with the event files of its worker, and not with what is asked for.
- A damaged line counts as absent. A later line has one key, which is its kind.
- Counters that differ are news, whichever is the greater: a reader may see half of a line that is being written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import TypeVar

from hf_mpwriter.base import state
from hf_mpwriter.base.names import is_run_path, is_sampler
from hf_mpwriter.base.settings import Settings
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.interrupts import suppress
from hf_mpwriter.system.process import Process
from hf_mpwriter.system.redaction import printable

T = TypeVar("T")

COUNTERS_LENGTH = 256  # bytes of the second line, its end included
WHY_LENGTH = 60  # characters of what the disk said

MEMBER_FILE_LIMIT = 8 << 20  # bytes; a member file of ours is much shorter, what is behind them is not read
CREATE, AGAIN = "create", "again"  # wishes: make a repository that is gone anew, send what was deleted there
NO_NEWS = (0, False)  # of a member that has asked for nothing yet

_MEMBER_NAME = re.compile(
    r"(?P<worker>[\w~-]+)\.(?P<host>[\w-]+)\.(?P<pid>\d{1,20})\.(?P<ticks>\d{1,20})-(?P<n>\d{1,20})"
)


@dataclass(frozen=True)
class MemberName:
    """The name of a member file: it names the worker that writes it."""

    worker: str
    host: str
    pid: int
    ticks: int
    n: int

    def __str__(self) -> str:
        """The file name."""
        return f"{self.worker}.{self.host}.{self.pid}.{self.ticks}-{self.n}"

    @classmethod
    def parse(cls, name: str) -> MemberName | None:
        """The name of a file, None if it is not a member file."""
        match = _MEMBER_NAME.fullmatch(name)
        if match is None:
            return None
        return cls(match["worker"], match["host"], int(match["pid"]), int(match["ticks"]), int(match["n"]))

    @classmethod
    def of(cls, worker: str, process: Process, n: int) -> MemberName:
        """Name of the n-th member file of a process."""
        return cls(worker, process.host, process.pid, process.ticks, n)


@dataclass(frozen=True, kw_only=True)
class FirstLine:
    """The first line."""

    process: Process  # that writes
    started_at: float  # unix time when it joined
    settings: Settings  # how it wants to be uploaded
    agent: Process | None = None  # the supervisor or launcher without which it is an orphan, None if there is none
    launcher: Process | None = None  # that has started it as a rank, None for others
    rank: int | None = None  # of the worker, or from which it descends; None if there is none
    is_daemon: bool = False  # whether it is ended with the process that has started it
    task: int | None = None  # its array task, None outside of an array
    is_late: bool = False  # whether it joined at the end of its process: no worker closes its files any more
    says_again: str = ""  # the first member file of those whose counts this one repeats, "" if it does not


@dataclass(frozen=True, kw_only=True)
class Counters:
    """The second line."""

    requests: int = 0  # for a push, so far
    dropped: int = 0  # records that the disk refused for good
    in_memory: int = 0  # records that wait in memory
    since: float = 0.0  # unix time when the first of both was counted, 0 while there are none
    why: str = ""  # what the disk said

    def plus(self, requests: int, dropped: int, in_memory: int, why: str, now: float) -> Counters:
        """The counters with more requests and dropped records, and so many records in memory."""
        counted = Counters(requests=self.requests + requests, dropped=self.dropped + dropped, in_memory=in_memory)
        if not (counted.dropped or in_memory):
            return counted
        said = printable(why or self.why).encode("ascii", "replace").decode()[:WHY_LENGTH]
        return replace(counted, since=self.since or now, why=said)

    def line(self) -> bytes:
        """As it is written, with its end."""
        return state.dump(self).ljust(COUNTERS_LENGTH - 1) + b"\n"


@dataclass(frozen=True, kw_only=True)
class Member(FirstLine, Counters):
    """What a member file says, and whether its process lives."""

    name: MemberName  # from the file name
    alive: bool  # whether the lock is held
    growing: frozenset[str] = frozenset()  # files it has open
    files: frozenset[str] = frozenset()  # all files it ever opened, sealed ones included
    wishes: frozenset[str] = frozenset()  # see CREATE and AGAIN
    has_died: bool = False  # whether it is dead and has left a file open, as none does that ends by itself

    @property
    def lost(self) -> int:
        """Records that were dropped, or waited in memory when it died."""
        return self.dropped + (0 if self.alive else self.in_memory)

    @property
    def is_sampler(self) -> bool:
        """Whether it logs what the machine does: no uploader, mirror or user waits for one."""
        return is_sampler(self.name.worker)

    @property
    def works(self) -> bool:
        """Whether it lives, and is no sampler."""
        return self.alive and not self.is_sampler

    @property
    def news(self) -> tuple[int, bool]:
        """What may make a push urgent: the requests, and whether it is dead."""
        return self.requests, not self.alive


class News:
    """The news of each member when it was noted last."""

    def __init__(self) -> None:
        self._noted: dict[MemberName, tuple[int, bool]] = {}

    def note(self, member: Member) -> None:
        """Note the news of a member."""
        self._noted[member.name] = member.news

    def covers(self, member: Member) -> bool:
        """Whether a member has no news beyond what was noted."""
        return member.news == self._noted.get(member.name, NO_NEWS)

    def keep(self, members: Collection[Member]) -> None:
        """Forget all other members: thousands may come and go."""
        if len(self._noted) > len(members):
            names = {member.name for member in members}
            self._noted = {name: news for name, news in self._noted.items() if name in names}

    def clear(self) -> None:
        """Forget all members."""
        self._noted.clear()


class Reading:
    """A member file, as far as it was read."""

    def __init__(self, name: MemberName) -> None:
        self.name = name  # from the file name
        self.is_over = False  # whether the worker was dead before the file was read last: it says nothing new any more
        self._counters_at = self._end = 0  # offset of the second line, and of what was not taken in yet
        self._who: FirstLine | None = None
        self._counters = Counters()
        self._opened, self._sealed, self._wishes = set[str](), set[str](), set[str]()
        self._said: Member | None = None  # None where something has come since

    def read(self, path: Place, still_grows: Callable[[Reading], bool] | None = None) -> None:
        """Read what is new; OSError if that is not possible."""
        is_over = not locks.is_held(path)  # before reading: a worker that is dead now writes no more
        known = (self._counters_at, COUNTERS_LENGTH if self._end > self._counters_at else 0)
        counters, news = disk.read_ranges(path, known, (self._end, MEMBER_FILE_LIMIT - self._end))
        if counters:
            self._take_counters(counters)
        self.take(news)
        self.is_over = is_over and not (still_grows and still_grows(self))

    @property
    def open_files(self) -> set[str]:
        """Event files that were not sealed, as far as the file was read."""
        return self._opened - self._sealed

    def take(self, data: bytes) -> None:
        """Take in what follows; what is behind the last whole line has to be given again."""
        for line in data.split(b"\n")[:-1]:
            if not self._end:
                self._who, self._counters_at = _parse(FirstLine, line), len(line) + 1
            elif self._end == self._counters_at:
                self._take_counters(line)
            else:
                self._take_later(line)
            self._end += len(line) + 1

    def _take_counters(self, line: bytes) -> None:
        """Take in what the second line is now."""
        counters = _parse(Counters, line)
        if counters is not None and counters != self._counters:
            self._counters, self._said = counters, None

    def _take_later(self, line: bytes) -> None:
        found, said = {"open": self._opened, "seal": self._sealed, "wish": self._wishes}, _parse(dict[str, str], line)
        for kind, value in said.items() if said and len(said) == 1 else ():
            if kind in found and (kind == "wish" or is_run_path(value)):
                found[kind].add(value)
        self._said = None

    @property
    def member(self) -> Member | None:
        """What it says all in all; None if the first line is not whole or not valid."""
        alive = not self.is_over
        who, said = self._who, self._said
        if who is None or (said is not None and said.alive == alive):
            return said
        self._said = Member(
            **vars(who),
            **vars(self._counters),
            name=self.name,
            alive=alive,
            growing=frozenset(self.open_files if alive else ()),
            files=frozenset(self._opened),
            wishes=frozenset(self._wishes),
            has_died=not (alive or who.is_late) and bool(self.open_files),
        )
        return self._said


def _parse(kind: type[T], line: bytes) -> T | None:
    """A line, None if it is damaged."""
    with suppress(state.DamagedError):
        return state.load(kind, line)
    return None
