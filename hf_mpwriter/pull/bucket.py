"""The reader of a bucket's event file: what it has in addition is appended to the local one, record by record.

    here     records ............. |torn
    bucket   records ............. |record|record|tor
             compared: the last bytes   appended: record|record

Invariants:
- A file here ends with a whole record, or with a beginning of the next one, which what comes then completes.
- Nothing is appended but whole records, by one write for each piece, to a file that ends as the bucket's does there.
- What a bucket announces is never held: a piece at most, or one record of LONGEST bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from hf_mpwriter.events import framing
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Place

PIECE = 8 << 20  # bytes that are asked for at once
LONGEST = framing.HELD  # bytes of a record; what has longer ones comes with the repository
OVERLAP = 64  # bytes of whole records that are compared: the checksum of the last one is among them, names are unique


class UnfitError(Exception):
    """A bucket's event file has something that is not appended."""


Read = Callable[[int, int], bytes]  # bytes of the bucket's file, from an offset, so many at most


def extend(place: Place, length: int, read: Read, known: int = 0) -> int | None:
    """Append the whole records that a bucket's file has, which is so long, as far as `read` goes.

    Where the whole records here end then, None if the bucket's file does not continue what is here. `known`: where some
    end, as an earlier call said. UnfitError if what comes is not a record, or too long a one.
    """
    fd = -1
    try:
        fd, end = _opened(place, known)
        while end < length:
            start = max(0, end - OVERLAP)
            data = _records(read, start, end, length)
            if not _is_same(fd, data, start):
                return None
            used, needed = framing.whole_records(data[end - start :])
            if not used and needed < 0:
                raise UnfitError(f"what comes after {end} bytes is not a record")
            if not used:
                break
            if fd < 0:
                fd = disk.open_beneath(place, os.O_RDWR | os.O_CREAT)
            os.lseek(fd, end, os.SEEK_SET)
            disk.write_all(fd, data[end - start : end - start + used])
            end += used
        return end
    finally:
        if fd >= 0:
            os.close(fd)


def _opened(place: Place, known: int) -> tuple[int, int]:
    """The file here, -1 if there is none, and where its whole records end."""
    try:
        fd = disk.open_beneath(place, os.O_RDWR)
    except FileNotFoundError:
        return -1, 0
    try:
        return fd, framing.whole_length(fd, known)
    except BaseException:
        os.close(fd)
        raise


def _records(read: Read, start: int, end: int, length: int) -> bytes:
    """A piece that has one whole record after `end` at least, if the file has one."""
    data = read(start, min(PIECE, length - start))
    used, needed = framing.whole_records(data[end - start :])
    if used or needed <= len(data) - (end - start) or end + needed > length:
        return data
    if needed > LONGEST:
        raise UnfitError(f"it has a record of {needed} bytes, which comes with the repository only")
    return read(start, end - start + needed)


def _is_same(fd: int, data: bytes, start: int) -> bool:
    """Whether what is here, but for zeros of a power cut, is what the bucket has."""
    here = os.pread(fd, len(data), start).rstrip(b"\0") if fd >= 0 else b""
    return data.startswith(here)
