"""The target of a logdir that is a directory, as a rule on a mount.

    .hf_mpwriter-<mirror>.<8 hex>.part -> fsync -> rename    readers see nothing, or the whole file
    in one sequential open .. close                          where names cannot change: Mountpoint for S3, and others

Invariants:
- No temporary name contains `tfevents`: TensorBoard would open it. Those of killed copies are removed by the next copy
  of the same mirror, those of other mirrors after a day.
- Each file is written in sequence, once, and what fsync and close refuse counts.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterator

from hf_mpwriter.base.names import SPOOL_NAME
from hf_mpwriter.mirror.targets import CHUNK, CopySource, Each
from hf_mpwriter.system import disk, failpoints

MARK = "hf_mpwriter"  # what begins the temporary names of all mirrors
STALE = 86_400.0  # seconds after which a temporary file of another mirror was left by a killed copy
NO_RENAME = (errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EIO, errno.EXDEV, errno.EINVAL)
NO_FSYNC = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
RENAME, IN_PLACE = "rename", "in place"


def mark_of(host: str, run_dir: str) -> str:
    """What begins the temporary names of the mirrors of a run directory.

    Args:
        host: id of the host on which it is.
        run_dir: absolute path.
    """
    return f"{MARK}-{hashlib.sha256(os.fsencode(f'{host}/{run_dir}')).hexdigest()[:8]}"


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

    def files(self, each: Each = map) -> dict[str, int]:
        """Bytes of all files; each takes a call of its own, which a mount may take long for."""
        found, pending = dict[str, int](), [""]
        while pending:
            entries = [entry for listing in each(self._entries, pending) for entry in listing]
            statuses = list(each(_mode_and_size, [os.path.join(self._to, path) for path in entries]))
            pending = []
            for path, (mode, size) in zip(entries, statuses, strict=True):
                if stat.S_ISDIR(mode):
                    pending += [path] * (os.path.basename(path) != SPOOL_NAME)
                elif stat.S_ISREG(mode):
                    found[path] = size
        return found

    def _entries(self, directory: str) -> list[str]:
        try:
            return [os.path.join(directory, name) for name in os.listdir(os.path.join(self._to, directory))]
        except FileNotFoundError:
            return []

    def of_this_thread(self) -> PosixTarget:
        """Itself: calls of the system are of any thread."""
        return self

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
        """Whether a temporary file is of a copy that was killed: of this mirror, which has one at a time, or old."""
        name = os.path.basename(path)
        if name.startswith(f".{self._mark}."):
            return True
        if not name.startswith(f".{MARK}-"):
            return False
        try:
            return time.time() - os.stat(path, follow_symlinks=False).st_mtime > STALE
        except OSError:
            return False

    def put(self, source: CopySource) -> None:
        """Write a file as a whole."""
        final = os.path.join(self._to, source.path)
        directory = os.path.dirname(final)
        _make_directories(directory, source.mode | (source.mode & 0o444) >> 2)  # who may read it may pass
        if not self.way:
            self.way = RENAME if self._can_rename(directory) else IN_PLACE
        if self.way == IN_PLACE:
            _write(source, final)
            return
        temporary = self._temporary(directory)
        try:
            _write(source, temporary, os.O_EXCL)
            failpoints.reach("copy.rename")
            _put_in_place(temporary, final)
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


def _mode_and_size(path: str) -> tuple[int, int]:
    """Mode and bytes of what is there, of a link its own; (0, 0) if it has gone."""
    try:
        status = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return 0, 0
    return status.st_mode, status.st_size


def _make_directories(path: str, mode: int) -> None:
    """Make a directory and the parents that it lacks, for those who may read what will be in it."""
    if os.path.isdir(path):
        return
    if (parent := os.path.dirname(path)) != path:
        _make_directories(parent, mode)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, mode | 0o700)


def _put_in_place(temporary: str, final: str) -> None:
    """Rename; what a killed copy has left goes first where a mount does not replace it, such as sshfs."""
    try:
        os.rename(temporary, final)
    except OSError:
        if not os.path.lexists(final):
            raise
        os.unlink(final)
        os.rename(temporary, final)


def _fsync_directory(path: str) -> None:
    """Make the names in a directory durable, where that means something: object stores have no directories."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _write(source: CopySource, path: str, flags: int = 0) -> None:
    """Write a file in one sequential open .. close; what close refuses counts. Some mounts open for nothing else."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | flags, source.mode)
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
