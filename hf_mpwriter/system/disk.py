"""The only caller of fsync, link and rename, and the seam where faults are injected.

Three ways to make a state on disk, each leaves a whole file or no file at any kill, and a durable one at return:

    publish(path, data)   temporary name -> fsync -> link     exactly one of many racing processes wins
    replace(path, data)   temporary name -> fsync -> rename   readers see the old content or the new one
    remove(path)          unlink -> fsync of the directory

Without the fsync of the file, xfs shows a zero-length file after a power cut; without the fsync of the directory,
1 of 15 (ext4) to 4 of 15 (xfs) power cuts brought the older file back.

What is made in a directory that is open to its group (setgid, and the group may write) is open to that group too,
whatever the umask says; everything else of ours is for its owner only. The spool itself does not follow its parent.

No file of ours is read through a link, and none that is no regular file or is larger than READ_LIMIT: what stands in
its place may be a pipe that nobody writes, or as long as the disk.

Failpoints: `HF_MPWRITER_FAILPOINT=<name>=<action>[:<n>]` (several with commas) makes the n-th passage (default the
first) through that point `kill` the process or fail with `enospc` or `eio`. The name is `<word>.<step>`: the word
that the caller gives, the step in `open, write, fsync, link, rename, dirsync, unlink`; each is passed before its call.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
from typing import NoReturn

FILE_MODE = 0o600
DIR_MODE = 0o700
SHARED_FILE = 0o060  # what is added where the directory is open to its group
SHARED_DIR = 0o2070
NO_FILE = (errno.EISDIR, errno.EINVAL, errno.ELOOP, errno.ENXIO)  # opening a directory, a link, a pipe of nobody's
CHUNK = 1 << 20  # bytes written again at once
READ_LIMIT = 64 << 20  # bytes of a file of ours; a ledger of 100,000 paths has half of that

_ERRORS = {"enospc": errno.ENOSPC, "eio": errno.EIO}


def _parse_failpoints(text: str) -> dict[str, tuple[str, int]]:
    points = {}
    for item in filter(None, text.split(",")):
        name, _, action = item.partition("=")
        action, _, count = action.partition(":")
        points[name.strip()] = (action.strip(), int(count or 1))
    return points


_failpoints = _parse_failpoints(os.environ.get("HF_MPWRITER_FAILPOINT", ""))


def failpoint(name: str) -> None:
    """Fail here if the environment asks for it; otherwise cost nothing but a look at an empty dict."""
    if _failpoints and name in _failpoints:
        action, count = _failpoints[name]
        _failpoints[name] = (action, count - 1)
        if count == 1:
            _fail(name, action)


def _fail(name: str, action: str) -> NoReturn:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError(_ERRORS.get(action, errno.EIO), f"failpoint {name}")


def fsync(fd: int, word: str) -> None:
    """Make the content of an open file durable."""
    failpoint(f"{word}.fsync")
    os.fsync(fd)


def fsync_path(path: str, word: str) -> None:
    """Make the content of the file at `path` durable; writes made through other descriptors are included."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fsync(fd, word)
    finally:
        os.close(fd)


