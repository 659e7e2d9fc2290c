"""The process that serves a FUSE model: a local directory behind the rules of a mount (`fuse_models` says which).

    objects        the store: what every host sees, plain files in a directory
    Draft          a file of this mount that is not published yet: a temporary file, and who writes it
    Handle         an open file

Every call waits while the gate is shut, then for the delay of the model. One lock holds all state.
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
from pathlib import Path
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


def process_of(thread: int) -> int:
    """The process of a thread; FUSE names the thread that called."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{thread}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Tgid:")).split()[1])
    return thread


def call(method: Callable[..., Any]) -> Callable[..., Any]:
    """A call of the mount: it waits as the model says, then has all state for itself."""

    @functools.wraps(method)
    def waits(self: Files, *arguments: Any) -> Any:
        while os.path.exists(self.gate):
            time.sleep(0.01)
        if self.model.delay:
            time.sleep(self.model.delay)
        with self.state:
            return method(self, *arguments)

    return waits


class Draft:
    """A file that this mount has not published, or not all of it."""

    def __init__(self, path: str, directory: str, base: str | None) -> None:
        self.path, self.is_new = path, base is None
        self.fd, self.file = tempfile.mkstemp(dir=directory)
        if base is not None:
            shutil.copyfile(base, self.file)
        self.is_changed = self.is_new
        self.is_over = False  # no write any more
        self.is_deferred = False  # a close that published nothing
        self.writers = 0
        self.process = process_of(mfusepy.fuse_get_context()[2])

    def publish(self) -> None:
        """Put the whole content in the place of the object, as one step; not if the name has gone."""
        if self.is_changed and self.path:
            copy = f"{self.file}.copy"
            shutil.copyfile(self.file, copy)
            os.replace(copy, self.path)
            self.is_changed = False


@dataclasses.dataclass
class Handle:
    """An open file: the descriptor behind it, and the draft that it writes or reads."""

    fd: int
    draft: Draft | None
    is_writer: bool


