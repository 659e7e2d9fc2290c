"""The members of a run directory: claims and member files.

A claim is the right to write in a worker directory: the lock `claims/<worker>.lock`, held as long as the worker is
joined. A worker that finds it taken takes the next free name, so no two live processes ever share a directory.

A member file registers a worker. It is locked for the worker's life and made of lines, each written at once; the last
whole line of a kind counts, see `member_lines`:

    members/rank_00001.<host>.<pid>.<ticks>-<n>       who it is, what it opens and seals, what it wants to be pushed

An observer (`hf-mpwriter sync`) has a member file and no claim: it only asks for pushes.

Invariants:
- A member file has one writer. It is made under a temporary name, locked, then renamed: nothing that has its name is
  unlocked while its worker lives.
- The name of a member file is never used again, so removing that of a dead worker never removes a live one.
- Death is final: the lock of a member file is never taken again, so that of a dead worker is read once.
- The uploader removes the member file of a dead worker once all bytes of that worker are acknowledged. One that cannot
  be read is removed when the next uploader starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from hf_mpwriter.base import state
from hf_mpwriter.base.names import candidates
from hf_mpwriter.base.settings import Settings
from hf_mpwriter.spool.layout import MemberName, Spool
from hf_mpwriter.spool.member_lines import Dropped, FirstLine, Opened, Sealed, Wanted, parse_first, parse_later
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.process import Process, host_id, start_ticks

NO_NEWS = (0, False)  # of a member that has asked for nothing yet
MEMBER_FILE_LIMIT = 8 << 20  # bytes; of a longer member file the first and the last lines count
OBSERVER = "~sync"  # worker name of an observer; no process can be called that
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
            if error.errno not in disk.NOT_REGULAR:  # garbage in its place: the name cannot be had
                raise
    raise OSError(f"no free worker name like {wanted!r} in {spool.run_dir}")


class MemberFile:
    """The member file of this process, locked until `leave`.

    Args:
        spool: of the run directory.
        worker: name of the worker.
        process: this process.
        settings: how the worker wants to be uploaded.
        wall_clock: unix time.

    Raises:
        OSError: the disk refuses; nothing is left behind.
    """

    def __init__(
        self,
        spool: Spool,
        worker: str,
        process: Process,
        settings: Settings,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        global _files_of_this_process
        _files_of_this_process += 1
        self.name = MemberName.of(worker, process, _files_of_this_process)
        self.path = spool.member_file(self.name)
        temporary = spool.members / f".{self.name}.tmp"
        fd = locks.try_exclusive(temporary)
        if fd is None:
            raise OSError(f"{temporary} is locked by another process")
        self._fd = fd
        try:
            self._append(state.dump(FirstLine(worker, process, wall_clock(), settings)))
            disk.rename(temporary, self.path, "members.file")
        except BaseException:
            locks.release(fd)
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise

    def write(self, line: dict[str, Any]) -> None:
        """Append one line.

        Raises:
            OSError: the disk refuses; the file is as it was.
        """
        self._append(json.dumps(line).encode())

    def _append(self, line: bytes) -> None:
        """One write, so that no reader sees half a line for long, and none is left if the disk is full."""
        data = line + b"\n"
        end = os.lseek(self._fd, 0, os.SEEK_END)
        if os.write(self._fd, data) != len(data):
            os.ftruncate(self._fd, end)
            raise OSError(f"the disk refuses a line of {self.path}")

    def is_there(self) -> bool:
        """Whether it is still the file at its path; not after the spool was deleted, moved or replaced."""
        return self.path.directory.is_at_path() and disk.same_file(self._fd, self.path)

    def leave(self, dropped: int) -> None:
        """Release the lock: the worker is dead from here on.

        Args:
            dropped: records that the disk refused for good.
        """
        with contextlib.suppress(OSError):  # for display only
            if dropped:
                self.write({"dropped": dropped})
        locks.release(self._fd)

    def withdraw(self) -> None:
        """Leave without a trace, where no uploader will come to clean up."""
        with contextlib.suppress(OSError):
            disk.remove(self.path, "members.file")
        locks.release(self._fd)


@dataclass(frozen=True)
class Member:
    """What a member file says, and whether its process lives.

    Attributes:
        name: from the file name.
        alive: whether the lock is held.
        started_at: unix time when it joined.
        process: that writes.
        settings: how it wants to be uploaded.
        growing: files it has open.
        files: all files it ever opened, sealed ones included.
        want: lengths that it asked to be pushed.
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
    dropped: int = 0

    @property
    def news(self) -> tuple[int, bool]:
        """What may make a push urgent: how much is wanted, and whether it is dead. It only increases."""
        return sum(self.want.values()) + len(self.want), not self.alive


