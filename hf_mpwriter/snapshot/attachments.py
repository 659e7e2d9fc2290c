"""Attachments: files of the run directory that are no event files, such as those of `add_embedding`.

    run directory  --Attachments.identify-->  LocalFile(path, length, sha256, blob_id)    a file, by its content
                   --Copies.take----------->  hosts/<host>/outbox/copies/<sha256>          what is sent

An attachment may change in place, shrink and vanish. So it is never sent itself, but a copy of it.

Invariants:
- A copy is a content that the file had: inode, size and times were the same before and after reading it on one
  descriptor, and two readings in a row found the same bytes (the clock of a filesystem may be coarse). A write through
  a memory map shows up in the times late; the next scan sees it.
- The content of a copy is durable in the file itself, because the file is synced first. What a power cut changes is
  sent next, and replaces it.
- A copy leaves room on the disk: event files come first.
- A copy belongs to the uploader that made it, which removes it when it leaves. The next uploader removes what is left
  and scans the files again. So a copy need not survive a power cut, and is not synced.
- A file that the patterns leave out is not even asked for its size. A file above LIMIT is neither read nor copied.
- The token files of huggingface_hub are never read, whatever pattern or hard link leads there. Only the uploader looks
  for them: their home may be a mount that hangs.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field

from hf_mpwriter.base.files import LocalFile, git_hasher
from hf_mpwriter.base.names import is_attachment, is_loss
from hf_mpwriter.snapshot.search import Named, RunSearch, check_is_of_run, sizes_of
from hf_mpwriter.system import disk, failpoints, filesystem, hf_home
from hf_mpwriter.system.directory import Directory, Place
from hf_mpwriter.system.interrupts import ours, suppress

LIMIT = 128 << 20  # bytes of one attachment
SCAN_BYTES = 256 << 20  # bytes that one scan reads, about a second
RESERVE = 1 << 30  # bytes that stay free on the disk when a copy is made
RESERVE_SHARE = 0.05  # share of the disk that stays free, if that is more
TRUST_AFTER = 2.0  # seconds, the coarsest clock of a filesystem: of two changes in that time mtime shows one
READINGS = 4  # readings of a file that changes, until two in a row agree
CHUNK = 1 << 20  # bytes read at once
NEVER_SENT = "it holds a token"  # why a file is never sent
FORBIDDEN = frozenset({".git", ".cache"})  # names in a path that the Hub's client refuses to commit


class ChangedError(OSError):
    """It changes all the time; it is tried again at the next scan."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


def stamp_of(status: os.stat_result) -> tuple[int, ...]:
    """Inode, size, mtime and ctime (ns), which change with the file; ctime also where mtime is set back."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except ours(UnicodeEncodeError):
        return False
    return True


def secrets() -> set[tuple[int, int]]:
    """The token files of huggingface_hub, by device and inode."""
    found = set()
    for path in hf_home.token_files(os.environ):
        with suppress(OSError):
            status = os.stat(path)
            found.add((status.st_dev, status.st_ino))
    return found


def _allowed(search: RunSearch, allows: Callable[[str], bool]) -> Iterator[str]:
    for relative in search:
        if is_attachment(relative) and allows(relative) and FORBIDDEN.isdisjoint(relative.split("/")):
            yield relative


def _read(place: Place, keep: Callable[[bytes], object] | None = None) -> LocalFile:
    """Read an attachment to its digests; its `stamp` is () if it changed meanwhile."""
    fd = disk.open_beneath(place)
    try:
        if keep is not None:
            disk.fsync(fd, "copies.data")
        status = os.fstat(fd)
        if status.st_size > LIMIT:  # it was smaller, or another file, when it was scanned
            raise ChangedError
        if (status.st_dev, status.st_ino) in secrets():
            raise OSError(NEVER_SENT)
        sha256, blob = hashlib.sha256(), git_hasher(status.st_size)
        left = status.st_size
        while left and (chunk := os.read(fd, min(CHUNK, left))):
            left -= len(chunk)
            sha256.update(chunk)
            blob.update(chunk)
            if keep is not None:
                keep(chunk)
        if left:
            raise ChangedError
        stamp = stamp_of(status)
        if stamp != stamp_of(os.fstat(fd)):
            stamp = ()
        return LocalFile(place.name, status.st_size, False, sha256.hexdigest(), blob.hexdigest(), stamp)
    finally:
        os.close(fd)


@dataclass
class Found:
    """What a scan found."""

    files: list[LocalFile] = field(default_factory=list)  # attachments with their content
    unread: dict[str, int] = field(default_factory=dict)  # sizes of those for which so much was not read at once
    left_out: list[str] = field(default_factory=list)  # what was not searched, for people
    refused: dict[str, str] = field(default_factory=dict)  # the reason per path of those that cannot be sent


class Attachments:
    """Scans the attachments of a run directory; what has not changed since it was `known` is not read again."""

    def __init__(self, run: Directory, known: Iterable[LocalFile] = ()) -> None:
        self._run = run
        self._known = {file.path: file for file in known}
        self.read = 0  # bytes that were read

    def paths(self, allows: Callable[[str], bool], named: Named | None = None) -> list[str]:
        """All attachments that the user's patterns allow, sorted."""
        return self._allowed(RunSearch(self._run, named), allows)

    def _allowed(self, search: RunSearch, allows: Callable[[str], bool]) -> list[str]:
        found = sorted(_allowed(search, allows))
        self._known = {path: self._known[path] for path in found if path in self._known}
        return found

    def scan(self, allows: Callable[[str], bool], named: Named | None = None) -> Found:
        """All attachments that the user's patterns allow, with their content, sorted by path."""
        search, enough = RunSearch(self._run, named), self.read + SCAN_BYTES
        found = Found()
        for relative in self._allowed(search, allows):
            try:
                if self.read >= enough and not self._knows(relative, status := (self._run / relative).stat()):
                    found.unread[relative] = status.st_size
                else:
                    found.files.append(self.identify(relative))
            except ours(FileNotFoundError):  # removed between listing and reading
                continue
            except ours(OSError) as error:
                found.refused[relative] = filesystem.reason_of(error)
        found.left_out = search.left_out
        return found

    def _knows(self, relative: str, status: os.stat_result) -> bool:
        return (known := self._known.get(relative)) is not None and known.stamp == stamp_of(status)

    def identify(self, relative: str) -> LocalFile:
        """Identify an attachment by its content.

        The file with its digests; with an empty `stamp` if it changed meanwhile.
        """
        if not _is_utf8(relative):
            raise OSError("its name is not UTF-8, so the Hub cannot take it")
        check_is_of_run(self._run, relative)  # paths are listed once for a whole round
        status, now = (self._run / relative).stat(), time.time()
        is_known, known = self._knows(relative, status), self._known.pop(relative, None)
        if known is None or not is_known:
            if status.st_size > LIMIT:
                limit = f"{LIMIT >> 20} MiB"
                raise OSError(
                    f"it is larger than {limit}; upload it with `hf upload`, or name it in repo_ignore_patterns"
                )
            known = _read(self._run / relative)
            self.read += known.length
        if known.stamp and now - status.st_mtime > TRUST_AFTER:
            self._known[relative] = known
        return known


