"""tensorboardX's FileWriter and EventFileWriter, put onto our event files.

    add_summary -> add_event -> EventFileWriter.add_event -> _event_queue.put -> EventFile.append

Everything that a tensorboardX or torch `SummaryWriter` writes takes this way, only the plain scalar takes a shorter
one. The two classes keep the interface, and the private names that frameworks and tests touch, without the queue and
the thread behind it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

from tensorboardX.event_file_writer import EventFileWriter as _EventFileWriter
from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.writer import FileWriter as _FileWriter

from hf_mpwriter.events import framing
from hf_mpwriter.events.event_file import EventFile
from hf_mpwriter.worker.worker import Worker

_ADD_EVENT = _EventFileWriter.add_event


def is_intercepted() -> bool:
    """Whether a test or a tool has put itself into the way of all events, so that none may take a shorter one."""
    return _EventFileWriter.add_event is not _ADD_EVENT


class EventFileWriter(_EventFileWriter):
    """Appends events to an event file of this worker."""

    def __init__(self, worker: Worker, sub: str, suffix: str, purge_step: int | None) -> None:
        self._worker, self._sub = worker, sub
        self._closed = False
        self._event_queue = self  # add_event puts into it
        self.file: EventFile = worker.files.open(sub, suffix, purge_step)

    def get_logdir(self) -> str:
        """The directory of the event files; takes a claim if there is none yet."""
        return os.path.join(self._worker.files.directory(), self._sub).rstrip(os.sep)

    @property
    def _logdir(self) -> str:
        return self.get_logdir()

    @property
    def _ev_writer(self) -> EventFileWriter:
        return self

    @property
    def _file_name(self) -> str:
        """Whoever asks is going to read the file: it is made if nothing was logged yet."""
        self.file.ensure_open()
        return self.file.path

    def put(self, event: Any) -> None:
        """Append an event."""
        self.file.append(event.SerializeToString())
        self._worker.keep_house_if_due()

    def append_record(self, record: bytes) -> None:
        """Append a framed record."""
        self.file.append_record(record)
        self._worker.keep_house_if_due()

    def flush(self) -> None:
        """Make it survive a power cut."""
        self.file.flush()

    def close(self) -> None:
        """Nothing to drain; the worker seals its files when the last writer leaves."""
        self.flush()

    def reopen(self) -> None:
        """Nothing was closed: events are taken at any time."""


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
        """Add a summary; `tensorboard.compat` summaries are accepted.

        It is put into the event as bytes: as a message it would be copied, pictures and all.
        """
        if is_intercepted():
            super().add_summary(summary_pb2.Summary.FromString(summary.SerializeToString()), global_step, walltime)
            return
        defaults = self._default_metadata
        step = defaults.get("global_step") if global_step is None else global_step
        if walltime is None:
            walltime = defaults["walltime"] if defaults else time.time()
        data = summary.SerializeToString()
        payload = framing.summary_event(walltime, None if step is None else int(step), data)
        self.event_writer.append_record(framing.frame(payload))

    @contextlib.contextmanager
    def use_metadata(self, *, global_step: Any = None, walltime: float | None = None) -> Iterator[FileWriter]:
        """Step and wall time for what is added in the block without one; over also when the block raises."""
        with super().use_metadata(global_step=global_step, walltime=walltime):
            try:
                yield self
            finally:
                self._default_metadata = {}
