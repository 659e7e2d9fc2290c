"""Files of ours on disk: the only caller of fsync, link and rename, and so the one seam for faults.

A state on disk is made in one of three ways. Each leaves a whole file or none at any kill, and a durable one at return:

    publish(path, data)   temporary name -> fsync -> link     exactly one of many racing processes wins
    replace(path, data)   temporary name -> fsync -> rename   readers see the old content or the new one
    remove(path)          unlink -> fsync of the directory

Without the fsync of the file, xfs shows a file of no bytes after a power cut. Without the fsync of the directory, the
older file came back after 1 of 15 (ext4) to 4 of 15 (xfs) power cuts.

Invariants:
- What is made is for its owner only, or for the group of its directory too, see `sharing`.
- A file of ours is never read through a link. It is a regular file of at most READ_LIMIT bytes: what stands in its
  place may be a pipe without a writer, or as long as the disk.
- Before each system call that changes something the code reaches a failpoint, see `failpoints`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from hf_mpwriter.system import failpoints, sharing

FILE_MODE = 0o600
DIR_MODE = 0o700
FICLONE = 0x40049409  # of <linux/fs.h>
NOT_REGULAR = (errno.EISDIR, errno.EINVAL, errno.ELOOP, errno.ENXIO)  # opening a directory, a link, a pipe, a socket
CHUNK = 1 << 20  # bytes that `write_again` copies at once
READ_LIMIT = 64 << 20  # bytes of a file of ours; a ledger of 100,000 paths has half of that


def fsync(fd: int, word: str) -> None:
    """Make the content of an open file durable."""
    failpoints.reach(f"{word}.fsync")
    os.fsync(fd)


def fsync_path(path: str, word: str) -> None:
    """Make the content of the file at `path` durable, including what was written through other descriptors."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fsync(fd, word)
    finally:
        os.close(fd)


def write_again(path: str, start: int, end: int) -> None:
    """Write the bytes from `start` to `end` of a file once more, in their place.

    After a failed fsync the kernel takes them for written, and the next fsync succeeds without them. The file must be
    one that no other process writes.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)  # O_APPEND would ignore the offset
    try:
        while start < end and (chunk := os.pread(fd, min(CHUNK, end - start), start)):
            start += os.pwrite(fd, chunk, start)
    finally:
        os.close(fd)


def fsync_dir(path: str, word: str) -> None:
    """Make the names in a directory durable."""
    failpoints.reach(f"{word}.dirsync")
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def clone(source: int, target: int) -> bool:
    """Let an empty file share the content of another one, which takes no room; False if the filesystem cannot."""
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError:
        return False
    return True


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`.

    Raises:
        OSError: the disk refuses it; a part may be written.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _temporary(path: str) -> str:
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")


def _write_temporary(path: str, data: bytes, word: str, *, durable: bool) -> str:
    temporary = _temporary(path)
    failpoints.reach(f"{word}.open")
    fd = open_ours(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        failpoints.reach(f"{word}.write")
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
    """Create `path` with `data` unless it exists.

    Returns:
        Whether this call created it.
    """
    if os.path.lexists(path):  # a restart on a full disk must not fail for what is there already
        return False
    temporary = _write_temporary(path, data, word, durable=True)
    try:
        failpoints.reach(f"{word}.link")
        os.link(temporary, path)
    except FileExistsError:
        return False
    else:
        fsync_dir(os.path.dirname(path), word)
        return True
    finally:
        os.unlink(temporary)


def replace(path: str, data: bytes, word: str, *, durable: bool = True) -> None:
    """Put `data` in place of what is at `path`. A directory there is moved aside.

    Args:
        path: where to put it.
        data: the new content.
        word: first part of the names of the failpoints.
        durable: False where the older content may be back after a power cut.
    """
    temporary = _write_temporary(path, data, word, durable=durable)
    try:
        failpoints.reach(f"{word}.rename")
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
    failpoints.reach(f"{word}.rename")
    os.rename(old, new)


def remove(path: str, word: str, *, durable: bool = True) -> None:
    """Remove `path`, which may be gone already.

    Args:
        path: what to remove.
        word: first part of the names of the failpoints.
        durable: False where the file may be back after a power cut.
    """
    failpoints.reach(f"{word}.unlink")
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    if durable:
        fsync_dir(os.path.dirname(path), word)


def make_dirs(path: str, mode: int = DIR_MODE, *, durable: bool = True, private: bool = False) -> None:
    """Create `path` and the parents that it lacks; racing processes all succeed.

    Args:
        path: absolute path of the directory.
        mode: of each new directory, before the umask.
        durable: whether the new names survive a power cut.
        private: keep `path` closed to the group even where its parent is open to it.
    """
    if os.path.isdir(path):
        return
    if (parent := os.path.dirname(path)) == path:  # only a relative path leads here
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    make_dirs(parent, mode, durable=durable)
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    if not private:
        sharing.share(path, path)
    if durable:
        fsync_dir(parent, "dirs")


def open_ours(path: str, flags: int) -> int:
    """Open a regular file in the spool; a new one is for its owner, or for the group of its directory too.

    Returns:
        The descriptor.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, FILE_MODE)
    try:
        _check_regular(fd, path)
        if flags & os.O_CREAT:
            sharing.share(fd, path)
    except BaseException:
        os.close(fd)
        if flags & os.O_EXCL:
            os.unlink(path)
        raise
    return fd


def open_anew(path: str, flags: int) -> int:
    """Like `open_ours`, but move aside what is no regular file. Not for locks: two processes would both get theirs."""
    try:
        return open_ours(path, flags)
    except OSError as error:
        if error.errno not in NOT_REGULAR:
            raise
        _move_aside(path)
        return open_ours(path, flags)


def open_beneath(top: str, relative: str) -> int:
    """Open a user's regular file for reading; no part of the path below `top` may be a link."""
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
    """Content of a file of ours, None if there is none.

    Raises:
        OSError: it cannot be read, is a link or no regular file, or is larger than READ_LIMIT.
    """
    try:
        fd = open_ours(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        if os.fstat(fd).st_size > READ_LIMIT:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        return file.read(READ_LIMIT)


def read_ranges(path: str, *ranges: tuple[int, int]) -> list[bytes]:
    """Parts of a file of ours, each given by its offset and its length at most; what is beyond the end is left out."""
    fd = open_ours(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        return [os.pread(fd, max(0, min(length, size - start)), start) for start, length in ranges]
    finally:
        os.close(fd)


def inode(file: int | str) -> tuple[int, int]:
    """Inode and device, which no two living files share; of a symbolic link its own."""
    status = os.fstat(file) if isinstance(file, int) else os.stat(file, follow_symlinks=False)
    return status.st_ino, status.st_dev


def same_file(fd: int, path: str) -> bool:
    """Whether the descriptor and the path are the same file; False once the path was deleted or replaced.

    An error of the disk is no proof of that: then the answer is True.
    """
    try:
        return inode(path) == inode(fd)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        return error.errno not in (errno.EBADF, errno.ELOOP, errno.ESTALE)  # removed by another host
