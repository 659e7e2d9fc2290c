"""Lightning: a logger for the Trainer and for Fabric.

    trainer = Trainer(logger=HubTensorBoardLogger("runs", name="digits", repo_id="me/run"))

It is Lightning's own TensorBoard logger but for the writer, so it logs the same tags, steps and values; only the runs
of a dictionary are `many/a`, as tensorboardX names them, where torch has `many_a`. The run directory is
`<save_dir>/<name>/<version>`, as theirs; on the Hub it is `tensorboard/<name>/<version>`. Whoever resumes names the
version: `Trainer.fit(ckpt_path=...)` then hides what came after the checkpoint (`purge_step`). With Fabric, and with
`Trainer(enable_autolog_hparams=False)`, pass `purge_step` yourself.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hf_mpwriter.integrations import require
from hf_mpwriter.worker.role import take_first_rank

require("lightning")

from lightning.fabric.loggers import TensorBoardLogger as FabricLogger
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from hf_mpwriter.integrations.from_environment import with_destination
from hf_mpwriter.writer.summary_writer import SummaryWriter, absolute_logdir, is_spawning


class HubTensorBoardLogger(TensorBoardLogger):
    """Lightning's TensorBoard logger on our writer.

    Args:
        save_dir: where the run directories are.
        name: of the experiment.
        version: of the run; by default the next free number.
        log_graph: whether to log the graph of a model that has an `example_input_array`.
        default_hp_metric: whether hyper-parameters without a metric get one.
        prefix: of all metrics.
        sub_dir: below the directory of the version.
        repo_id: repository; without it the destination is in the environment, see `fromenv`.
        **kwargs: other arguments of `SummaryWriter`.

    Raises:
        SettingsError: nothing names a repository.
        LogdirError: save_dir is a URL.
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
        absolute_logdir(save_dir)
        self._experiment: SummaryWriter | None
        kwargs = with_destination({"repo_id": repo_id, **kwargs})  # by this name LightningCLI knows what may be given
        super().__init__(save_dir, name, version, log_graph, default_hp_metric, prefix, sub_dir, **kwargs)

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """The writer; on other ranks than the first one something that does nothing."""
        if self._experiment is None:
            take_first_rank()
            self._experiment = self._writer()
        return self._experiment

    def _writer(self, **options: Any) -> SummaryWriter:
        top = absolute_logdir(os.path.expandvars(self.save_dir))
        above = Path(os.path.relpath(self.log_dir, top)).parent
        return SummaryWriter(
            self.log_dir, **{"path_in_repo": Path("tensorboard", above).as_posix()} | self._kwargs | options
        )

    def __getstate__(self) -> dict[str, Any]:
        """For a process that will train in the place of this one: it takes over the run directory, too."""
        if self._experiment is not None:
            self._experiment.close()
        state: dict[str, Any] = super().__getstate__()
        if not is_spawning():
            state["_kwargs"] = {**self._kwargs, "token": None}  # a token is never in a file
        return state

    @rank_zero_only
    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Log the graph. The Trainer calls this before it trains, whatever is logged: the time to meet it."""
        trainer = getattr(model, "_trainer", None)
        if trainer is None:  # Fabric calls nothing by itself: somebody wants the graph, of any module
            from lightning.pytorch.core.module import _jit_is_scripting

            with _jit_is_scripting():  # a LightningModule can be traced without its Trainer, then
                FabricLogger.log_graph(self, model, input_array)
            return
        if trainer.state.fn == "fit":
            trainer.callbacks = [_Resume(self), *trainer.callbacks]  # a callback that asks for the graph is amid a loop
        super().log_graph(model, input_array)

    def purge(self, step: int) -> None:
        """Hide what has been logged in this run directory at this step and later."""
        self.experiment.close()
        self._experiment = self._writer(purge_step=step)


class _Resume(Callback):
    """Tells the logger where a fit goes on, when the checkpoint is restored and before others log."""

    def __init__(self, logger: HubTensorBoardLogger) -> None:
        self._logger: HubTensorBoardLogger | None = logger

    @rank_zero_only
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Purge, once: the Trainer keeps its callbacks for the next fit."""
        logger, self._logger = self._logger, None
        if logger is not None and trainer.ckpt_path:
            logger.purge(_next_step(trainer, pl_module))


def _next_step(trainer: Any, module: Any) -> int:
    """The first step that will be logged again.

    With manual optimization global_step counts every optimizer; batches are logged. `_batches_that_stepped` is not what
    it was when the checkpoint was written: Lightning puts that right later.
    """
    done = trainer.fit_loop.epoch_loop.batch_progress.total.processed
    return int(trainer.global_step if module.automatic_optimization else done)
