"""Hyperparameters: each trial of a search is a run of its own, below the worker directory."""

from __future__ import annotations

import os
import reprlib
import time
from typing import Any, overload

from tensorboardX.summary import hparams

from hf_mpwriter.base.names import sub_directory
from hf_mpwriter.base.storage import is_url
from hf_mpwriter.writer import summaries
from hf_mpwriter.writer.scalars import ScalarMethods, as_numbers
from hf_mpwriter.writer.values import Step, as_python, as_step

Hyperparameters = dict[str, Any]


class TrialMethods(ScalarMethods):
    """`add_hparams`."""

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
