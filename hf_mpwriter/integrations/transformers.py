"""Transformers: a callback for the Trainer.

    trainer = Trainer(..., callbacks=[HubTensorBoardCallback("me/run")])

It is the Trainer's own TensorBoard callback but for the writer, so it logs the same tags, steps and values.

    <output_dir>/_tensorboard/<job, or date and host>/              run directory
                              <job, or date and host>_trial_0/      that of a trial of a hyper-parameter search
    <output_dir>/checkpoint-500/trainer_state.json                  {..., "hf_mpwriter": {"run": <its name>}}

- The one that `report_to="tensorboard"` brings makes no writer beside it: no event twice.
- `evaluate()` and `predict()` after `train()` go on in the same run; theirs logs nothing of `predict()`.
- The Trainer uploads nothing that begins with `_`, so no event file is sent twice, or cut in the midst of a record.
- Whoever resumes from a checkpoint goes on in its run, and what came after the checkpoint is hidden (`purge_step`). So
  is all that a job has logged whose next attempt begins anew; not in a `logdir` of the user's.
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

from hf_mpwriter.integrations import require
from hf_mpwriter.worker.role import take_first_rank

require("transformers")

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import CallbackHandler

from hf_mpwriter.integrations.from_environment import with_destination
from hf_mpwriter.writer.summary_writer import SummaryWriter, default_logdir

FOLDER = "_tensorboard"
KEY = "hf_mpwriter"  # among the states of callbacks that a checkpoint holds

logger = logging.getLogger(__name__)


class HubTensorBoardCallback(TensorBoardCallback):
    """The Trainer's TensorBoard callback on our writer.

    Args:
        repo_id: repository. Default: `hub_model_id` of the arguments, with `push_to_hub` the name of the output
            directory, else HF_MPWRITER_REPO_ID.
        logdir: the run directory. Default: TENSORBOARD_LOGGING_DIR, else one in the output directory, see above.
        all_ranks: whether every rank logs, each into a directory of its own, and not only the first.
        **options: arguments of `SummaryWriter`. `token` and `repo_private` are by default `hub_token` and
            `hub_private_repo` of the arguments.

    Raises:
        SettingsError: nothing names a repository; raised when the Trainer is constructed.
        TypeError: an option is none of `SummaryWriter`, likewise.
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
        self._given = os.path.abspath(os.path.expanduser(given)) if given else None
        self.logging_dir = None
        self._run: str | None = None
        self._trials = 0
        self._purge_step: int | None = None

    def on_init_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The Trainer is complete: it has a run of its own, and what cannot work is told now."""
        with_destination(self._of(args))
        self.on_train_end(args, state, control)
        self.tb_writer = self.logging_dir = self._run = self._purge_step = None
        if args.push_to_hub and self._given is not None and _pushed_by_the_trainer(args.output_dir, self._given):
            logger.warning(
                "The Trainer pushes %s too, as a part of %s; a logdir elsewhere, or none, avoids that.",
                self._given,
                args.output_dir,
            )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Construct the writer; what the arguments and the model are is logged as text."""
        trial = _trial(state, self._trials)
        self._trials += trial is not None
        # a run of our own that is begun anew was begun by a job that was requeued before its first checkpoint
        self._purge_step = state.global_step + 1 if state.global_step or self._given is None else None
        logging_dir = self._logging_dir(args, state, trial)
        if self.tb_writer is not None and (state.global_step or logging_dir != self.logging_dir):
            self.tb_writer.close()
            self.tb_writer = None
        self.logging_dir = logging_dir
        super().on_train_begin(args, self._seen(state), control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Log."""
        if self.logging_dir is None:
            self.logging_dir = self._logging_dir(args, state, None)
        super().on_log(args, self._seen(state), control, logs=logs, **kwargs)

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Log what `predict()` has measured, as the Trainer does after `evaluate()` only."""
        self.on_log(args, state, control, logs=metrics, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a push; what `evaluate()` logs later goes on in the same run."""
        if self.tb_writer is not None:
            self.tb_writer.close()

    def _seen(self, state: Any) -> Any:
        """The state as their callback should see it: that one logs on the first rank, and renames runs of trials."""
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
            self.logging_dir, purge_step=self._purge_step, **with_destination(self._of(args))
        )

    def _of(self, args: Any) -> dict[str, Any]:
        """The arguments of the writer that the callback and the Trainer were given."""
        given = {"token": args.hub_token, "repo_private": args.hub_private_repo, **self._options}
        if given["repo_id"] is None and (args.hub_model_id or args.push_to_hub):
            given["repo_id"] = args.hub_model_id or Path(args.output_dir).absolute().name
            given.setdefault("repo_revision", args.hub_revision)
        return {name: value for name, value in given.items() if value is not None}


def _trial(state: Any, number: int) -> str | None:
    """A trial's name. Its run directory stands beside the others: within one it would be uploaded with that one too."""
    return (state.trial_name or f"trial_{number}").replace(os.sep, "_") if state.is_hyper_param_search else None


_runs: set[str] = set()


def _new_run() -> str:
    """A name that no other callback of this process has, as it is one on the Hub too; all ranks count alike."""
    first = name = Path(default_logdir("")).name
    number = 1
    while name in _runs:
        number += 1
        name = f"{first}_{number}"
    _runs.add(name)
    return name


def _pushed_by_the_trainer(output_dir: str, logdir: str) -> bool:
    relative = os.path.relpath(logdir, output_dir)
    return not relative.startswith(("..", "_"))


def _unless_ours_is_there(theirs: Callable[..., None]) -> Callable[..., None]:
    """Their callback makes no writer in a Trainer that has ours. One that it was given by the user, it has."""

    @functools.wraps(theirs)
    def init(callback: TensorBoardCallback, *args: Any) -> None:
        ours = (isinstance(other, HubTensorBoardCallback) for other in _listeners())
        if type(callback) is not TensorBoardCallback or not any(ours):
            theirs(callback, *args)

    return init


def _listeners() -> list[TrainerCallback]:
    """The callbacks of the Trainer that sends this event. Events do not tell, hence the look at the callers."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - as documented, and faster than inspect.stack
    while frame is not None:
        if isinstance(handler := frame.f_locals.get("self"), CallbackHandler):
            return list(handler.callbacks)
        frame = frame.f_back
    return []


TensorBoardCallback._init_summary_writer = _unless_ours_is_there(  # noqa: SLF001 - ours overrides it too
    TensorBoardCallback._init_summary_writer  # noqa: SLF001 - likewise
)
