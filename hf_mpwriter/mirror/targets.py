"""Targets: how a file gets into a logdir that is a mount, or a URL.

    POSIX     .hf_mpwriter-<mirror>.<8 hex>.part -> fsync -> rename       readers see nothing, or the whole file
              in one sequential open .. close               where names cannot change: Mountpoint for S3, and others
    fsspec    pipe_file, or one open .. close if it is long

    what is there               is
    nothing                     written
    as long as ours             taken for ours: the names of event files are unique
    shorter, and begins ours    written again as a whole: a copy was killed
    anything else               left alone, and reported

Invariants:
- No other code touches the logdir, and no other code imports fsspec.
- No file that was whole is written again.
- No temporary name contains `tfevents`: TensorBoard would open it. Those of killed copies are removed by the next copy
  of the same mirror, those of other mirrors after a day.
- Sources are read up to the length of the item, and have at least that length.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from typing import Any, Protocol

from hf_mpwriter.mirror.job import Item
from hf_mpwriter.system import disk, failpoints
from hf_mpwriter.system.directory import Directory

CHUNK = 1 << 20  # bytes that are read at once
PIPED = 16 << 20  # bytes up to which a file goes to fsspec in one piece
MARK = "hf_mpwriter"  # what begins the temporary names of all mirrors
STALE = 86_400.0  # seconds after which a temporary file of another mirror was left by a killed copy
NO_RENAME = (errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EIO, errno.EXDEV, errno.EINVAL)
NO_FSYNC = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)  # it fails again for the same reason
RENAME, IN_PLACE = "rename", "in place"


class ConflictError(Exception):
    """Something else is in the place of a file."""


class Source:
    """The beginning of a file of the run directory.

    Args:
        run: the run directory.
        item: the file, and how much of it.

    Raises:
        OSError: it cannot be read.
    """

    def __init__(self, run: Directory, item: Item) -> None:
        self.path, self.length = item.path, item.length
        self._fd = disk.open_beneath(run / item.path)
        self.mode = os.fstat(self._fd).st_mode & 0o777

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)

    def chunks(self, size: int = CHUNK) -> Iterator[bytes]:
        """The content, in pieces."""
        start = 0
        while start < self.length:
            if not (chunk := os.pread(self._fd, min(size, self.length - start), start)):
                raise OSError(errno.EIO, "it is shorter than it was", self.path)
            yield chunk
            start += len(chunk)

    def begins_with(self, pieces: Iterator[bytes]) -> bool:
        """Whether it begins with what these pieces hold together."""
        start = 0
        for piece in pieces:
            if os.pread(self._fd, min(len(piece), self.length - start), start) != piece:
                return False
            start += len(piece)
        return True


class Target(Protocol):
    """A logdir.

    Attributes:
        way: how files get there; "" if that is not known, or there is one way only.
    """

    way: str

    def length(self, path: str) -> int | None:
        """Bytes of a file, None if there is none; directories are listed once."""

    def put(self, source: Source) -> None:
        """Write a file as a whole."""

    def pieces(self, path: str) -> Iterator[bytes]:
        """The content of a file."""

    def clean(self, directory: str) -> None:
        """Remove temporary files of copies that were killed."""


def open_target(to: str, mark: str, way: str) -> Target:
    """The target of a logdir.

    Args:
        to: an absolute path, or a URL.
        mark: what begins the temporary names of this mirror.
        way: how files get there, "" if it has to be found out.
    """
    return FsspecTarget(to) if "://" in to else PosixTarget(to, mark, way)


def bring(target: Target, source: Source) -> None:
    """Have a file in the logdir.

    Raises:
        ConflictError: something else is in its place.
        OSError, Exception: it cannot be written.
    """
    there = target.length(source.path)
    if there == source.length:
        return
    if there is not None:
        if there > source.length:
            raise ConflictError(f"the file there has {there} bytes, the one here {source.length}")
        if there and not source.begins_with(target.pieces(source.path)):
            raise ConflictError("another file is there")
    try:
        target.put(source)
    except PermissionError:
        if there is None:
            raise
        raise ConflictError(f"{there} bytes of it are there, and may not be replaced; remove that file") from None


def is_refusal(error: BaseException) -> bool:
    """Whether the same error comes again until a person does something."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in REFUSED
    return isinstance(error, PermissionError | FileNotFoundError | ImportError | ValueError)


