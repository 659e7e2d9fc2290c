"""Files of ours on disk: the only caller of fsync and rename, and so the one seam for faults.

A state on disk is made in one of three ways. Each leaves a whole file or none at any kill, and a durable one at return:

    replace(place, data)   temporary name -> fsync -> rename -> fsync of the directory   the old content or the new one
    publish(place, data)   temporary name -> fsync -> link -> fsync of the directory     one of many processes makes it
    remove(place)          unlink -> fsync of the directory

Without the fsync of the file, xfs shows an empty one after a power cut; without that of the directory, the older one
came back.

Invariants:
- All is reached beneath a held directory, see `directory`, and not through a link. What is made is for its owner only.
- A file of ours is a regular one of at most READ_LIMIT bytes: what stands in its place may be a pipe without a writer,
  or as long as the disk. Where others may write into its directory it has one name: a second one may be that of a file
  elsewhere.
- Before each system call that changes something the code reaches a failpoint, see `failpoints`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from hf_mpwriter.system import failpoints
from hf_mpwriter.system.directory import Directory, Place, check_names, identity
from hf_mpwriter.system.filesystem import mount_of_descriptor
from hf_mpwriter.system.interrupts import ours, suppress
from hf_mpwriter.system.process import READ_LIMIT, links_are_protected, open_above, read_all

if TYPE_CHECKING:
    import ctypes

FILE_MODE = 0o600
DIR_MODE = 0o700
FICLONE = 0x40049409  # of <linux/fs.h>
NOT_REGULAR = (errno.EISDIR, errno.EINVAL, errno.ELOOP, errno.ENXIO, errno.EMLINK)  # a directory, link, pipe, socket
SYNCED_AT_ONCE = ("ext4", "xfs", "btrfs")  # where syncfs() gives the guarantees of fsync() for all files
MANY = 256  # files from which on syncfs() is the cheaper one, although it waits for the data of other programs
CHUNK = 1 << 20  # bytes that are copied at once


def fsync(fd: int, word: str) -> None:
    """Make the content of an open file durable."""
    failpoints.reach(f"{word}.fsync")
    os.fsync(fd)


def fsync_path(place: Place, word: str) -> None:
    """Make the content of a file durable, including what was written through other descriptors."""
    fd = place.open(os.O_RDONLY | os.O_NONBLOCK)
    try:
        fsync(fd, word)
    finally:
        os.close(fd)


def write_again(place: Place, start: int, end: int) -> None:
    """Write the bytes from `start` to `end` of a file once more, in their place.

    After a failed fsync the kernel takes them for written, and the next fsync succeeds without them. The file must be
    one that no other process writes.
    """
    fd = place.open(os.O_RDWR | os.O_NONBLOCK)  # O_APPEND would ignore the offset
    try:
        while start < end and (chunk := os.pread(fd, min(CHUNK, end - start), start)):
            start += os.pwrite(fd, chunk, start)
    finally:
        os.close(fd)


def fsync_dir(place: Place, word: str) -> None:
    """Make the names in a directory durable."""
    failpoints.reach(f"{word}.dirsync")
    with _opened(place) as fd:
        os.fsync(fd)


def sync_filesystem(directory: Place, word: str) -> bool:
    """Make everything on the filesystem of a directory durable, names included: one call instead of one for each file.

    It waits for what other programs have written there, too. So it is for hundreds of files.
    Whether it was done; False where it is not known to do what `fsync` does, or if the disk refuses.
    """
    with suppress(OSError, ImportError), _opened(directory) as fd:
        mount = mount_of_descriptor(fd)
        if mount is not None and mount.fstype in SYNCED_AT_ONCE and _reports_sync_errors():
            failpoints.reach(f"{word}.syncfs")
            failed: int = _libc().syncfs(fd)
            return not failed
    return False


@contextlib.contextmanager
def _opened(directory: Place) -> Iterator[int]:
    """A descriptor of a directory."""
    if not directory.name:
        yield directory.directory.fd
        return
    fd = directory.open(os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def _reports_sync_errors() -> bool:
    """Whether `syncfs` tells of what could not be written: of data as Linux does since 5.8, of names since 5.17."""
    if not hasattr(_libc(), "syncfs"):
        return False
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return version is not None and tuple(map(int, version.groups())) >= (5, 17)


@functools.cache
def _libc() -> ctypes.CDLL:
    import ctypes  # a Python may have been built without it

    return ctypes.CDLL(None)


def clone(source: int, target: int) -> bool:
    """Let an empty file share the content of another one, which takes no room; False if the filesystem cannot."""
    try:
        fcntl.ioctl(target, FICLONE, source)
    except ours(OSError):
        return False
    return True


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`; OSError if the disk refuses it, then a part may be written."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def discard(place: Place) -> None:
    """Remove what was begun and is of no use, as far as the disk allows it: no other error takes the place of one."""
    with suppress(OSError):
        place.unlink()


def _temporary(place: Place) -> Place:
    return place.parent / f".{place.basename}.{os.getpid()}.{os.urandom(4).hex()}.tmp"


def _write_temporary(place: Place, data: bytes, word: str, *, durable: bool) -> Place:
    temporary = _temporary(place)
    failpoints.reach(f"{word}.open")
    fd = open_ours(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        failpoints.reach(f"{word}.write")
        write_all(fd, data)
        if durable:
            fsync(fd, word)
    except BaseException:
        discard(temporary)
        raise
    finally:
        os.close(fd)
    return temporary


def replace(place: Place, data: bytes, word: str, *, durable: bool = True) -> None:
    """Put `data` in place of what is there. A directory is moved aside."""
    temporary = _write_temporary(place, data, word, durable=durable)
    try:
        failpoints.reach(f"{word}.rename")
        try:
            _rename(temporary, place)
        except ours(IsADirectoryError):
            _move_aside(place)
            _rename(temporary, place)
    except BaseException:
        discard(temporary)
        raise
    if durable:
        fsync_dir(place.parent, word)


def publish(place: Place, data: bytes, word: str, is_whole: Callable[[bytes], bool] = bool) -> bool:
    """Create a file with `data` unless a whole one is there; whether this call did.

    Where a filesystem has no links, and in place of a torn file, the last one of racing processes wins: each compares
    what is there with what it wanted.
    """
    if _is_published(place, is_whole):  # a restart on a full disk must not fail for what is there already
        return False
    temporary = _write_temporary(place, data, word, durable=True)
    try:
        failpoints.reach(f"{word}.link")
        is_made = _link(temporary, place)
    finally:
        with suppress(FileNotFoundError):  # who replaces the file removes what is unfinished
            temporary.unlink()
    if is_made:
        fsync_dir(place.parent, word)
    elif _is_published(place, is_whole):
        return False
    else:
        replace(place, data, word)
    return True


def _is_published(place: Place, is_whole: Callable[[bytes], bool]) -> bool:
    """Whether there is a whole file; what cannot be read counts as one, its readers say what is wrong with it."""
    try:
        data = read(place)
    except ours(OSError):
        return True
    return data is not None and is_whole(data)


def _link(old: Place, new: Place) -> bool:
    """Give a file another name in its directory; False if that is taken.

    Also if there are no links: filesystems and confinements say so in many ways, and a disk that fails refuses the
    next step, too.
    """
    try:
        with old.held() as (where, name):
            os.link(name, new.basename, src_dir_fd=where, dst_dir_fd=where, follow_symlinks=False)
    except ours(OSError):
        return False
    return True


def _rename(old: Place, new: Place) -> None:
    with old.held() as (where, name):
        os.rename(name, new.basename, src_dir_fd=where, dst_dir_fd=where)


def _move_aside(place: Place) -> None:
    _rename(place, place.parent / f"{place.basename}.aside-{os.urandom(4).hex()}")


def rename(old: Place, new: Place, word: str) -> None:
    """Rename within one directory; readers see the old name or the new one."""
    failpoints.reach(f"{word}.rename")
    _rename(old, new)


def move(old: Place, new: Place, word: str) -> None:
    """Put a file into another directory, in place of what is there, durably; to another filesystem it is copied."""
    failpoints.reach(f"{word}.rename")
    try:
        with old.held() as (source, name), new.held() as (target, last):
            os.rename(name, last, src_dir_fd=source, dst_dir_fd=target)
    except ours(OSError) as error:
        if error.errno != errno.EXDEV:
            raise
        _copy_across(old, new, word)
        old.unlink()
    fsync_dir(new.parent, word)


def _copy_across(old: Place, new: Place, word: str) -> None:
    """Copy a file under a temporary name, which no reader takes for an event file, and rename the copy."""
    temporary = new.parent / f".copy.{os.getpid()}.{os.urandom(4).hex()}.tmp"
    source = open_ours(old, os.O_RDONLY)
    try:
        target = open_ours(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            while chunk := os.read(source, CHUNK):
                write_all(target, chunk)
            fsync(target, word)
            _rename(temporary, new)
        except BaseException:
            discard(temporary)
            raise
        finally:
            os.close(target)
    finally:
        os.close(source)


def remove(place: Place, word: str, *, durable: bool = True) -> None:
    """Remove a file, which may be gone already."""
    failpoints.reach(f"{word}.unlink")
    try:
        place.unlink()
    except ours(FileNotFoundError):
        return
    if durable:
        fsync_dir(place.parent, word)


def remove_tree(place: Place) -> None:
    """Remove a directory that is of no use any more, or what is in its place, as far as the disk allows it."""
    with suppress(OSError), place.held() as (where, name):
        if place.is_directory():  # rmtree opens whatever is there: a pipe would wait for its writer
            shutil.rmtree(name, ignore_errors=True, dir_fd=where)  # it follows no link
        else:
            os.unlink(name, dir_fd=where)


def make_dirs(place: Place, mode: int = DIR_MODE, *, durable: bool = True) -> None:
    """Create a directory and the parents that it lacks; racing processes all succeed."""
    if not place.name:
        directory = place.directory
        if directory.is_there():
            return
        path, name = os.path.split(directory.path)
        place = (directory.above or Directory(path)) / name
    elif place.is_directory():
        return
    try:
        _make_directory(place, mode)
    except ours(FileNotFoundError, NotADirectoryError):
        make_dirs(place.parent, mode, durable=durable)
        _make_directory(place, mode)
    if durable:
        fsync_dir(place.parent, "dirs")


def _make_directory(place: Place, mode: int) -> None:
    try:
        place.make_directory(mode)
    except ours(FileExistsError):
        if not place.is_directory():
            what = "A file, or a link, which is not followed, is in the place of a directory"
            raise FileExistsError(errno.EEXIST, what, str(place)) from None


def open_ours(place: Place, flags: int) -> int:
    """Open a regular file in the spool; a new one is for its owner."""
    fd = -1
    try:
        with place.held() as (where, name):
            fd = open_above(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, FILE_MODE, dir_fd=where)
            _check_regular(fd, place)
            if os.fstat(where).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                check_names(fd, place)
    except BaseException:
        if fd >= 0:
            os.close(fd)
            if flags & os.O_EXCL:
                discard(place)
        raise
    return fd


def open_anew(place: Place, flags: int) -> int:
    """Like `open_ours`, but move aside what is no regular file. Not for locks: two processes would both get theirs."""
    try:
        return open_ours(place, flags)
    except ours(OSError) as error:
        if error.errno not in NOT_REGULAR:
            raise
        _move_aside(place)
        return open_ours(place, flags)


def open_beneath(place: Place, flags: int = os.O_RDONLY) -> int:
    """Open a user's regular file; no part of its name may be a link.

    A second name is a user's own affair: Linux lets a stranger make one only of files that he may read and write. Where
    it does not, a file with several names is refused if others may write into its directory.
    """
    fd = -1
    try:
        with place.held() as (where, name):
            fd = open_above(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666, dir_fd=where)
            _check_regular(fd, place)
            if not links_are_protected() and os.fstat(where).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                check_names(fd, place)
    except BaseException:
        if fd >= 0:
            os.close(fd)
        raise
    return fd


def _check_regular(fd: int, place: Place) -> None:
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(place))
        raise OSError(errno.EINVAL, "Not a regular file", str(place))


def read(place: Place) -> bytes | None:
    """Content of a file of ours, None if there is none."""
    try:
        fd = open_ours(place, os.O_RDONLY)
    except ours(FileNotFoundError):
        return None
    try:
        if (size := os.fstat(fd).st_size) > READ_LIMIT:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(place))
        return read_all(fd, size)
    finally:
        os.close(fd)


def read_ranges(place: Place, *ranges: tuple[int, int]) -> list[bytes]:
    """Parts of a file of ours, each given by its offset and its length at most; what is beyond the end is left out."""
    fd = open_ours(place, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        return [os.pread(fd, max(0, min(length, size - start, READ_LIMIT)), start) for start, length in ranges]
    finally:
        os.close(fd)


def time_of(directory: Place) -> float:
    """Unix time by the clock of the filesystem of a directory."""
    probe = directory / f".time.{os.getpid()}.{os.urandom(4).hex()}"
    fd = open_ours(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        return os.fstat(fd).st_mtime
    finally:
        os.close(fd)
        probe.unlink()


def set_time(place: Place, modified: int) -> None:
    """Set the modification time of a file, unix time in nanoseconds."""
    with place.held() as (where, name):
        os.utime(name, ns=(modified, modified), dir_fd=where, follow_symlinks=False)


def same_file(fd: int, place: Place) -> bool:
    """Whether the descriptor and the place are the same file; False once that was deleted or replaced.

    An error of the disk is no proof of that: then the answer is True. But if the place answers and the descriptor does
    not, that is dead.
    """
    try:
        there = identity(place.stat())
    except ours(OSError) as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP, errno.ESTALE)
    try:
        return there == identity(os.fstat(fd))
    except ours(OSError):
        return False


def longest_name(path: str) -> int:
    """Bytes that a name in a directory may have; where it does not exist yet, in the nearest parent that does."""
    while not os.path.isdir(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    try:
        return os.pathconf(path, "PC_NAME_MAX")
    except ours(OSError, ValueError):
        return 255
