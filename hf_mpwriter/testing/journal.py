"""The side channel of a test: what a process knows to have returned, told by itself after each call.

    <directory>/journal.<pid>.<8 hex>    one line per returned add_* call: {"tag": ..., "step": ..., "path": ...}
                                         one per returned flush: {"flushed": true}

A line is one `os.write` behind the call, so a SIGKILL between the two leaves a record that is in the event file and
not in the journal: allowed. The other way round would be a lost record. What was noted before a flush outlives a power
cut too (keep journals on a disk that has none).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

_FLUSHED = {"flushed": True}


@dataclass(frozen=True)
class Returned:
    """One call that returned.

    Attributes:
        pid: of the process.
        path: the event file that the record went to, relative to the run directory.
        tag: tag of the summary.
        step: global step.
        flushed: whether a flush came after it.
    """

    pid: int
    path: str
    tag: str
    step: int
    flushed: bool = False


class Journal:
    """The journal of one process; forked children make their own."""

    def __init__(self, directory: str) -> None:
        os.makedirs(directory, exist_ok=True)
        path = os.path.join(directory, f"journal.{os.getpid()}.{os.urandom(4).hex()}")
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def note(self, writer: Any, tag: str, step: int) -> None:
        """The call that logged `tag` at `step` through `writer` has returned.

        `tag` as it stands in the event file: tensorboardX turns spaces into underscores, and `add_text` appends
        `/text_summary`.
        """
        self.note_at(os.path.relpath(writer.file_writer.event_writer.file.path, writer.logdir), tag, step)

    def note_at(self, path: str, tag: str, step: int) -> None:
        """A record is in the event file at `path`, relative to the run directory: a sub-writer's, or a late one."""
        self._line(_note(path, tag, step))

    def flushed(self) -> None:
        """`writer.flush()` has returned."""
        self._line(_FLUSHED)

    def _line(self, data: dict[str, Any]) -> None:
        os.write(self._fd, json.dumps(data).encode() + b"\n")


def _note(path: str, tag: str, step: int) -> dict[str, Any]:
    return {"tag": tag, "step": step, "path": path}


def journals(directory: str) -> list[str]:
    """The paths of all journals in a directory."""
    return [os.path.join(directory, name) for name in sorted(os.listdir(directory)) if name.startswith("journal.")]


def read_journals(directory: str) -> Iterator[Returned]:
    """Everything that any process has noted; a torn last line is not there."""
    for path in journals(directory):
        yield from read_journal(path)


def read_journal(path: str) -> list[Returned]:
    """Everything that one process has noted."""
    pid = int(os.path.basename(path).split(".")[1])
    with open(path, "rb") as file:
        lines = [json.loads(line) for line in file.read().split(b"\n")[:-1]]
    last_flush = max((number for number, line in enumerate(lines) if "flushed" in line), default=-1)
    return [
        Returned(pid, line["path"], line["tag"], line["step"], flushed=number < last_flush)
        for number, line in enumerate(lines)
        if "flushed" not in line
    ]


def rewrite(path: str, notes: Iterable[Returned]) -> None:
    """Put these notes in the place of what one process has noted; all of them are on disk."""
    lines = [*(_note(note.path, note.tag, note.step) for note in notes), _FLUSHED]
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
