"""Snapshots: event files with a length each, cut at whole records.

    run directory  --EventFileScan.files-->  LocalFile(path, length, growing)
                  .damage----------------->  Damage(path, offset, size)           what no reader reaches
                   --pending-------------->  what the ledger does not cover yet, in an order that may be published
                   --bounded-------------->  groups that fit into one batch each

Attachments are in no snapshot. They are sent while no event file waits, see `uploader/lanes.py`.

Invariants:
- The length of an event file is the end of a whole record whose checksums hold. `st_size` is not: a record may be half
  written.
- Of the event files that one writer has in a directory, one is published only when all earlier ones are complete on
  the Hub or complete in the same snapshot. TensorBoard's default reader drops points of a newer file when an older one
  grows.
- A file of another machine waits for no other one, and no other one waits for it: it may grow there at any time.
- What comes behind the last whole record is not sent. It is damage if a checksum there does not hold, else the
  beginning of a record. It is looked for only where the scan stops anyhow.
- Of files that others may have made, which are all but those of the user with a name of ours, one scan reads
  FOREIGN_BYTES, as a sparse file is cheap to make and dear to read; the next one goes on. Training reads none of them.
- An event file of another writer that is whole and has not changed for UNCHANGED seconds is quiet, and goes as a file
  that does not grow: by its path, which costs a push no memory. No other writer says that it has closed a file; a push
  finds out if one grows after all (`push/client`).
"""

from __future__ import annotations

import enum
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby

from hf_mpwriter.base import names
from hf_mpwriter.base.files import BATCH_BYTES, BATCH_FILES, BATCH_IN_MEMORY, LocalFile, owners
from hf_mpwriter.events import framing
from hf_mpwriter.snapshot.search import SECONDS, Named, RunSearch, Statuses, sizes_of
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Directory, Place
from hf_mpwriter.system.interrupts import ours

GONE = (FileNotFoundError, NotADirectoryError, PermissionError)  # removed since it was listed, or not ours to read
UNCHANGED = 600.0  # seconds after which no writer completes what it has begun: torch's buffer may end anywhere
LAST_BYTES = 64  # bytes before the end of the last whole record that identify a file
UNREAD = bytes(LAST_BYTES + 1)  # in place of them: equal to no others
FOREIGN_BYTES = 256 << 20  # bytes that one scan reads of what others may have made
TOO_LONG = f"more than {FOREIGN_BYTES >> 20} MiB"


def sizes(
    run: Directory, allows: Callable[[str], bool], *, named: Named | None = None, until: float | None = None
) -> dict[str, int]:
    """Size in bytes of each event file that the user's patterns allow; none is read. For the limits see `RunSearch`."""
    search = RunSearch(run, named, until)
    return sizes_of(search, (path for path in search if not names.is_attachment(path) and allows(path)))


class Rest(enum.Enum):
    """What comes behind the last whole record of a file, as far as it was read."""

    INCOMPLETE = enum.auto()  # nothing, or the beginning of a record
    DAMAGED = enum.auto()  # a checksum does not hold
    UNREAD = enum.auto()  # what the next scan reads
    TOO_LONG = enum.auto()  # a record that no scan reads


@dataclass(frozen=True)
class _Parsed:
    """How far a file was parsed."""

    inode: int  # of the file
    size: int  # bytes of the file
    modified: int = 0  # its modification time (ns)
    end: int = 0  # of the last whole record
    last: bytes = b""  # the bytes before `end`; they differ if the file was rewritten in place
    rest: Rest = Rest.INCOMPLETE  # what comes behind `end`
    grows: bool = False  # whether a writer may append more


def _last_bytes(fd: int, end: int) -> bytes:
    return os.pread(fd, min(end, LAST_BYTES), end - min(end, LAST_BYTES))


