"""Scalars: the shortest way from a call to an event file.

    add_scalar     ScalarEncoder.record -> EventFile.append_record
    log            names and numbers -> StepEncoder.record -> EventFile.append_record
                     |
                     +-- not all of them floats: metrics.read
    add_scalars    a StepEncoder for each line of a plot, into the directory <worker directory>/<main_tag>/<tag>/
    all other      with a display name, as a tensor, with a default step, or while a tool intercepts events:
                   FileWriter.add_summary, add_values

In training nothing of this is in a cache, and each function, module and object that is touched costs a microsecond or
more. So the usual calls take a straight way through `add_scalar` and `log`.

Invariants:
- A plain scalar is encoded by hand, byte-identical to the protobuf.
- A step of `log` is one record, written by one call: all of it is in the file, or nothing.
- What cannot be logged raises before anything is written, and counts no step; `log` leaves out one value of many.
- Nothing that was logged stays in memory: only encoders, and a few facts per directory.
"""

from __future__ import annotations

import itertools
import json
import os
import reprlib
import time
from collections.abc import Mapping
from time import monotonic
from typing import Any

from tensorboardX.event_file_writer import EventFileWriter as _EventFileWriter
from tensorboardX.summary import _clean_tag, scalar
from tensorboardX.writer import DummyFileWriter
from tensorboardX.writer import SummaryWriter as _SummaryWriter

from hf_mpwriter.base.names import sub_directory
from hf_mpwriter.events.framing import StepEncoder
from hf_mpwriter.system.interrupts import ours
from hf_mpwriter.system.process import open_above
from hf_mpwriter.worker.worker import Worker
from hf_mpwriter.writer import summaries
from hf_mpwriter.writer.file_writer import ADD_EVENT, FileWriter
from hf_mpwriter.writer.metrics import Encoders, Names, read
from hf_mpwriter.writer.refusals import refuse, stays_inside, wrong_tag
from hf_mpwriter.writer.values import Number, Step, as_number, as_step

NOTHING_YET: tuple[Names, StepEncoder] = (), StepEncoder([""])


