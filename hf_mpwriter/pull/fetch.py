"""Fetch: one file from the Hub into the run directory, or nothing of it.

    Hub --pieces--> .hf_mpwriter/pulling/<digest of path and content> --digest fits--> renamed to its path
                     ^ what is here already comes first: of an earlier pull, or the file itself

Invariants:
- Nothing stands at the path but what was there, or the whole content, durable, with the digest that the Hub tells.
- A file that is here is replaced only by one that begins with all of it.
- A temporary file that an interrupted pull has left is continued. If the whole does not fit, it is fetched anew, once.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import random
import stat
import time
from collections.abc import Callable, Collection
from typing import Protocol, TypeVar

from hf_mpwriter.base.files import CHUNK, begins_with, git_hasher
from hf_mpwriter.base.verdicts import Refused, Split
from hf_mpwriter.push.classify import AnswerError, classify
from hf_mpwriter.push.client import Hub, Remote
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Place

PULLING = "pulling"  # directory of the temporary files, in the spool
TRIES = 5  # requests in a row that bring nothing of a file
TRIES_OF_QUESTIONS = 3  # whether the Hub can be reached at all
LONGEST_PAUSE = 16.0  # seconds between two of them; the first one is a second
CORRUPT = "what came does not have the digest that the Hub tells, and was thrown away; try again later"
DIFFERS = "it differs from the Hub's copy, and is left as it is; to have the Hub's, move it away"

Answer = TypeVar("Answer")


class Hasher(Protocol):
    """What tells a digest."""

    def update(self, data: bytes, /) -> object:
        """Take in what follows."""

    def hexdigest(self) -> str:
        """The digest of all so far."""


class CorruptError(Exception):
    """What the Hub sends has another digest than it tells."""


class DifferingError(Exception):
    """The local file is no beginning of the Hub's."""


def hasher_of(remote: Remote) -> Hasher:
    """What tells the digest of the Hub's copy: sha256, or git's id of a small regular file."""
    return hashlib.sha256() if remote.sha256 is not None else git_hasher(remote.size)


def expected(remote: Remote) -> str:
    """The digest of the Hub's copy."""
    return remote.oid if remote.sha256 is None else remote.sha256


def temporary_name(path: str, remote: Remote) -> str:
    """The name of the temporary file of a content: an interrupted pull goes on there."""
    name = hashlib.sha256(f"{path}\n{remote.size}\n{expected(remote)}".encode(errors="surrogateescape"))
    return name.hexdigest()[:32]


def remove_temporaries(spool: Spool, kept: Collection[str]) -> None:
    """Remove what interrupted pulls have left."""
    directory, found = spool.directory / PULLING, set[str]()
    with contextlib.suppress(OSError):
        found.update(directory.names())
    if found.isdisjoint(kept):
        disk.remove_tree(directory)
        return
    for name in found.difference(kept):
        disk.remove_tree(directory / name)


def feed_from(hasher: Hasher, fd: int, end: int) -> None:
    """Feed a hasher with the first `end` bytes of a file, or with fewer if it is shorter."""
    position = 0
    while position < end and (chunk := os.pread(fd, min(CHUNK, end - position), position)):
        hasher.update(chunk)
        position += len(chunk)


class Persistence:
    """Waits between requests that bring nothing."""

    def __init__(self, longest: float = math.inf, sleep: Callable[[float], object] = time.sleep) -> None:
        self._longest, self.sleep = longest, sleep

    def wait(self, error: Exception, failures: int, tries: int = TRIES) -> None:
        """Wait before the next try."""
        verdict = classify(error)
        wished = getattr(verdict, "after", None) or 0.0
        if isinstance(verdict, (Refused, Split)) or failures >= tries or wished > self._longest:
            raise error
        self.sleep(max(wished, random.uniform(0.5, 1.0) * min(2**failures, LONGEST_PAUSE)))  # noqa: S311

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """The answer to a question, which is asked a few times."""
        failures = 0
        while True:
            try:
                return question()
            except Exception as error:  # noqa: BLE001 - raised again, unless another try is worth while
                failures += 1
                self.wait(error, failures, TRIES_OF_QUESTIONS)


class Fetcher:
    """Brings files of one commit."""

    def __init__(
        self, hub: Hub, commit: str, spool: Spool, persistence: Persistence, came: Callable[[int], object]
    ) -> None:
        self._hub, self._commit, self._spool, self._persistence, self._came = hub, commit, spool, persistence, came

    def fetch(self, path: str, remote: Remote) -> None:
        """Bring one file."""
        place = self._spool.run / path
        temporary = self._spool.directory / PULLING / temporary_name(path, remote)
        disk.make_dirs(temporary.parent, durable=False)
        with contextlib.ExitStack() as stack:
            local = _open_local(place)
            if local is not None:
                stack.callback(os.close, local)
            fd = _open_temporary(temporary)
            stack.callback(os.close, fd)
            self._fill(fd, path, remote, local)
            if local is not None and not begins_with(fd, local):
                temporary.unlink()
                raise DifferingError(DIFFERS)
            disk.fsync(fd, "pull.file")
            disk.make_dirs(place.parent, 0o777)
            disk.move(temporary, place, "pull.file")

    def _fill(self, fd: int, path: str, remote: Remote, local: int | None) -> None:
        """Make the temporary file whole."""
        if os.fstat(fd).st_size > remote.size:
            os.ftruncate(fd, 0)
        if os.fstat(fd).st_size == 0 and local is not None:
            _copy(local, fd, remote.size)
        for _ in range(2):
            if self._is_filled(fd, path, remote):
                return
            os.ftruncate(fd, 0)
        raise CorruptError(CORRUPT)

    def _is_filled(self, fd: int, path: str, remote: Remote) -> bool:
        """Append what is missing; whether the whole has the digest of the Hub's copy."""
        failures = 0
        while (start := os.fstat(fd).st_size) < remote.size:
            self._came(start)
            try:
                self._append(fd, path, remote, start)
            except Exception as error:
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG):
                    raise
                failures = 0 if os.fstat(fd).st_size > start else failures + 1
                self._persistence.wait(error, failures)
        self._came(remote.size)
        hasher = hasher_of(remote)
        feed_from(hasher, fd, remote.size + 1)
        return os.fstat(fd).st_size == remote.size and hasher.hexdigest() == expected(remote)

    def _append(self, fd: int, path: str, remote: Remote, start: int) -> None:
        with self._hub.download(path, self._commit, start, remote.size) as (first, pieces):
            position = first
            os.ftruncate(fd, position)
            for piece in pieces:
                os.lseek(fd, position, os.SEEK_SET)
                disk.write_all(fd, piece)
                position += len(piece)
                self._came(min(position, remote.size))
                if position > remote.size:
                    break
        if position <= start:
            raise AnswerError(f"the answer has nothing behind byte {start} of {remote.size}")


def _open_local(place: Place) -> int | None:
    """The file at a place, None if there is none."""
    try:
        return disk.open_beneath(place)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (*disk.NOT_REGULAR, errno.ENOTDIR):
            raise DifferingError(f"something that is no regular file is in its place: {error.strerror}") from error
        raise


def _open_temporary(place: Place) -> int:
    """A temporary file, as an earlier pull left it; its mode is that of an event file."""
    fd = place.open(os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "Not a regular file", str(place))
    return fd


def _copy(source: int, target: int, limit: int) -> None:
    """Copy at most `limit` bytes of a file into an empty one."""
    position = 0
    while position < limit and (chunk := os.pread(source, min(CHUNK, limit - position), position)):
        disk.write_all(target, chunk)
        position += len(chunk)
