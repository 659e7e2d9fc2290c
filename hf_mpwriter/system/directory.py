"""Directories that are held by a descriptor, and places in them: how all of ours is reached.
It is longer than other modules, so that all ways to a file, and what each of them checks, stand in one place.

    Directory("/runs/exp1")                         opened once, pinned: the same directory whatever becomes of names
    Directory("/runs/exp1/.hf_mpwriter", above=..)  opened beneath another one, not through a link
    private("/tmp/hf_mpwriter-1000")                the same, and this user's alone
    directory / "hosts" / "h" / "ledger.json"       a Place: opened beneath the descriptor, no part may be a link

Invariants:
- A program may close our descriptors, and the number may be another file's by then. So each use compares device and
  inode. What was closed is opened again by its path, and must be the same directory and pass the same check. A step
  of many uses, such as joining, compares once: it enters the directory, on a descriptor of its own.
- A path is used by its absolute name in three cases only: to open a run directory, to make one, and to compare it with
  the descriptor. Nothing is read there.
- A child of fork may inherit the descriptors: they hold no lock.
- What is found in a place where others write, and was not made by us, is used only by `private`: nothing but this user
  can have put there what is in it. No mode of what is found is ever changed: who could write before the change, and
  works in it, can write after it.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from hf_mpwriter.system.interrupts import ours, suppress
from hf_mpwriter.system.process import close_if, open_above, take_standard

# What a descriptor answers for ever whose mount came back, such as sshfs after a reconnect; and a disk that refuses may
# answer the same. The path tells which.
DEAD = (errno.EIO, errno.ENOTCONN, errno.ESTALE, errno.ENODEV, errno.ENXIO)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_PASS_THROUGH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW  # needs no right to list


def identity(status: os.stat_result) -> tuple[int, int]:
    """Device and inode, which no two living files share."""
    return status.st_dev, status.st_ino


class Directory:
    """A directory, opened at its first use and held from then on."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        above: Directory | None = None,
        check: Callable[[str, int], object] = lambda *_: None,
        follows: bool = True,
    ) -> None:
        self.path, self.above, self._check = os.path.abspath(path), above, check
        self._follows = follows and above is None  # whether it may be a link
        self._fd = -1
        self._identity: tuple[int, int] | None = None  # from the first opening on
        self.device: int | None = None  # of the filesystem that it was opened on last, None before

    def __truediv__(self, name: str) -> Place:
        """Return a place in it."""
        return Place(self, name)

    @property
    def fd(self) -> int:
        """A descriptor of it, valid now."""
        if self._fd >= 0:
            try:
                if identity(os.fstat(self._fd)) == self._identity:
                    return self._fd
            except ours(OSError) as error:
                if error.errno != errno.EBADF:
                    raise
        return self._take(self._open())

    def _open(self) -> int:
        if self.above is None:
            return open_above(self.path, _DIRECTORY | (0 if self._follows else os.O_NOFOLLOW))
        return (self.above / os.path.basename(self.path)).open(_DIRECTORY)

    def _take(self, fd: int) -> int:
        try:
            found = identity(os.fstat(fd))
            self._check_held(found)
            self._check(self.path, fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._identity, self.device = fd, found, found[0]
        return fd

    def _check_held(self, found: tuple[int, int]) -> None:
        if self._identity not in (None, found):
            raise FileNotFoundError(errno.ENOENT, "It was replaced by another directory", self.path)

    def adopt(self, fd: int) -> None:
        """Hold the directory of an inherited descriptor, which becomes ours."""
        os.set_inheritable(fd, False)
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self.path)
        self._take(fd)

    @property
    def is_held(self) -> bool:
        """Whether it was opened; nothing is compared."""
        return self._fd >= 0

    def is_there(self) -> bool:
        """Whether there is one; OSError if it must not be used, or is none."""
        try:
            return self.fd >= 0
        except ours(FileNotFoundError):
            return False

    def is_at_path(self) -> bool:
        """Whether it is still the directory at its path; False once that was deleted, moved or replaced.

        An error of the disk is no proof of that: then the answer is True. But if the path answers and the descriptor
        does not, that is dead: its mount was made anew.
        """
        try:
            there = identity(os.stat(self.path, follow_symlinks=self._follows))
        except ours(FileNotFoundError, NotADirectoryError):
            return False
        except ours(OSError) as error:
            return error.errno not in (errno.ELOOP, errno.ESTALE)  # stale: removed by another host
        is_held = self.is_held
        try:
            return there == (self.fd >= 0 and self._identity)  # compared just now
        except ours(FileNotFoundError, NotADirectoryError):
            return False
        except ours(OSError):
            return not is_held

    def release(self) -> None:
        """Let go: the next use opens what is at the path then."""
        fd, before = self._fd, self._identity
        self._fd, self._identity = -1, None
        if fd >= 0 and before is not None:
            close_if(fd, before)

    def __del__(self) -> None:
        """Close the descriptor."""
        with suppress(Exception):  # at the end of the interpreter
            self.release()


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a file or directory in a directory that is held.

    As a path it is absolute, for messages and tests. The package opens it by `open` and what builds on that.
    """

    directory: Directory  # that is held
    name: str = ""  # relative path, "" for the directory itself

    def __truediv__(self, name: str) -> Place:
        """Return a place below."""
        return Place(self.directory, f"{self.name}/{name}".strip("/"))

    def __fspath__(self) -> str:
        """Return the absolute path."""
        return os.path.join(self.directory.path, self.name) if self.name else self.directory.path

    __str__ = __fspath__

    @property
    def way(self) -> str:
        """A path beneath the descriptor, for code that takes none, such as the client's for its caches."""
        return f"/proc/self/fd/{self.directory.fd}/{self.name}".rstrip("/")

    @property
    def basename(self) -> str:
        """The last part of the name."""
        return self.name.rpartition("/")[2]

    @property
    def parent(self) -> Place:
        """The place of the directory that it is in."""
        return Place(self.directory, self.name.rpartition("/")[0])

    def held(self) -> _Held:
        """A block with a descriptor of the directory that it is in, and its name there."""
        return _Held(self)

    def entered(self) -> _Entered:
        """A block for one step in a directory: it is opened once, and not compared again for each place in it.

        The block gets a place of the directory; what is made from it is good in the block only.
        """
        return _Entered(self)

    def open(self, flags: int, mode: int = 0o600) -> int:
        """Open what is there, on a descriptor above 2; the mode is that of a new file, before the umask."""
        fd = -1
        try:
            with self.held() as (where, name):
                fd = open_above(name, flags | os.O_NOFOLLOW, mode, dir_fd=where)
        except BaseException:
            if fd >= 0:
                os.close(fd)
            raise
        return fd

    def stat(self) -> os.stat_result:
        """The status of what is there, of a link its own."""
        with self.held() as (where, name):
            return os.stat(name, dir_fd=where, follow_symlinks=False)

    def exists(self) -> bool:
        """Whether something is there."""
        try:
            self.stat()
        except ours(OSError) as error:
            return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
        return True

    def mode(self) -> int:
        """The type and mode of what is there; 0 if nothing is, or the disk does not tell."""
        try:
            return self.stat().st_mode
        except ours(OSError):
            return 0

    def is_directory(self) -> bool:
        """Whether a directory is there; a link to one is none."""
        return stat.S_ISDIR(self.mode())

    def is_file(self) -> bool:
        """Whether a regular file is there; a link to one is none."""
        return stat.S_ISREG(self.mode())

    def scan(
        self, most: int | None = None, keep: Callable[[str], bool] | None = None
    ) -> tuple[list[str], list[str], list[str]]:
        """The names of the directories in a directory, of the regular files, and of the rest, such as links.

        `most`: of so many names at most, whichever come first; `keep`: which names count.
        """
        found: tuple[list[str], list[str], list[str]] = [], [], []
        fd = self.open(_DIRECTORY)
        try:
            take_standard()  # `scandir` makes a duplicate
            with os.scandir(fd) as entries:
                wanted = entries if keep is None else (entry for entry in entries if keep(entry.name))
                for entry in itertools.islice(wanted, most):
                    if entry.is_dir(follow_symlinks=False):
                        found[0].append(entry.name)
                    else:
                        found[1 if entry.is_file(follow_symlinks=False) else 2].append(entry.name)
        finally:
            os.close(fd)
        return found

    def names(self) -> list[str]:
        """The names in a directory."""
        fd = self.open(_DIRECTORY)
        try:
            take_standard()  # `listdir` makes a duplicate
            return os.listdir(fd)
        finally:
            os.close(fd)

    def make_directory(self, mode: int) -> None:
        """Make a directory there; mode before the umask."""
        with self.held() as (where, name):
            os.mkdir(name, mode, dir_fd=where)

    def unlink(self) -> None:
        """Remove the name, at once and not durably."""
        with self.held() as (where, name):
            os.unlink(name, dir_fd=where)


