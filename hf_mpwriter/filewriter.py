"""tensorboardX's FileWriter and EventFileWriter, put onto our event files.

Everything that a tensorboardX or torch `SummaryWriter` writes goes through `FileWriter.add_event`. These two classes
keep that interface, and the private names that frameworks and tests touch, without the queue and the thread behind it.
"""

from __future__ import annotations

import os
from typing import Any

from tensorboardX.event_file_writer import EventFileWriter as _EventFileWriter
from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.writer import FileWriter as _FileWriter

from hf_mpwriter.eventfile import EventFile
from hf_mpwriter.worker import Worker


class EventFileWriter(_EventFileWriter):
    """Appends events to an event file of this worker."""

    def __init__(self, worker: Worker, sub: str, suffix: str, purge_step: int | None) -> None:
        self._worker, self._sub, self._suffix, self._purge_step = worker, sub, suffix, purge_step
        self._closed = False
        self.file: EventFile = worker.open(sub, suffix, purge_step)

    def get_logdir(self) -> str:
        """The directory of the event files; takes a claim if there is none yet."""
        return os.path.join(self._worker.directory(), self._sub).rstrip(os.sep)

    @property
    def _ev_writer(self) -> EventFileWriter:
        return self

    @property
    def _file_name(self) -> str:
        return self.file.path

    def add_event(self, event: Any) -> None:
        """Append an event; one of another library's protobuf classes is taken over."""
        self.append(event.SerializeToString())

    def append(self, payload: bytes) -> None:
        """Append a serialized event."""
        self.file.append(payload)
        self._worker.touch()

    def flush(self) -> None:
        """Make it survive a power cut."""
        self.file.flush()

    def close(self) -> None:
        """Nothing to drain; the worker seals its files when the last writer leaves."""
        self._closed = True

    def reopen(self) -> None:
        """Go on in a new file."""
        self._closed = False
        self.file = self._worker.open(self._sub, self._suffix, self._purge_step)


class FileWriter(_FileWriter):
    """A FileWriter without an atexit hook, a queue or a thread."""

    def __init__(self, worker: Worker, sub: str = "", suffix: str = "", purge_step: int | None = None) -> None:
        self.event_writer = EventFileWriter(worker, sub, suffix, purge_step)
        self._default_metadata: dict[str, Any] = {}

    def add_event(self, event: Any, step: Any = None, walltime: float | None = None) -> None:
        """Add an event; `tensorboard.compat` events are accepted (Lightning hands them over)."""
        if not isinstance(event, event_pb2.Event):
            event = event_pb2.Event.FromString(event.SerializeToString())
        super().add_event(event, step, walltime)

    def add_summary(self, summary: Any, global_step: Any = None, walltime: float | None = None) -> None:
        """Add a summary; `tensorboard.compat` summaries are accepted."""
        if not isinstance(summary, summary_pb2.Summary):
            summary = summary_pb2.Summary.FromString(summary.SerializeToString())
        super().add_summary(summary, global_step, walltime)
