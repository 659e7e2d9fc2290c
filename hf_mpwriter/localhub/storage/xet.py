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
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from hf_mpwriter.localhub.errors import BadRequest
from hf_mpwriter.localhub.storage.blobs import make_dirs
from hf_mpwriter.localhub.storage.shards import FileRecord, Shard, chunk_offsets, parse_shard, with_footer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from hf_mpwriter.localhub.storage.writing import WritableStore

REBUILDS = 2  # concurrent downloads; each holds an API thread while it waits
CACHED_XORBS = 512

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
        make_dirs(folder)
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

    def add_shard(self, data: bytes) -> bool:
        """Store an uploaded shard whose xorbs are all stored; return False if it was stored already."""
        try:
            shard = parse_shard(data)
        except ValueError as error:
            raise BadRequest(f"Invalid shard: {error}") from None
        for record in shard.files:
            for term in record.terms:
                self._check_term(term.xorb, term.first, term.end)
        name = hashlib.sha256(data).hexdigest()
        path = os.path.join(self.root, "shards", name)
        is_new = not os.path.exists(path)
        if is_new:
            self._store.disk.write(path, data)
        self._index(name, shard)
        return is_new

    def _check_term(self, xorb: str, first: int, end: int) -> None:
        """Refuse a run of chunks that is not stored."""
        try:
            offsets = self.offsets(xorb)
        except FileNotFoundError:
            raise BadRequest(f"Shard refers to an unknown xorb: {xorb}") from None
        if not first < end < len(offsets):
            raise BadRequest(f"Shard refers to chunks that xorb {xorb} does not have")

    def _index(self, name: str, shard: Shard) -> None:
        """Add a shard to the index."""
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
        return _cached_offsets(self.xorb_path(xorb))

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
        import hf_xet  # late: it reads the environment on import, and only a Hub with Xet needs it

        with self._guard:
            self._session = self._session or hf_xet.XetSession()
        endpoint, token, ends, headers = self._access()
        group = self._session.new_file_download_group(
            endpoint=endpoint, token=token, token_expiry_unix_secs=ends, custom_headers=headers
        )
        with group:
            for record, target in wanted:
                group.start_download_file(hf_xet.XetFileInfo(record.file_hash, record.size), target)


@functools.lru_cache(maxsize=CACHED_XORBS)
def _cached_offsets(path: str) -> list[int]:
    """Read the chunk headers of a xorb; published xorbs never change, so the cache never goes stale."""
    return chunk_offsets(path)