class PosixTarget:
    """A directory of a mounted filesystem, see `Target`."""

    def __init__(self, to: str, mark: str, way: str) -> None:
        self._to, self._mark, self.way = to, mark, way

    def length(self, path: str) -> int | None:
        """Bytes of a file, None if there is none."""
        try:
            return os.stat(os.path.join(self._to, path), follow_symlinks=False).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def pieces(self, path: str) -> Iterator[bytes]:
        """The content of a file."""
        with open(os.path.join(self._to, path), "rb") as file:
            while piece := file.read(CHUNK):
                yield piece

    def clean(self, directory: str) -> None:
        """Remove temporary files of copies that were killed; a mount that refuses keeps them."""
        where = os.path.join(self._to, directory)
        with contextlib.suppress(OSError):
            for name in os.listdir(where):
                if name.startswith(".") and name.endswith(".part") and self._is_left(os.path.join(where, name)):
                    with contextlib.suppress(OSError):
                        os.unlink(os.path.join(where, name))

    def _is_left(self, path: str) -> bool:
        """Whether a temporary file is of a copy that was killed: of this mirror, of which one at a time lives, or old."""
        name = os.path.basename(path)
        if name.startswith(f".{self._mark}."):
            return True
        if not name.startswith(f".{MARK}-"):
            return False
        try:
            return time.time() - os.stat(path, follow_symlinks=False).st_mtime > STALE
        except OSError:
            return False

    def put(self, source: Source) -> None:
        """Write a file as a whole."""
        final = os.path.join(self._to, source.path)
        directory = os.path.dirname(final)
        _make_directories(directory, source.mode | (source.mode & 0o444) >> 2)  # who may read it may pass
        if not self.way:
            self.way = RENAME if self._can_rename(directory) else IN_PLACE
        if self.way == IN_PLACE:
            _write(source, final, os.O_TRUNC)
            return
        temporary = self._temporary(directory)
        try:
            _write(source, temporary, os.O_EXCL)
            failpoints.reach("copy.rename")
            os.rename(temporary, final)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _fsync_directory(directory)

    def _temporary(self, directory: str) -> str:
        return os.path.join(directory, f".{self._mark}.{os.urandom(4).hex()}.part")

    def _can_rename(self, directory: str) -> bool:
        """Whether names can change here, tried with an empty file: a long one would be written twice."""
        old, new = self._temporary(directory), self._temporary(directory)
        os.close(os.open(old, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            os.rename(old, new)
        except OSError as error:
            new = old
            if error.errno not in NO_RENAME:
                raise
            return False
        finally:
            with contextlib.suppress(OSError):
                os.unlink(new)
        return True


def _make_directories(path: str, mode: int) -> None:
    """Make a directory and the parents that it lacks, for those who may read what will be in it."""
    if os.path.isdir(path):
        return
    if (parent := os.path.dirname(path)) != path:
        _make_directories(parent, mode)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, mode | 0o700)


def _fsync_directory(path: str) -> None:
    """Make the names in a directory durable, where that means something: object stores have no directories."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _write(source: Source, path: str, flags: int) -> None:
    """Write a file in one sequential open .. close; what close refuses counts."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | flags, source.mode)
    try:
        for chunk in source.chunks():
            disk.write_all(fd, chunk)
            failpoints.reach("copy.write")
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in NO_FSYNC:
                raise
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(fd)
        raise
    os.close(fd)


class FsspecTarget:
    """A place that fsspec knows by its URL, see `Target`.

    Raises:
        ImportError, ValueError: no filesystem for it is installed.
    """

    way = ""

    def __init__(self, to: str) -> None:
        import fsspec.core  # here: no other process of ours needs it

        self._filesystem: Any
        self._filesystem, self._root = fsspec.core.url_to_fs(to)
        self._listed: dict[str, dict[str, int]] = {}

    def _place(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}".rstrip("/")

    def length(self, path: str) -> int | None:
        """Bytes of a file, None if there is none."""
        directory, name = os.path.split(path)
        if directory not in self._listed:
            self._listed[directory] = self._listing(self._place(directory))
        return self._listed[directory].get(name)

    def _listing(self, directory: str) -> dict[str, int]:
        try:
            entries = self._filesystem.ls(directory, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        files = (entry for entry in entries if entry["type"] == "file")
        return {entry["name"].rstrip("/").rpartition("/")[2]: int(entry["size"] or 0) for entry in files}

    def pieces(self, path: str) -> Iterator[bytes]:
        """The content of a file."""
        with self._filesystem.open(self._place(path), "rb") as file:
            while piece := file.read(CHUNK):
                yield piece

    def clean(self, directory: str) -> None:
        """Do nothing: there are no temporary files."""

    def put(self, source: Source) -> None:
        """Write a file as a whole, and see that it is there."""
        place = self._place(source.path)
        try:
            self._put(source, place)
        except FileNotFoundError:  # directories count here
            self._filesystem.makedirs(place.rpartition("/")[0], exist_ok=True)
            self._put(source, place)
        self._filesystem.invalidate_cache()
        if (size := int(self._filesystem.info(place)["size"])) != source.length:
            raise OSError(f"{size} of {source.length} bytes are there after {source.path} was written")

    def _put(self, source: Source, place: str) -> None:
        if source.length <= PIPED:
            self._filesystem.pipe_file(place, b"".join(source.chunks()))
            return
        file = self._filesystem.open(place, "wb")  # no block: that would publish a part of it after an error
        for chunk in source.chunks():
            file.write(chunk)
            failpoints.reach("copy.write")
        file.close()
