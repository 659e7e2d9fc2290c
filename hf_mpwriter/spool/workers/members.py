"""The members of a run directory: who writes, and who lives.

    claims/<worker>.lock        locked as long as the worker is joined; may hold a note, see `worker/rewind`

A claim is the right to write in a worker directory. A worker that finds a name taken takes the next free one, so no two
live processes ever share a directory.

A member file registers a worker. It is locked for the worker's life and made of lines, see `member_lines`:

    members/rank_00001.<host>.<pid>.<ticks>-<n>       who it is, what it opens and seals, how often it asked for a push

One that is full is followed by another one of the same worker, with the next n. All of them stay locked.

An observer (`hf-mpwriter sync`, `run`, `stop`) has a member file and no claim: it only asks for pushes, `stop` also for
the end of the upload.

Invariants:
- A member file has one writer. It is made under a temporary name, locked, then renamed: nothing that has its name is
  unlocked while its worker lives.
- The name of a member file is never used again, so removing that of a dead worker never removes a live one.
- A path is sealed in the member file in which it was opened. So what is open is in the file of a live worker at any
  time, however many files it has, and no file is longer than MEMBER_FILE_LIMIT.
- What cannot be read for a moment is no proof of an end: who asks for the open files of all members gets an error.
- Death is final: the lock of a member file is never taken again, so that of a dead worker is read once.
- A worker of another host, whose lock may not reach here, lives while it writes, or while its host has an uploader.
- The uploader removes the member file of a dead worker once all its bytes are acknowledged; one that counts lost
  records is renamed instead, see `losses`. It sweeps away what cannot be read: when it starts, when it leaves, and now
  and then, as the disk may refuse to remove a file.

Looks: which member files of this host are read, where thousands of workers live.

    at most AT_ONCE live workers     all
    more                             those whose file has changed, or whose process is gone; of the rest AT_ONCE in turn

To read a member file and to ask for its lock takes ten system calls, and an uploader looks every second. So a file that
was as it is now for QUIET is not read, and the lock of a process that is there is not asked for, but in turn. A worker
that was killed, and whose process id is taken by now, is found dead after as many looks as there are turns.

Invariants:
- What a worker writes is seen by the next look: the file was unchanged for longer than the clock of a filesystem is
  coarse when it was read, so any later write changes its time.
- A worker of another host is always read: attributes may be old there.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

from hf_mpwriter.base import state
from hf_mpwriter.base.names import candidates, is_worker, worker_dir
from hf_mpwriter.base.settings import Settings
from hf_mpwriter.snapshot.search import Named
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers.member_lines import Counters, FirstLine, Member, MemberName, Reading
from hf_mpwriter.spool.workers.peers import seen_from_here, was_written_lately
from hf_mpwriter.system import disk, locks, process_state
from hf_mpwriter.system.directory import DEAD, Place
from hf_mpwriter.system.interrupts import ours, suppress
from hf_mpwriter.system.process import Process, host_id, start_ticks

FULL_AT = 1 << 20  # bytes of a member file from which on files are opened in another one
OBSERVER = "~sync"  # worker name of an observer; no process can be called that
SUPERVISOR = "~run"  # of an observer that believes the ledger
ENDER = "~stop"  # of an observer for which the uploader has to let the run go
DERIVER = "~ranks"  # of the process that derives a run of all ranks
ASK_FOR_ALL = frozenset({OBSERVER, SUPERVISOR, ENDER})
_numbers = itertools.count(1)
AT_ONCE = 64  # live workers that each look reads
LOST = ".lost"  # end of the name of a member file that was kept for its count
QUIET = 2 * 10**9  # nanoseconds, the coarsest clock of a filesystem


class Taken(NamedTuple):
    """A name that this process holds."""

    name: str  # of the worker
    claim: int  # descriptor of the lock of the name
    wanted: str  # name that it has if no other process holds that
    substitute: str  # what its other names begin with


def claim(spool: Spool, wanted: str, substitute: str = "") -> Taken:
    """Take the wanted name or the next free one."""
    with spool.claims.entered() as claims:
        for name in candidates(wanted, substitute):
            try:
                if (fd := locks.try_exclusive(claims / f"{name}.lock")) is not None:
                    return Taken(name, fd, wanted, substitute)
            except ours(OSError) as error:
                if error.errno not in disk.NOT_REGULAR:  # garbage in its place: the name cannot be had
                    raise
    raise OSError(f"no free worker name like {wanted!r} in {spool.run_dir}")


class MemberFile:
    """One member file of this process, locked until `leave`."""

    def __init__(
        self,
        spool: Spool,
        worker: str,
        process: Process,
        settings: Settings,
        wall_clock: Callable[[], float] | None = None,
        *,
        agent: Process | None = None,
        launcher: Process | None = None,
        rank: int | None = None,
        is_daemon: bool = False,
        task: int | None = None,
        is_late: bool = False,
        says_again: str = "",
    ) -> None:
        self.name = MemberName.of(worker, process, next(_numbers))
        self.path = spool.members / str(self.name)
        self._lock = process_state.thread_lock()  # between threads: each line is one
        self._is_torn = False  # whether the last write may have left a part of a line
        self._counters = Counters()
        with spool.members.entered() as directory:
            temporary = directory / f".{self.name}.tmp"
            fd = locks.try_exclusive(temporary)
            if fd is None:
                raise OSError(f"{temporary} is locked by another process")
            self._fd = fd
            try:
                # unix time when the worker joined
                self.started_at = wall_clock() if wall_clock else os.fstat(fd).st_mtime
                said = FirstLine(
                    process=process,
                    started_at=self.started_at,
                    settings=settings,
                    agent=agent,
                    launcher=launcher,
                    rank=rank,
                    is_daemon=is_daemon,
                    task=task,
                    is_late=is_late,
                    says_again=says_again,
                )
                first = state.dump(said) + b"\n"
                self._counters_at = len(first)
                self._append(first + self._counters.line())
                disk.rename(temporary, directory / str(self.name), "members.file")
            except BaseException:
                locks.release(fd)
                disk.discard(temporary)
                raise

    def write(self, line: dict[str, Any]) -> None:
        """Append one line."""
        self._append(json.dumps(line).encode() + b"\n")

    def _append(self, data: bytes) -> None:
        """One write, so that no reader sees half a line for long; what a full disk takes of it is taken back."""
        with self._lock:
            self._do(lambda: self._append_line(data))

    def _append_line(self, data: bytes) -> None:
        data = b"\n" + data if self._is_torn else data
        end = os.lseek(self._fd, 0, os.SEEK_END)
        self._is_torn = True  # a signal handler that writes now, too, begins a line of its own
        written = os.write(self._fd, data)
        if written != len(data):
            if os.fstat(self._fd).st_size == end + written:
                os.ftruncate(self._fd, end)
            raise OSError(f"the disk refuses a line of {self.path}")
        self._is_torn = False

    def _do(self, step: Callable[[], object]) -> None:
        """Do a step with the descriptor; once more with a new one where it may be dead, see `directory.DEAD`."""
        locks.check(self._fd)
        try:
            step()
        except ours(OSError) as error:
            if error.errno not in DEAD or not locks.renew(self._fd):
                raise
            step()

    def count(self, *, requests: int = 0, dropped: int = 0, in_memory: int | None = None, why: str = "") -> None:
        """Add to the counters."""
        with self._lock:
            waiting = self._counters.in_memory if in_memory is None else in_memory
            counters = self._counters.plus(requests, dropped, waiting, why, time.time())
            self._do(lambda: os.pwrite(self._fd, counters.line(), self._counters_at))
            self._counters = counters

    @property
    def is_full(self) -> bool:
        """Whether files are to be opened in another one."""
        return os.fstat(self._fd).st_size >= FULL_AT

    def is_there(self) -> bool:
        """Whether it is still the file at its path; not after the spool was deleted, moved or replaced."""
        return self.path.directory.is_at_path() and disk.same_file(self._fd, self.path)

    def leave(self) -> None:
        """Release the lock: the worker is dead from here on."""
        locks.release(self._fd)

    def withdraw(self) -> None:
        """Leave, where no uploader will come to clean up; what was lost stays."""
        with suppress(OSError):
            _remove(self.path, keep=bool(self._counters.dropped))
        locks.release(self._fd)


class MemberFiles:
    """The member files of this process: one, and another one whenever the last is full."""

    def __init__(self, make: Callable[[], MemberFile], dropped: int = 0) -> None:
        """`dropped`: so many records have others of this process counted that it has left."""
        self._make = make
        self.files = [make()]
        self._opened_in: dict[str, MemberFile] = {}
        self.dropped, self._in_memory = dropped, 0  # records that were counted, here or before

    def opened(self, path: str) -> None:
        """Record an event file that is about to be made; OSError if the disk refuses."""
        if self.files[-1].is_full:
            with locks.taking():
                self.files.append(self._make())
        file = self.files[-1]
        file.write({"open": path})
        self._opened_in[path] = file

    def sealed(self, path: str) -> None:
        """Record that an event file is complete; OSError if the disk refuses."""
        self._opened_in.get(path, self.files[0]).write({"seal": path})
        self._opened_in.pop(path, None)

    def request(self) -> None:
        """Ask for a push of all that was written; OSError if the disk refuses."""
        for file in self.files:
            file.count(requests=1)

    def record_dropped(self, dropped: int, in_memory: int = 0, why: str = "") -> None:
        """Record how many records were dropped all in all and wait in memory, if that is new; may raise OSError."""
        if dropped > self.dropped or in_memory != self._in_memory:
            more = max(0, dropped - self.dropped)
            self.files[0].count(dropped=more, in_memory=in_memory, why=why)
            self.dropped, self._in_memory = self.dropped + more, in_memory

    def is_there(self) -> bool:
        """Whether all files are where they were; not after the spool was deleted."""
        return all(file.is_there() for file in self.files)

    def leave(self, dropped: int, why: str = "") -> None:
        """Release the locks: the worker is dead from here on, and the disk has refused so many records for good."""
        with suppress(OSError):  # its own message at the end tells it all the same
            self.record_dropped(dropped, why=why)
        for file in self.files:
            file.leave()

    def withdraw(self, dropped: int = 0, why: str = "") -> None:
        """Leave, where no uploader will come to clean up; only what was lost stays."""
        with suppress(OSError):
            self.record_dropped(dropped, why=why)
        for file in self.files:
            file.withdraw()

    def forget(self) -> list[Place]:
        """Leave, where the next member file of this process says all of it again; the files that are to be removed."""
        for file in self.files:
            file.leave()
        return [file.path for file in self.files]


class Looks:
    """The looks of one observer at the member files of its host."""

    def __init__(self) -> None:
        self._number = self._turns = 0
        self._quiet_before = 0  # unix time (ns)
        self._stamps: dict[Reading, tuple[int, ...]] = {}
        self._before: dict[Reading, tuple[int, ...]] = {}

    def begin(self) -> None:
        """A look begins."""
        self._turns = -(-len(self._stamps) // AT_ONCE)
        self._number += 1
        self._quiet_before = time.time_ns() - QUIET
        self._before, self._stamps = self._stamps, {}

    def may_skip(self, known: Reading, place: Place) -> bool:
        """Whether a live worker of this host need not be read by this look."""
        before, stamp = self._before.get(known), _stamp(place)
        is_in_turn = self._turns <= 1 or (self._number + len(self._stamps)) % self._turns == 0
        self._stamps[known] = stamp if stamp and stamp[2] < self._quiet_before else ()
        return bool(before) and before == stamp and not is_in_turn and _may_live(known.name.pid)


def is_ruin(file_name: str, path: Place) -> bool:
    """Whether this is the member file of a dead worker that cannot be read, or was never finished."""
    unfinished = file_name.startswith(".") and file_name.endswith(".tmp")
    name = MemberName.parse(file_name[1:-4] if unfinished else file_name)
    if name is None or locks.is_held(path):
        return False
    if unfinished:  # it is not locked yet for a moment after it was made
        return name.host == host_id() and start_ticks(name.pid) != name.ticks
    found = Reading(name)
    found.read(path)
    return found.member is None


def _stamp(place: Place) -> tuple[int, ...]:
    """Inode, size and modification time (ns), () if there is no file."""
    try:
        status = os.stat(place.name, dir_fd=place.directory.fd, follow_symlinks=False)
    except ours(OSError):
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _may_live(pid: int) -> bool:
    """Whether a process of this id lives here; of another pid namespace it seems not to, and is asked for its lock."""
    try:
        os.kill(pid, 0)
    except ours(PermissionError):
        return True
    except ours(OSError, OverflowError):
        return False
    return True


class Members:
    """Reads the member files of a run directory, again and again.

    Of a live worker only what is new is read; that of a dead one is read once more: there may be thousands.
    """

    def __init__(self, spool: Spool, elsewhere: Collection[str] | None = None) -> None:
        """`elsewhere`: the hosts with an uploader of their own, as `know` says; None to find them out at each look."""
        self._elsewhere = elsewhere
        self._spool, self._directory, self._run, self._host = spool, spool.members, spool.run, host_id()
        self._known, self._looks = dict[str, Reading](), Looks()
        self._unread: OSError | None = None  # why a member file could not be read the last time
        self._others: Collection[str] | None = None  # who is elsewhere, once it was asked for

    def sweep(self) -> None:
        """Remove what a power cut or a kill while joining has left of member files; what the disk refuses stays.

        The event files of these workers are found without them.
        """
        self.all()
        for name in _listdir(self._directory):
            path = self._directory / name
            known = self._known.get(name)
            with suppress(OSError):
                if (known is None or known.member is None) and is_ruin(name, path):
                    disk.remove(path, "members.file", durable=False)

    def all(self) -> list[Member]:
        """All members, dead or alive."""
        before, self._known, self._unread, self._others = self._known, {}, None, None
        self._looks.begin()
        with suppress(FileNotFoundError), self._directory.entered() as directory:
            for file_name in sorted(directory.names()):
                known, place = before.get(file_name), directory / file_name
                if known is None or not (known.is_over or self._may_skip(known, place)):
                    known = self._read(place, known)
                if known is not None:
                    self._known[file_name] = known
        return [known.member for known in self._known.values() if known.member is not None]

    def _may_skip(self, known: Reading, place: Place) -> bool:
        return known.name.host == self._host and self._looks.may_skip(known, place)

    def _read(self, place: Place, known: Reading | None) -> Reading | None:
        name = known.name if known else MemberName.parse(place.basename)
        if name is None:
            return None
        found = known or Reading(name)
        try:
            found.read(place, self._still_grows if name.host != self._host else None)
        except ours(FileNotFoundError, PermissionError):
            return None
        except ours(OSError) as error:  # garbage in its place stays; any other error passes, and no member dies of it
            if error.errno in disk.NOT_REGULAR:
                return None
            self._unread = error
            return known
        return found

    def _still_grows(self, found: Reading) -> bool:
        """Whether a worker of another host lives: its host has an uploader, or a file of it was written just now."""
        if self._others is None:  # it may read a file per host
            self._others = seen_from_here(self._spool) if self._elsewhere is None else self._elsewhere
        files = [self._directory / str(found.name), *(self._run / path for path in found.open_files)]
        return found.name.host in self._others or was_written_lately(files)

    def know(self, elsewhere: Collection[str]) -> None:
        """Take these hosts for those with an uploader of their own.

        Member files of new ones are read anew: workers whose locks are free may live.
        """
        new = set(elsewhere).difference(self._elsewhere or ())
        self._known = {name: known for name, known in self._known.items() if known.name.host not in new}
        self._elsewhere = elsewhere

    def growing(self) -> set[str]:
        """Files that a live member has open."""
        members = self.all()
        if self._unread is not None:
            raise self._unread
        return {path for member in members for path in member.growing}

    def named(self, known: Iterable[str] = ()) -> Named:
        """What the members of the last look, claims and `known` paths, such as the ledger's, name."""
        members = (one.member for one in self._known.values() if one.member is not None)
        claims = (name.removesuffix(".lock") for name in _listdir(self._spool.claims) if name.endswith(".lock"))
        files = frozenset(known).union(*(member.files for member in members))
        return Named(files, frozenset(map(worker_dir, claims)))

    def remove(self, member: Member) -> None:
        """Remove the file of a dead member, or leave it to the next uploader; what it has lost stays, see `losses`."""
        with suppress(OSError):
            keep = bool(member.lost) and is_worker(member.name.worker)
            _remove(self._directory / str(member.name), keep=keep, durable=False)


def unsay(member_file: Place) -> bool:
    """Remove what another member file says again, also where it was kept for its count; False if the disk refuses."""
    try:
        for file in (lost_file(member_file), member_file):
            disk.remove(file, "members.file", durable=False)
    except ours(OSError):
        return False
    return True


def lost_file(member_file: Place) -> Place:
    """The file that a member file becomes which counts a loss, see `losses`."""
    return member_file.parent / f"{member_file.basename}{LOST}"


def _remove(path: Place, *, keep: bool, durable: bool = True) -> None:
    """Remove a member file, or keep its count in one step; it may be gone already."""
    if not keep:
        disk.remove(path, "members.file", durable=durable)
        return
    with suppress(FileNotFoundError):
        disk.rename(path, lost_file(path), "members.lost")


def _listdir(place: Place) -> list[str]:
    with suppress(FileNotFoundError):
        return place.names()
    return []


def last_of(files: Collection[str]) -> str:
    """The event file that was made last: their names sort in time order."""
    return max(files, key=lambda path: (os.path.basename(path), path))