class ScalarMethods(_SummaryWriter):
    """`add_scalar`, `log`, `add_scalars`, and what reads them back; and the FileWriters of all directories."""

    _worker: Worker | None = None
    _has_purge_step = False
    file_writer: Any
    all_writers: Any

    def _reset_process_state(self) -> None:
        """Forget what belongs to one process; called by the constructor, and where a pickled writer arrives."""
        self._user = object()  # represents this writer among the users of its worker
        self._encoders = Encoders()
        self._last_logged = NOTHING_YET
        self._scalars_directories: set[str] = set()  # directories of add_scalars
        self._exported: dict[str, int] = {}  # events of the last export, per path
        self._purged: set[str] = set()  # directories

    def _take_purge_step(self, sub: str) -> int | None:
        """Return the step from which a directory is purged: for each directory once in the life of a writer."""
        if not self._has_purge_step or sub in self._purged:
            return None
        self._purged.add(sub)
        step: int = self.purge_step
        return step

    def _directory_writer(self, sub: str) -> Any:
        """Return the FileWriter of a directory below the worker directory; "" is the worker directory itself."""
        main = self._get_file_writer()
        if not sub:
            return main
        writers = self.all_writers
        if writers is None:  # another thread is closing this writer
            return self._new_directory_writer(sub)
        key = os.path.join(self.logdir, sub)
        if key not in writers:
            writers[key] = self._new_directory_writer(sub)
        return writers[key]

    def _new_directory_writer(self, sub: str) -> Any:
        if self._worker is None:
            return DummyFileWriter(logdir=os.path.join(self.logdir, sub))
        return FileWriter(self._worker, sub, self._filename_suffix, self._take_purge_step(sub))

    def add_scalar(
        self,
        tag: str,
        scalar_value: Number,
        global_step: Step = None,
        walltime: float | None = None,
        display_name: str | bool = "",
        summary_description: str | bool = "",
        *,
        new_style: bool = False,
        double_precision: bool = False,
    ) -> None:
        """Add a scalar.

        Args:
            tag: its name; slashes make groups.
            scalar_value: a Python or numpy number, a Decimal, a number in a string or in bytes, a tensor or array of
                one element. It is stored as a float32.
            global_step: step, a whole number; None for none.
            walltime: unix time in seconds, None for now.
            display_name: title of the plot; a bool is torch's `new_style`.
            summary_description: text behind the information icon of the plot; a bool is torch's `double_precision`.
            new_style: whether to use the tensor field.
            double_precision: with `new_style`, whether to keep a float64; a classic scalar is a float32.

        Raises:
            NotLoggableError: the value is not one number, or the step is not a whole number of 64 bits.
        """
        try:
            file_writer, worker = self.file_writer or self._get_file_writer(), self._worker
            value = scalar_value if type(scalar_value) is float else as_number(scalar_value)
            now = time.time() if walltime is None else walltime
            special = display_name or summary_description or new_style or _EventFileWriter.add_event is not ADD_EVENT
            if special or value is None or worker is None or file_writer._default_metadata:
                summary = _special_summary(
                    tag,
                    scalar_value if value is None else value,
                    display_name,
                    summary_description,
                    new_style=new_style,
                    double_precision=double_precision,
                )
                file_writer.add_summary(summary, global_step, walltime)
                return
            step = global_step if global_step is None or type(global_step) is int else as_step(global_step)
            file_writer.file.append_record(self._encoders[tag].record(now, step, value))
            if monotonic() >= worker.next_housekeeping:
                worker.keep_house()
        except ours(Exception) as error:
            if not stays_inside(error, self._worker):
                refuse(wrong_tag(tag) or error)

    def log(self, metrics: Mapping[str, Any], step: Step = None, *, wall_time: float | None = None) -> None:
        """Log the scalars of a step, as one record: after a crash, all of it is there or nothing.

        TensorBoard shows the same as after one `add_scalar` for each. An empty mapping logs nothing. A value that is no
        scalar is left out, with a warning for its name; a name that is in the file already gets `_2`.

        Args:
            metrics: number per name: a Python or numpy number, a tensor or array of one element, or such a mapping.
            step: a whole number; None for the one after the last.
            wall_time: unix time in seconds, None for now.

        Raises:
            TypeError: it is no mapping, a name is no string, or the step is no number.
            ValueError: the step is not a whole number of 64 bits.
        """
        try:
            names, values = ((*metrics,), [*metrics.values()]) if type(metrics) is dict else self._read(metrics)
            for value in values:
                if type(value) is not float:
                    names, values = self._read(metrics)
                    break
            if not names:
                return
            last, encoder = self._last_logged  # most steps have the names of the one before
            if names != last:
                encoder = self._encoders[names]
                self._last_logged = names, encoder
            file_writer, worker = self.file_writer or self._get_file_writer(), self._worker
            is_special = wall_time is not None or _EventFileWriter.add_event is not ADD_EVENT
            if type(step) is not int or worker is None or is_special or file_writer._default_metadata:
                self._log_otherwise(encoder, values, step, None if wall_time is None else float(wall_time))
                return
            file_writer.file.append_record(encoder.record(time.time(), step, values))
            worker.steps.given = (step,)
            if monotonic() >= worker.next_housekeeping:
                worker.keep_house()
        except ours(Exception) as error:
            if not stays_inside(error, self._worker):
                raise

    def _read(self, metrics: Mapping[str, Any]) -> tuple[Names, list[float]]:
        return read(metrics, self._encoders.leave_out)

    def _log_otherwise(self, encoder: StepEncoder, values: list[float], step: Step, wall_time: float | None) -> None:
        """Log a step that has no number or a time of its own, or is for a tool that intercepts events; see `log`."""
        file_writer, worker = self.file_writer or self._get_file_writer(), self._worker
        if worker is not None:
            given, wall_time = file_writer.resolved(step, wall_time)
            number = worker.steps.take() if given is None else given
            file_writer.add_values(encoder, values, number, wall_time)
            if given is not None:
                worker.steps.given = (given,)

    def add_scalars(
        self,
        main_tag: str,
        tag_scalar_dict: Mapping[str, Number],
        global_step: Step = None,
        walltime: float | None = None,
    ) -> None:
        """Add several scalars to one plot, each in a run of its own at `<main_tag>/<tag>/`.

        Args:
            main_tag: name of the plot.
            tag_scalar_dict: value per tag, as in `add_scalar`.
            global_step: step, a whole number; None for none.
            walltime: unix time in seconds, None for now.

        Raises:
            NotLoggableError: a value is not one number, or the step is not a whole number of 64 bits. Nothing is
                logged then.
        """
        main = self._get_file_writer()
        step, now = main.resolved(global_step, walltime) if self._worker else (as_step(global_step), walltime)
        if not isinstance(main_tag, str):
            raise TypeError(f"main_tag is {reprlib.repr(main_tag)}, but must be a string.")
        numbers = as_numbers("tag_scalar_dict", tag_scalar_dict)
        for tag, number in numbers.items():
            self._scalars_directories.add(sub := sub_directory(main_tag, tag))
            self._add_to_directory(sub, main_tag, number, step, time.time() if now is None else now)

    def _add_to_directory(self, sub: str, tag: str, number: float, step: int | None, walltime: float) -> None:
        """Add a scalar to the event file of a directory below the worker directory."""
        file_writer = self._directory_writer(sub)
        if self._worker is not None:
            file_writer.add_values(self._encoders[tag,], (number,), step, walltime)

    def last_step(self, tag: str | None = None) -> int | None:
        """Return the step of the last record of this worker that is on disk, over all its restarts.

        What a purge hides does not count, and neither does what `add_scalars` and `add_hparams` log: that is in
        directories of its own. The event files are read from the end backwards.

        Args:
            tag: of the record, as it was logged; None for any. Then step 0, which is also that of a record that was
                logged without one, counts only if there is no other.

        Returns:
            None if there is no such record.

        Raises:
            OSError: the run directory cannot be read.
        """
        if self._worker is None:
            return None
        return self._worker.last_step(None if tag is None else _clean_tag(tag))

    def export_scalars_to_json(self, path: str | os.PathLike[str]) -> None:
        """Write what `add_scalars` logged since the last export: `{directory: [[time, step, value], ...], ...}`.

        After a call of `log`, also the scalars of the worker directory, under `<directory>/<name>`. Reads the event
        files of this process, because nothing is kept in memory. They hold float32 values, and 0 where no step was
        given.

        Args:
            path: of the JSON file.
        """
        found = self._exported_scalars()
        with open(path, "w", encoding="utf-8", opener=open_above) as file:
            json.dump(found, file)

    def _exported_scalars(self) -> dict[str, list[list[float]]]:
        found: dict[str, list[list[float]]] = {}
        if (worker := self._worker) is not None:
            for sub in sorted(self._scalars_directories):
                points = summaries.read_scalars(worker.files.segments(sub), self._exported).values()
                found[worker.files.shown(sub)] = list(itertools.chain(*points))
            if self._last_logged is not NOTHING_YET:
                top = worker.files.shown("")
                scalars = summaries.read_scalars(worker.files.segments(""), self._exported)
                found |= {f"{top}/{tag}": points for tag, points in sorted(scalars.items())}
        return found


