"""Attachments: files of the run directory that are no event files, such as those of `add_embedding`.

    run directory  --look-->  LocalFile(path, length, sha256, blob_id)    what is there, known by its content
                   --take-->  hosts/<host>/queue/copies/<sha256>          what is sent, whatever becomes of the file

They may change in place, shrink and vanish, so nothing of them is ever sent but a copy.

Invariants:
- A copy is a content that the file really had: two readings in a row have agreed.
- A copy belongs to the uploader that made it. A successor removes it and looks at the files again: they are the truth,
  so a copy need not survive a power cut and is not synced.
- A file that the patterns leave out is not even asked for its size; one above LIMIT is neither read nor copied.
- Symbolic links are not followed; the spool is never looked into.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from hf_mpwriter import disk, snapshot, spool
from hf_mpwriter.snapshot import LocalFile

LIMIT = 512 << 20  # bytes of one attachment; must fit into an entry
TRUST_AFTER = 2.0  # seconds; the coarsest clock of a filesystem: a change sooner after another may not be seen in mtime
READINGS = 4  # of a file that changes, until two in a row agree
CHUNK = 1 << 20  # bytes read at once
FORBIDDEN = frozenset({".git", ".cache"})  # names in a path that the Hub's client refuses to commit


class ChangedError(OSError):
    """It changes while it is read."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


@dataclass
class Found:
    """What a look has found.

    Attributes:
        files: attachments with their content.
        refused: those that cannot be sent, with the reason.
    """

    files: list[LocalFile] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


class Attachments:
    """Looks at the attachments of a run directory; what has not changed is not read again."""

    def __init__(self, run_dir: str) -> None:
        self._run_dir = run_dir
        self._read: dict[str, tuple[_Stamp, LocalFile]] = {}

    def look(self, allows: Callable[[str], bool]) -> Found:
        """All attachments that the user's patterns allow, sorted by path."""
        found, known = Found(), self._read
        self._read = {}
        for relative in sorted(_allowed(self._run_dir, allows)):
            try:
                found.files.append(self._identify(relative, known.get(relative)))
            except FileNotFoundError:  # removed between listing and reading
                continue
            except OSError as error:
                found.refused[relative] = reason_of(error)
        return found

    def _identify(self, relative: str, known: tuple[_Stamp, LocalFile] | None) -> LocalFile:
        path, now = os.path.join(self._run_dir, relative), time.time()
        before = _Stamp.of(os.stat(path, follow_symlinks=False))
        if known is not None and known[0] == before:
            self._read[relative] = known
            return known[1]
        if before.size > LIMIT:
            raise OSError(
                f"it is larger than {LIMIT >> 20} MiB; upload it with `hf upload`, or name it in repo_ignore_patterns"
            )
        file = _read(self._run_dir, relative)
        unchanged = before == _Stamp.of(os.stat(path, follow_symlinks=False))
        if unchanged and now - before.mtime_ns / 1e9 > TRUST_AFTER:
            self._read[relative] = before, file
        return file


@dataclass(frozen=True)
class _Stamp:
    """By what a file is seen to have changed; the ctime notices also who sets the mtime back."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> _Stamp:
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Copies:
    """The copies of one uploader; whatever an earlier one has left is removed.

    Args:
        directory: where they are.
        run_dir: where the attachments are.
    """

    def __init__(self, directory: str, run_dir: str) -> None:
        self._directory, self._run_dir = directory, run_dir
        self.keep(())

    def take(self, file: LocalFile) -> LocalFile:
        """Copy an attachment; what the copy holds, which is what the file has now.

        Raises:
            OSError: the file has gone, keeps changing or cannot be read, or the disk refuses the copy.
        """
        with contextlib.suppress(FileNotFoundError):
            if os.stat(place(self._directory, file)).st_size == file.length:
                return file
        disk.make_dirs(self._directory)
        temporary = os.path.join(self._directory, "taking")
        try:
            for _ in range(READINGS):
                before, file = file, self._copy(file.path, temporary)
                if file == before:
                    disk.rename(temporary, place(self._directory, file), "copies")
                    return file
            raise ChangedError
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)

    def _copy(self, relative: str, temporary: str) -> LocalFile:
        disk.failpoint("copies.open")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(temporary, flags, disk.FILE_MODE)
        try:
            disk.failpoint("copies.write")
            return _read(self._run_dir, relative, lambda chunk: disk.write_all(fd, chunk))
        finally:
            os.close(fd)

    def keep(self, files: Iterable[LocalFile]) -> None:
        """Remove all copies but those of these files."""
        wanted = {file.sha256 for file in files}
        with contextlib.suppress(OSError):  # what stays is removed at the next occasion
            for name in os.listdir(self._directory):
                if name not in wanted:
                    os.unlink(os.path.join(self._directory, name))


def place(directory: str, file: LocalFile) -> str:
    """Where the copy of an attachment is."""
    return os.path.join(directory, file.sha256)


def sizes(run_dir: str, allows: Callable[[str], bool]) -> dict[str, int]:
    """Bytes per path of the attachments that are there; they are not read."""
    found = {}
    for relative in _allowed(run_dir, allows):
        with contextlib.suppress(OSError):
            found[relative] = os.stat(os.path.join(run_dir, relative), follow_symlinks=False).st_size
    return found


def reason_of(error: OSError) -> str:
    """Why an attachment is left out, without its path."""
    return error.strerror or str(error)


def _allowed(run_dir: str, allows: Callable[[str], bool]) -> Iterator[str]:
    for relative in snapshot.walk(run_dir):
        if spool.is_attachment(relative) and allows(relative) and FORBIDDEN.isdisjoint(relative.split("/")):
            yield relative


def _read(run_dir: str, relative: str, keep: Callable[[bytes], object] | None = None) -> LocalFile:
    """The content of an attachment, known by its digests; each chunk is also given to `keep`."""
    fd = os.open(os.path.join(run_dir, relative), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > LIMIT:  # it was another file when it was looked at
            raise ChangedError
        sha256 = hashlib.sha256()
        blob = hashlib.sha1(b"blob %d\0" % status.st_size, usedforsecurity=False)
        left = status.st_size
        while left and (chunk := os.read(fd, min(CHUNK, left))):
            left -= len(chunk)
            sha256.update(chunk)
            blob.update(chunk)
            if keep is not None:
                keep(chunk)
        if left:
            raise ChangedError
        return LocalFile(relative, status.st_size, growing=False, sha256=sha256.hexdigest(), blob_id=blob.hexdigest())
    finally:
        os.close(fd)
