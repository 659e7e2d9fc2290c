"""The queue: entries, and what is in flight.

    hosts/<host>/queue/00000042.json   {"files": [{"path": ..., "length": ..., "growing": false, ...}, ...]}
    hosts/<host>/in_flight.json         {"entry": 42, "fenced": true, "job": {...}}   while a push carries entry 42

The queue holds intentions and can always be derived again from what the ledger does not cover; the files of the run
directory are the truth. So if the disk refuses an entry, the uploader goes on from memory and says so. Attachments are
not queued: whoever sends them keeps their entries in memory (`attaching.py`).

Invariants:
- An entry refers only to bytes that are durable in event files, which `put` syncs first.
- An entry is written once. A newer one is durable before an older one is removed; an entry is removed only after the
  ledger covers it or a newer entry does.
- `in_flight.json` is durable before a push starts and removed after its outcome is known.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_mpwriter.base.errors import DAMAGED
from hf_mpwriter.base.files import LocalFile, parse_files
from hf_mpwriter.spool.layout import HostSpool
from hf_mpwriter.system import disk

logger = logging.getLogger("hf_mpwriter")


@dataclass(frozen=True)
class Batch:
    """A snapshot in the queue."""

    number: int
    files: tuple[LocalFile, ...]

    @property
    def is_attached(self) -> bool:
        """Whether it carries attachments; then it carries nothing else."""
        return bool(self.files) and bool(self.files[0].sha256)


@dataclass(frozen=True)
class InFlightRecord:
    """What an interrupted push was carrying.

    Attributes:
        entry: its number.
        fenced: whether all its commits name their parent, so that a late one is refused once the branch has moved.
        files: what it was carrying.
    """

    entry: int
    fenced: bool
    files: tuple[LocalFile, ...] = ()


class Outbox:
    """The entries of one uploader, oldest first."""

    def __init__(self, host: HostSpool, run_dir: str) -> None:
        self._host = host
        self._run_dir = run_dir
        self._highest = 0
        self.trouble = ""  # why the queue is not on disk as it is in memory, "" while it is
        disk.make_dirs(host.outbox)
        self._sweep()
        self.entries = self._read_all()
        self._on_disk = list(self.entries)

    def _path(self, number: int) -> str:
        return os.path.join(self._host.outbox, f"{number:08d}.json")

    def _sweep(self) -> None:
        """Remove the temporaries of a writer that was killed; with the uploader lock, nobody else writes here."""
        for directory in (self._host.root, self._host.outbox):
            for name in os.listdir(directory):
                if name.startswith(".") and name.endswith(".tmp"):
                    with contextlib.suppress(OSError):
                        os.unlink(os.path.join(directory, name))

    def _read_all(self) -> list[Batch]:
        found = []
        for name in sorted(os.listdir(self._host.outbox)):
            stem, extension = os.path.splitext(name)
            if extension != ".json" or not stem.isdecimal():
                continue
            self._highest = max(self._highest, int(stem))
            try:
                data = json.loads(disk.read(os.path.join(self._host.outbox, name)) or b"")
                found.append(Batch(int(stem), parse_files(data["files"])))
            except (*DAMAGED, OSError) as error:  # derived again from the event files
                logger.info("entry %s cannot be read and is dropped: %s", name, error)
                with contextlib.suppress(OSError):
                    disk.remove(os.path.join(self._host.outbox, name), "outbox.garbage")
        return found

    def put(self, groups: Sequence[Sequence[LocalFile]]) -> None:
        """Make snapshots durable, then drop the older entries that they supersede.

        Raises:
            OSError: event files cannot be made durable; the queue is as it was.
        """
        for group in groups:
            self._make_durable(group)
        self.trouble = ""
        entries: list[Batch] = []
        for group in groups:
            self._highest += 1
            entries.append(Batch(self._highest, tuple(group)))
        self.entries = entries
        for entry in entries:
            self._write(entry)
        if not self.trouble:  # else the older ones stay on disk: they are all that a successor would find
            for old in [other for other in self._on_disk if other not in entries]:
                self.remove(old)

    def split(self, entry: Batch) -> None:
        """Put two halves of an entry in its place, first of all.

        Raises:
            OSError: as `put`.
        """
        middle = len(entry.files) // 2
        rest = [other.files for other in self.entries if other is not entry]
        self.put([entry.files[:middle], entry.files[middle:], *rest])

    def _make_durable(self, group: Sequence[LocalFile]) -> None:
        """Sync what the entry will refer to.

        After a sync that has failed the next one may succeed without the bytes, which only their writer may write
        again. They are believed all the same: then the Hub gets what this disk loses, and is never made shorter.
        """
        for file in group:
            disk.fsync_path(os.path.join(self._run_dir, file.path), "outbox.data")
        for directory in {os.path.dirname(file.path) for file in group}:
            disk.fsync_dir(os.path.join(self._run_dir, directory), "outbox.data")

    def _write(self, entry: Batch) -> None:
        data = json.dumps({"files": [dataclasses.asdict(file) for file in entry.files]}).encode()
        self._on_disk.append(entry)  # even if it fails: the name may be there, only not durable
        try:
            disk.replace(self._path(entry.number), data, "outbox.put")
        except OSError as error:
            self.trouble = f"the queue is only in memory: {error}"

    def remove(self, entry: Batch) -> None:
        """Drop an entry that the ledger or a newer entry covers."""
        self.entries = [other for other in self.entries if other is not entry]
        if entry not in self._on_disk:
            return
        try:
            disk.remove(self._path(entry.number), "outbox.drop")
            self._on_disk.remove(entry)
        except OSError as error:  # dropped at the next start, when the ledger is seen to cover it
            self.trouble = f"entry {entry.number} cannot be removed: {error}"

    def mark_in_flight(self, entry: Batch, job: dict[str, Any], *, fenced: bool) -> str:
        """Record durably that a push of this entry starts; returns the path that the push reads its job from.

        Raises:
            OSError: the disk refuses; without this record no push may start.
        """
        data = json.dumps({"entry": entry.number, "fenced": fenced, "job": job}).encode()
        disk.replace(self._host.in_flight, data, "outbox.in_flight")
        return self._host.in_flight

    def clear_in_flight(self) -> None:
        """The outcome of the push is known."""
        disk.remove(self._host.in_flight, "outbox.cleared")


def interrupted(host: HostSpool) -> InFlightRecord | None:
    """What a push of a host was carrying; a record that cannot be read counts as the worst case."""
    try:
        data = disk.read(host.in_flight)
        if data is None:
            return None
        record = json.loads(data)
        return InFlightRecord(
            int(record["entry"]), record["fenced"] is True, parse_files(record["job"].get("files", ()))
        )
    except (*DAMAGED, OSError):
        return InFlightRecord(0, fenced=False)