class News:
    """The news of each member when it was noted last."""

    def __init__(self) -> None:
        self._noted: dict[MemberName, tuple[int, bool]] = {}

    def note(self, member: Member) -> None:
        """Note the news of a member."""
        self._noted[member.name] = member.news

    def covers(self, member: Member) -> bool:
        """Whether a member has no news beyond what was noted."""
        return member.news <= self._noted.get(member.name, NO_NEWS)

    def keep(self, members: Collection[Member]) -> None:
        """Forget all other members: thousands may come and go."""
        if len(self._noted) > len(members):
            names = {member.name for member in members}
            self._noted = {name: news for name, news in self._noted.items() if name in names}

    def clear(self) -> None:
        """Forget all members."""
        self._noted.clear()


def parse(name: MemberName, data: bytes, *, alive: bool) -> Member | None:
    """What a member file says; a later line that is damaged is left out.

    Args:
        name: from the file name.
        data: content of the file.
        alive: whether the lock is held.

    Returns:
        None if the first line is not whole or not valid.
    """
    first, *later = data.split(b"\n")[:-1] or [b""]
    if (who := parse_first(first)) is None:
        return None
    opened: set[str] = set()
    sealed: set[str] = set()
    want: dict[str, int] = {}
    dropped = 0
    for line in map(parse_later, later):
        match line:
            case Opened():
                opened.add(line.open)
            case Sealed():
                sealed.add(line.seal)
            case Wanted():
                want = line.want
            case Dropped():
                dropped = line.dropped
    growing = frozenset(opened - sealed) if alive else frozenset()
    return Member(name, alive, who.started_at, who.process, who.settings, growing, frozenset(opened), want, dropped)


class Members:
    """Reads the member files of a run directory, again and again.

    A member file is parsed when its size changes, and once more when its worker is dead: thousands of short-lived
    children may leave one each while the Hub is down.
    """

    def __init__(self, spool: Spool) -> None:
        self._directory = spool.members
        self._known: dict[str, tuple[int, Member]] = {}

    def sweep(self) -> None:
        """Remove what a power cut or a kill while joining has left of member files; what the disk refuses stays.

        The event files of these workers are found without them.
        """
        for name in _listdir(self._directory):
            path = self._directory / name
            with contextlib.suppress(OSError):
                if _is_ruin(name, path):
                    disk.remove(path, "members.file", durable=False)

    def all(self) -> list[Member]:
        """All members, dead or alive."""
        before, self._known, found = self._known, {}, []
        for name in sorted(_listdir(self._directory)):
            known = before.get(name)
            if known is None or known[1].alive:
                known = self._read(name, known)
            if known is not None:
                self._known[name] = known
                found.append(known[1])
        return found

    def _read(self, file_name: str, known: tuple[int, Member] | None) -> tuple[int, Member] | None:
        name = known[1].name if known else MemberName.parse(file_name)
        if name is None:
            return None
        path = self._directory / file_name
        try:
            alive = locks.is_held(path)  # before reading: a worker that is dead now writes no more
            size = path.stat().st_size
            if known is not None and known[0] == size and known[1].alive == alive:
                return known
            member = parse(name, disk.read_ends(path, MEMBER_FILE_LIMIT), alive=alive)
        except (FileNotFoundError, PermissionError):
            return None
        except OSError as error:  # garbage in its place stays; any other error passes, and no member dies of it
            return None if error.errno in disk.NOT_REGULAR else known
        return None if member is None else (size, member)

    def growing(self) -> set[str]:
        """Files that a live member has open."""
        return {path for member in self.all() for path in member.growing}

    def remove(self, member: Member) -> None:
        """Remove the file of a dead member; if the disk refuses, the next uploader does."""
        with contextlib.suppress(OSError):
            disk.remove(self._directory / str(member.name), "members.file", durable=False)


def _is_ruin(file_name: str, path: Place) -> bool:
    """Whether this is the member file of a dead worker that cannot be read, or was never finished."""
    unfinished = file_name.startswith(".") and file_name.endswith(".tmp")
    name = MemberName.parse(file_name[1:-4] if unfinished else file_name)
    if name is None or locks.is_held(path):
        return False
    if unfinished:  # it is not locked yet for a moment after it was made
        return name.host == host_id() and start_ticks(name.pid) != name.ticks
    return parse(name, disk.read_ends(path, MEMBER_FILE_LIMIT), alive=False) is None


def _listdir(place: Place) -> list[str]:
    try:
        return place.names()
    except FileNotFoundError:
        return []
