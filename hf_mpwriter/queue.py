"""The queue: entries, and what is in flight.

    hosts/<host>/queue/00000042.json   {"files": [{"path": ..., "length": ..., "growing": false}, ...]}
    hosts/<host>/inflight.json         {"entry": 42, "fenced": true, "job": {...}}   while a push carries entry 42

The queue holds intentions and can always be derived again from "file longer than acknowledged"; the event files are
the truth. So if the disk refuses an entry, the uploader goes on from memory and says so.

Invariants:
- An entry refers only to bytes that are durable in event files: `put` syncs them first.
- An entry is written once. A newer one is durable before an older one is removed; an entry is removed only after the
  ledger covers it or a newer entry does.
- `inflight.json` is durable before a push starts and removed after its outcome is known.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_mpwriter import disk
from hf_mpwriter.snapshot import LocalFile
from hf_mpwriter.spool import HostSpool


@dataclass(frozen=True)
class Entry:
    """A snapshot in the queue."""

    number: int
    files: tuple[LocalFile, ...]


def parse_files(items: Any) -> tuple[LocalFile, ...]:
    """The files of an entry; raises ValueError for what is not one, such as a path that leads out."""
    files = []
    for item in items:
        path, length, growing = item["path"], item["length"], item["growing"]
        typed = isinstance(path, str) and isinstance(length, int) and isinstance(growing, bool)
        if not typed or length < 0 or not path or path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"not a file of a run directory: {item!r}")
        files.append(LocalFile(path, length, growing))
    return tuple(files)


@dataclass(frozen=True)
class Inflight:
    """What an interrupted push was carrying.

    Attributes:
        entry: its number.
        fenced: whether all its commits name their parent, so that a late one is refused once the branch has moved.
    """

    entry: int
    fenced: bool


class Queue:
    """The entries of one uploader, oldest first."""

    def __init__(self, host: HostSpool, run_dir: str) -> None:
        self._host = host
        self._run_dir = run_dir
        self.trouble = ""  # why the queue is not on disk, "" while it is
        disk.make_dirs(host.queue)
        self.entries = self._read_all()

    def _path(self, number: int) -> str:
        return os.path.join(self._host.queue, f"{number:08d}.json")

    def _read_all(self) -> list[Entry]:
        found = []
        for name in sorted(os.listdir(self._host.queue)):
            stem, extension = os.path.splitext(name)
            if extension != ".json" or not stem.isdecimal():
                continue
            try:
                data = json.loads(disk.read(os.path.join(self._host.queue, name)) or b"")
                found.append(Entry(int(stem), parse_files(data["files"])))
            except (ValueError, TypeError, KeyError, OSError):  # derived again from the event files
                disk.remove(os.path.join(self._host.queue, name), "queue.garbage")
        return found

    def put(self, groups: Sequence[Sequence[LocalFile]]) -> None:
        """Make snapshots durable, then drop the older entries that they supersede."""
        superseded = list(self.entries)
        number = max((entry.number for entry in self.entries), default=0)
        for group in groups:
            number += 1
            entry = Entry(number, tuple(group))
            self._write(entry)
            self.entries.append(entry)
        for entry in superseded:
            self.remove(entry)

    def _write(self, entry: Entry) -> None:
        for file in entry.files:
            disk.fsync_path(os.path.join(self._run_dir, file.path), "queue.data")
        for directory in {os.path.dirname(file.path) for file in entry.files}:
            disk.fsync_dir(os.path.join(self._run_dir, directory), "queue.data")
        data = json.dumps({"files": [dataclasses.asdict(file) for file in entry.files]}).encode()
        try:
            disk.replace(self._path(entry.number), data, "queue.put")
            self.trouble = ""
        except OSError as error:
            self.trouble = f"the queue is only in memory: {error}"

    def remove(self, entry: Entry) -> None:
        """Drop an entry that the ledger or a newer entry covers."""
        self.entries = [other for other in self.entries if other is not entry]
        try:
            disk.remove(self._path(entry.number), "queue.drop")
        except OSError as error:  # dropped at the next start, when the ledger is seen to cover it
            self.trouble = f"entry {entry.number} cannot be removed: {error}"

    def take_off(self, entry: Entry, job: dict[str, Any], *, fenced: bool) -> str:
        """Record durably that a push of this entry starts; returns the path that the push reads its job from.

        Raises:
            OSError: the disk refuses; without this record no push may start.
        """
        data = json.dumps({"entry": entry.number, "fenced": fenced, "job": job}).encode()
        disk.replace(self._host.inflight, data, "queue.inflight")
        return self._host.inflight

    def landed(self) -> None:
        """The outcome of the push is known."""
        disk.remove(self._host.inflight, "queue.landed")

    def interrupted(self) -> Inflight | None:
        """What a push was carrying when its uploader ended; a record that cannot be read counts as the worst case."""
        data = disk.read(self._host.inflight)
        if data is None:
            return None
        try:
            record = json.loads(data)
            return Inflight(int(record["entry"]), fenced=record["fenced"] is True)
        except (ValueError, TypeError, KeyError):
            return Inflight(0, fenced=False)
