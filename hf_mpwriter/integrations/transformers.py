"""Transformers: a callback for the Trainer.

    trainer = Trainer(..., callbacks=[HubTensorBoardCallback("me/run")])

It is the Trainer's own TensorBoard callback with another writer. It logs the same tags, steps and values. The scalars
of a step are one record.

    <output_dir>/_tensorboard/<job, or date and host>/              run directory
                              <job, or date and host>_trial_0/      run directory of a trial of a hyperparameter search
    <output_dir>/checkpoint-500/trainer_state.json                  {..., "hf_mpwriter": {"run": <name of the run>}}

- Beside it, the callback of `report_to="tensorboard"` creates no writer, so no event is logged twice.
- `evaluate()` and `predict()` after `train()` continue the same run. The Trainer's callback does not log `predict()`.
- The Trainer uploads no folder that begins with `_`, so it never uploads an event file that grows.
- Training that resumes from a checkpoint continues the run of the checkpoint, and hides what was logged after it
  (`purge_step`). Training that starts again without a checkpoint hides everything, except in a `logdir` of the user.
"""

from __future__ import annotations

import copy
import functools
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from hf_mpwriter.base.storage import is_url, normalised_logdir
from hf_mpwriter.integrations import require
from hf_mpwriter.worker.role import default_logdir, take_first_rank

require("transformers")

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.integrations.integration_utils import rewrite_logs
from transformers.trainer_callback import CallbackHandler

from hf_mpwriter.integrations.shared import add_scalars, split_scalars, with_destination
from hf_mpwriter.writer.summary_writer import SummaryWriter

FOLDER = "_tensorboard"
KEY = "hf_mpwriter"  # of the callback's state in a checkpoint

logger = logging.getLogger("hf_mpwriter")