class EventFileScan:
    """Scans the event files of a run directory; each scan parses only what is new."""

    def __init__(
        self,
        run: Directory,
        known: Callable[[str], int] = lambda _: 0,
        *,
        foreign_bytes: float = FOREIGN_BYTES,
        seconds: float = SECONDS,
    ) -> None:
        """`known`: bytes that need no reading. The limits of a scan are infinite where no other user can write."""
        self.other_runs: list[str] = []  # folders of other runs that the last scan has passed over
        self.left_out: list[str] = []  # what the last scan has left out, for people
        self._run, self._known = run, known
        self._foreign_bytes, self._seconds = foreign_bytes, seconds
        # of the current scan: bytes that it may still read of what others may have made, and whether its time is over
        self._left, self._is_late, self._owners = foreign_bytes, RunSearch(run).is_late, set[int]()
        self._failed = 0  # scans in a row that met what cannot be read
        self._parsed: dict[str, _Parsed] = {}

    def files(
        self,
        allows: Callable[[str], bool],
        growing: Callable[[], Collection[str]],
        patience: int = 0,
        named: Named | None = None,
    ) -> list[LocalFile]:
        """All event files with whole records, sorted by path.

        `growing`: returns the paths that living writers have open. It is called after the listing: a path is in
        a member file before the file exists, so a listed file that no living member names never grows again.
        """
        search = RunSearch(self._run, named, time.monotonic() + self._seconds)
        listed = sorted(path for path in search if not names.is_attachment(path) and allows(path))
        open_now, found, parsed, failed = growing(), list[LocalFile](), dict[str, _Parsed](), list[str]()
        self._left, self._is_late, self._owners = self._foreign_bytes, search.is_late, owners(self._run)
        with Statuses(self._run) as statuses:
            for relative in filter(search.has_time, listed):
                grows = relative in open_now or not names.is_ours(os.path.basename(relative))
                try:
                    state = self._parse(relative, statuses.place(relative), grows=grows)
                    if state is not None and state.end:
                        found.append(LocalFile(relative, state.end, grows or state.rest is Rest.UNREAD))
                except ours(OSError) as error:
                    search.unread.append(error)
                except ours(Exception) as error:  # of one file: the others go on
                    failed.append(f"{relative}: {error!r}")
                else:
                    if state is not None:
                        parsed[relative] = state if state.grows == grows else replace(state, grows=grows)
        self._parsed, self.other_runs = parsed, search.other_runs
        too_long = (path for path, state in parsed.items() if state.rest is Rest.TOO_LONG)
        failed += [f"{path}: a record of {TOO_LONG}, by another writer" for path in too_long]
        self.left_out = [*search.left_out, *failed]
        self._raise_lasting(search.unread, patience)
        return found

    @property
    def unread(self) -> list[LocalFile]:
        """The files of which the last scan has read a part or nothing, with all their bytes; the next one goes on."""
        unread = ((path, state) for path, state in self._parsed.items() if state.rest is Rest.UNREAD)
        return [LocalFile(path, state.size, state.grows) for path, state in unread]

    def damage(self, now: float) -> list[Damage]:
        """What the last scan found behind the last whole records, sorted by path.

        A file that may still grow counts only once it has not changed for UNCHANGED seconds.
        """
        return [
            Damage(path, state.end, state.size - state.end, state.rest is not Rest.DAMAGED)
            for path, state in sorted(self._parsed.items())
            if state.end < state.size and state.rest in (Rest.INCOMPLETE, Rest.DAMAGED)
            if not (state.grows and now - state.modified / 1e9 < UNCHANGED)
        ]

    def with_quiet(
        self, files: list[LocalFile], covers: Callable[[LocalFile], bool], time_there: Callable[[], float]
    ) -> list[LocalFile]:
        """The files of the last scan, quiet ones without `growing`; by the clock of the filesystem, 0.0 if it fails."""
        candidates = [file.path for file in files if file.growing and self._may_be_quiet(file) and not covers(file)]
        if not candidates or not (now := time_there()):  # to ask costs a file on the disk
            return files
        quiet = self.settled(now).intersection(candidates)
        return [replace(file, growing=False) if file.path in quiet else file for file in files]

    def _may_be_quiet(self, file: LocalFile) -> bool:
        return self._parsed[file.path].size == file.length and not names.is_ours(os.path.basename(file.path))

    def settled(self, now: float) -> set[str]:
        """The files of the last scan that have not changed for UNCHANGED seconds, by a unix time."""
        settled = (path for path, state in self._parsed.items() if now - state.modified / 1e9 >= UNCHANGED)
        return set(settled).difference(file.path for file in self.unread)

    def _raise_lasting(self, unread: list[OSError], patience: int) -> None:
        """Raise an error that may pass. What is gone, not ours to read or no regular file is no event file."""
        lasting = [error for error in unread if not isinstance(error, GONE) and error.errno not in disk.NOT_REGULAR]
        self._failed = self._failed + 1 if lasting else 0
        if 0 < self._failed <= patience:
            raise lasting[0]

    def _parse(self, relative: str, place: Place, *, grows: bool) -> _Parsed | None:
        """What is known of a file now; None if no scan may read it."""
        status = place.stat()
        is_own = status.st_uid in self._owners and names.is_ours(place.basename)
        if not (is_own or self._foreign_bytes):
            return None
        stamp = status.st_ino, status.st_size, status.st_mtime_ns
        known = self._parsed.get(relative) or _Parsed(status.st_ino, 0)
        if (known.inode, known.size, known.modified) == stamp and known.rest is not Rest.UNREAD:
            return known
        start = known.end if relative in self._parsed else self._known(relative)
        if not (known.end or grows) and start == status.st_size:  # ours, and all of it is known to be whole
            return _Parsed(*stamp, start, UNREAD)
        fd = disk.open_beneath(place)
        try:
            same = known.inode == status.st_ino and _last_bytes(fd, known.end) == known.last
            start = start if same and start <= status.st_size else 0
            end, rest = self._ending(fd, start, status.st_size, is_own=is_own)
            # the Hub may have another file, or the beginning of a record; a few bytes behind it tell nothing of that
            is_doubtful = not known.end and 0 < status.st_size - end < framing.HEADER_SIZE
            is_news = rest is Rest.DAMAGED and known.rest is not Rest.DAMAGED
            if end == start > 0 and (is_doubtful or is_news):
                end, rest = self._ending(fd, 0, status.st_size, is_own=is_own)
            return _Parsed(*stamp, end, _last_bytes(fd, end), rest, known.grows)
        finally:
            os.close(fd)

    def _ending(self, fd: int, start: int, size: int, *, is_own: bool) -> tuple[int, Rest]:
        """Where the whole records end, as far as this scan may read, and what comes next."""
        room = 0 if self._is_late() else math.inf if is_own else self._left
        stop = size if room >= size - start else start + int(room)
        end, is_damaged = framing.ending(fd, start, stop)
        if not is_own:
            self._left -= stop - start if is_damaged else min(stop - start, end - start + framing.CHUNK)
        if is_damaged:
            return end, Rest.DAMAGED
        if stop == size:
            return end, Rest.INCOMPLETE
        return end, Rest.UNREAD if is_own or framing.announced(fd, end) <= FOREIGN_BYTES else Rest.TOO_LONG


