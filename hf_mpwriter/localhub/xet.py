"""The Xet store: uploaded xorbs and shards, and how a sha256 becomes content again.

    ROOT/xet/
      xorbs/ab/ab12...        xorbs as uploaded, name = their hash (only its form is checked)
      shards/<sha256>         shards as uploaded, name = sha256 of the bytes; the in-memory index is built from them
      cache/                  cache of the server's own Xet client; may be deleted

A commit names content by sha256 and size only. The shard that the client uploaded before maps that sha256 to a file
hash and its runs of chunks. The real Xet client, inside this server and against this server's own CAS endpoints,
rebuilds the file. The file becomes a blob only if its size and sha256 match.

The client can also use a folder instead of a CAS (`local://`). This Hub does not offer one: only one process at a time
can lock such a folder, so a second uploader would fail, and its bytes could neither be counted nor hit by faults.

The two upload formats of the Xet client: the parts that a server must read.

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

import contextlib
import functools
import hashlib
import os
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from hf_mpwriter.localhub.errors import BadRequest
from hf_mpwriter.localhub.store import WritableStore

REBUILDS = 2  # concurrent downloads; each holds an API thread while it waits
CACHED_XORBS = 512
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

#: endpoint, token, its expiry as Unix time, headers
Access = tuple[str, str, int, dict[str, str]]


class XetStore:
    """Xorbs, shards and an index of their content."""

    def __init__(self, store: WritableStore, access: Callable[[], Access]) -> None:
        self.root = os.path.join(store.root, "xet")
        self._store = store
        self._access = access
        self._guard = threading.Lock()
        self._files: dict[str, FileRecord] = {}
        self._by_sha256: dict[str, str] = {}
        self._by_chunk: dict[str, str] = {}
        self._session: Any = None
        self._rebuilds = threading.BoundedSemaphore(REBUILDS)

    def load(self) -> None:
        """Build the index from the shards on disk."""
        folder = os.path.join(self.root, "shards")
        os.makedirs(folder, exist_ok=True)
        for name in sorted(os.listdir(folder), key=lambda name: os.stat(os.path.join(folder, name)).st_mtime_ns):
            with open(os.path.join(folder, name), "rb") as file:
                self._index(name, parse_shard(file.read()))

    def xorb_path(self, xorb: str) -> str:
        """Return the path of a xorb, present or not."""
        return os.path.join(self.root, "xorbs", xorb[:2], xorb)

    def add_xorb(self, xorb: str, temporary: str) -> bool:
        """Store an uploaded xorb; return False if it was stored already."""
        try:
            chunk_offsets(temporary)
        except ValueError as error:
            raise BadRequest(f"Invalid xorb: {error}") from None
        if os.path.exists(self.xorb_path(xorb)):
            return False
        self._store.disk.publish(temporary, self.xorb_path(xorb))
        return True

    def add_shard(self, data: bytes) -> None:
        """Store an uploaded shard whose xorbs are all stored."""
        try:
            shard = parse_shard(data)
        except ValueError as error:
            raise BadRequest(f"Invalid shard: {error}") from None
        for record in shard.files:
            for term in record.terms:
                self._check_term(term.xorb, term.first, term.end)
        name = hashlib.sha256(data).hexdigest()
        path = os.path.join(self.root, "shards", name)
        if not os.path.exists(path):
            self._store.disk.write(path, data)
        self._index(name, shard)

    def _check_term(self, xorb: str, first: int, end: int) -> None:
        try:
            offsets = self.offsets(xorb)
        except FileNotFoundError:
            raise BadRequest(f"Shard refers to an unknown xorb: {xorb}") from None
        if not first < end < len(offsets):
            raise BadRequest(f"Shard refers to chunks that xorb {xorb} does not have")

    def _index(self, name: str, shard: Shard) -> None:
        with self._guard:
            for record in shard.files:
                self._files[record.file_hash] = record
                if record.sha256:
                    self._by_sha256[record.sha256] = record.file_hash
            for chunk in shard.chunks:
                self._by_chunk.setdefault(chunk, name)

    def file(self, file_hash: str) -> FileRecord | None:
        """Return the record of a file, None if no shard has it."""
        return self._files.get(file_hash)

    def hash_of(self, sha256: str) -> str | None:
        """Return the Xet hash of content, None if it was not uploaded by Xet."""
        return self._by_sha256.get(sha256)

    def offsets(self, xorb: str) -> list[int]:
        """Return the offset of each chunk of a xorb, and the end of the last one."""
        return chunk_offsets(self.xorb_path(xorb))

    def shard_with(self, chunk: str) -> bytes | None:
        """Return a shard that lists a chunk, so that clients do not upload it again; None if there is none."""
        name = self._by_chunk.get(chunk)
        if name is None:
            return None
        with open(os.path.join(self.root, "shards", name), "rb") as file:
            return with_footer(file.read(), int(time.time()))

    def materialise(self, contents: Iterable[str]) -> None:
        """Rebuild what was uploaded by Xet and publish each blob whose size and sha256 match, all by one client."""
        records = {sha256: self._files[found] for sha256 in contents if (found := self.hash_of(sha256))}
        if not records:
            return
        targets = {sha256: self._store.disk.scratch() for sha256 in records}
        try:
            with self._rebuilds:
                self._download([(records[sha256], target) for sha256, target in targets.items()])
            for sha256, target in targets.items():
                self._store.blobs.adopt_lfs(target, sha256, records[sha256].size)
        finally:
            for target in targets.values():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(target)

    def _download(self, wanted: Iterable[tuple[FileRecord, str]]) -> None:
        """Rebuild files at some paths with the real Xet client; to start one costs more than a small file."""
        group = self._group("new_file_download_group")
        with group:
            for record, target in wanted:
                group.start_download_file(_info(record), target)

    def read(self, record: FileRecord, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes [start, end) of a file, as the real Xet client rebuilds them."""
        yield from self._group("new_download_stream_group").download_stream(_info(record), start=start, end=end)

    def _group(self, kind: str) -> Any:
        import hf_xet  # late: it reads the environment on import, and only a Hub with Xet needs it

        with self._guard:
            self._session = self._session or hf_xet.XetSession()
        endpoint, token, ends, headers = self._access()
        return getattr(self._session, kind)(
            endpoint=endpoint, token=token, token_expiry_unix_secs=ends, custom_headers=headers
        )


def _info(record: FileRecord) -> Any:
    import hf_xet

    return hf_xet.XetFileInfo(record.file_hash, record.size)


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


@functools.lru_cache(maxsize=CACHED_XORBS)
def chunk_offsets(path: str) -> list[int]:
    """Return the offset of each chunk of a xorb, which never changes, and the end of the last one."""
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
