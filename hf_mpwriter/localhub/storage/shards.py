"""The two upload formats of the Xet client: the parts that a server must read.

A xorb is a sequence of compressed chunks; a footer may follow:

    version u8 | compressed length u24 | scheme u8 | uncompressed length u24 | compressed bytes

A shard is a header of 48 bytes followed by records of 48 bytes, little-endian, each a hash and four u32:

    file     hash of the file  | flags | number of terms | - | -
    term     hash of a xorb    | flags | uncompressed bytes | first chunk | chunk after the last    (one per term)
    proof    range hash        | - | - | - | -                             (one per term, if WITH_PROOFS is set)
    sha256   of the file       | - | - | - | -                             (if WITH_SHA256 is set)
    ...
    bookend  all ones
    xorb     hash of a xorb    | flags | number of chunks | uncompressed bytes | bytes on disk
    chunk    hash of a chunk   | offset | uncompressed bytes | flags | -                            (one per chunk)
    ...
    bookend  all ones

A shard that the server returns ends with a footer of 200 bytes: version u64; the offsets of files and xorbs; offset
and length of three lookup tables (all empty); a key of 32 bytes (none); creation and expiry time; nine more u64; the
offset of the footer itself.

The text form of a hash, the sha256 included, is four groups of eight bytes, each in reverse byte order.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER_BYTES = 48
TAG = b"HFRepoMetaData\0"
WITH_PROOFS = 1 << 31
WITH_SHA256 = 1 << 30
GLOBAL_DEDUP = 1 << 31
FOREVER = (1 << 64) - 1

_RECORD = struct.Struct("<32s4I")
_BOOKEND = b"\xff" * 32
_CHUNK_HEADER_BYTES = 8
_FOOTER_TAG = b"XETBLOB"


@dataclass(frozen=True, slots=True)
class Term:
    """A run of chunks of one xorb."""

    xorb: str
    size: int
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class FileRecord:
    """The terms of a file, and the sha256 that its uploader claims."""

    file_hash: str
    terms: tuple[Term, ...]
    sha256: str | None

    @property
    def size(self) -> int:
        """The size of the file in bytes."""
        return sum(term.size for term in self.terms)


@dataclass(frozen=True, slots=True)
class Shard:
    """The content of a shard: files, and the chunks that other uploads may look up."""

    files: tuple[FileRecord, ...]
    chunks: tuple[str, ...]


def hash_text(raw: bytes) -> str:
    """Return the text form of a hash."""
    return "".join(f"{group:016x}" for group in struct.unpack("<4Q", raw))


def parse_shard(data: bytes) -> Shard:
    """Parse a shard."""
    if not data.startswith(TAG):
        raise ValueError("not a shard")
    try:
        records = _RECORD.iter_unpack(data[HEADER_BYTES : len(data) - (len(data) - HEADER_BYTES) % _RECORD.size])
        return Shard(tuple(_files(records)), tuple(_chunks(records)))
    except (struct.error, StopIteration, RuntimeError) as error:
        raise ValueError("shard ends too early") from error


def _files(records: Iterator[tuple[bytes, int, int, int, int]]) -> Iterator[FileRecord]:
    """Yield the files of a shard, up to the bookend."""
    for raw, flags, count, _, _ in records:
        if raw == _BOOKEND:
            return
        terms = []
        for _ in range(count):
            xorb, _, size, first, end = next(records)
            terms.append(Term(hash_text(xorb), size, first, end))
        if flags & WITH_PROOFS:
            for _ in range(count):
                next(records)
        sha256 = hash_text(next(records)[0]) if flags & WITH_SHA256 else None
        yield FileRecord(hash_text(raw), tuple(terms), sha256)
    raise ValueError("shard ends too early")


def _chunks(records: Iterator[tuple[bytes, int, int, int, int]]) -> Iterator[str]:
    """Yield the chunks that other uploads may look up: marked ones, and the first of each xorb."""
    for raw, _, count, _, _ in records:
        if raw == _BOOKEND:
            return
        for number in range(count):
            chunk, _, _, flags, _ = next(records)
            if number == 0 or flags & GLOBAL_DEDUP:
                yield hash_text(chunk)


def with_footer(data: bytes, now: int) -> bytes:
    """Return an uploaded shard with a footer: uploads have none, but clients need it to read a shard."""
    files_end = HEADER_BYTES
    for raw, *_ in _RECORD.iter_unpack(data[HEADER_BYTES:]):
        files_end += _RECORD.size
        if raw == _BOOKEND:
            break
    end = len(data)
    places = (1, HEADER_BYTES, files_end, end, 0, end, 0, end, 0)
    footer = struct.pack("<9Q32s12Q", *places, bytes(32), now, FOREVER, *(0,) * 9, end)
    return data[: HEADER_BYTES - 8] + struct.pack("<Q", len(footer)) + data[HEADER_BYTES:] + footer


def chunk_offsets(path: str) -> list[int]:
    """Return the offset of each chunk of a xorb, and the end of the last one."""
    offsets = [0]
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        while offsets[-1] < size:
            file.seek(offsets[-1])
            header = file.read(_CHUNK_HEADER_BYTES)
            if header.startswith(_FOOTER_TAG):
                break
            if len(header) < _CHUNK_HEADER_BYTES or header[0] != 0:
                raise ValueError("not a xorb")
            offsets.append(offsets[-1] + _CHUNK_HEADER_BYTES + int.from_bytes(header[1:4], "little"))
    if offsets[-1] > size or len(offsets) == 1:
        raise ValueError("xorb ends too early")
    return offsets
