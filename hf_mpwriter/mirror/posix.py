"""The target of a logdir that is a directory, as a rule on a mount.

    .hf_mpwriter-<mirror>.<8 hex>.part -> fsync -> rename    readers see nothing, or the whole file
    in one sequential open .. close                          where names cannot change: Mountpoint for S3, by its type;
                                                             elsewhere a copy that meets a refusal goes on like that

Invariants:
- No temporary name contains `tfevents`: TensorBoard would open it. Those of killed copies are removed by the next copy
  of the same mirror, those of other mirrors after a day.
- Each file is written in sequence, once, and what fsync and close refuse counts.
- The logdir is opened once, and all is reached beneath its descriptor, which has to be on the mount of the run: a mount
  that has gone leaves an empty directory on the local disk, which would be filled.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from hf_mpwriter.base.names import ELSEWHERE, SPOOL_NAME
from hf_mpwriter.mirror.targets import (
    CHUNK,
    LONGEST_PLACE,
    ConflictError,
    CopySource,
    check_is_free,
    check_place,
    without_other_runs,
)
from hf_mpwriter.system import disk, failpoints
from hf_mpwriter.system.filesystem import Mount, UnmountedError, mount_of_descriptor

MARK = "hf_mpwriter"  # what begins the temporary names of all mirrors
LISTED_AT_ONCE = 32  # files that are asked for their length at a time
STALE = 86_400.0  # seconds after which a temporary file of another mirror was left by a killed copy
NO_RENAME = (errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EIO, errno.EXDEV, errno.EINVAL)
NO_FSYNC = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
_PATH_ONLY = os.O_PATH | os.O_DIRECTORY


def mark_of(host: str, run_dir: str) -> str:
    """What begins the temporary names of the mirrors of a run directory."""
    return f"{MARK}-{hashlib.sha256(os.fsencode(f'{host}/{run_dir}')).hexdigest()[:8]}"


class PosixTarget:
    """A directory of a mounted filesystem, see `Target`. It is opened at the first use, and not again."""

    def __init__(self, to: str, mark: str, mount: Mount | None = None) -> None:
        self._to, self._mark, self._mount = to, mark, mount
        self._can_rename = mount is None or mount.can_rename  # until it has refused
        self._fd = -1
        self._is_marked = False  # whether the logdir is known to have the name of a spool

    def _root(self, mode: int = 0) -> int:
        """The descriptor of the directory; it is made with a mode, and without one it has to be there."""
        if self._fd >= 0:
            return self._fd
        path, missing = self._to, list[str]()
        while (fd := _opened(path)) < 0:
            path, name = os.path.split(path)
            missing.insert(0, name)
        try:
            self._check(fd)  # before anything is made
            for name in missing:
                fd = _made(fd, name, mode)
            self._check(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return fd

    def _check(self, fd: int) -> None:
        if self._mount is None:
            return
        found = mount_of_descriptor(fd)
        if found is None or not self._mount.is_again(found):
            raise UnmountedError(self._mount, found)

    def length(self, path: str) -> int | None:
        """Bytes of a file, None if there is none."""
        try:
            return os.stat(path, dir_fd=self._root(), follow_symlinks=False).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def files(self) -> dict[str, int]:
        """Bytes of all files; each takes a call of its own, which a mount may take long for."""
        try:
            self._root()  # here, since it is opened once
        except FileNotFoundError:
            return {}
        found, pending, folders = dict[str, int](), [""], list[str]()
        with ThreadPoolExecutor(LISTED_AT_ONCE) as pool:
            while pending:
                entries = [entry for listing in pool.map(self._entries, pending) for entry in listing]
                statuses = pool.map(self._mode_and_size, entries)
                folders += filter(None, pending)
                pending = []
                for path, (mode, size) in zip(entries, statuses, strict=True):
                    if stat.S_ISDIR(mode):
                        pending += [path] * (os.path.basename(path) != SPOOL_NAME)
                    elif stat.S_ISREG(mode):
                        found[path] = size
            # after the listing, which may have come between the name of a spool and an event file
            marks = pool.map(lambda folder: self._mode_and_size(f"{folder}/{SPOOL_NAME}")[0], folders)
            return without_other_runs(found, itertools.compress(folders, marks))

    def _entries(self, directory: str) -> list[str]:
        try:
            fd = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._root())
        except FileNotFoundError:
            return []
        try:
            listed = os.listdir(fd)
            is_other_run = bool(directory) and SPOOL_NAME in listed
            return [] if is_other_run else [os.path.join(directory, name) for name in listed]
        finally:
            os.close(fd)

    def _mode_and_size(self, path: str) -> tuple[int, int]:
        """Mode and bytes of what is there, of a link its own; (0, 0) if it has gone."""
        try:
            status = os.stat(path, dir_fd=self._root(), follow_symlinks=False)
        except FileNotFoundError:
            return 0, 0
        return status.st_mode, status.st_size

    def pieces(self, path: str) -> Iterator[bytes]:
        """The content of a file."""
        with open(os.open(path, os.O_RDONLY, dir_fd=self._root()), "rb") as file:
            while piece := file.read(CHUNK):
                yield piece

    def last_place(self) -> bytes:
        """What `.hf_mpwriter/ELSEWHERE` holds, its beginning if it is long."""
        fd = os.open(ELSEWHERE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._root())
        try:
            return os.read(fd, LONGEST_PLACE)
        finally:
            os.close(fd)

    def name_place(self, data: bytes) -> None:
        """Have `.hf_mpwriter/ELSEWHERE` hold this."""
        fd = os.open(ELSEWHERE, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._root())
        try:
            disk.write_all(fd, data)
        finally:
            os.close(fd)

    def clean(self, directory: str) -> None:
        """Remove temporary files of copies that were killed; a mount that refuses keeps them."""
        with contextlib.suppress(OSError):
            for path in filter(self._is_left, self._entries(directory)):
                self._remove(path)

    def _is_left(self, path: str) -> bool:
        """Whether a temporary file is of a copy that was killed: of this mirror, which has one at a time, or old."""
        name = os.path.basename(path)
        if not (name.startswith(f".{MARK}-") and name.endswith(".part")):
            return False
        if name.startswith(f".{self._mark}."):
            return True
        try:
            return time.time() - os.stat(path, dir_fd=self._root(), follow_symlinks=False).st_mtime > STALE
        except OSError:
            return False

    def put(self, source: CopySource, there: int | None) -> None:
        """Write a file as a whole, where so many bytes of it were seen."""
        mode = source.mode | (source.mode & 0o444) >> 2 | 0o700  # who may read it may pass
        root, directory = self._root(mode), os.path.dirname(source.path)
        self._mark_run(root)
        _make_directories(root, directory, mode)
        if not (self._can_rename and self._put_by_rename(source, there, root, directory)):
            check_is_free(self, source, there)
            _write(source, root, source.path, os.O_EXCL if source.theirs and there is None else 0)

    def _mark_run(self, root: int) -> None:
        """Leave the name of a spool; a file in it, as an object store has no empty directory."""
        if self._is_marked or self.length(ELSEWHERE) is not None:
            return
        with contextlib.suppress(FileExistsError):
            os.mkdir(SPOOL_NAME, 0o700, dir_fd=root)
        with contextlib.suppress(FileExistsError):  # another host was faster
            os.close(os.open(ELSEWHERE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=root))
        self._is_marked = True

    def _put_by_rename(self, source: CopySource, there: int | None, root: int, directory: str) -> bool:
        """Write a file under a temporary name, and rename it; False where names cannot change."""
        temporary = os.path.join(directory, f".{self._mark}.{os.urandom(4).hex()}.part")
        try:
            _write(source, root, temporary, os.O_EXCL)
            check_place(self, source, there)
            failpoints.reach("copy.rename")
            rename = functools.partial(os.rename, temporary, source.path, src_dir_fd=root, dst_dir_fd=root)
            self._can_rename = _is_renamed(rename, lambda error: self._make_way(source, there, error))
        except (OSError, ConflictError):
            self._remove(temporary)
            raise
        if not self._can_rename:
            self._remove(temporary)
            return False
        _fsync_directory(root, directory)
        return True

    def _make_way(self, source: CopySource, there: int | None, error: OSError) -> None:
        """Remove what a killed copy has left and a mount does not replace, but no event file of another machine."""
        if source.theirs and error.errno not in NO_RENAME:
            raise error
        check_is_free(self, source, there)
        if there is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(source.path, dir_fd=self._root())

    def _remove(self, path: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(path, dir_fd=self._root())


def _opened(path: str) -> int:
    """A descriptor of a directory, -1 if there is none; no right to list it is needed."""
    try:
        return os.open(path, _PATH_ONLY)
    except FileNotFoundError:
        return -1


def _made(above: int, name: str, mode: int) -> int:
    """The descriptor of a directory, made with a mode if it is not there, in place of that of the one above it."""
    if mode:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=above)
    fd = os.open(name, _PATH_ONLY, dir_fd=above)
    os.close(above)
    return fd


def _make_directories(root: int, path: str, mode: int) -> None:
    """Make a directory and the parents that it lacks."""
    if not path:
        return
    try:
        os.stat(path, dir_fd=root)
    except (FileNotFoundError, NotADirectoryError):
        _make_directories(root, os.path.dirname(path), mode)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, mode, dir_fd=root)


def _is_renamed(rename: Callable[[], None], make_way: Callable[[OSError], None]) -> bool:
    """Rename; where a mount does not replace what is there, such as sshfs, that makes way first. False where names
    cannot change.
    """
    try:
        rename()
    except OSError as refusal:
        make_way(refusal)
        try:
            rename()
        except OSError as error:
            if error.errno in NO_RENAME:
                return False
            raise
    return True


def _fsync_directory(root: int, path: str) -> None:
    """Make the names in a directory durable, where that means something: object stores have no directories."""
    with contextlib.suppress(OSError):
        fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=root)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _write(source: CopySource, root: int, path: str, flags: int = 0) -> None:
    """Write a file in one sequential open .. close; what close refuses counts. Some mounts open for nothing else."""
    flags |= os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    fd = os.open(path, flags, source.mode, dir_fd=root)
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
