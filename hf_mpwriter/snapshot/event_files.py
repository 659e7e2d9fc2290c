"""Snapshots: event files with a length each, cut at whole records.

    run directory  --survey-->  LocalFile(path, length, growing)
                   --pending->  what the ledger does not cover yet, in the order in which it may be published
                   --bounded->  groups that fit into one entry each

Attachments are in no snapshot: they take the time that event files leave (`attaching.py`).

Invariants:
- The length of an event file is always the end of a whole record whose checksums hold; `st_size` is not (a record
  under way).
- Of the event files in one directory, one is published only when all earlier ones are complete on the Hub or complete
  in the same snapshot: TensorBoard's default reader drops points of a newer file when an older one grows.
- Symbolic links are not followed; the spool is never looked into.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from hf_mpwriter.base import names
from hf_mpwriter.base.files import BATCH_BYTES, BATCH_FILES, BATCH_IN_MEMORY, LocalFile
from hf_mpwriter.events import framing
from hf_mpwriter.system import disk

GONE = (FileNotFoundError, NotADirectoryError, PermissionError)
LAST_BYTES = 64  # bytes before the end of the last whole record by which a file is known again


class EventFileScan:
    """Looks at the event files of a run directory; remembers where it has parsed to.

    Args:
        run_dir: absolute path.
        known: the end of a whole record, per path: what is before it is not read.
    """

    def __init__(self, run_dir: str, known: Callable[[str], int] = lambda _: 0) -> None:
        self._run_dir = run_dir
        self._known = known
        self._blind = 0  # looks in a row that met what cannot be read
        self._parsed: dict[str, _Parsed] = {}

    def files(
        self, allows: Callable[[str], bool], growing: Callable[[], Collection[str]], patience: int = 0
    ) -> list[LocalFile]:
        """All event files with whole records, sorted by path.

        Args:
            allows: the user's patterns, on the relative path.
            growing: tells the paths that a live writer has open; asked after the listing. A path stands on a card
                before the file exists, so a file that was listed and is not on a live card never grows again.
            patience: looks in a row that fail for what is there and cannot be read, before it is left out.

        Raises:
            OSError: a file or a directory cannot be read; see `patience`.
        """
        found, parsed, unread = [], {}, list[OSError]()
        paths = walk(self._run_dir, unread.append)
        listed = sorted(path for path in paths if not names.is_attachment(path) and allows(path))
        open_now = growing()
        for relative in listed:
            try:
                state = self._parse(relative)
            except OSError as error:
                unread.append(error)
                continue
            parsed[relative] = state
            if state.end:
                grows = relative in open_now or not names.is_ours(os.path.basename(relative))
                found.append(LocalFile(relative, state.end, grows))
        self._parsed = parsed
        self._bear(unread, patience)
        return found

    def _bear(self, unread: list[OSError], patience: int) -> None:
        """What was removed since it was listed, or is not ours to read, is no event file; all else may pass."""
        lasting = [error for error in unread if not isinstance(error, GONE) and error.errno not in disk.NOT_REGULAR]
        self._blind = self._blind + 1 if lasting else 0
        if 0 < self._blind <= patience:
            raise lasting[0]

    def _parse(self, relative: str) -> _Parsed:
        status = os.stat(os.path.join(self._run_dir, relative), follow_symlinks=False)
        known = self._parsed.get(relative) or _Parsed(status.st_ino, 0, 0, b"")
        if (known.inode, known.size) == (status.st_ino, status.st_size):
            return known
        fd = disk.open_beneath(self._run_dir, relative)
        try:
            same = known.inode == status.st_ino and _last_bytes(fd, known.end) == known.last
            start = known.end if relative in self._parsed else min(self._known(relative), status.st_size)
            end = framing.whole_length(fd, start if same else 0, status.st_size)
            return _Parsed(status.st_ino, status.st_size, end, _last_bytes(fd, end))
        finally:
            os.close(fd)


@dataclass(frozen=True)
class _Parsed:
    """How far a file was parsed: its end of the last whole record, and the bytes before it.

    These tell a file that has grown from one that somebody has rewritten in place.
    """

    inode: int
    size: int
    end: int
    last: bytes


def _last_bytes(fd: int, end: int) -> bytes:
    return os.pread(fd, min(end, LAST_BYTES), end - min(end, LAST_BYTES))


def walk(run_dir: str, unread: Callable[[OSError], object] = lambda _: None) -> Iterator[str]:
    """Relative paths of all regular files outside the spool; `unread` is told why a directory cannot be listed."""
    pending = [""]
    while pending:
        directory = pending.pop()
        try:
            entries = list(os.scandir(os.path.join(run_dir, directory)))
        except OSError as error:
            unread(error)
            continue
        for entry in entries:
            relative = f"{directory}/{entry.name}" if directory else entry.name
            if entry.is_dir(follow_symlinks=False):
                if entry.name != names.SPOOL_NAME:
                    pending.append(relative)
            elif entry.is_file(follow_symlinks=False):
                yield relative


def pending(
    files: Iterable[LocalFile], covers: Callable[[LocalFile], bool], quarantined: Collection[str]
) -> list[LocalFile]:
    """What is to be sent, in an order in which any prefix may be published.

    Args:
        files: what is there.
        covers: whether the Hub is known to hold what a file has.
        quarantined: paths that are refused; later files of the same directory wait for them.
    """
    waiting: list[LocalFile] = []
    for _, group in groupby(sorted(files, key=_publishing_order), key=lambda file: os.path.dirname(file.path)):
        waiting.extend(_publishable(group, covers, quarantined))
    return waiting


def _publishing_order(file: LocalFile) -> tuple[str, str]:
    return os.path.split(file.path)


def _publishable(
    group: Iterable[LocalFile], covers: Callable[[LocalFile], bool], quarantined: Collection[str]
) -> Iterator[LocalFile]:
    blocked: set[tuple[str, str]] = set()  # writers whose later segments have to wait
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


def writer_of(path: str) -> tuple[str, str]:
    """What event files that follow each other have in common.

    Files of ours with one suffix follow each other in a directory; a file of others stands alone.
    """
    directory, name = os.path.split(path)
    return directory, names.event_suffix(name) if names.is_ours(name) else path


def bounded(files: Iterable[LocalFile]) -> list[list[LocalFile]]:
    """Split into groups of the size of an entry, keeping the order."""
    groups: list[list[LocalFile]] = []
    memory = total = 0
    for file in files:
        held = file.length if file.in_memory else 0
        full = groups and (
            len(groups[-1]) >= BATCH_FILES or memory + held > BATCH_IN_MEMORY or total + file.length > BATCH_BYTES
        )
        if not groups or full:
            groups.append([])
            memory = total = 0
        groups[-1].append(file)
        memory, total = memory + held, total + file.length
    return groups