def write_again(path: str, start: int, end: int) -> None:
    """Write the bytes of a file that this process writes once more, in their place.

    After an fsync that has failed the kernel takes them for written, and the next fsync succeeds without them.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)  # not to append
    try:
        while start < end and (chunk := os.pread(fd, min(CHUNK, end - start), start)):
            start += os.pwrite(fd, chunk, start)
    finally:
        os.close(fd)


def fsync_dir(path: str, word: str) -> None:
    """Make the names in a directory durable."""
    failpoint(f"{word}.dirsync")
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`; raises OSError when the disk refuses."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _temporary(path: str) -> str:
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")


def _write_temporary(path: str, data: bytes, word: str, *, durable: bool) -> str:
    temporary = _temporary(path)
    failpoint(f"{word}.open")
    fd = open_ours(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        failpoint(f"{word}.write")
        write_all(fd, data)
        if durable:
            fsync(fd, word)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    return temporary


def publish(path: str, data: bytes, word: str) -> bool:
    """Create `path` with `data` unless it exists; True if this call created it."""
    if os.path.lexists(path):  # a restart on a full disk must not fail over what is there already
        return False
    temporary = _write_temporary(path, data, word, durable=True)
    try:
        failpoint(f"{word}.link")
        os.link(temporary, path)
    except FileExistsError:
        return False
    else:
        fsync_dir(os.path.dirname(path), word)
        return True
    finally:
        os.unlink(temporary)


def replace(path: str, data: bytes, word: str, *, durable: bool = True) -> None:
    """Put `data` in place of whatever is at `path`; `durable=False` for what may be older after a power cut.

    A directory that somebody has put there is moved aside.
    """
    temporary = _write_temporary(path, data, word, durable=durable)
    try:
        failpoint(f"{word}.rename")
        try:
            os.rename(temporary, path)
        except IsADirectoryError:
            _move_aside(path)
            os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    if durable:
        fsync_dir(os.path.dirname(path), word)


def _move_aside(path: str) -> None:
    os.rename(path, f"{path}.aside-{os.urandom(4).hex()}")


def rename(old: str, new: str, word: str) -> None:
    """Rename within one directory; readers see the old name or the new one."""
    failpoint(f"{word}.rename")
    os.rename(old, new)


def remove(path: str, word: str, *, durable: bool = True) -> None:
    """Remove `path`, which may be gone already; `durable=False` for what may be there again after a power cut."""
    failpoint(f"{word}.unlink")
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    if durable:
        fsync_dir(os.path.dirname(path), word)


def is_shared(status: os.stat_result) -> bool:
    """Whether a directory of this status is open to its group and to nobody else."""
    return status.st_mode & (stat.S_ISGID | stat.S_IWGRP | stat.S_IWOTH) == stat.S_ISGID | stat.S_IWGRP


def share(file: int | str, path: str) -> None:
    """Open what stands at `path` to its group if its directory is open to it.

    Args:
        file: a descriptor of it, or the path.
        path: where it is.
    """
    if is_shared(os.stat(os.path.dirname(path))):
        mode = os.stat(file).st_mode
        wanted = mode | (SHARED_DIR if stat.S_ISDIR(mode) else SHARED_FILE)
        if wanted != mode:
            with contextlib.suppress(PermissionError):  # it is a colleague's, who has opened it as far as it is
                os.chmod(file, stat.S_IMODE(wanted))


def open_tree(top: str, group: int) -> None:
    """Open a directory and all below it to a group; the top comes last, so that it tells that all is done."""
    for directory, _, names in os.walk(top, topdown=False):
        for path in [os.path.join(directory, name) for name in names] + [directory]:
            with contextlib.suppress(FileNotFoundError):  # a temporary file of somebody who starts, too
                _open_one(path, group)


def _open_one(path: str, group: int) -> None:
    mode = os.lstat(path).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        os.chown(path, -1, group, follow_symlinks=False)
        os.chmod(path, stat.S_IMODE(mode) | (SHARED_DIR if stat.S_ISDIR(mode) else SHARED_FILE))


def make_dirs(path: str, mode: int = DIR_MODE, *, durable: bool = True, private: bool = False) -> None:
    """Create `path` and its parents as needed, durably if wanted; racing processes all succeed.

    A private directory stays so in a parent that is open to its group.
    """
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_dirs(parent, mode, durable=durable)
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    if not private:
        share(path, path)
    if durable:
        fsync_dir(parent, "dirs")


def open_ours(path: str, flags: int) -> int:
    """Open a regular file in the spool, for its owner only or for the group of its directory; the descriptor."""
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, FILE_MODE)
    try:
        _check_regular(fd, path)
        if flags & os.O_CREAT:
            share(fd, path)
    except BaseException:
        os.close(fd)
        if flags & os.O_EXCL:
            os.unlink(path)
        raise
    return fd


def open_anew(path: str, flags: int) -> int:
    """Like `open_ours`, after garbage was moved aside. Not for locks: of two who do so, both would win."""
    try:
        return open_ours(path, flags)
    except OSError as error:
        if error.errno not in NO_FILE:
            raise
        _move_aside(path)
        return open_ours(path, flags)


def open_beneath(top: str, relative: str) -> int:
    """Open a regular file of somebody else's for reading; no part of the way below `top` may be a link."""
    *directories, name = relative.split("/")
    where = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for directory in directories:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
            where, left = os.open(directory, flags, dir_fd=where), where
            os.close(left)
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=where)
    finally:
        os.close(where)
    try:
        _check_regular(fd, os.path.join(top, relative))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_regular(fd: int, path: str) -> None:
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        raise OSError(errno.EINVAL, "Not a regular file", path)


def read(path: str) -> bytes | None:
    """Content of a file of ours, None if there is none. Symbolic links are not followed.

    Raises:
        OSError: it cannot be read, it is no regular file, or it is larger than READ_LIMIT.
    """
    try:
        fd = open_ours(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        if os.fstat(fd).st_size > READ_LIMIT:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        return file.read(READ_LIMIT)


def read_ends(path: str, limit: int) -> bytes:
    """Lines of a file of ours; of one that is longer than `limit` the first and the last, together so many bytes."""
    fd = open_ours(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        if size <= limit:
            return os.pread(fd, limit, 0)
        return os.pread(fd, limit // 2, 0) + b"\n" + os.pread(fd, limit // 2, size - limit // 2)
    finally:
        os.close(fd)


def inode(file: int | str) -> tuple[int, int]:
    """What tells one file from another as long as it is there; a symbolic link counts for itself."""
    status = os.fstat(file) if isinstance(file, int) else os.stat(file, follow_symlinks=False)
    return status.st_ino, status.st_dev


def same_file(fd: int, path: str) -> bool:
    """Whether the descriptor and the path are the same file: false once somebody deleted or replaced the path.

    A disk that refuses to tell has deleted nothing.
    """
    try:
        return inode(path) == inode(fd)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        return error.errno not in (errno.EBADF, errno.ELOOP, errno.ESTALE)  # removed by another host
