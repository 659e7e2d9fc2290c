"""The side channel of a test: what a process knows to have returned, told by itself after each call.

    <directory>/journal.<pid>.<8 hex>    one line per returned add_* call: {"tag": ..., "step": ..., "path": ...}

A line is one `os.write` behind the call, so a SIGKILL between the two leaves a record that is in the event file and
not in the journal: allowed. The other way round would be a lost record.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Returned:
    """One call that returned.

    Attributes:
        pid: of the process.
        path: the event file that the record went to, relative to the run directory.
        tag: tag of the summary.
        step: global step.
    """

    pid: int
    path: str
    tag: str
    step: int


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
        event_file = os.path.relpath(writer.file_writer.event_writer.file.path, writer.logdir)
        os.write(self._fd, json.dumps({"tag": tag, "step": step, "path": event_file}).encode() + b"\n")


def read_journals(directory: str) -> Iterator[Returned]:
    """Everything that any process has noted; a torn last line is not there."""
    for name in sorted(os.listdir(directory)):
        if not name.startswith("journal."):
            continue
        with open(os.path.join(directory, name), "rb") as file:
            for line in file.read().split(b"\n")[:-1]:
                note = json.loads(line)
                yield Returned(int(name.split(".")[1]), note["path"], note["tag"], note["step"])