def check_room(directory: Place, size: int) -> None:
    """Refuse a copy of `size` bytes that would fill the disk; OSError."""
    with (directory / "taking").held() as (fd, _):
        room = os.fstatvfs(fd)
    reserve = max(RESERVE, RESERVE_SHARE * room.f_blocks * room.f_frsize)
    if room.f_bavail * room.f_frsize - size < reserve:
        raise OSError("too little room is left on this disk for a copy")


class Copies:
    """The copies of one uploader; those of an earlier one are removed."""

    def __init__(self, directory: Place, run: Directory) -> None:
        self._directory, self._run = directory, run
        self.read = 0  # bytes that were read
        self.keep(())

    def take(self, file: LocalFile) -> LocalFile:
        """Copy an attachment; the file with the content of the copy, which may be newer than `file`."""
        with suppress(FileNotFoundError):
            if (self._directory / file.sha256).stat().st_size == file.length:
                return file
        disk.make_dirs(self._directory)
        temporary = self._directory / "taking"
        try:
            size = (self._run / file.path).stat().st_size
            if not is_loss(file.path):  # which says that there is no room
                check_room(self._directory, max(file.length, size))
            for _ in range(READINGS):
                before = file
                try:
                    file = self._copy(file, temporary)
                except ours(ChangedError):
                    continue
                if file.stamp and file == before:
                    disk.rename(temporary, self._directory / file.sha256, "copies")
                    return file
            raise ChangedError
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()

    def _copy(self, file: LocalFile, temporary: Place) -> LocalFile:
        failpoints.reach("copies.open")
        fd = disk.open_ours(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            failpoints.reach("copies.write")
            found = _read(self._run / file.path, lambda chunk: disk.write_all(fd, chunk))
            self.read += found.length
            return found
        finally:
            os.close(fd)

    def keep(self, files: Iterable[LocalFile]) -> None:
        """Remove all copies but those of these files."""
        wanted = {file.sha256 for file in files}
        try:
            names = self._directory.names()
        except ours(OSError):  # there are none
            return
        for name in names:
            if name not in wanted:
                with suppress(OSError):  # the next call removes it
                    (self._directory / name).unlink()


def sizes(
    run: Directory,
    allows: Callable[[str], bool],
    without: Collection[tuple[int, int]] = (),
    *,
    named: Named | None = None,
    until: float | None = None,
) -> dict[str, int]:
    """Size in bytes of each attachment that the patterns allow; none is read, and nothing outside is looked at.

    `without`: files to leave out, by device and inode, such as `secrets`. Training does not know them: what it
    waits for is over as soon as the uploader has found them. For the limits see `RunSearch`.
    """
    search = RunSearch(run, named, until)
    return sizes_of(search, _allowed(search, allows), without)
