"""`HFSummaryWriter`: the signature and the attributes of huggingface_hub's class, on `SummaryWriter`."""

from __future__ import annotations

import os
from typing import Any

from hf_mpwriter.base.arguments.names import naming
from hf_mpwriter.base.settings import DEFAULT_COMMIT_EVERY, check_repo_id
from hf_mpwriter.writer.commit_scheduler import CommitScheduler
from hf_mpwriter.writer.summary_writer import SummaryWriter


class HFSummaryWriter(SummaryWriter):
    """huggingface_hub's HFSummaryWriter for many processes: the same arguments, the same attributes.

    Each record is written to disk at once. A process that outlives crashes uploads the event files. The constructor
    sends no request. For the arguments and errors, see `SummaryWriter`.

    Attributes:
        logdir: the run directory, absolute.
        repo_id: the repository; with its namespace once the first push has resolved it.
        repo_type: model, dataset or space, None if it was not given.
        repo_revision: branch, None if it was not given.
        scheduler: the interface of huggingface_hub's CommitScheduler.
    """

    @naming
    def __init__(
        self,
        repo_id: str,
        *,
        logdir: str | os.PathLike[str] | None = None,
        commit_every: float = DEFAULT_COMMIT_EVERY,
        squash_history: bool = False,
        repo_type: str | None = None,
        repo_revision: str | None = None,
        repo_private: bool | None = None,
        path_in_repo: str | None = "tensorboard",
        repo_allow_patterns: list[str] | str | None = "*.tfevents.*",
        repo_ignore_patterns: list[str] | str | None = None,
        token: str | None = None,
        comment: str = "",
        purge_step: int | None = None,
        max_queue: int = 10,
        flush_secs: int = 120,
        filename_suffix: str = "",
        write_to_disk: bool = True,
        log_dir: str | os.PathLike[str] | None = None,
        comet_config: dict[str, Any] | None = None,
        exit_timeout: float | None = None,
        memory_limit: int | None = None,
        mirror_every: float | None = None,
        system_metrics: bool | None = None,
        all_ranks_view: bool | None = None,
    ) -> None:
        super().__init__(
            logdir=logdir,
            comment=comment,
            purge_step=purge_step,
            max_queue=max_queue,
            flush_secs=flush_secs,
            filename_suffix=filename_suffix,
            write_to_disk=write_to_disk,
            log_dir=log_dir,
            comet_config=comet_config,
            repo_id=check_repo_id(repo_id),
            commit_every=commit_every,
            squash_history=squash_history,
            repo_type=repo_type,
            repo_revision=repo_revision,
            repo_private=repo_private,
            path_in_repo=path_in_repo,
            repo_allow_patterns=repo_allow_patterns,
            repo_ignore_patterns=repo_ignore_patterns,
            token=token,
            exit_timeout=exit_timeout,
            memory_limit=memory_limit,
            mirror_every=mirror_every,
            system_metrics=system_metrics,
            all_ranks_view=all_ranks_view,
        )
        self.repo_type = repo_type
        self.repo_revision = repo_revision
        self._make_scheduler()

    def _on_arrival(self) -> None:
        self._make_scheduler()

    def _make_scheduler(self) -> None:
        if self._destination is not None and self._worker is not None:
            self.scheduler = CommitScheduler(self._worker, self._destination, self._settings, self._token)
            self.scheduler.repo_type, self.scheduler.revision = self.repo_type, self.repo_revision
            if not self._uploads:
                self.scheduler.stop()

    @property
    def repo_id(self) -> str:
        """The repository; with its namespace once the first push has resolved it."""
        return self.scheduler.repo_id
