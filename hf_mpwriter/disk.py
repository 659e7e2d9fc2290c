"""The only caller of fsync, link and rename, and the seam where faults are injected.

Three ways to make a state on disk, each leaves a whole file or no file at any kill, and a durable one at return:

    publish(path, data)   temporary name -> fsync -> link     exactly one of many racing processes wins
    replace(path, data)   temporary name -> fsync -> rename   readers see the old content or the new one
    remove(path)          unlink -> fsync of the directory

Without the fsync of the file, xfs shows a zero-length file after a power cut; without the fsync of the directory,
1 of 15 (ext4) to 4 of 15 (xfs) power cuts brought the older file back.

Failpoints: `HF_MPWRITER_FAILPOINT=<name>=<action>[:<n>]` (several with commas) makes the n-th passage (default the
first) through that point `kill` the process or fail with `enospc` or `eio`. The name is `<word>.<step>`: the word
that the caller gives, the step in `open, write, fsync, link, rename, dirsync, unlink`; each is passed before its call.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import NoReturn

FILE_MODE = 0o600
DIR_MODE = 0o700

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
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fsync(fd, word)
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
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
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
    """Put `data` in place of whatever is at `path`; `durable=False` for what may be older after a power cut."""
    temporary = _write_temporary(path, data, word, durable=durable)
    try:
        failpoint(f"{word}.rename")
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    if durable:
        fsync_dir(os.path.dirname(path), word)


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


def make_dirs(path: str, mode: int = DIR_MODE) -> None:
    """Create `path` and its parents as needed, durably for the last one; racing processes all succeed."""
    if os.path.isdir(path):
        return
    os.makedirs(path, mode=mode, exist_ok=True)
    fsync_dir(os.path.dirname(path) or ".", "dirs")


def read(path: str) -> bytes | None:
    """Content of a file of ours, None if there is none. Symbolic links are not followed."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        with open(fd, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(fd)


def inode(file: int | str) -> tuple[int, int]:
    """What tells one file from another as long as it is there; a symbolic link counts for itself."""
    status = os.fstat(file) if isinstance(file, int) else os.stat(file, follow_symlinks=False)
    return status.st_ino, status.st_dev


def same_file(fd: int, path: str) -> bool:
    """Whether the descriptor and the path are the same file: false once somebody deleted or replaced the path."""
    try:
        return inode(path) == inode(fd)
    except OSError:
        return False
