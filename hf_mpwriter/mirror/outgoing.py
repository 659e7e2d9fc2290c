"""Outgoing: what is final here, and not in the logdir: event files, and the files of `add_embedding`.

    event files    final when they never grow again: sealed, or their worker has closed or died. One that is not ours
                   counts once it has not changed for a while, or when no worker lives
    embeddings     `projector_config.pbtxt` grows, the others may be written again: brought as often as they change

TensorBoard reads the files of the projector anew at each request, so these may be replaced under their names.

Invariants:
- Of the files of one writer, one gets to the logdir only when all earlier ones are there. Those of other machines
  hold up none.
- Of a file that changes while it is copied, the next scan brings what it has become.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from hf_mpwriter.base.files import LocalFile, digest, feed, git_hasher
from hf_mpwriter.base.names import is_embedding, is_event_file, is_ours, is_worker
from hf_mpwriter.snapshot.attachments import stamp_of
from hf_mpwriter.snapshot.event_files import EventFileScan, pending
from hf_mpwriter.snapshot.search import Named, RunSearch, Statuses
from hf_mpwriter.spool.copies import Item
from hf_mpwriter.spool.staging import length
from hf_mpwriter.spool.workers.member_lines import Member
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Directory, Place

BLIND_SCANS = 5  # in a row that wait for a file that cannot be read: later ones of its writer must not pass it


class OutgoingFiles:
    """The files of one run directory that are to go to its logdir; `known`: bytes that were seen there before."""

    def __init__(self, run: Directory, known: Callable[[str], int]) -> None:
        self._run = run
        self._event_files = EventFileScan(run, known, foreign_bytes=math.inf, seconds=math.inf)
        self._embedded: dict[str, LocalFile] = {}
        self._final: list[LocalFile] = []
        self._held: frozenset[str] = frozenset()
        self._theirs: Collection[str] = ()
        self.forget()

    def forget(self) -> None:
        """Believe nothing of what is known to be there."""
        self.there: dict[str, int] = {}  # bytes per path
        self._waiting: list[Item] | None = None  # None if it has to be found anew

    def scan(
        self, members: Collection[Member], growing: Callable[[], Collection[str]], theirs: Collection[str] = ()
    ) -> None:
        """See which files are final; OSError while one cannot be read.

        `growing`: what living members have open; `theirs`: what other machines have written.
        """
        alone = not any(member.alive and is_worker(member.name.worker) for member in members)
        open_then = {path for member in members for path in member.growing if is_ours(os.path.basename(path))}
        # what is open is not parsed: it may be long
        named = Named(frozenset(self.there).union(*(member.files for member in members)))
        files = self._event_files.files(lambda path: path not in open_then, growing, BLIND_SCANS, named)
        files += self._embeddings()
        settled = self._event_files.settled(time.time()) | self._embedded.keys()
        final = [LocalFile(path, 0, growing=True) for path in open_then | set(growing())]
        for file in files:
            if is_ours(os.path.basename(file.path)):
                final += [] if file.growing else [file]
            elif alone or file.path in settled:
                final.append(replace(file, growing=False))
        self._final, self._waiting, self._theirs = final, None, theirs

    def _embeddings(self) -> list[LocalFile]:
        found = {}
        with Statuses(self._run) as statuses:
            for path in filter(is_embedding, RunSearch(self._run)):
                with contextlib.suppress(OSError):  # removed since it was listed
                    before, stamp = self._embedded.get(path), stamp_of(statuses.of(path))
                    file = before if before and before.stamp == stamp else _read(statuses.place(path), path, stamp)
                    if before and before.sha256 != file.sha256:
                        self.there.pop(path, None)
                    found[path] = file
        self._embedded = found
        return list(found.values())

    def arrived(self, path: str, size: int) -> None:
        """Note that a file is there, whole."""
        self.there[path] = size
        self._waiting = None

    def listed(self, files: Mapping[str, int]) -> dict[str, int]:
        """Note what is there; the event files that are as long as here. Embeddings are compared by a copy."""
        same = {
            path: size
            for path, size in files.items()
            if size and is_event_file(os.path.basename(path)) and length(self._run / path) == size
        }
        self.there |= same
        self._waiting = None
        return same

    def waiting(self, held: frozenset[str]) -> list[Item]:
        """What is to be brought, in an order of which any prefix may be there; not what is held, nor what follows."""
        if self._waiting is None or held != self._held:
            covers = lambda file: file.growing or file.length <= self.there.get(file.path, 0)  # noqa: E731
            found = pending(self._final, covers, held, self._theirs)
            self._held = held
            self._waiting = [Item(file.path, file.length, file.path in self._theirs) for file in found]
        return self._waiting


def _read(place: Place, path: str, stamp: tuple[int, ...]) -> LocalFile:
    """An embedding by its content; OSError if it cannot be read."""
    fd = disk.open_beneath(place)
    try:
        size = os.fstat(fd).st_size
        return LocalFile(path, size, False, digest(fd, size), feed(git_hasher(size), fd, size), stamp)
    finally:
        os.close(fd)