def writer_of(path: str) -> tuple[str, str]:
    """A key that the event files of one writer in one directory share, and no others.

    Files of ours with one suffix are one writer's. Each file that is not ours is its own.
    """
    directory, name = os.path.split(path)
    return directory, names.event_suffix(name) if names.is_ours(name) else path


def _main_directories(files: Iterable[LocalFile]) -> set[str]:
    """Where each process has its own event files. Those of its `add_scalars` groups are in directories below."""
    found: dict[str, str] = {}
    for file in files:
        directory, name = os.path.split(file.path)
        process = names.event_process(name)
        found[process] = min(found.get(process, directory), directory, key=_depth)
    return set(found.values())


def _depth(directory: str) -> tuple[int, str]:
    return (directory.count("/") + 1 if directory else 0), directory


def _publishable(
    group: Iterable[LocalFile],
    covers: Callable[[LocalFile], bool],
    quarantined: Collection[str],
    theirs: Collection[str],
) -> Iterator[LocalFile]:
    blocked: set[tuple[str, str]] = set()  # writers whose later files wait
    for file in group:
        writer, is_theirs = writer_of(file.path), file.path in theirs
        if writer in blocked and not is_theirs:
            continue
        if file.path not in quarantined and not covers(file):
            yield file
        if (file.path in quarantined or file.growing) and not is_theirs:
            blocked.add(writer)


def pending(
    files: Iterable[LocalFile],
    covers: Callable[[LocalFile], bool],
    quarantined: Collection[str],
    theirs: Collection[str] = (),
) -> list[LocalFile]:
    """What is to be sent, in an order of which any prefix may be published: the own files of each process first.

    `theirs`: files of other machines, see `spool/pulled`.
    """
    files, waiting = list(files), list[LocalFile]()
    main = _main_directories(files)

    def order(file: LocalFile) -> tuple[bool, str, str]:
        directory, name = os.path.split(file.path)
        return directory not in main, directory, name

    for _, group in groupby(sorted(files, key=order), key=lambda file: os.path.dirname(file.path)):
        waiting.extend(_publishable(group, covers, quarantined, theirs))
    return waiting


def bounded(
    files: Iterable[LocalFile],
    most: int = BATCH_FILES,
    largest: int = 0,
    in_memory: int = BATCH_IN_MEMORY,
    size: int = BATCH_BYTES,
) -> list[list[LocalFile]]:
    """Split files into groups that fit into one batch each, keeping the order."""
    groups: list[list[LocalFile]] = []
    memory = total = 0
    for file in files:
        held = file.length if file.in_memory else 0
        alone = file.is_large or bool(groups and groups[-1][-1].is_large)  # it may fail for want of room
        full = groups and (alone or len(groups[-1]) >= most or memory + held > in_memory or total + file.length > size)
        if groups and len(groups[-1]) >= most:
            most = min(2 * most, max(most, largest))
        if not groups or full:
            groups.append([])
            memory = total = 0
        groups[-1].append(file)
        memory, total = memory + held, total + file.length
    return groups


@dataclass(frozen=True)
class Damage:
    """The end of an event file that no reader reaches."""

    path: str  # relative to the run directory
    offset: int  # bytes up to the end of the last whole record, which are sent
    size: int  # bytes behind it
    is_incomplete: bool = False  # whether it is nothing but the beginning of a record, ordinary after a kill

    def __str__(self) -> str:
        """One line without the path."""
        if self.is_incomplete:
            return f"ends with an incomplete record of {self.size} bytes at offset {self.offset}"
        return f"is damaged at offset {self.offset}: the {self.size} bytes from there on are not uploaded"
