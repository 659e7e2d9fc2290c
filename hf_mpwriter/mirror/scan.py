"""What a mirror finds in its run directory: event files, and the files of `add_embedding`.

    event files    see `EventFileScan`: final at some time, and never changed after that
    embeddings     `projector_config.pbtxt` grows, the others may be written again: brought as often as they change

TensorBoard reads the files of the projector anew at each request, so these may be replaced under their names.

Invariant: of a file that changes while it is copied, the next scan brings what it has become.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Collection

from hf_mpwriter.base.files import LocalFile, git_hasher
from hf_mpwriter.base.names import is_embedding
from hf_mpwriter.snapshot.attachments import CHUNK, stamp_of
from hf_mpwriter.snapshot.event_files import EventFileScan, Statuses, walk
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Directory, Place


class MirrorScan(EventFileScan):
    """Scans the files that go to the logdir."""

    def __init__(self, run: Directory, known: Callable[[str], int], changed: Callable[[str], object]) -> None:
        super().__init__(run, known)
        self._directory, self._changed = run, changed
        self._embedded: dict[str, LocalFile] = {}

    def files(
        self, allows: Callable[[str], bool], growing: Callable[[], Collection[str]], patience: int = 0
    ) -> list[LocalFile]:
        """All event files with whole records, then the embeddings; for arguments and errors see `EventFileScan`."""
        return super().files(allows, growing, patience) + self._embeddings()

    def _embeddings(self) -> list[LocalFile]:
        found = {}
        with Statuses(self._directory) as statuses:
            for path in filter(is_embedding, walk(self._directory)):
                with contextlib.suppress(OSError):  # removed since it was listed
                    before, stamp = self._embedded.get(path), stamp_of(statuses.of(path))
                    file = before if before and before.stamp == stamp else _read(statuses.place(path), path, stamp)
                    if before and before.sha256 != file.sha256:
                        self._changed(path)
                    found[path] = file
        self._embedded = found
        return list(found.values())

    def settled(self, now: float) -> set[str]:
        """The files that may go now, and are not ours: those that have not changed for a while, and embeddings."""
        return super().settled(now) | self._embedded.keys()


def _read(place: Place, path: str, stamp: tuple[int, ...]) -> LocalFile:
    """A file by its content; OSError if it cannot be read."""
    fd = disk.open_beneath(place)
    try:
        size = os.fstat(fd).st_size
        sha256, blob, position = hashlib.sha256(), git_hasher(size), 0
        while chunk := os.pread(fd, min(CHUNK, size - position), position):
            sha256.update(chunk)
            blob.update(chunk)
            position += len(chunk)
        return LocalFile(path, position, False, sha256.hexdigest(), blob.hexdigest(), stamp)
    finally:
        os.close(fd)
