"""The Xet store: what clients uploaded as xorbs and shards, and the way from a sha256 back to content.

    ROOT/xet/
      xorbs/ab/ab12...        xorbs as uploaded, name = their hash (checked in form only)
      shards/<sha256>         shards as uploaded, name = sha256 of the bytes; the index below is read from them
      cache/                  what the Xet client of the server itself keeps; may be deleted

A commit names content by sha256 and size only. The shard that the client uploaded just before says which file hash
and which runs of chunks belong to that sha256. The real Xet client, run inside this server against this server's own
CAS endpoints, puts the file together; it becomes a blob only if size and sha256 are right.

The client can also be told to use a folder in place of a CAS (`local://`). This Hub does not: such a folder is locked
by one process at a time, so a second uploader fails at once, and no byte of it can be counted or disturbed.
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
    from collections.abc import Callable

    from hf_mpwriter.localhub.storage.writing import WritableStore

REBUILDS = 2  # at a time; each holds a thread of the API while it waits
CACHED_XORBS = 512

#: endpoint, token, unix time of its end, headers
Access = tuple[str, str, int, dict[str, str]]


class XetStore:
    """Xorbs, shards and the index of both."""

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
        """Return where a xorb is or will be."""
        return os.path.join(self.root, "xorbs", xorb[:2], xorb)

    def add_xorb(self, xorb: str, temporary: str) -> bool:
        """Keep an uploaded xorb; return False if it was here already."""
        try:
            chunk_offsets(temporary)
        except ValueError as error:
            raise BadRequest(f"Invalid xorb: {error}") from None
        if os.path.exists(self.xorb_path(xorb)):
            return False
        self._store.disk.publish(temporary, self.xorb_path(xorb))
        return True

    def add_shard(self, data: bytes) -> bool:
        """Keep an uploaded shard whose xorbs are all here; return False if it was here already."""
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
        """Refuse a run of chunks that is not here."""
        try:
            offsets = self.offsets(xorb)
        except FileNotFoundError:
            raise BadRequest(f"Shard refers to an unknown xorb: {xorb}") from None
        if not first < end < len(offsets):
            raise BadRequest(f"Shard refers to chunks that xorb {xorb} does not have")

    def _index(self, name: str, shard: Shard) -> None:
        """Make the content of a shard findable."""
        with self._guard:
            for record in shard.files:
                self._files[record.file_hash] = record
                if record.sha256:
                    self._by_sha256[record.sha256] = record.file_hash
            for chunk in shard.chunks:
                self._by_chunk.setdefault(chunk, name)

    def file(self, file_hash: str) -> FileRecord | None:
        """Return how a file is put together."""
        return self._files.get(file_hash)

    def hash_of(self, sha256: str) -> str | None:
        """Return the Xet hash of content, None if it never came by Xet."""
        return self._by_sha256.get(sha256)

    def offsets(self, xorb: str) -> list[int]:
        """Return where each chunk of a xorb begins and the last one ends."""
        return _cached_offsets(self.xorb_path(xorb))

    def shard_with(self, chunk: str) -> bytes | None:
        """Return a shard that knows a chunk, so that a client need not upload it again."""
        name = self._by_chunk.get(chunk)
        if name is None:
            return None
        with open(os.path.join(self.root, "shards", name), "rb") as file:
            return with_footer(file.read(), int(time.time()))

    def materialise(self, sha256: str) -> None:
        """Make content that came by Xet a blob, if it is here and is what it claims to be."""
        file_hash = self.hash_of(sha256)
        record = self.file(file_hash) if file_hash else None
        if record is None:
            return
        target = self._store.disk.scratch()
        try:
            with self._rebuilds:
                self._download(record, target)
            self._store.blobs.adopt_lfs(target, sha256, record.size)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(target)

    def _download(self, record: FileRecord, target: str) -> None:
        """Put a file together with the real Xet client."""
        import hf_xet  # it reads the environment when loaded, and only a Hub with Xet needs it

        with self._guard:
            self._session = self._session or hf_xet.XetSession()
        endpoint, token, ends, headers = self._access()
        group = self._session.new_file_download_group(
            endpoint=endpoint, token=token, token_expiry_unix_secs=ends, custom_headers=headers
        )
        with group:
            group.start_download_file(hf_xet.XetFileInfo(record.file_hash, record.size), target)


@functools.lru_cache(maxsize=CACHED_XORBS)
def _cached_offsets(path: str) -> list[int]:
    """Read the chunk headers of a xorb; published xorbs never change."""
    return chunk_offsets(path)