def as_numbers(name: str, values: Any) -> dict[str, float]:
    """Return several scalars as floats, so that one that is none is refused before anything is written."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{name} is {reprlib.repr(values)}, but must be a dictionary.")
    for tag in values:
        if not isinstance(tag, str):
            raise TypeError(f"{name} has the key {reprlib.repr(tag)}, but its keys must be strings.")
    return {tag: _as_float(tag, value) for tag, value in values.items()}


def _as_float(tag: str, value: Any) -> float:
    if (number := as_number(value)) is None:
        number = float(scalar(tag, value).value[0].simple_value)
    return number


def _special_summary(
    tag: str | bytes,
    value: Any,
    display_name: str | bool,
    summary_description: str | bool,
    *,
    new_style: bool,
    double_precision: bool,
) -> Any:
    """Return the summary of a scalar that is not encoded by hand; see `ScalarMethods.add_scalar`."""
    tag = tag.decode() if isinstance(tag, bytes) else tag
    number = _as_float(tag, value)
    title, description = (text if isinstance(text, str) else "" for text in (display_name, summary_description))
    if new_style or (display_name and not title):
        double_precision = double_precision or bool(summary_description and not description)
        return summaries.scalar_tensor(tag, number, double_precision=double_precision)
    return summaries.scalar(tag, number, title, description)
