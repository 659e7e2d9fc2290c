"""Targets: how a file gets into a logdir that is a mount (`posix`), or a URL (`remote`).

    what is there               is
    nothing                     written
    as long as ours             taken for ours: the names of event files are unique
    shorter, and begins ours    written again as a whole: a copy was killed, or brought the beginning that was known
    longer, and begins with it  taken: another machine, whose file it is, has brought more of it
    another embedding           written again as a whole, see `outgoing`; but their list only if it begins ours
    anything else               left alone, and reported

Invariants:
- No other code touches the logdir.
- A logdir gets `.hf_mpwriter/ELSEWHERE` before its first event file. It names host and directory from which the last
  files came, unless the store refuses. What lies in a folder below that has the name of a spool is of another run, and
  is not listed.
- No event file that was whole is written again, and none is replaced by less of it. Of another machine, which may come
  back meanwhile, one is renamed into its place only if that is as it was before it was compared. Where no rename is, on
  a URL too, it comes only if nothing is there; only what that machine puts while this is uploaded is not seen.
- What cannot be read here, or is refused there, keeps no file of another writer back.
- Sources are read up to the length of the item, and have at least that length.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from typing import Protocol

from hf_mpwriter.base.names import is_config, is_embedding
from hf_mpwriter.spool.copies import Item
from hf_mpwriter.system import disk, redaction
from hf_mpwriter.system.directory import Directory
from hf_mpwriter.system.filesystem import is_gone, reason_of
from hf_mpwriter.system.process import READ_LIMIT

CHUNK = 1 << 20  # bytes that are read at once
LONGEST_PLACE = 16 << 10  # bytes that are read of what names a place
REFUSED = (  # a person has to help
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.ENOENT, errno.ENOTDIR),
)
REFUSED_NAMES = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EFBIG, errno.EISDIR, errno.ELOOP, errno.EINVAL)
UNREACHABLE = (  # the next file would wait as long for the same
    errno.ETIMEDOUT,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EMFILE,
    errno.ENOMEM,
)


class ConflictError(Exception):
    """Something else is in the place of a file."""


class UnreadableError(OSError):
    """A file of the run directory cannot be read; the logdir is not at fault."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.errno, f"it cannot be read here: {error.strerror or error}", error.filename)


class CopySource:
    """The beginning of a file of the run directory."""

    def __init__(self, run: Directory, item: Item) -> None:
        self.path, self.length, self.theirs = item.path, item.length, item.theirs
        try:
            self._fd = disk.open_beneath(run / item.path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UnreadableError(error) from error
        self.mode = os.fstat(self._fd).st_mode & 0o777

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)

    def chunks(self) -> Iterator[bytes]:
        """The content, in pieces."""
        start = 0
        while start < self.length:
            if not (chunk := self._read(min(CHUNK, self.length - start), start)):
                raise UnreadableError(OSError(errno.EIO, "it is shorter than it was", self.path))
            yield chunk
            start += len(chunk)

    def agrees_with(self, pieces: Iterator[bytes]) -> bool:
        """Whether it is equal to what these pieces hold together, as far as the shorter of both goes."""
        start = 0
        for piece in pieces:
            if self._read(min(len(piece), self.length - start), start) != piece[: self.length - start]:
                return False
            start += len(piece)
            if start >= self.length:
                break
        return True

    def _read(self, size: int, start: int) -> bytes:
        try:
            return os.pread(self._fd, min(size, READ_LIMIT), start)
        except OSError as error:
            raise UnreadableError(error) from error


class Target(Protocol):
    """A logdir."""

    def length(self, path: str) -> int | None:
        """Bytes of a file, None if there is none."""

    def files(self) -> dict[str, int]:
        """Bytes of all files, per path relative to the logdir; nothing of a spool, of another run, and of no link."""

    def put(self, source: CopySource, there: int | None) -> None:
        """Write a file as a whole, where so many bytes of it were seen, None if it was not there."""

    def last_place(self) -> bytes:
        """What `.hf_mpwriter/ELSEWHERE` holds, its beginning if it is long."""

    def name_place(self, data: bytes) -> None:
        """Have `.hf_mpwriter/ELSEWHERE` hold this."""

    def pieces(self, path: str) -> Iterator[bytes]:
        """The content of a file; many threads may read one each."""

    def clean(self, directory: str) -> None:
        """Remove temporary files of copies that were killed."""


def without_other_runs(files: dict[str, int], others: Iterable[str]) -> dict[str, int]:
    """Files without those in the folders of other runs."""
    folders = tuple(f"{folder}/" for folder in others)
    return {path: size for path, size in files.items() if not path.startswith(folders)}


def only_grows(path: str) -> bool:
    """Whether a file only grows: an event file, or a list of embeddings. Other embeddings are written again."""
    return is_config(path) or not is_embedding(path)


def bring(target: Target, source: CopySource) -> int | None:
    """Have a file in the logdir; the bytes of it that were there before, None if it was written."""
    there = target.length(source.path)
    if there == source.length and not is_embedding(source.path):
        return there
    if not only_grows(source.path):
        is_there = there == source.length and source.agrees_with(target.pieces(source.path))
    elif there and not source.agrees_with(target.pieces(source.path)):
        raise ConflictError(f"another file is there, of {there} bytes; the one here has {source.length}")
    else:
        is_there = there is not None and there >= source.length
    if is_there:
        return there
    try:
        target.put(source, there)
    except PermissionError:
        if there is None:
            raise
        raise ConflictError(f"{there} bytes of it are there, and may not be replaced; remove that file") from None
    return None


def check_place(target: Target, source: CopySource, there: int | None) -> None:
    """Refuse a file of another machine if something else is in its place than was seen: that machine has come back."""
    if source.theirs and target.length(source.path) != there:
        raise BlockingIOError(errno.EAGAIN, "what is in its place has changed meanwhile")


def check_is_free(target: Target, source: CopySource, there: int | None) -> None:
    """Refuse an event file of another machine where something is in its place, which no rename replaces."""
    if source.theirs and there is not None and not is_embedding(source.path):
        helps = "if none does, remove that file"
        raise ConflictError(f"{there} bytes of it are there, and another machine may bring more; {helps}")
    check_place(target, source, there)


def is_refusal(error: BaseException) -> bool:
    """Whether the same error comes again until a person does something."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (*REFUSED, *REFUSED_NAMES)
    return isinstance(error, PermissionError | FileNotFoundError | ImportError | ValueError)


def is_of_one_file(error: OSError) -> bool:
    """Whether an error may be of one file only, so that others are worth a try."""
    return not is_gone(error) and error.errno not in UNREACHABLE


def describe(error: BaseException) -> str:
    """An error in one line, without secrets."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = reason_of(error)
    elif not isinstance(error, OSError):
        text = f"{type(error).__name__}: {text}"
    return redaction.redact_known(" ".join(text.split()))[:300]
