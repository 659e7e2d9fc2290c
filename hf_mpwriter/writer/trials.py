"""Trials and embeddings, which are in files of their own, below the worker directory.

add_hparams      a run for each trial of a search, in the directory of the trial
add_embedding    tensorboardX -> files for the embedding projector, beside the event files
"""

from __future__ import annotations

import os
import reprlib
import time
from typing import Any, overload

from tensorboardX.summary import hparams
from tensorboardX.writer import SummaryWriter as _SummaryWriter

from hf_mpwriter.base.names import sub_directory
from hf_mpwriter.base.storage import is_url
from hf_mpwriter.events.deferred_log import logger
from hf_mpwriter.system.interrupts import ours
from hf_mpwriter.worker.worker import Worker
from hf_mpwriter.writer import summaries
from hf_mpwriter.writer.add_methods import AddMethods
from hf_mpwriter.writer.scalars import as_numbers
from hf_mpwriter.writer.values import Array, Step, as_python, as_step, plain, square

Hyperparameters = dict[str, Any]


class _Beside:
    """A writer as tensorboardX needs it for files: they go to where event files are, which the logdir may not be."""

    def __init__(self, writer: TrialMethods, worker: Worker) -> None:
        self._writer, self._worker = writer, worker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def _get_file_writer(self) -> _Beside:
        return self

    def get_logdir(self) -> str:
        """Return the worker directory on this disk."""
        return str(self._worker.files.directory())


class TrialMethods(AddMethods):
    """`add_hparams` and `add_embedding`."""

    @overload
    def add_hparams(
        self,
        hparam_dict: Hyperparameters,
        metric_dict: dict[str, Any],
        name: str | None = None,
        global_step: Step = None,
        *,
        hparam_domain_discrete: dict[str, list[Any]] | None = None,
        run_name: str | None = None,
    ) -> None: ...

    @overload
    def add_hparams(
        self,
        hparam_dict: Hyperparameters,
        metric_dict: dict[str, Any],
        hparam_domain_discrete: dict[str, list[Any]] | None = None,
        run_name: str | None = None,
        global_step: Step = None,
        *,
        name: str | None = None,
    ) -> None: ...

    def add_hparams(
        self,
        hparam_dict: Hyperparameters,
        metric_dict: dict[str, Any],
        *args: Any,
        name: str | None = None,
        hparam_domain_discrete: dict[str, list[Any]] | None = None,
        run_name: str | None = None,
        global_step: Any = None,
    ) -> None:
        """Add hyperparameters and metrics, in a run of their own.

        Args:
            hparam_dict: values of the hyperparameters: bool, int, float or str.
            metric_dict: values of the metrics, as in `add_scalar`.
            *args: tensorboardX's order (name, global_step) or torch's (hparam_domain_discrete, run_name, global_step):
                a string is the name, a dict the domains, a number the step.
            name: directory below this worker's; default: a new one, named after the time.
            hparam_domain_discrete: values that a hyperparameter can have, of the hyperparameter's type.
            run_name: torch's name for `name`.
            global_step: step of the metrics, a whole number.

        Raises:
            NotLoggableError: hparam_dict or metric_dict is no dictionary, a metric is not one number, or a domain does
                not fit its hyperparameter. Nothing is logged then.
        """
        for given, value in (("hparam_dict", hparam_dict), ("metric_dict", metric_dict)):
            if type(value) is not dict:
                raise TypeError(f"{given} is {reprlib.repr(value)}, but must be a dictionary.")
        by_type = {type(value): value for value in args}
        hparam_domain_discrete = by_type.pop(dict, hparam_domain_discrete)
        name = by_type.pop(str, None) or name or run_name
        by_type.pop(type(None), None)
        global_step = next(iter(by_type.values()), global_step)
        python = {key: as_python(value) for key, value in hparam_dict.items()}
        experiment, *others = hparams(python, metric_dict)
        if hparam_domain_discrete:
            experiment = summaries.with_domains(experiment, python, hparam_domain_discrete)
        numbers = as_numbers("metric_dict", metric_dict)
        self._add_trial(name, [experiment, *others], numbers, as_step(global_step))

    def _add_trial(self, name: str | None, setup: list[Any], metrics: dict[str, float], step: int | None) -> None:
        """Log a trial into a directory of its own, and seal its event file: a search makes thousands of trials."""
        sub = self._trial_directory(name) if name else str(time.time())
        file_writer = self._directory_writer(sub)
        for summary in setup:
            file_writer.add_summary(summary)
        for tag, value in metrics.items():
            self._add_to_directory(sub, tag, value, step, time.time())
        if not name:  # no later call uses this directory again
            (self.all_writers or {}).pop(os.path.join(self.logdir, sub), None)
        if self._worker is not None and sub:
            self._worker.files.finish(sub, self._filename_suffix, forget=not name)

    def _trial_directory(self, name: str) -> str:
        """Return the relative directory of a trial; its name may be an absolute path inside the run directory."""
        run_dir = str(self.logdir)
        if is_url(run_dir):
            name = name.removeprefix(f"{run_dir}/")
        elif os.path.isabs(name) and os.path.commonpath([name, run_dir]) == run_dir:
            name = os.path.relpath(name, run_dir)
        return sub_directory(name)

    def add_embedding(
        self,
        mat: Array,
        metadata: list[Any] | None = None,
        label_img: Array | None = None,
        global_step: int | None = None,
        tag: str = "default",
        metadata_header: list[str] | None = None,
    ) -> None:
        """Add data for the embedding projector, as files in the worker directory instead of events.

        Where event files are kept on a local disk on their way to the logdir, these files go there, too.

        To upload them, name them in `repo_allow_patterns`, such as `["*.tfevents.*", "*.tsv", "*.png", "*.pbtxt"]`. If
        the disk refuses them, `dropped` counts one more.

        Args:
            mat: shape (N, D): N points of dimension D.
            metadata: N labels.
            label_img: shape (N, C, H, W): a picture of each point; values as in `add_image`. TensorBoard needs
                squares, so others are padded with black.
            global_step: step.
            tag: name of the embedding.
            metadata_header: names of the columns, if each label is a list.

        Raises:
            NotLoggableError: a shape does not fit, or there are not N labels or pictures.
        """
        try:
            data = plain(mat), metadata, square(plain(label_img)), global_step, tag, metadata_header
            _SummaryWriter.add_embedding(self if self._worker is None else _Beside(self, self._worker), *data)
        except ours(OSError) as error:
            logger.warning("%s: an embedding cannot be written: %s", self.logdir, error.strerror or error)
            if self._worker is not None:
                self._worker.files.count_lost(1)
        else:
            if self._worker is not None:
                self._worker.note_logged()
