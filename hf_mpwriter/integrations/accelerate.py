"""Accelerate: a tracker, by name or as an instance.

    import hf_mpwriter.integrations.accelerate                  # registers the name

    accelerator = Accelerator(log_with="hf_mpwriter", project_dir="runs")
    accelerator.init_trackers("exp1", init_kwargs={"hf_mpwriter": {"repo_id": "me/run"}})

    accelerator = Accelerator(log_with=HubTensorBoardTracker("exp1", "runs", repo_id="me/run"))     # or so

It is Accelerate's own TensorBoard tracker but for the writer, so it logs the same tags, steps and values, and like that
one on the main process only. As with tensorboardX, the runs of a dictionary are `many/a`, where torch has `many_a`, and
truth values of the configuration stay what they are, where torch writes 0 and 1. The run directory is
`<project_dir>/<run_name>`, as theirs; on the Hub it is `tensorboard/<run_name>`. Whoever resumes passes `purge_step`,
the first step that will be logged again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hf_mpwriter.integrations import require
from hf_mpwriter.worker.role import take_first_rank

require("accelerate")

from accelerate.tracking import TensorBoardTracker, on_main_process, register_tracker_class

from hf_mpwriter.integrations.from_environment import with_destination
from hf_mpwriter.writer.summary_writer import SummaryWriter


class HubTensorBoardTracker(TensorBoardTracker):
    """Accelerate's TensorBoard tracker on our writer.

    Args:
        run_name: name of the run directory.
        logging_dir: where it is.
        **kwargs: arguments of `SummaryWriter`, such as `repo_id`; without that one the destination is in the
            environment, see `fromenv`.

    Raises:
        SettingsError: nothing names a repository.
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


register_tracker_class(HubTensorBoardTracker)
