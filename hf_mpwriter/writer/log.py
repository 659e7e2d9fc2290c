"""`log`: the scalars of a step as one record.

    log    names and numbers -> StepEncoder.record -> EventFile.append_record
             |
             +-- not all of them floats: metrics.read

In training nothing of this is in a cache, and each function, module and object that is touched costs a microsecond or
more. So a dictionary of floats with a step, the usual case, takes a straight way through `log`.

Invariants:
- A step is one record, written by one call: all of it is in the file, or nothing.
- What cannot be logged raises before anything is written, and counts no step.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from time import monotonic
from typing import Any

from tensorboardX.proto.summary_pb2 import Summary

from hf_mpwriter.writer import summaries
from hf_mpwriter.writer.encoder import EncoderCache, Names, StepEncoder, read
from hf_mpwriter.writer.file_writer import ADD_EVENT, TENSORBOARDX, is_intercepted
from hf_mpwriter.writer.scalars import ScalarMethods
from hf_mpwriter.writer.values import Step, as_step

NOTHING_YET: tuple[Names, StepEncoder] = (), StepEncoder([""])


class StepMethods(ScalarMethods):
    """`log`, and what it logged in `export_scalars_to_json`."""

    def _reset_process_state(self) -> None:
        super()._reset_process_state()
        self._step_encoders = EncoderCache()
        self._last_logged = NOTHING_YET

    def log(self, metrics: Mapping[str, Any], step: Step = None, *, wall_time: float | None = None) -> None:
        """Log the scalars of a step, as one record: after a crash, all of it is there or nothing.

        TensorBoard shows the same as after one `add_scalar` for each. An empty mapping logs nothing.
        """
        names, values = ((*metrics,), [*metrics.values()]) if type(metrics) is dict else read(metrics)
        for value in values:
            if type(value) is not float:
                names, values = read(metrics)
                break
        if not names:
            return
        last, encoder = self._last_logged  # most steps have the names of the one before
        if names != last:
            encoder = self._step_encoders[names]
            self._last_logged = names, encoder
        file_writer, worker = self.file_writer or self._get_file_writer(), self._worker
        is_special = wall_time is not None or TENSORBOARDX["add_event"] is not ADD_EVENT
        if type(step) is not int or worker is None or is_special or file_writer._default_metadata:
            self._log_otherwise(encoder, values, step, wall_time)
            return
        file_writer.file.append_record(encoder.record(time.time(), step, values))
        worker.steps.given = (step,)
        if monotonic() >= worker.next_housekeeping:
            worker.keep_house()

    def _log_otherwise(self, encoder: StepEncoder, values: list[float], step: Step, wall_time: float | None) -> None:
        """Log a step that has no number or a time of its own, or is for a tool that intercepts events; see `log`."""
        if wall_time is not None:
            wall_time = float(wall_time)
        file_writer, worker = self.file_writer or self._get_file_writer(), self._worker
        if worker is None:
            return
        if defaults := file_writer._default_metadata:
            step = defaults["global_step"] if step is None else step
            wall_time = defaults["walltime"] if wall_time is None else wall_time
        elif wall_time is None:
            wall_time = time.time()
        given = as_step(step)
        number = worker.steps.take() if given is None else given
        if is_intercepted():
            file_writer.add_summary(Summary.FromString(encoder.summary(values)), number, wall_time)
        else:
            file_writer.file.append_record(encoder.record(wall_time, number, values))
        if given is not None:
            worker.steps.given = (given,)
        worker.keep_house_if_due()

    def _exported_scalars(self) -> dict[str, list[list[float]]]:
        found = super()._exported_scalars()
        if (worker := self._worker) is not None and self._last_logged is not NOTHING_YET:
            top = worker.files.shown("")
            scalars = summaries.read_scalars_by_tag(worker.files.segments(""), self._exported)
            found |= {f"{top}/{tag}": points for tag, points in sorted(scalars.items())}
        return found