class Files(mfusepy.Operations):
    """The calls of a mount."""

    use_ns = True

    def __init__(self, model: Any, store: str, gate: str, drafts: str) -> None:
        self.model, self.store, self.gate, self.directory = model, store, gate, drafts
        self.state = threading.RLock()
        self.drafts: dict[str, Draft] = {}  # by place in the store
        self.handles: dict[int, Handle] = {}
        self.last = 0

    def init_with_config(self, connection: Any, config: Any) -> None:
        """Take O_TRUNC with `open`; by itself the kernel opens without it and truncates then."""
        connection.want |= connection.capable & ATOMIC_O_TRUNC

    def _real(self, path: str) -> str:
        return self.store + path if path != "/" else self.store

    def _settle(self, real: str) -> Draft | None:
        """The draft of a place, after a close that was deferred has taken effect."""
        draft = self.drafts.get(real)
        if draft is not None and draft.is_deferred:
            self._finish(draft)
            return None
        return draft

    def _finish(self, draft: Draft) -> None:
        draft.publish()
        draft.is_over = True
        self.drafts.pop(draft.path, None)

    def _add(self, handle: Handle) -> int:
        self.last += 1
        self.handles[self.last] = handle
        return self.last

    # what is there

    @call
    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        """What is known of a name; of a draft, what is written so far."""
        real = self._real(path)
        draft = self.drafts.get(real)
        found = os.fstat(draft.fd) if draft else os.lstat(real)
        told: dict[str, Any] = {name: getattr(found, name) for name in STATS}
        told |= {name: getattr(found, f"{name}_ns") for name in TIMES}
        if draft or not self.model.modes:
            bits = 0o755 if stat.S_ISDIR(found.st_mode) else 0o644
            told |= {"st_mode": stat.S_IFMT(found.st_mode) | bits, "st_uid": os.geteuid(), "st_gid": os.getegid()}
        if draft and self.model.modes:
            told["st_mode"] = found.st_mode
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

    @call
    def readlink(self, path: str) -> str:
        """The target of a link."""
        return os.readlink(self._real(path))

    # open files

    @call
    def create(self, path: str, mode: int, flags: int) -> int:
        """Make a file: a draft that no other host sees, where files are published on close."""
        real = self._real(path)
        if flags & os.O_EXCL and (real in self.drafts or os.path.lexists(real)):
            raise refuse(errno.EEXIST)
        if not os.path.isdir(os.path.dirname(real)):
            raise refuse(errno.ENOENT)
        if not self.model.published_on_close:
            fd = os.open(real, flags | os.O_CREAT, mode)
            return self._add(Handle(fd, None, is_writer=True))
        return self._write(real, None)

    @call
    def open(self, path: str, flags: int) -> int:
        """Open a file, as far as the model allows it."""
        real = self._real(path)
        draft = self._settle(real)
        if not self.model.published_on_close:
            return self._add(Handle(os.open(real, flags), None, is_writer=bool(flags & WRITES)))
        if not flags & WRITES:
            return self._read(real, draft)
        if flags & (os.O_SYNC | os.O_DSYNC) and self.model.sync == "ends":
            raise refuse(errno.EINVAL)
        allowed = self.model.overwrites if flags & os.O_TRUNC else self.model.appends
        if not allowed or (draft is not None and not self.model.appends):
            raise refuse(errno.EPERM)
        if draft is not None:
            if flags & os.O_TRUNC:
                os.ftruncate(draft.fd, 0)
                draft.is_changed = True
            draft.writers += 1
            return self._add(Handle(draft.fd, draft, is_writer=True))
        return self._write(real, None if flags & os.O_TRUNC else real)

    def _read(self, real: str, draft: Draft | None) -> int:
        if draft is not None and self.model.reads_open == "refused":
            raise refuse(errno.EPERM)
        fd = os.open(real, os.O_RDONLY) if draft is None else os.dup(draft.fd)
        return self._add(Handle(fd, draft, is_writer=False))

    def _write(self, real: str, base: str | None) -> int:
        draft = self.drafts[real] = Draft(real, self.directory, base)
        draft.writers = 1
        return self._add(Handle(draft.fd, draft, is_writer=True))

    @call
    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """Read; what a draft gives depends on the model."""
        handle = self.handles[fh]
        if handle.draft and not handle.draft.is_over:
            if self.model.reads_open == "nothing":
                return b""
            if self.model.reads_open == "refused":
                raise refuse(errno.EPERM)
        return os.pread(handle.fd, size, offset)

    @call
    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        """Write; a draft may be over, or want its bytes in sequence."""
        handle = self.handles[fh]
        if handle.draft:
            self._may_write(handle.draft, offset)
        return os.pwrite(handle.fd, data, offset)

    def _may_write(self, draft: Draft, offset: int) -> None:
        if draft.is_over:
            raise refuse(errno.EIO)
        if self.model.sequential and offset != os.fstat(draft.fd).st_size:
            raise refuse(errno.EINVAL)
        draft.is_changed, draft.is_deferred = True, False

    @call
    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        """Cut or extend; a closed object is written as a whole."""
        if self.model.truncates != "yes":
            if self.model.truncates == "no":
                raise refuse(errno.EPERM)
            return 0
        real = self._real(path)
        if not self.model.published_on_close:
            os.truncate(real if fh is None else self.handles[fh].fd, length)
            return 0
        draft = self.drafts.get(real)
        if draft is not None:
            os.ftruncate(draft.fd, length)
            draft.is_changed = True
            return 0
        draft = Draft(real, self.directory, real)
        os.ftruncate(draft.fd, length)
        draft.is_changed = True
        self._finish(draft)
        self._forget(draft)
        return 0

    @call
    def fsync(self, path: str, datasync: int, fh: int) -> int:
        """Make durable, publish, end, or do nothing: the model says which."""
        handle = self.handles[fh]
        if not handle.draft:
            os.fsync(handle.fd)
        elif handle.is_writer and self.model.sync == "ends":
            self._finish(handle.draft)
        elif handle.is_writer and self.model.sync == "edits" and not handle.draft.is_new:
            handle.draft.publish()
        return 0

    @call
    def flush(self, path: str, fh: int) -> int:
        """Publish: a descriptor of the file is closed, perhaps not the last one."""
        handle = self.handles[fh]
        draft = handle.draft
        if draft is None or not handle.is_writer or draft.is_over:
            return 0
        if not self.model.close_ends:
            draft.publish()
        elif draft.process != process_of(mfusepy.fuse_get_context()[2]) or not os.fstat(draft.fd).st_size:
            draft.is_deferred = True
        else:
            self._finish(draft)
        return 0

    @call
    def release(self, path: str, fh: int) -> int:
        """Publish what is left: the last descriptor has gone."""
        handle = self.handles.pop(fh)
        draft = handle.draft
        if draft is None or not handle.is_writer:
            os.close(handle.fd)
            return 0
        draft.writers -= 1
        if not draft.writers:
            if not draft.is_over:
                self._finish(draft)
            self._forget(draft)
        return 0

    @staticmethod
    def _forget(draft: Draft) -> None:
        os.close(draft.fd)
        os.unlink(draft.file)

    # names

    @call
    def unlink(self, path: str) -> int:
        """Remove an object or a draft."""
        real = self._real(path)
        if not self.model.deletes:
            raise refuse(errno.EPERM)
        draft = self._settle(real)
        if draft is not None:
            if self.model.reads_open == "refused":
                raise refuse(errno.EPERM)
            draft.path = ""
            del self.drafts[real]
        if draft is None or os.path.lexists(real):
            os.unlink(real)
        return 0

    @call
    def rename(self, old: str, new: str) -> int:
        """Rename objects and drafts; a draft is published first."""
        if not self.model.renames:
            raise refuse(errno.ENOSYS)
        source, target = self._real(old), self._real(new)
        for place, draft in list(self.drafts.items()):
            if place == target:
                draft.path = ""
                del self.drafts[place]
            elif place == source or place.startswith(f"{source}/"):
                draft.publish()
        os.rename(source, target)
        for place, draft in list(self.drafts.items()):
            if place == source or place.startswith(f"{source}/"):
                draft.path = target + place[len(source) :]
                self.drafts[draft.path] = self.drafts.pop(place)
        return 0

    @call
    def link(self, target: str, source: str) -> int:
        """Make a second name, or a copy under it."""
        new, old = self._real(target), self._real(source)
        if self.model.links == "no":
            raise refuse(errno.ENOSYS)
        if self.model.links == "yes":
            os.link(old, new)
            return 0
        if draft := self._settle(old):
            self._finish(draft)
        if os.path.lexists(new) or new in self.drafts:
            raise refuse(errno.EEXIST)
        shutil.copyfile(old, new)
        return 0

    @call
    def symlink(self, target: str, source: str) -> int:
        """Make a symbolic link."""
        if self.model.links != "yes":
            raise refuse(errno.ENOSYS)
        os.symlink(source, self._real(target))
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
    from types import SimpleNamespace

    ctypes.CDLL(None).prctl(SET_PDEATHSIG, signal.SIGKILL)
    told, store, place = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
    os.umask(0)
    model = SimpleNamespace(**told["model"])
    drafts = tempfile.mkdtemp(prefix=f"{os.path.basename(store)}.drafts.", dir=os.path.dirname(store))
    kind = FilesWithoutLocks if model.lock_error else Files
    subtype = {"subtype": model.fstype} if model.fstype else {}
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
            **subtype,
        )
    finally:
        shutil.rmtree(drafts, ignore_errors=True)


if __name__ == "__main__":
    main()
