"""Journals: each process of a test notes which of its calls returned, so that the oracle can look for the records.

    <directory>/journal.<pid>.<8 hex>    {"tag": "loss", "step": 7, "path": "events.out.tfevents..."}
                                         {"tags": ["loss", "lr"], "step": 8, "path": "events.out.tfevents..."}
                                         {"flushed": true}
                                         one line per returned add_* or log call, and per returned flush

Invariants:
- A line is one `os.write` after the call. A SIGKILL between the two leaves a record that no journal names, which is
  allowed. A line without its record is a lost record.
- What was noted before a flush survives a power cut. Keep journals on a disk whose power is not cut.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Returned:
    """One call that returned."""

    pid: int  # process that made it
    path: str  # event file of the record, relative to the run directory
    tag: str  # tag of the summary
    step: int  # global step
    flushed: bool = False  # whether a flush returned after it
    together: tuple[str, ...] = ()  # all tags of its record, of a call of `log`; empty for any other call


class Journal:
    """The journal of one process. A forked child makes its own.

    Args:
        directory: of all journals of a test; it is made if it does not exist.
    """

    def __init__(self, directory: str) -> None:
        os.makedirs(directory, exist_ok=True)
        path = os.path.join(directory, f"journal.{os.getpid()}.{os.urandom(4).hex()}")
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def note(self, writer: Any, tag: str, step: int) -> None:
        """Note that a call returned.

        Args:
            writer: the writer of the call.
            tag: as in the event file. tensorboardX replaces spaces by underscores, and `add_text` appends
                `/text_summary`.
            step: global step.
        """
        self.note_at(_path(writer), tag, step)

    def note_step(self, writer: Any, tags: Iterable[str], step: int) -> None:
        """Note that a call of `log` returned: one record holds all of its values. For the arguments see `note`."""
        self._line({"tags": list(tags), "step": step, "path": _path(writer)})

    def note_at(self, path: str, tag: str, step: int) -> None:
        """Note that a record is in the event file at `path`, relative to the run directory: one of a sub-writer."""
        self._line({"tag": tag, "step": step, "path": path})

    def flushed(self) -> None:
        """Note that `flush` returned."""
        self._line({"flushed": True})

    def _line(self, data: dict[str, Any]) -> None:
        os.write(self._fd, json.dumps(data).encode() + b"\n")


def _path(writer: Any) -> str:
    path: str = writer.file_writer.event_writer.file.place.name
    return path


def journals(directory: str) -> list[str]:
    """The paths of all journals in a directory."""
    return [os.path.join(directory, name) for name in sorted(os.listdir(directory)) if name.startswith("journal.")]


def read_journals(directory: str) -> Iterator[Returned]:
    """The notes of all processes. A torn last line is left out."""
    for path in journals(directory):
        yield from read_journal(path)


def read_journal(path: str) -> list[Returned]:
    """The notes of one process."""
    pid = int(os.path.basename(path).split(".")[1])
    with open(path, "rb") as file:
        lines = [json.loads(line) for line in file.read().split(b"\n")[:-1]]
    last_flush = max((number for number, line in enumerate(lines) if "flushed" in line), default=-1)
    return [
        Returned(pid, line["path"], tag, line["step"], number < last_flush, tuple(line.get("tags", ())))
        for number, line in enumerate(lines)
        for tag in (line.get("tags") or [line.get("tag")])
        if "flushed" not in line
    ]
