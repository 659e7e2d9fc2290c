"""Lightning: a logger for the Trainer and for Fabric.

    trainer = Trainer(logger=HubTensorBoardLogger("runs", name="digits", repo_id="me/run"))

It is Lightning's own TensorBoard logger with another writer. It logs the same tags, steps and values into the same run
directory, `<save_dir>/<name>/<version>`. On the Hub that is `tensorboard/<name>/<version>`. The scalars of a step are
one record. Only the runs of a dictionary differ: a dictionary `many` with a key `a` is the run `many/a`, as in
tensorboardX, instead of `many_a`.

To resume, pass the same `version`. `Trainer.fit(ckpt_path=...)` then hides what was logged after the checkpoint. With
Fabric, and with `Trainer(enable_autolog_hparams=False)`, pass `purge_step` yourself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_mpwriter.base.storage import normalised_logdir
from hf_mpwriter.integrations import require
from hf_mpwriter.worker.role import take_first_rank

require("lightning")

from lightning.fabric.loggers import TensorBoardLogger as FabricLogger
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from hf_mpwriter.integrations.shared import add_scalars, split_scalars, with_destination
from hf_mpwriter.writer.summary_writer import SummaryWriter, is_spawning


class HubTensorBoardLogger(TensorBoardLogger):
    """Lightning's TensorBoard logger on the writer of hf_mpwriter.

    Args:
        save_dir: folder of all experiments.
        name: of the experiment.
        version: of the run; default: the next free number.
        log_graph: whether to log the graph of a model that has an `example_input_array`.
        default_hp_metric: whether hyperparameters without a metric get one.
        prefix: of the names of all metrics.
        sub_dir: folder below the directory of the version.
        repo_id: repository; without it, the environment names the destination, see `shared`.
        **kwargs: other arguments of `SummaryWriter`.

    Raises:
        SettingsError: no repository is named.
        LogdirError: save_dir is neither a path nor a URL that can be written.
        TypeError: an option is no argument of `SummaryWriter`.
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        log_graph: bool = False,
        default_hp_metric: bool = True,
        prefix: str = "",
        sub_dir: str | os.PathLike[str] | None = None,
        repo_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        normalised_logdir(save_dir)
        self._experiment: SummaryWriter | None
        # LightningCLI follows the name `kwargs` to `super().__init__` to find out which arguments are accepted
        kwargs = with_destination({"repo_id": repo_id, **kwargs})
        super().__init__(save_dir, name, version, log_graph, default_hp_metric, prefix, sub_dir, **kwargs)

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """The writer; on all ranks but the first, an object that does nothing."""
        if self._experiment is None:
            take_first_rank()
            self._experiment = self._writer()
        return self._experiment

    def _writer(self, **options: Any) -> SummaryWriter:
        top = normalised_logdir(os.path.expandvars(self.save_dir))
        above = Path(os.path.relpath(self.log_dir, top)).parent
        return SummaryWriter(
            self.log_dir, **{"path_in_repo": Path("tensorboard", above).as_posix()} | self._kwargs | options
        )

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics; the scalars among them are one record.

        Args:
            metrics: a number or a tensor, or a dictionary of these for `add_scalars`, per name.
            step: global step.

        Raises:
            ValueError: a value is none of these.
        """
        numbers = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        scalars, others = split_scalars(numbers)
        prefix = f"{self._prefix}{self.LOGGER_JOIN_CHAR}" if self._prefix else ""
        add_scalars(self.experiment, {f"{prefix}{name}": value for name, value in scalars.items()}, step)
        super().log_metrics(others, step)

    def __getstate__(self) -> dict[str, Any]:
        """Close the writer and return what a process needs that trains in place of this one."""
        if self._experiment is not None:
            self._experiment.close()
        state: dict[str, Any] = super().__getstate__()
        if not is_spawning():
            state["_kwargs"] = {**self._kwargs, "token": None}  # this pickle may be written to a file
        return state

    @rank_zero_only
    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Log the graph of a model.

        The Trainer calls this before each fit, also if `log_graph` is false: here the logger learns of the Trainer.
        """
        trainer = getattr(model, "_trainer", None)
        if trainer is None:  # Fabric: the user calls this, with any module
            from lightning.pytorch.core.module import _jit_is_scripting

            with _jit_is_scripting():  # lets a LightningModule be traced without a Trainer
                FabricLogger.log_graph(self, model, input_array)
            return
        if trainer.state.fn == "fit":
            # a new list, because the caller may be a callback in a loop over the old one
            trainer.callbacks = [_Resume(self), *trainer.callbacks]
        super().log_graph(model, input_array)

    def purge(self, step: int) -> None:
        """Hide what was logged in this run directory at this step and later."""
        self.experiment.close()
        self._experiment = self._writer(purge_step=step)


class _Resume(Callback):
    """Purges at the start of a resumed fit: after the checkpoint is restored, before anything is logged."""

    def __init__(self, logger: HubTensorBoardLogger) -> None:
        self._logger: HubTensorBoardLogger | None = logger

    @rank_zero_only
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Purge, once, because the Trainer keeps its callbacks for the next fit."""
        logger, self._logger = self._logger, None
        if logger is not None and trainer.ckpt_path:
            logger.purge(_next_step(trainer, pl_module))


def _next_step(trainer: Any, module: Any) -> int:
    """Return the first step that will be logged again.

    With manual optimization, `global_step` counts the steps of all optimizers, but the step that is logged counts
    batches. `_batches_that_stepped` would be that count, but Lightning restores it later than this.
    """
    done = trainer.fit_loop.epoch_loop.batch_progress.total.processed
    return int(trainer.global_step if module.automatic_optimization else done)
