"""The probe: what a filesystem can do, tried out in a directory.

    <directory>/.hf_mpwriter-probe-<uid>/      gone afterwards, unless another probe is in it at that moment
      <pid>-<8 hex>                            the file that is tried
      <pid>-<8 hex>.other, .target, .dir, ...  what it is compared with

Everything is tried within one process: a fork in training is dangerous. A command may give the probe another process.

Invariants:
- It ends as soon as the caller can decide. A mount that removes nothing keeps one file of it then.
- What cannot be told is None: the disk is full, no descriptor is free, a step before it has failed, it was decided.
- EIO and ESTALE tell of the moment more often than of the filesystem: after the first one all is tried once more.
- A killed probe leaves files that no reader takes for anything; a probe after REMAINS seconds removes them.
- Only the directory of the probe is listed: the one that it is in may hold the objects of a whole bucket.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

from hf_mpwriter.system.directory import Directory, Place

REMAINS = 600.0  # seconds by the filesystem's clock, after which what lies there was left by a killed probe
_TRIES = 5  # to make the directory, while others remove it
_UNTOLD = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.ETIMEDOUT, errno.ESTALE)
)  # they tell of the moment, and nothing of the filesystem
_DENIED = frozenset((errno.EACCES, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENOTCONN))
_MOMENTARY = frozenset((errno.EIO, errno.ESTALE))  # worth one more probe


@dataclass(frozen=True)
class Abilities:
    """What a filesystem can do; None for what could not be tried, or was not."""

    exclusive: bool | None = None  # create a file only if there is none
    append: bool | None = None  # open a file twice, and append through both
    read_open: bool | None = None  # show what is in a file that is open for writing
    durable: bool | None = None  # show what fsync has written
    truncate: bool | None = None  # cut a file
    rename: bool | None = None  # put a file in place of another one
    link: bool | None = None  # give a file a second name
    lock: bool | None = None  # refuse a lock that another open file holds
    private: bool | None = None  # keep the mode of what is made, with one owner for all of it
    elsewhere_sees: bool | None = None  # show file and lock to another process; tried only if one is given


ALL = tuple(field.name for field in fields(Abilities))


def probe(directory: str, needed: Sequence[str] = (), elsewhere: Callable[[str], bool] | None = None) -> Abilities:
    """Try out what the filesystem of a directory can do."""
    try:
        found, is_sure = _probe(directory, needed, elsewhere)
    except OSError as error:
        if error.errno not in _MOMENTARY:
            raise
        is_sure = False
    return found if is_sure else _probe(directory, needed, elsewhere)[0]


def _probe(directory: str, needed: Sequence[str], elsewhere: Callable[[str], bool] | None) -> tuple[Abilities, bool]:
    """One probe: what it has found, and whether nothing in it was of the moment."""
    home = Directory(directory) / f".hf_mpwriter-probe-{os.geteuid()}"
    for left in reversed(range(_TRIES)):
        with contextlib.suppress(FileExistsError):
            home.make_directory(0o700)
        try:
            with home.entered() as inside:
                found = _try_in(inside, needed, elsewhere)
                can_remove = _clean(inside, *found[1:])
            break
        except FileNotFoundError:  # another probe has removed the directory just now
            if not left:
                raise
    if can_remove:
        with contextlib.suppress(OSError), home.held() as (where, name):
            os.rmdir(name, dir_fd=where)
    trial = found[0]
    return trial.found, trial.is_sure


def _try_in(inside: Place, needed: Sequence[str], elsewhere: Callable[[str], bool] | None) -> tuple[_Trial, str, float]:
    """The trial, the name that all of its files begin with, and the time by the filesystem's clock."""
    name = f"{os.getpid()}-{os.urandom(4).hex()}"
    trial = _Trial(inside / name, elsewhere)
    try:
        with _opened(inside / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND) as fd:
            now = os.fstat(fd).st_mtime
            trial.run(fd, needed)
    except OSError as error:
        if error.errno in _UNTOLD | _DENIED:
            raise
        with _opened(inside / name, os.O_WRONLY | os.O_CREAT) as fd:  # it takes files, but none to append to
            now = os.fstat(fd).st_mtime
        trial.found, trial.is_sure = Abilities(append=False), error.errno not in _MOMENTARY
    return trial, name, now


