"""The process that serves a FUSE model: a local directory behind the rules of a mount (`fuse_models` says which).

    objects        the store: what every host sees, plain files in a directory
    Draft          a file of this mount that is not published yet: a temporary file
    Handle         an open file

Every call below the path that is in the gate waits while there is a gate, then for the delay of the model. What was
opened before a file beside the gate was touched answers ESTALE. One lock holds all state.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import functools
import json
import os
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import mfusepy

SET_PDEATHSIG = 1  # of prctl
ATOMIC_O_TRUNC = 1 << 3  # FUSE_CAP_ATOMIC_O_TRUNC
WRITES = os.O_WRONLY | os.O_RDWR
STATS = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks")
TIMES = ("st_atime", "st_mtime", "st_ctime")


def refuse(number: int) -> OSError:
    """The error of a call."""
    return OSError(number, os.strerror(number))


def call(method: Callable[..., Any]) -> Callable[..., Any]:
    """A call of the mount: it waits as the model says, then has all state for itself."""

    @functools.wraps(method)
    def waits(self: Files, path: str, *arguments: Any) -> Any:
        while is_shut(self.gate, path):
            time.sleep(0.01)
        if self.model.delay:
            time.sleep(self.model.delay)
        with self.state:
            return method(self, path, *arguments)

    return waits


def is_shut(gate: str, path: str) -> bool:
    """Whether a call is to wait: the gate says below which path."""
    try:
        with open(gate) as file:
            return path.startswith(file.read())
    except FileNotFoundError:
        return False


@dataclasses.dataclass
class Draft:
    """A file that this mount has not published."""

    path: str  # in the store, "" once its name has gone
    fd: int
    file: str  # the temporary file
    is_over: bool = False  # published: nothing can be written any more


@dataclasses.dataclass
class Handle:
    """An open file: the descriptor behind it, and the draft that it writes or reads."""

    fd: int
    draft: Draft | None = None
    is_writer: bool = False
    opened_at: int = dataclasses.field(default_factory=time.time_ns)


class Files(mfusepy.Operations):
    """The calls of a mount."""

    use_ns = True

    def __init__(self, model: Any, store: str, gate: str, drafts: str) -> None:
        self.model, self.store, self.gate, self.directory = model, store, gate, drafts
        self.stale = os.path.splitext(gate)[0] + ".stale"
        self.state = threading.RLock()
        self.drafts: dict[str, Draft] = {}  # by place in the store
        self.handles: dict[int, Handle] = {}
        self.last = 0

    def init_with_config(self, connection: Any, config: Any) -> None:
        """Take O_TRUNC with `open`; by itself the kernel opens without it and truncates then."""
        connection.want |= connection.capable & ATOMIC_O_TRUNC

    def _real(self, path: str) -> str:
        return self.store + path if path != "/" else self.store

    def _finish(self, draft: Draft) -> None:
        """Put the whole content in the place of the object, as one step; not if the name has gone."""
        if draft.is_over:
            return
        draft.is_over = True
        if draft.path:
            copy = f"{draft.file}.copy"
            shutil.copyfile(draft.file, copy)
            os.replace(copy, draft.path)
            del self.drafts[draft.path]

    def _add(self, handle: Handle) -> int:
        self.last += 1
        self.handles[self.last] = handle
        return self.last

    def _handle(self, number: int) -> Handle:
        handle = self.handles[number]
        with contextlib.suppress(FileNotFoundError):
            if os.stat(self.stale).st_mtime_ns >= handle.opened_at:
                raise refuse(errno.ESTALE)
        return handle

    def _begin(self, real: str) -> int:
        """Open a draft, which no other host sees."""
        draft = self.drafts[real] = Draft(real, *tempfile.mkstemp(dir=self.directory))
        return self._add(Handle(draft.fd, draft, is_writer=True))

    # what is there

    @call
    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        """What is known of a name; of a draft, what is written so far."""
        real = self._real(path)
        draft = self.drafts.get(real)
        found = os.fstat(draft.fd) if draft else os.lstat(real)
        told: dict[str, Any] = {name: getattr(found, name) for name in STATS}
        told |= {name: getattr(found, f"{name}_ns") for name in TIMES}
        if not self.model.modes:
            bits = 0o755 if stat.S_ISDIR(found.st_mode) else 0o644
            told |= {"st_mode": stat.S_IFMT(found.st_mode) | bits, "st_uid": os.geteuid(), "st_gid": os.getegid()}
        return told

    @call
    def readdir(self, path: str, fh: int) -> list[str]:
        """The names of a directory, drafts among them."""
        real = self._real(path)
        drafts = {os.path.basename(place) for place in self.drafts if os.path.dirname(place) == real}
        return [".", "..", *sorted({*os.listdir(real), *drafts})]

    @call
    def statfs(self, path: str) -> dict[str, int]:
        """The room of the local disk."""
        found = os.statvfs(self.store)
        names = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_frsize")
        return {name: getattr(found, name) for name in names}

    # open files

    @call
    def create(self, path: str, mode: int, flags: int) -> int:
        """Make a file."""
        real = self._real(path)
        if flags & os.O_EXCL and (real in self.drafts or os.path.lexists(real)):
            raise refuse(errno.EEXIST)
        if not os.path.isdir(os.path.dirname(real)):
            raise refuse(errno.ENOENT)
        if self.model.published_on_close:
            return self._begin(real)
        return self._add(Handle(os.open(real, flags | os.O_CREAT, mode)))

    @call
    def open(self, path: str, flags: int) -> int:
        """Open a file, as far as the model allows it; an object can only be written anew."""
        real = self._real(path)
        draft = self.drafts.get(real)
        if not self.model.published_on_close:
            return self._add(Handle(os.open(real, flags)))
        if flags & WRITES:
            if draft or not flags & os.O_TRUNC or not self.model.overwrites:
                raise refuse(errno.EPERM)
            return self._begin(real)
        if draft and self.model.reads_open == "refused":
            raise refuse(errno.EPERM)
        return self._add(Handle(os.dup(draft.fd) if draft else os.open(real, os.O_RDONLY), draft))

    @call
    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """Read; what a draft gives depends on the model."""
        handle = self._handle(fh)
        if handle.draft and not handle.draft.is_over:
            if self.model.reads_open == "nothing":
                return b""
            if self.model.reads_open == "refused":
                raise refuse(errno.EPERM)
        return os.pread(handle.fd, size, offset)

    @call
    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        """Write; a draft may be over, and wants its bytes in sequence."""
        handle = self._handle(fh)
        if handle.draft and handle.draft.is_over:
            raise refuse(errno.EIO)
        if handle.draft and offset != os.fstat(handle.fd).st_size:
            raise refuse(errno.EINVAL)
        return os.pwrite(handle.fd, data, offset)

    @call
    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        """Cut or extend; no object can be."""
        if self.model.published_on_close:
            raise refuse(errno.EPERM)
        os.truncate(self._real(path) if fh is None else self._handle(fh).fd, length)
        return 0

    @call
    def fsync(self, path: str, datasync: int, fh: int) -> int:
        """Make durable; a draft is ended, or nothing happens: the model says which."""
        handle = self._handle(fh)
        if not handle.draft:
            os.fsync(handle.fd)
        elif self.model.fsync_ends:
            self._finish(handle.draft)
        return 0

    @call
    def flush(self, path: str, fh: int) -> int:
        """Publish: the file is closed."""
        handle = self._handle(fh)
        if handle.draft and handle.is_writer:
            self._finish(handle.draft)
        return 0

    @call
    def release(self, path: str, fh: int) -> int:
        """Forget an open file."""
        handle = self.handles.pop(fh)
        if handle.draft and handle.is_writer:
            self._finish(handle.draft)
            os.unlink(handle.draft.file)
        os.close(handle.fd)
        return 0

    # names

    @call
    def unlink(self, path: str) -> int:
        """Remove an object or a draft."""
        real = self._real(path)
        draft = self.drafts.get(real)
        if not self.model.deletes or (draft and self.model.reads_open == "refused"):
            raise refuse(errno.EPERM)
        if draft:
            draft.path = ""
            del self.drafts[real]
        if not draft or os.path.lexists(real):
            os.unlink(real)
        return 0

    @call
    def rename(self, old: str, new: str) -> int:
        """Rename what is published."""
        if not self.model.renames:
            raise refuse(errno.ENOSYS)
        os.rename(self._real(old), self._real(new))
        return 0

    @call
    def mkdir(self, path: str, mode: int) -> int:
        """Make a directory, for all hosts."""
        os.mkdir(self._real(path), mode)
        return 0

    @call
    def rmdir(self, path: str) -> int:
        """Remove an empty directory."""
        os.rmdir(self._real(path))
        return 0

    # owner, mode, times

    @call
    def chmod(self, path: str, mode: int) -> int:
        """Change the mode, or ignore it."""
        if self.model.modes:
            os.chmod(self._real(path), mode)
        return 0

    @call
    def chown(self, path: str, uid: int, gid: int) -> int:
        """Change the owner, or ignore it."""
        if self.model.modes:
            os.chown(self._real(path), uid, gid, follow_symlinks=False)
        return 0

    @call
    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        """Set the times."""
        real = self._real(path)
        draft = self.drafts.get(real)
        os.utime(draft.fd if draft else real, ns=times)
        return 0


class FilesWithoutLocks(Files):
    """The calls of a mount that refuses every lock."""

    @call
    def lock(self, path: str, fh: int, cmd: int, lock: Any) -> int:
        """Refuse a lock of POSIX."""
        raise refuse(self.model.lock_error)

    @call
    def flock(self, path: str, fh: int, op: int) -> int:
        """Refuse a lock of BSD."""
        raise refuse(self.model.lock_error)


def main() -> None:
    """Serve a mount until it is unmounted or the parent ends."""
    ctypes.CDLL(None).prctl(SET_PDEATHSIG, signal.SIGKILL)
    told, store, place = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
    os.umask(0)
    model = SimpleNamespace(**told["model"])
    drafts = tempfile.mkdtemp(prefix=f"{os.path.basename(store)}.drafts.", dir=os.path.dirname(store))
    kind = FilesWithoutLocks if model.lock_error else Files
    try:
        mfusepy.FUSE(
            kind(model, store, told["gate"], drafts),
            place,
            foreground=True,
            fsname=model.source,
            allow_other=True,
            default_permissions=True,
            attr_timeout=0,
            entry_timeout=0,
            negative_timeout=0,
            direct_io=model.published_on_close,
            hard_remove=model.published_on_close,
            **({"subtype": model.fstype} if model.fstype else {}),
        )
    finally:
        shutil.rmtree(drafts, ignore_errors=True)


if __name__ == "__main__":
    main()