class HubTensorBoardCallback(TensorBoardCallback):
    """The Trainer's TensorBoard callback on the writer of hf_mpwriter.

    Args:
        repo_id: repository. Default: `hub_model_id` of the TrainingArguments; with `push_to_hub`, the name of the
            output directory; else HF_MPWRITER_REPO_ID.
        logdir: the run directory. Default: TENSORBOARD_LOGGING_DIR, else a folder in the output directory, see above.
        all_ranks: whether every rank logs, each into a directory of its own, instead of the first rank only.
        **options: arguments of `SummaryWriter`. `token` and `repo_private` default to `hub_token` and
            `hub_private_repo` of the TrainingArguments.

    The constructor of the Trainer raises:
        SettingsError: no repository is named.
        TypeError: an option is no argument of `SummaryWriter`.
    """

    def __init__(
        self,
        repo_id: str | None = None,
        *,
        logdir: str | os.PathLike[str] | None = None,
        all_ranks: bool = False,
        **options: Any,
    ) -> None:
        self.tb_writer: SummaryWriter | None
        self.logging_dir: str | None
        super().__init__()
        self._options = {"repo_id": repo_id, **options}
        self._all_ranks = all_ranks
        given = logdir or self.logging_dir
        self._given = normalised_logdir(given) if given else None
        self.logging_dir = None
        self._run: str | None = None
        self._trials = 0
        self._purge_step: int | None = None

    def on_init_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Give the new Trainer a run of its own, and report wrong options now."""
        with_destination(self._writer_options(args))
        self.on_train_end(args, state, control)
        self.tb_writer = self.logging_dir = self._run = self._purge_step = None
        if args.push_to_hub and self._given is not None and _pushed_by_the_trainer(args.output_dir, self._given):
            logger.warning(
                "The Trainer pushes %s too, as a part of %s. To avoid that, choose another logdir, or none.",
                self._given,
                args.output_dir,
            )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Construct the writer, and log the arguments and the configuration of the model as text."""
        trial = _trial(state, self._trials)
        self._trials += trial is not None
        # at step 0, a run in a folder of ours holds only what a job logged that was requeued before a checkpoint
        self._purge_step = state.global_step + 1 if state.global_step or self._given is None else None
        logging_dir = self._logging_dir(args, state, trial)
        if self.tb_writer is not None and (state.global_step or logging_dir != self.logging_dir):
            self.tb_writer.close()
            self.tb_writer = None
        self.logging_dir = logging_dir
        super().on_train_begin(args, self._state_for_theirs(state), control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Log the values that the Trainer reports; the scalars among them are one record."""
        if self.logging_dir is None:
            self.logging_dir = self._logging_dir(args, state, None)
        seen = self._state_for_theirs(state)
        scalars, others = split_scalars(logs or {})
        if seen.is_world_process_zero:
            if self.tb_writer is None:
                self._init_summary_writer(args)
            if self.tb_writer is not None:
                add_scalars(self.tb_writer, rewrite_logs(scalars), state.global_step)
        super().on_log(args, seen, control, logs=others, **kwargs)

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Log the metrics of `predict()`, as the Trainer itself does for `evaluate()`."""
        self.on_log(args, state, control, logs=metrics, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the writer, which requests a push; what `evaluate()` logs later continues the same run."""
        if self.tb_writer is not None:
            self.tb_writer.close()

    def _state_for_theirs(self, state: Any) -> Any:
        """Return a state with which the Trainer's callback logs on the wanted ranks, and renames no run of a trial."""
        seen = copy.copy(state)
        seen.is_world_process_zero = state.is_world_process_zero or self._all_ranks
        seen.is_hyper_param_search = False
        return seen

    def _logging_dir(self, args: Any, state: Any, trial: str | None) -> str:
        return self._run_dir(args, state) + (f"_{trial}" if trial else "")

    def _run_dir(self, args: Any, state: Any) -> str:
        if self._given is not None:
            return self._given
        top = Path(args.output_dir, FOLDER)
        saved = state.stateful_callbacks.get(KEY, {}).get("run")
        if saved and (top / saved).is_dir():
            self._run = saved
            _runs.add(saved)
        elif self._run is None:
            self._run = _new_run()
        state.stateful_callbacks[KEY] = {"run": self._run}
        return str(top / self._run)

    def _init_summary_writer(self, args: Any) -> None:
        if args.process_index == 0:
            take_first_rank()
        self.tb_writer = SummaryWriter(
            self.logging_dir, purge_step=self._purge_step, **with_destination(self._writer_options(args))
        )

    def _writer_options(self, args: Any) -> dict[str, Any]:
        """Return the arguments of the writer, from the callback and the TrainingArguments."""
        given = {"token": args.hub_token, "repo_private": args.hub_private_repo, **self._options}
        if given["repo_id"] is None and (args.hub_model_id or args.push_to_hub):
            given["repo_id"] = args.hub_model_id or Path(args.output_dir).absolute().name
            given.setdefault("repo_revision", args.hub_revision)
        return {name: value for name, value in given.items() if value is not None}


def _trial(state: Any, number: int) -> str | None:
    """Return the name of a trial, None outside of a search.

    Run directories of trials are siblings: one within another would be uploaded with both.
    """
    return (state.trial_name or f"trial_{number}").replace(os.sep, "_") if state.is_hyper_param_search else None


_runs: set[str] = set()


def _new_run() -> str:
    """Return a name that no other callback of this process uses, on disk or on the Hub. All ranks count alike."""
    first = name = Path(default_logdir("")).name
    number = 1
    while name in _runs:
        number += 1
        name = f"{first}_{number}"
    _runs.add(name)
    return name


def _pushed_by_the_trainer(output_dir: str, logdir: str) -> bool:
    relative = os.path.relpath(logdir, output_dir)
    return not is_url(logdir) and not relative.startswith(("..", "_"))


def _unless_ours_is_present(theirs: Callable[..., None]) -> Callable[..., None]:
    """Wrap the method of the Trainer's callback that creates its writer: with ours in the same Trainer, do nothing.

    A writer that the user passed to the callback is used all the same.
    """

    @functools.wraps(theirs)
    def init(callback: TensorBoardCallback, *args: Any) -> None:
        ours = (isinstance(other, HubTensorBoardCallback) for other in _listeners())
        if type(callback) is not TensorBoardCallback or not any(ours):
            theirs(callback, *args)

    return init


def _listeners() -> list[TrainerCallback]:
    """Return the callbacks of the Trainer that calls.

    A callback is not passed the other callbacks, so they are read from the frame of the CallbackHandler.
    """
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - documented, and faster than inspect.stack
    while frame is not None:
        if isinstance(handler := frame.f_locals.get("self"), CallbackHandler):
            return list(handler.callbacks)
        frame = frame.f_back
    return []


TensorBoardCallback._init_summary_writer = _unless_ours_is_present(  # noqa: SLF001 - the method that ours overrides too
    TensorBoardCallback._init_summary_writer  # noqa: SLF001 - the same
)
