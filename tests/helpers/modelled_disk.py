"""A modelled disk: a real directory whose changes are recorded, so that a power cut can leave any possible state.

What happens in the block of `Disk.recorded` goes through `os` as always, and the disk notes what is not durable yet:

    bytes that were appended after the last fsync of a file      any beginning of them survives, or zeros in their place
    names that changed after the last fsync of their directory   any subset of these changes survives, each as a whole

That is more than one file system does: a name may outlive the content behind it, and a later change an earlier one.
Directories survive. After EIO at fsync nothing is durable, and the next fsync works.

A kill loses nothing, but the process does nothing afterwards, no `finally` either.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from unittest import mock

CALLS = ("open", "close", "write", "fsync", "rename", "link", "unlink", "mkdir", "listdir")
REAL = {name: getattr(os, name) for name in CALLS}
ERRORS = {"enospc": errno.ENOSPC, "eio": errno.EIO}
GROWS = ("open", "write", "rename", "link", "mkdir")  # what a full disk refuses


class Dead(BaseException):
    """The process is dead."""


@dataclass(eq=False)
class Node:
    """What is behind a name: its content, and how much of that is durable."""

    data: bytes = b""
    synced: int = 0


@dataclass(frozen=True)
class Change:
    """A change of names in one directory: `old` goes, `new` is the node."""

    old: str
    new: str
    node: Node | None


@dataclass
class Disk:
    """The files below one directory."""

    root: str  # absolute path
    watch: Callable[[str], object] = lambda _: None  # called with the path before a name goes
    struck: Counter[str] = field(default_factory=Counter)  # how often each kind of fault has struck
    dead: bool = False  # whether the process was killed, or the power cut
    _names: dict[str, Node] = field(default_factory=dict)
    _durable: dict[str, Node] = field(default_factory=dict)
    _pending: dict[str, list[Change]] = field(default_factory=lambda: defaultdict(list))
    _fds: dict[int, Node | str] = field(default_factory=dict)
    _armed: tuple[str, int] | None = None

    def mark_durable(self) -> None:
        """Make durable what is there already."""
        for directory, _, names in os.walk(self.root):
            for path in (os.path.join(directory, name) for name in names):
                with open(path, "rb") as file:
                    data = file.read()
                self._names[path] = self._durable[path] = Node(data, len(data))

    # what is there

    def content(self, path: str | os.PathLike[str]) -> bytes | None:
        """The bytes that a process reads, None if there is no file."""
        node = self._names.get(os.fspath(path))
        return None if node is None else node.data

    def durable(self, path: str | os.PathLike[str]) -> bytes | None:
        """The content after any power cut; None if there may be nothing, or something older."""
        path = os.fspath(path)
        node = self._durable.get(path)
        changed = any(path in (change.old, change.new) for change in self._pending[os.path.dirname(path)])
        return None if node is None or changed else node.data[: node.synced]

    def possible(self, path: str | os.PathLike[str]) -> list[bytes]:
        """The contents that are possible after a power cut, oldest first; no file is empty bytes."""
        path = os.fspath(path)
        nodes = [self._durable.get(path)]
        for change in self._pending[os.path.dirname(path)]:
            nodes += [change.node] * (change.new == path) + [None] * (change.old == path)
        return [b"" if node is None else node.data[: node.synced] for node in nodes]

    def paths(self) -> list[str]:
        """All names that a process sees."""
        return sorted(self._names)

    # faults

    @contextlib.contextmanager
    def recorded(self, fault: str = "", after: int = 0) -> Iterator[None]:
        """Record the changes of this block; the fault replaces the change after so many others."""
        self._armed = (fault, after) if fault else None
        replaced = {name: getattr(self, f"_{name}") for name in REAL}
        try:
            with mock.patch.multiple(os, **replaced):
                yield
        finally:
            self._armed = None

    def _step(self, call: str) -> None:
        if self.dead:
            raise Dead
        if self._armed is None:
            return
        fault, after = self._armed
        if fault == "enospc" and call not in GROWS:
            return
        self._armed = (fault, after - 1)
        if after == 0:
            self.struck[fault] += 1
            self._armed = None
            if fault in ERRORS:
                raise OSError(ERRORS[fault], f"modelled, at {call}")
            self.dead = True
            raise Dead

    def revive(self) -> None:
        """Start another process."""
        self.dead = False

    def power_cut(self, rng: random.Random) -> None:
        """Kill all processes; leave the files in one of the states that are possible."""
        kept, whole = rng.choice((0.0, 0.5, 1.0)), rng.choice((0.0, 0.5, 1.0))
        names = dict(self._durable)
        for changes in self._pending.values():
            for change in changes:
                if rng.random() < kept:
                    self._apply(change, names)
        for path in self._names:
            REAL["unlink"](path)
        survived = {id(node): _survivor(node, whole, rng) for node in names.values()}
        self._names = {path: survived[id(node)] for path, node in names.items()}
        for path, node in self._names.items():
            with open(path, "wb") as file:
                file.write(node.data)
        self._durable, self.dead = dict(self._names), True
        self._pending.clear()
        self._fds.clear()

    @staticmethod
    def _apply(change: Change, names: dict[str, Node]) -> None:
        names.pop(change.old, None)
        if change.node is not None:
            names[change.new] = change.node

    def _change(self, old: str, new: str, node: Node | None) -> None:
        change = Change(old, new, node)
        self._apply(change, self._names)
        self._pending[os.path.dirname(new or old)].append(change)

    def _is_below(self, path: str) -> bool:
        return path == self.root or path.startswith(self.root + os.sep)

    # the calls

    def _open(self, name, flags, mode=0o777, *, dir_fd=None):
        path = _path(name, dir_fd)
        below = self._is_below(path)
        if below and flags & os.O_CREAT and path not in self._names:
            self._step("open")
        fd = REAL["open"](name, flags, mode, dir_fd=dir_fd)
        self._fds.pop(fd, None)
        if below and os.path.isdir(path):
            self._fds[fd] = path
        elif below:
            if path not in self._names:
                self._change("", path, Node())
            self._fds[fd] = self._names[path]
        return fd

    def _close(self, fd):
        self._fds.pop(fd, None)
        REAL["close"](fd)

    def _write(self, fd, data):
        node = self._fds.get(fd)
        if not isinstance(node, Node):
            return REAL["write"](fd, data)
        self._step("write")
        node.data += bytes(data)
        return REAL["write"](fd, data)

    def _fsync(self, fd):
        node = self._fds.get(fd, os.readlink(f"/proc/self/fd/{fd}"))  # a directory may have been opened before
        self._step("fsync")
        if isinstance(node, Node):
            node.synced = len(node.data)
        else:
            for change in self._pending.pop(node, ()):
                self._apply(change, self._durable)

    def _rename(self, old, new, *, src_dir_fd=None, dst_dir_fd=None):
        source = _path(old, src_dir_fd)
        if not self._is_below(source):
            REAL["rename"](old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            return
        self._step("rename")
        REAL["rename"](old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        self._change(source, _path(new, dst_dir_fd), self._names[source])

    def _link(self, old, new, *, src_dir_fd=None, dst_dir_fd=None, follow_symlinks=True):
        self._step("link")
        REAL["link"](old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=follow_symlinks)
        self._change("", _path(new, dst_dir_fd), self._names[_path(old, src_dir_fd)])

    def _unlink(self, name, *, dir_fd=None):
        path = _path(name, dir_fd)
        if path in self._names:
            self.watch(path)
            self._step("unlink")
            self._change(path, "", None)
        REAL["unlink"](name, dir_fd=dir_fd)

    def _mkdir(self, name, mode=0o777, *, dir_fd=None):
        self._step("mkdir")
        REAL["mkdir"](name, mode, dir_fd=dir_fd)

    def _listdir(self, path="."):
        """Names in a fixed order: the same choices lead to the same states again."""
        return sorted(REAL["listdir"](path))


def _path(name: object, dir_fd: int | None) -> str:
    """The absolute path of a name in an open directory."""
    if not isinstance(name, (str, os.PathLike)):
        return ""
    top = "" if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
    return os.path.normpath(os.path.join(top, name))


def _survivor(node: Node, whole: float, rng: random.Random) -> Node:
    """The part of a content that survives a power cut."""
    end = len(node.data)
    cut = end if rng.random() < whole else rng.randint(node.synced, end)
    zeros = rng.randint(0, end - cut) if rng.random() < 0.3 else 0  # the length was written, the blocks were not
    data = node.data[:cut] + bytes(zeros)
    return Node(data, len(data))
