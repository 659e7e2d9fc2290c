"""The roster: who writes in a run directory. Claims and cards.

A claim is the right to write in a worker directory: the lock `claims/<worker>.lock`, held as long as the worker is
joined. Who finds it taken takes the next free name, so no two live processes ever share a directory.

A card is a worker's file in the spool, locked for the worker's life, made of lines; the last whole line of a kind
counts, a torn last line is not there:

    {"worker": ..., "process": {...}, "started_at": unix time, "settings": {...}}     first line: who it is
    {"open": "rank_00001/events.out..."}                                        before the file exists
    {"seal": "rank_00001/events.out..."}                                        complete, never grows again
    {"want": {"rank_00001/events.out...": 4711}}                                push up to here
    {"dropped": 3}                                                              records that the disk refused for good
    {"closed": {"dropped": 3}}                                                  left in good order

An observer (`hf-mpwriter sync`) has a card and no claim: it only wants.

Invariants:
- A card has one writer, is made under a temporary name, locked, then renamed: whoever sees it sees it locked or over.
- The name of a card is never used again, so removing a dead card never removes a live one.
- Death is final: the lock of a card is never taken again, so a dead card is not looked at twice.
- A card of a dead worker is removed by the uploader, once all bytes of that worker are acknowledged; one that cannot
  be read, when the next uploader begins.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Self

from hf_mpwriter.base.errors import DAMAGED, SettingsError
from hf_mpwriter.base.names import candidates, is_run_path
from hf_mpwriter.base.settings import Settings
from hf_mpwriter.spool.layout import MemberName, Spool
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.process import Process, host_id, start_ticks

NO_NEWS = (0, False)  # of a card that has asked for nothing yet
MEMBER_FILE_LIMIT = 8 << 20  # bytes; of a longer card the first and the last lines count
OBSERVER = "~sync"  # the worker name on the card of an observer; no process can be called that
_files_of_this_process = 0


def claim(spool: Spool, wanted: str) -> tuple[str, int]:
    """Take the wanted name or the next free one.

    Returns:
        The name, and the descriptor that holds the claim.

    Raises:
        OSError: the spool cannot be written, or the filesystem has no locks.
    """
    for name in candidates(wanted):
        try:
            if (fd := locks.try_exclusive(spool.claim(name))) is not None:
                return name, fd
        except OSError as error:
            if error.errno not in disk.NOT_REGULAR:  # garbage in its place: nobody can have it
                raise
    raise OSError(f"no free worker name like {wanted!r} in {spool.run_dir}")


class MemberFile:
    """The card of this process, held until `leave`."""

    def __init__(self, spool: Spool, worker: str, process: Process, settings: Settings) -> None:
        global _files_of_this_process
        _files_of_this_process += 1
        self.name = MemberName.of(worker, process, _files_of_this_process)
        self.path = spool.member_file(self.name)
        temporary = os.path.join(spool.members, f".{self.name}.tmp")
        fd = locks.try_exclusive(temporary)
        if fd is None:
            raise OSError(f"{temporary} is locked by another process")
        self._fd = fd
        try:
            first = {"worker": worker, "process": dataclasses.asdict(process), "started_at": time.time()}
            self.write({**first, "settings": settings.to_json()})
            disk.rename(temporary, self.path, "members.file")
        except BaseException:
            locks.release(fd)
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def write(self, line: dict[str, Any]) -> None:
        """Append one line in one write."""
        data = json.dumps(line).encode() + b"\n"
        end = os.lseek(self._fd, 0, os.SEEK_END)
        if os.write(self._fd, data) != len(data):
            os.ftruncate(self._fd, end)
            raise OSError(f"the disk refuses a line of {self.path}")

    def is_there(self) -> bool:
        """Whether the card is still the file at its path; false once somebody deleted the spool."""
        return disk.same_file(self._fd, self.path)

    def leave(self, dropped: int) -> None:
        """Say goodbye; the lock is over, so the card counts as dead from here."""
        with contextlib.suppress(OSError):  # a death without a word is as good
            self.write({"closed": {"dropped": dropped}})
        locks.release(self._fd)

    def withdraw(self) -> None:
        """Leave without a trace, where no uploader will come to clean up."""
        with contextlib.suppress(OSError):
            disk.remove(self.path, "members.file")
        locks.release(self._fd)


@dataclass(frozen=True)
class Member:
    """What a card says, and whether its process lives.

    Attributes:
        name: from the file name.
        alive: whether the lock is held.
        started_at: unix time.
        process: identity that the worker wrote down.
        settings: how this worker wants to be uploaded.
        growing: files it has open.
        files: all files it ever opened, sealed ones included.
        want: lengths it asked to be pushed.
        closed: whether it left in good order.
        dropped: records that the disk refused for good.
    """

    name: MemberName
    alive: bool
    started_at: float
    process: Process
    settings: Settings
    growing: frozenset[str] = frozenset()
    files: frozenset[str] = frozenset()
    want: dict[str, int] = field(default_factory=dict)
    closed: bool = False
    dropped: int = 0

    @property
    def news(self) -> tuple[int, bool]:
        """What may make a push urgent; it only ever grows: how much is wanted, and whether it is over."""
        return sum(self.want.values()) + len(self.want), not self.alive


class News:
    """The news of members as it was when somebody took note of it."""

    def __init__(self) -> None:
        self._noted: dict[MemberName, tuple[int, bool]] = {}

    def note(self, member: Member) -> None:
        """Take note of what a member has to say now."""
        self._noted[member.name] = member.news

    def has(self, member: Member) -> bool:
        """Whether a member has nothing to say beyond what was noted."""
        return member.news <= self._noted.get(member.name, NO_NEWS)

    def keep(self, members: Collection[Member]) -> None:
        """Forget those who have no card any more: thousands may come and go."""
        if len(self._noted) > len(members):
            names = {member.name for member in members}
            self._noted = {name: news for name, news in self._noted.items() if name in names}

    def clear(self) -> None:
        """Forget everybody."""
        self._noted.clear()


def parse(name: MemberName, data: bytes, *, alive: bool) -> Member | None:
    """Read a card; None if its first line is not whole or not valid. A later line that is damaged is not there."""
    lines = data.split(b"\n")[:-1]
    try:
        first = json.loads(lines[0])
        who, started_at = Process.from_json(first["process"]), float(first["started_at"])
        settings = Settings.from_json(first["settings"])
        if not math.isfinite(started_at):
            return None
    except (*DAMAGED, IndexError, SettingsError):
        return None
    opened: set[str] = set()
    sealed: set[str] = set()
    want: dict[str, int] = {}
    closed, dropped = False, 0
    for line in lines[1:]:
        with contextlib.suppress(*DAMAGED):
            (kind, value), *_ = json.loads(line).items()
            if kind == "open":
                opened.add(_path(value))
            elif kind == "seal":
                sealed.add(_path(value))
            elif kind == "want":
                want = {_path(path): int(length) for path, length in value.items()}
            elif kind == "dropped":
                dropped = int(value)
            elif kind == "closed":
                closed, dropped = True, int(value["dropped"])
    growing = frozenset(opened - sealed) if alive else frozenset()
    return Member(name, alive, started_at, who, settings, growing, frozenset(opened), want, closed, dropped)


def _path(value: Any) -> str:
    if not is_run_path(value):
        raise ValueError(f"not a path of a run directory: {value!r}")
    return str(value)


class Members:
    """Reads the cards of a run directory again and again, cheaply.

    A card is parsed when its size changes, and the last time when its worker is dead: thousands of short-lived children
    may leave one each while the Hub is down.
    """

    def __init__(self, spool: Spool) -> None:
        self._directory = spool.members
        self._known: dict[str, tuple[int, Member]] = {}

    @classmethod
    def swept(cls, spool: Spool) -> Self:
        """For an uploader that begins: ruins of cards go first, as a power cut or a kill in the midst of a join leaves.

        The event files of their workers are found without them.
        """
        roster = cls(spool)
        for name in _listdir(spool.members):
            path = os.path.join(spool.members, name)
            with contextlib.suppress(OSError):
                if _is_ruin(name, path):
                    disk.remove(path, "members.file", durable=False)
        return roster

    def members(self) -> list[Member]:
        """Everybody who has a card, dead or alive."""
        before, self._known, found = self._known, {}, []
        for name in sorted(_listdir(self._directory)):
            known = before.get(name)
            if known is None or known[1].alive:
                known = self._look(name, known)
            if known is not None:
                self._known[name] = known
                found.append(known[1])
        return found

    def _look(self, file_name: str, known: tuple[int, Member] | None) -> tuple[int, Member] | None:
        name = known[1].name if known else MemberName.parse(file_name)
        if name is None:
            return None
        path = os.path.join(self._directory, file_name)
        try:
            alive = locks.is_held(path)  # before reading: a card that is dead now has said its last word
            size = os.stat(path, follow_symlinks=False).st_size
            if known is not None and known[0] == size and known[1].alive == alive:
                return known
            member = parse(name, disk.read_ends(path, MEMBER_FILE_LIMIT), alive=alive)
        except (FileNotFoundError, PermissionError):
            return None
        except OSError as error:  # garbage in its place stays; all else passes, and nobody dies of it
            return None if error.errno in disk.NOT_REGULAR else known
        return None if member is None else (size, member)

    def growing(self) -> set[str]:
        """Files that a live member has open."""
        return {path for member in self.members() for path in member.growing}

    def remove(self, member: Member) -> None:
        """Remove the card of a dead member whose bytes are all on the Hub; if the disk refuses, the next start does."""
        with contextlib.suppress(OSError):
            disk.remove(os.path.join(self._directory, str(member.name)), "members.file", durable=False)


def _is_ruin(file_name: str, path: str) -> bool:
    """Whether this is the card of a dead worker that cannot be read, or never became one."""
    unborn = file_name.startswith(".") and file_name.endswith(".tmp")
    name = MemberName.parse(file_name[1:-4] if unborn else file_name)
    if name is None or locks.is_held(path):
        return False
    if unborn:  # it is not locked yet for a moment after it was made
        return name.host == host_id() and start_ticks(name.pid) != name.ticks
    return parse(name, disk.read_ends(path, MEMBER_FILE_LIMIT), alive=False) is None


def _listdir(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []
