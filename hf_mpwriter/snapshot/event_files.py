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
- What comes behind the last whole record is not sent. It is damage if a checksum there does not hold, else the
  beginning of a record. It is looked for only where the scan stops anyhow.
- Symbolic links are not followed, and the spool is never read.
- An event file of another writer that is whole and has not changed for UNCHANGED seconds is quiet, and goes as a file
  that does not grow: by its path, which costs a push no memory. No other writer says that it has closed a file; a push
  finds out if one grows after all (`push/client`).
- A folder with a spool of its own, or with the name of one that is kept elsewhere, is another run, which may go
  elsewhere or nowhere: nothing below it is part of this one. A run has its spool before its first event file, and a
  folder is asked for one after it was listed: so no listing, however it falls, finds a file of another run.
- All that lists a run directory comes through `walk`, and all that opens what was listed before asks `other_run_above`.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Self

from hf_mpwriter.base import names
from hf_mpwriter.base.files import BATCH_BYTES, BATCH_FILES, BATCH_IN_MEMORY, LocalFile
from hf_mpwriter.events import framing
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Directory, Place

GONE = (FileNotFoundError, NotADirectoryError, PermissionError)  # removed since it was listed, or not ours to read
NO_SPOOL = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG)  # or nothing can be read there
UNCHANGED = 600.0  # seconds after which no writer completes what it has begun: torch's buffer may end anywhere
LAST_BYTES = 64  # bytes before the end of the last whole record that identify a file
UNREAD = bytes(LAST_BYTES + 1)  # in place of them: equal to no others


def walk(
    run: Directory,
    unread: Callable[[OSError], object] = lambda _: None,
    other_run: Callable[[str], object] = lambda _: None,
) -> Iterator[str]:
    """Relative paths of all regular files of a run but ours, and of no other run; its folder is told instead."""
    pending = [""]
    while pending:
        directory = pending.pop()
        try:
            directories, files, _ = Place(run, directory).scan()
            other = other_run_above(run, directory)
        except OSError as error:
            unread(error)
            continue
        if other:
            other_run(other)
            continue
        prefix = f"{directory}/" if directory else ""
        pending += [prefix + name for name in directories if not names.is_of_ours(name)]
        yield from (prefix + name for name in files if not names.is_of_ours(name))


def other_run_above(run: Directory, directory: str) -> str:
    """The topmost folder of another run that a folder of a run directory is or lies in, "" if it is of this one."""
    end, fd = 0, run.fd if directory else -1
    while directory and end >= 0:
        end = directory.find("/", end + 1)
        folder = directory if end < 0 else directory[:end]
        try:
            os.stat(f"{folder}/{names.SPOOL_NAME}", dir_fd=fd, follow_symlinks=False)
        except OSError as error:
            if error.errno not in NO_SPOOL:
                raise
        else:
            return folder
    return ""


def check_is_of_run(run: Directory, path: str) -> None:
    """Refuse a file that was listed before its folder became one of another run; FileNotFoundError."""
    if other := other_run_above(run, os.path.dirname(path)):
        raise FileNotFoundError(errno.ENOENT, f"{other} is another run now", path)


class Statuses:
    """Reaches file after file, and tells its status; it keeps the directory of the last one open."""

    def __init__(self, run: Directory) -> None:
        self._run = run
        self._name, self._directory, self._step = "", Place(run), contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Return this object."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the last directory."""
        self._step.close()
        self._directory = Place(self._run)

    def place(self, relative: str) -> Place:
        """The place of a file, good until the next call; OSError if its directory is gone."""
        directory, _, name = relative.rpartition("/")
        if self._directory.directory is self._run or directory != self._name:
            self.__exit__()
            self._directory = self._step.enter_context(Place(self._run, directory).entered())
            self._name = directory
        return self._directory / name

    def of(self, relative: str) -> os.stat_result:
        """The status of a file, of a link its own; OSError if it is gone."""
        return self.place(relative).stat()


def sizes(run: Directory, allows: Callable[[str], bool]) -> dict[str, int]:
    """Size in bytes of each event file that the user's patterns allow; none is read."""
    return sizes_of(run, (path for path in walk(run) if not names.is_attachment(path) and allows(path)))


def sizes_of(run: Directory, paths: Iterable[str], without: Collection[tuple[int, int]] = ()) -> dict[str, int]:
    """Size in bytes of each of these files that is there, but not `without`, by device and inode."""
    found = {}
    with Statuses(run) as statuses:
        for path in paths:
            with contextlib.suppress(OSError):
                status = statuses.of(path)
                if (status.st_dev, status.st_ino) not in without:
                    found[path] = status.st_size
    return found


@dataclass(frozen=True)
class _Parsed:
    """How far a file was parsed."""

    inode: int  # of the file
    size: int  # bytes of the file
    modified: int = 0  # its modification time (ns)
    end: int = 0  # of the last whole record
    last: bytes = b""  # the bytes before `end`; they differ if the file was rewritten in place
    is_damaged: bool = False  # whether a checksum behind `end` does not hold
    grows: bool = False  # whether a writer may append more


def _last_bytes(fd: int, end: int) -> bytes:
    return os.pread(fd, min(end, LAST_BYTES), end - min(end, LAST_BYTES))


class EventFileScan:
    """Scans the event files of a run directory; each scan parses only what is new."""

    def __init__(self, run: Directory, known: Callable[[str], int] = lambda _: 0) -> None:
        # relative paths of the folders of other runs that the last scan has passed over
        self.other_runs: list[str] = []
        self._run = run
        self._known = known
        self._failed = 0  # scans in a row that met what cannot be read
        self._parsed: dict[str, _Parsed] = {}

    def files(
        self, allows: Callable[[str], bool], growing: Callable[[], Collection[str]], patience: int = 0
    ) -> list[LocalFile]:
        """All event files with whole records, sorted by path.

        `growing`: returns the paths that living writers have open. It is called after the listing: a path is in
        a member file before the file exists, so a listed file that no living member names never grows again.
        """
        found, parsed, unread = [], {}, list[OSError]()
        self.other_runs = []
        paths = walk(self._run, unread.append, self.other_runs.append)
        listed = sorted(path for path in paths if not names.is_attachment(path) and allows(path))
        open_now = growing()
        with Statuses(self._run) as statuses:
            for relative in listed:
                grows = relative in open_now or not names.is_ours(os.path.basename(relative))
                try:
                    state = self._parse(relative, statuses.place(relative), grows=grows)
                except OSError as error:
                    unread.append(error)
                    continue
                parsed[relative] = state if state.grows == grows else replace(state, grows=grows)
                if state.end:
                    found.append(LocalFile(relative, state.end, grows))
        self._parsed = parsed
        self._raise_lasting(unread, patience)
        return found

    def damage(self, now: float) -> list[Damage]:
        """What the last scan found behind the last whole records, sorted by path.

        A file that may still grow counts only once it has not changed for UNCHANGED seconds.
        """
        return [
            Damage(path, state.end, state.size - state.end, not state.is_damaged)
            for path, state in sorted(self._parsed.items())
            if state.end < state.size and not (state.grows and now - state.modified / 1e9 < UNCHANGED)
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
        return {path for path, state in self._parsed.items() if now - state.modified / 1e9 >= UNCHANGED}

    def _raise_lasting(self, unread: list[OSError], patience: int) -> None:
        """Raise an error that may pass. What is gone, not ours to read or no regular file is no event file."""
        lasting = [error for error in unread if not isinstance(error, GONE) and error.errno not in disk.NOT_REGULAR]
        self._failed = self._failed + 1 if lasting else 0
        if 0 < self._failed <= patience:
            raise lasting[0]

    def _parse(self, relative: str, place: Place, *, grows: bool) -> _Parsed:
        status = place.stat()
        stamp = status.st_ino, status.st_size, status.st_mtime_ns
        known = self._parsed.get(relative) or _Parsed(status.st_ino, 0)
        if (known.inode, known.size, known.modified) == stamp:
            return known
        start = known.end if relative in self._parsed else self._known(relative)
        if not (known.end or grows) and start == status.st_size:  # ours, and all of it is known to be whole
            return _Parsed(*stamp, start, UNREAD)
        fd = disk.open_beneath(place)
        try:
            same = known.inode == status.st_ino and _last_bytes(fd, known.end) == known.last
            start = start if same and start <= status.st_size else 0
            end, is_damaged = framing.ending(fd, start, status.st_size)
            # the Hub may have another file, or the beginning of a record; a few bytes behind it tell nothing of that
            is_doubtful = not known.end and 0 < status.st_size - end < framing.HEADER_SIZE
            if end == start > 0 and (is_doubtful or (is_damaged and not known.is_damaged)):
                end, is_damaged = framing.ending(fd, 0, status.st_size)
            return _Parsed(*stamp, end, _last_bytes(fd, end), is_damaged, known.grows)
        finally:
            os.close(fd)


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
    group: Iterable[LocalFile], covers: Callable[[LocalFile], bool], quarantined: Collection[str]
) -> Iterator[LocalFile]:
    blocked: set[tuple[str, str]] = set()  # writers whose later files wait
    for file in group:
        writer = writer_of(file.path)
        if writer in blocked:
            continue
        if file.path in quarantined:
            blocked.add(writer)
            continue
        if not covers(file):
            yield file
        if file.growing:
            blocked.add(writer)


def pending(
    files: Iterable[LocalFile], covers: Callable[[LocalFile], bool], quarantined: Collection[str]
) -> list[LocalFile]:
    """What is to be sent, in an order of which any prefix may be published: the own files of each process first."""
    files, waiting = list(files), list[LocalFile]()
    main = _main_directories(files)

    def order(file: LocalFile) -> tuple[bool, str, str]:
        directory, name = os.path.split(file.path)
        return directory not in main, directory, name

    for _, group in groupby(sorted(files, key=order), key=lambda file: os.path.dirname(file.path)):
        waiting.extend(_publishable(group, covers, quarantined))
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
