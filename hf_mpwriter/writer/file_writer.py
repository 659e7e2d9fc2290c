"""The interfaces of tensorboardX's FileWriter and EventFileWriter, on event files of ours.

    FileWriter.add_summary    bytes of the summary, framed -> EventFileWriter.append_record -> EventFile.append_record
    FileWriter.add_event      tensorboardX -> EventFileWriter.add_event -> put -> EventFile.append
    a plain scalar            -> EventFile.append_record, see `scalars`

Both classes keep the methods, and the private names that frameworks and tests use, without tensorboardX's queue and
thread.

Invariant:
- While a tool replaces `EventFileWriter.add_event`, every event passes through it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from tensorboardX.event_file_writer import EventFileWriter as _EventFileWriter
from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.writer import FileWriter as _FileWriter

from hf_mpwriter.events import framing
from hf_mpwriter.events.event_file import EventFile
from hf_mpwriter.events.framing import StepEncoder
from hf_mpwriter.worker.worker import Worker
from hf_mpwriter.writer.values import as_step

ADD_EVENT = _EventFileWriter.add_event


def is_intercepted() -> bool:
    """Return whether a test or a tool has replaced tensorboardX's `add_event`; the short ways compare it themselves."""
    return _EventFileWriter.add_event is not ADD_EVENT


class EventFileWriter(_EventFileWriter):
    """Appends events to an event file of a directory below the worker directory, "" for that itself."""

    def __init__(self, worker: Worker, sub: str, suffix: str, purge_step: int | None) -> None:
        self._worker, self._sub = worker, sub
        self._closed = False
        self._event_queue = self  # tensorboardX's add_event calls its `put`
        self.file: EventFile = worker.files.open(sub, suffix, purge_step)

    def get_logdir(self) -> str:
        """Return the directory of the event files in the logdir; if this process has no claim yet, take one."""
        return self._worker.files.shown(self._sub)

    @property
    def _logdir(self) -> str:
        return self.get_logdir()

    @property
    def _ev_writer(self) -> EventFileWriter:
        return self

    @property
    def _file_name(self) -> str:
        """Path of the event file, which is created now if nothing was logged yet, so that it can be read."""
        self.file.ensure_open()
        return self.file.path

    def put(self, event: Any) -> None:
        """Append an event, a protobuf."""
        self.file.append(event.SerializeToString())
        self._worker.keep_house_if_due()

    def append_record(self, record: bytes) -> None:
        """Append a framed record."""
        self.file.append_record(record)
        self._worker.keep_house_if_due()

    def flush(self) -> None:
        """Make everything logged so far survive a power cut."""
        with self._worker.boundary:
            self.file.flush()

    def close(self) -> None:
        """Flush. The worker seals its files when its last writer closes."""
        self.flush()

    def reopen(self) -> None:
        """Do nothing: events are accepted at any time."""


class FileWriter(_FileWriter):
    """tensorboardX's FileWriter without an atexit hook, a queue or a thread; for the arguments see EventFileWriter."""

    def __init__(self, worker: Worker, sub: str = "", suffix: str = "", purge_step: int | None = None) -> None:
        self.event_writer = EventFileWriter(worker, sub, suffix, purge_step)
        self.file = self.event_writer.file  # for the short ways
        self._default_metadata: dict[str, Any] = {}

    def add_event(self, event: Any, step: Any = None, walltime: float | None = None) -> None:
        """Add an event, of tensorboardX's protobuf class or of `tensorboard.compat`, as Lightning passes it."""
        if not isinstance(event, event_pb2.Event):
            event = event_pb2.Event.FromString(event.SerializeToString())
        super().add_event(event, step, walltime)

    def add_summary(self, summary: Any, global_step: Any = None, walltime: float | None = None) -> None:
        """Add a summary, of tensorboardX's protobuf class or of `tensorboard.compat`.

        The event is made from the bytes of the summary: tensorboardX would copy the message, images included.
        """
        data = summary.SerializeToString()
        step, walltime = self.resolved(global_step, walltime)
        if is_intercepted():
            super().add_summary(summary_pb2.Summary.FromString(data), step, walltime)
        else:
            self.event_writer.append_record(framing.frame(framing.summary_event(walltime, step, data)))

    def add_values(
        self, encoder: StepEncoder, values: Sequence[float], step: int | None, walltime: float | None
    ) -> None:
        """Add scalars as one event, whose step and time are `resolved`."""
        if is_intercepted():
            super().add_summary(summary_pb2.Summary.FromString(encoder.summary(values)), step, walltime)
        else:
            self.event_writer.append_record(encoder.record(walltime, step or 0, values))

    def resolved(self, step: Any, walltime: float | None) -> tuple[int | None, float | None]:
        """Return the step and the time of an event: what was given, or the defaults of `use_metadata`, or now."""
        defaults = self._default_metadata
        step = as_step(defaults.get("global_step") if step is None else step)
        if walltime is None:
            walltime = defaults["walltime"] if defaults else time.time()
        return step, walltime

    @contextlib.contextmanager
    def use_metadata(self, *, global_step: Any = None, walltime: float | None = None) -> Iterator[FileWriter]:
        """Set default step and wall time (unix time in seconds) for the block; they end also when the block raises."""
        with super().use_metadata(global_step=global_step, walltime=walltime):
            try:
                yield self
            finally:
                self._default_metadata = {}
