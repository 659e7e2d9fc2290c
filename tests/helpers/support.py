"""Event files, failpoints, limits of this process, and JSON of any shape."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import signal
import stat
from collections.abc import Iterator

from hypothesis import strategies as st
from tensorboardX.proto import event_pb2

from hf_mpwriter.events import framing
from hf_mpwriter.system import failpoints


@contextlib.contextmanager
def failing(failpoint: str) -> Iterator[None]:
    """Failpoints in this process."""
    failpoints.armed.update(failpoints.parse(failpoint))
    try:
        yield
    finally:
        failpoints.armed.clear()


def limit_files(size: int) -> None:
    """Keep each file of this process below `size` bytes: a short write, then EFBIG."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def unlimit_files() -> None:
    """Lift the limit again."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@contextlib.contextmanager
def full_disk(room: int) -> Iterator[None]:
    """A disk with room for so many more bytes in regular files: a short write, then ENOSPC."""
    write = os.write

    def write_into(fd: int, data: bytes) -> int:
        nonlocal room
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return write(fd, data)
        if not room and len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(fd, data[:room])
        room -= written
        return written

    os.write = write_into
    try:
        yield
    finally:
        os.write = write


def scalar(step: int, tag: str = "loss", value: float = 0.5) -> bytes:
    """Payload of one scalar."""
    return framing.ScalarEncoder(tag).record(1.0, step, value)[framing.HEADER_SIZE : -framing.FOOTER_SIZE]


def events(path: str | os.PathLike) -> list[event_pb2.Event]:
    """The events of a file, which must consist of whole records."""
    path = os.fspath(path)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert framing.whole_length(fd) == os.path.getsize(path), f"{path} is torn"
    finally:
        os.close(fd)
    return [event_pb2.Event.FromString(payload) for payload in framing.payloads(path)]


def keys(path: str | os.PathLike) -> list[tuple[str, int]]:
    """(tag, step) of each scalar of a file, in file order."""
    return [(value.tag, event.step) for event in events(path) for value in event.summary.value]


def event_file(path: str | os.PathLike, count: int, tag: str = "loss") -> int:
    """Write an event file of `count` scalars; return its length."""
    data = framing.frame(framing.version_event(1.0)) + b"".join(framing.frame(scalar(n, tag)) for n in range(count))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
    return len(data)


def open_descriptors() -> set[int]:
    """The descriptors of this process."""
    return {int(name) for name in os.listdir("/proc/self/fd")}


def dump(path: str | os.PathLike, content: object) -> None:
    """Write JSON."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=5,
)