@contextlib.contextmanager
def _opened(place: Place, flags: int) -> Iterator[int]:
    fd = place.open(flags)
    try:
        yield fd
    finally:
        os.close(fd)


def _clean(inside: Place, name: str, now: float) -> bool:
    """Remove what this probe has made, and what killed ones have left; whether files can be removed here."""
    can_remove = True
    for other in inside.names():
        is_own = other.startswith(name)
        try:
            if is_own or (inside / other).stat().st_mtime < now - REMAINS:
                _remove(inside / other)
        except OSError:
            can_remove = can_remove and not is_own
    return can_remove


def _remove(place: Place) -> None:
    with place.held() as (where, name):
        (os.rmdir if name.endswith(".dir") else os.unlink)(name, dir_fd=where)


class _Trial:
    """The steps of a probe."""

    def __init__(self, place: Place, elsewhere: Callable[[str], bool] | None) -> None:
        self._place, self._elsewhere, self._fd = place, elsewhere, -1
        self._other = place.parent / f"{place.basename}.other"
        self.found, self.is_sure = Abilities(), True

    def run(self, fd: int, needed: Sequence[str]) -> None:
        """Do the steps."""
        self._fd = fd
        found: dict[str, bool | None] = {}
        for name in needed or ALL:
            try:
                found[name] = getattr(self, f"_{name}")()
            except OSError as error:
                self.is_sure = self.is_sure and error.errno not in _MOMENTARY
                found[name] = None if error.errno in _UNTOLD else False
            if needed and found[name] is False:
                break
        self.found = Abilities(**found)

    def _exclusive(self) -> bool:
        try:
            with _opened(self._place, os.O_WRONLY | os.O_CREAT | os.O_EXCL):
                return False
        except FileExistsError:
            return True

    def _append(self) -> bool:
        with _opened(self._place, os.O_WRONLY | os.O_APPEND) as second:  # before a byte is written, which would stay
            os.write(self._fd, b"a")
            os.write(second, b"b")
            os.write(self._fd, b"c")
        return os.pread(self._fd, 4, 0) == b"abc"

    def _shows(self, least: int) -> bool:
        """Whether another opening shows all that was written."""
        length = os.fstat(self._fd).st_size
        with _opened(self._place, os.O_RDONLY) as reader:
            return len(os.read(reader, 64)) == length == self._place.stat().st_size >= least

    def _read_open(self) -> bool:
        return self._shows(1)

    def _durable(self) -> bool:
        before = os.fstat(self._fd).st_size
        os.write(self._fd, b"d")
        os.fsync(self._fd)
        return self._shows(before + 1)

    def _truncate(self) -> bool:
        os.ftruncate(self._fd, 1)
        return os.fstat(self._fd).st_size == self._place.stat().st_size == 1

    def _rename(self) -> bool:
        target = self._place.parent / f"{self._place.basename}.target"
        for place in (self._other, target):
            with _opened(place, os.O_WRONLY | os.O_CREAT):
                pass
        with self._other.held() as (where, name):
            os.rename(name, target.basename, src_dir_fd=where, dst_dir_fd=where)
        return target.exists() and not self._other.exists()

    def _link(self) -> bool:
        with self._place.held() as (where, name):
            os.link(name, f"{name}.second", src_dir_fd=where, dst_dir_fd=where, follow_symlinks=False)
        return True

    def _lock(self) -> bool:
        with _opened(self._place, os.O_RDWR) as first, _opened(self._place, os.O_RDWR) as second:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def _private(self) -> bool:
        place = self._place.parent / f"{self._place.basename}.dir"
        place.make_directory(0o700)
        with _opened(place, os.O_RDONLY | os.O_DIRECTORY) as directory:
            os.fchmod(directory, 0o700)
            os.fchmod(self._fd, 0o600)
            made = [os.fstat(fd) for fd in (directory, self._fd)]
        return [stat.S_IMODE(one.st_mode) & 0o777 for one in made] == [0o700, 0o600] and made[0].st_uid == made[
            1
        ].st_uid

    def _elsewhere_sees(self) -> bool | None:
        if self._elsewhere is None:
            return None
        with _opened(self._place, os.O_RDWR) as locked:
            fcntl.flock(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return self._elsewhere(str(self._place))
