"""The outbox: batches of event files that wait to be sent, and the batch that is in flight.

    hosts/<host>/outbox/00000042.json   {"number": 42, "files": [{"path": "events.out...", "length": 4711,
                                                                  "growing": true, ...}, ...]}
    hosts/<host>/in_flight.json         {"batch": 42, "fenced": true, "attachments": [...]}    while a push carries it

A batch is an intention. It can be derived again from the files of the run directory and the ledger, which are the
truth: if the disk refuses a batch, the uploader goes on from memory. Attachments are not kept here; their batches are
made one at a time and live in memory, see `uploader/lanes`.

Invariants:
- A batch refers only to bytes that are durable in event files; `put` syncs them first. After an fsync that has failed,
  the next one is believed: only the writer of the file can write the bytes again.
- A batch is written once. A newer one is durable before an older one is removed. A batch is removed only after the
  ledger or a newer batch covers it, or when one of its files is quarantined: a scan derives the rest again.
- `in_flight.json` is durable before a push starts and removed after its outcome is known.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

from hf_mpwriter.base import state
from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.spool.layout import HostSpool
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Directory, Place
from hf_mpwriter.system.interrupts import ours, suppress

logger = logging.getLogger("hf_mpwriter")


@dataclass(frozen=True)
class Batch:
    """Files that are sent in one commit, as they were at a snapshot."""

    number: int  # of the batch in the outbox; 0 for a batch of attachments and for a mere read-back
    files: tuple[LocalFile, ...]  # event files, or attachments, never both

    @property
    def has_attachments(self) -> bool:
        """Whether the files are attachments."""
        return bool(self.files) and bool(self.files[0].sha256)


@dataclass(frozen=True)
class InFlightRecord:
    """What recovery has to know of a push that was interrupted."""

    batch: int  # number of the batch that it carried
    fenced: bool  # whether all its commits name their parent; a late one is refused once the branch has moved
    attachments: tuple[LocalFile, ...] = ()  # that it carried; the Hub may have them now


class Outbox:
    """The outbox of one uploader."""

    def __init__(self, host: HostSpool, run: Directory) -> None:
        self._host, self.run = host, run
        self._highest = 0
        self._garbage: list[Place] = []  # what cannot be read, and cannot be removed yet
        self.trouble = ""  # why the disk does not hold what `batches` does, "" while it does
        disk.make_dirs(host.outbox)
        self._sweep()
        self.batches = self._read_all()  # that wait, the oldest first
        self._on_disk = list(self.batches)

    @property
    def directory(self) -> Place:
        """Where the batches are; what has no name, or a temporary one, may be there too."""
        return self._host.outbox

    def _path(self, number: int) -> Place:
        return self._host.outbox / f"{number:08d}.json"

    def _sweep(self) -> None:
        """Remove the temporary files of killed uploaders; the one that holds the uploader lock is alone here."""
        for directory in (self._host.root, self._host.outbox):
            for name in directory.names():
                if name.startswith(".") and name.endswith(".tmp"):
                    with suppress(OSError):
                        (directory / name).unlink()

    def _read_all(self) -> list[Batch]:
        found = []
        for name in sorted(self._host.outbox.names()):
            stem, extension = os.path.splitext(name)
            if extension != ".json" or not stem.isdecimal():
                continue
            self._highest = max(self._highest, int(stem))
            try:
                found.append(self._read(int(stem), self._host.outbox / name))
            except ours(state.DamagedError, OSError) as error:  # it is derived again from the event files
                logger.info("batch %s cannot be read and is dropped: %s", name, error)
                self._garbage.append(self._host.outbox / name)
        self._remove_garbage()
        return found

    def _remove_garbage(self) -> None:
        """Remove what cannot be read; what the disk refuses to remove is tried again."""
        for path in list(self._garbage):
            with suppress(OSError):
                disk.remove(path, "outbox.garbage")
                self._garbage.remove(path)

    @staticmethod
    def _read(number: int, path: Place) -> Batch:
        batch = state.load(Batch, disk.read(path) or b"")
        if batch.number != number:
            raise state.DamagedError(f"it has the number {batch.number}")
        return batch

    def put(self, groups: Sequence[Sequence[LocalFile]]) -> None:
        """Make a batch of each group of files; they supersede all older batches."""
        # opened anew: the held descriptor is that of the worker that started this process, and an error of the disk is
        # told once per opening. The worker, who can write again what was lost, is to hear of it.
        many = sum(map(len, groups)) >= disk.MANY
        is_synced = many and disk.sync_filesystem(Place(self.run, "."), "outbox.data")
        for group in groups:
            self._make_durable([file for file in group if not is_synced or self._is_elsewhere(file)])
        self.trouble = ""
        batches: list[Batch] = []
        for group in groups:
            self._highest += 1
            batches.append(Batch(self._highest, tuple(group)))
        self.batches = batches
        for batch in batches:
            self._write(batch)
        if not self.trouble:  # else the older ones stay: they are all that a successor would find
            for old in [other for other in self._on_disk if other not in batches]:
                self.remove(old)
            self._remove_garbage()

    def split(self, batch: Batch, behind: Sequence[Sequence[LocalFile]] | None = None) -> None:
        """Replace a batch by its two halves; they are sent next."""
        middle = len(batch.files) // 2
        rest = [other.files for other in self.batches if other is not batch] if behind is None else behind
        self.put([batch.files[:middle], batch.files[middle:], *rest])

    def shorten(self, batch: Batch, file: LocalFile) -> None:
        """Put less of the only file of a batch before it; the batch that has all of the file stays."""
        rest = [other.files for other in self.batches if other is not batch]
        whole = [] if any(other.path == file.path for files in rest for other in files) else [batch.files]
        self.put([[file], *whole, *rest])

    def _is_elsewhere(self, file: LocalFile) -> bool:
        """Whether a file is on another filesystem than the run directory."""
        return (self.run / file.path).stat().st_dev != os.fstat(self.run.fd).st_dev

    def _make_durable(self, group: Sequence[LocalFile]) -> None:
        """Sync the bytes that a batch will refer to, and the names of their files.

        After a failed sync the next one may succeed without the bytes, which only their writer could write again. They
        are taken for durable all the same: the Hub then gets what this disk loses, and never becomes shorter.
        """
        for file in group:
            disk.fsync_path(self.run / file.path, "outbox.data")
        for directory in {os.path.dirname(file.path) for file in group}:
            disk.fsync_dir(Place(self.run, directory), "outbox.data")

    def _write(self, batch: Batch) -> None:
        self._on_disk.append(batch)  # even if it fails: the name may be there, only not durable
        try:
            disk.replace(self._path(batch.number), state.dump(batch), "outbox.put")
        except ours(OSError) as error:
            self.trouble = f"the outbox is only in memory: {error}"

    def remove(self, batch: Batch) -> None:
        """Drop a batch that the ledger or a newer batch covers."""
        self.batches = [other for other in self.batches if other is not batch]
        if batch not in self._on_disk:
            return
        try:
            disk.remove(self._path(batch.number), "outbox.drop")
            self._on_disk.remove(batch)
        except ours(OSError) as error:  # the next start drops it, when it sees that the ledger covers it
            self.trouble = f"batch {batch.number} cannot be removed: {error}"

    def mark_in_flight(self, batch: Batch, *, fenced: bool) -> None:
        """Record durably that a push of a batch starts."""
        record = InFlightRecord(batch.number, fenced, batch.files if batch.has_attachments else ())
        disk.replace(self._host.in_flight, state.dump(record), "outbox.in_flight")

    def clear_in_flight(self) -> None:
        """Remove the record: the outcome of the push is known."""
        disk.remove(self._host.in_flight, "outbox.cleared")


def filesystem_time(host: HostSpool) -> float:
    """Unix time by the filesystem's own clock, on which hosts agree; 0 if the disk refuses."""
    try:
        return disk.time_of(host.root)
    except ours(OSError):
        return 0.0


def stamp(host: HostSpool) -> str:
    """What tells the record of a host from all others it will have; "" if there is none."""
    try:
        status = host.in_flight.stat()
    except ours(OSError):
        return ""
    return f"{host.root.basename} {status.st_ino} {status.st_mtime_ns}"


def interrupted(host: HostSpool) -> InFlightRecord | None:
    """What a push of a host was carrying, None if none was interrupted.

    A record that cannot be read counts as the worst case: a push that was not fenced.
    """
    try:
        data = disk.read(host.in_flight)
        return None if data is None else state.load(InFlightRecord, data)
    except ours(state.DamagedError, OSError):
        return InFlightRecord(0, fenced=False)