class _Held:
    """The block of `Place.held`; a class, as this is on the way of all that is done."""

    __slots__ = ("_below", "_place")

    def __init__(self, place: Place) -> None:
        self._place, self._below = place, -1

    def __enter__(self) -> tuple[int, str]:
        """Open the way to the directory."""
        where = self._place.directory.fd
        way, _, last = self._place.name.rpartition("/")
        try:
            for part in way.split("/") if way else ():
                where = open_above(part, _PASS_THROUGH, dir_fd=where)
                self._close()
                self._below = where
        except BaseException as error:
            self.__exit__(type(error), error)
            raise
        return where, last or "."

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        """Close what was opened."""
        self._close()
        if isinstance(error, OSError):
            error.filename = str(self._place)  # the system knows the last part only

    def _close(self) -> None:
        below, self._below = self._below, -1
        if below >= 0:
            os.close(below)


class _Entered(Directory):
    """The block of `Place.entered`, and the directory in it. No `release` of the held one closes its descriptor."""

    __del__ = staticmethod(object)  # type: ignore[assignment]  # the block closes it; see `interrupts` on deletion

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._place = place

    @property
    def fd(self) -> int:
        """The descriptor; nothing is compared."""
        return self._fd

    def __enter__(self) -> Place:
        """Open it beneath the directory that is held, which is compared here."""
        self._take(self._place.open(_DIRECTORY))
        return Place(self)

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.release()


def at(path: str | os.PathLike[str]) -> Place:
    """A place of the caller's choice, outside of run directory and spool: its directory is held by itself."""
    directory, name = os.path.split(os.path.abspath(path))
    return Place(Directory(directory), name)


def private(path: str, above: Directory | None = None) -> Directory:
    """A directory of this user alone: no link, and no other user may enter it; PermissionError at its first use."""
    return Directory(path, above=above, check=_check_private, follows=False)


def _check_private(path: str, fd: int) -> None:
    status = os.fstat(fd)
    if status.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "It belongs to another user", path)
    if status.st_mode & 0o077:
        raise PermissionError(errno.EPERM, "Other users may enter it", path)


def check_names(fd: int, place: Place) -> None:
    """Refuse a file with a second name, which may be that of a file elsewhere."""
    if os.fstat(fd).st_nlink > 1:
        raise OSError(errno.EMLINK, "It has another name, and others may write here: remove it", str(place))
