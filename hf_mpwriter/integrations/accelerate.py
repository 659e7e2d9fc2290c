"""Accelerate: a tracker, selected by name or passed as an instance.

    import hf_mpwriter.integrations.accelerate                  # registers the name "hf_mpwriter"

    accelerator = Accelerator(log_with="hf_mpwriter", project_dir="runs")
    accelerator.init_trackers("exp1", init_kwargs={"hf_mpwriter": {"repo_id": "me/run"}})

    accelerator = Accelerator(log_with=HubTensorBoardTracker("exp1", "runs", repo_id="me/run"))

It is Accelerate's own TensorBoard tracker with another writer. It logs the same tags, steps and values, on the main
process only, into the same run directory, `<project_dir>/<run_name>`. On the Hub that is `tensorboard/<run_name>`. The
scalars of a step are one record.

Two things follow tensorboardX instead of torch: a dictionary `many` with a key `a` is the run `many/a` instead of
`many_a`, and booleans of the configuration are logged as booleans instead of 0 and 1.

To resume, pass `purge_step`, the first step that will be logged again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hf_mpwriter.integrations import require
from hf_mpwriter.worker.role import take_first_rank

require("accelerate")

from accelerate.tracking import TensorBoardTracker, on_main_process, register_tracker_class
from accelerate.utils import listify

from hf_mpwriter.integrations.shared import add_scalars, split_scalars, with_destination
from hf_mpwriter.writer.summary_writer import SummaryWriter


class HubTensorBoardTracker(TensorBoardTracker):
    """Accelerate's TensorBoard tracker on the writer of hf_mpwriter.

    Args:
        run_name: name of the run directory.
        logging_dir: folder of the run directory.
        **kwargs: arguments of `SummaryWriter`. Without `repo_id`, the environment names the destination, see
            `shared`.

    Raises:
        SettingsError: no repository is named.
        TypeError: an option is no argument of `SummaryWriter`.
    """

    name = "hf_mpwriter"
    requires_logging_directory = True

    def __init__(self, run_name: str, logging_dir: str | os.PathLike[str] = "runs", **kwargs: Any) -> None:
        super().__init__(run_name, logging_dir, **with_destination(kwargs))

    @on_main_process
    def start(self) -> None:
        """Construct the writer."""
        take_first_rank()
        self.logging_dir = os.path.join(self.logging_dir_param, self.run_name)
        folder = Path("tensorboard", Path(self.run_name).parent).as_posix()
        self.writer = SummaryWriter(self.logging_dir, **{"path_in_repo": folder} | self.init_kwargs)

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Log values; the scalars among them are one record.

        Args:
            values: a number, a text, or a dictionary of numbers for `add_scalars`, per name.
            step: global step.
            **kwargs: arguments of the methods of the writer; with any, each scalar is a record of its own.
        """
        scalars, others = ({}, values) if kwargs else split_scalars(listify(values))
        add_scalars(self.writer, scalars, step)
        super().log(others, step, **kwargs)


register_tracker_class(HubTensorBoardTracker)
