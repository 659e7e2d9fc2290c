"""`HFSummaryWriter`: the signature and the attributes of huggingface_hub's class, on `SummaryWriter`."""

from __future__ import annotations

import os
from typing import Any, TypedDict, Unpack

from hf_mpwriter.base.settings import DEFAULT_COMMIT_EVERY, check_repo_id
from hf_mpwriter.writer.commit_scheduler import CommitScheduler
from hf_mpwriter.writer.summary_writer import SummaryWriter


class WriterArguments(TypedDict, total=False):
    """Arguments that huggingface_hub's writer lacks; for their defaults and meaning see `SummaryWriter`."""

    purge_step: int | None
    exit_timeout: float | None
    memory_limit: int | None
    system_metrics: bool | None
    rank: int | None
    comment: str
    max_queue: int
    flush_secs: int
    filename_suffix: str
    write_to_disk: bool
    log_dir: str | os.PathLike[str] | None
    comet_config: dict[str, Any] | None


class HFSummaryWriter(SummaryWriter):
    """huggingface_hub's HFSummaryWriter for many processes: the same arguments, the same attributes.

    Each record is written to disk at once. A process that outlives crashes uploads the event files. The constructor
    sends no request. For the errors, see `SummaryWriter`.

    Args:
        repo_id: repository on the Hub, `name` or `namespace/name`; created if it does not exist.
        logdir: the run directory, shared by all processes of a run; a path or a URL. Default: `runs/<job>` if the
            launcher names the job, else `runs/<date>_<host>`.
        commit_every: minutes between two commits, and between two copies to a logdir in which files cannot grow.
        squash_history: whether to squash the branch after commits: once per `commit_every`, and after the last one.
        repo_type: model, dataset or space; None for model.
        repo_revision: branch; None for main.
        repo_private: visibility of a repository that is created; None for the organization's default, else public.
        path_in_repo: folder in the repository, to which the name of the run directory is appended.
        repo_allow_patterns: patterns of the files in the run directory to upload, None for all files; by default,
            event files.
        repo_ignore_patterns: patterns of files to leave out.
        token: for the Hub; None takes the token of the environment or of `hf auth login`.
        **kwargs: the other arguments of `SummaryWriter`: `purge_step`, `rank`, and all of `WriterArguments`.

    Attributes:
        logdir: the run directory, absolute.
        repo_id: the repository; with its namespace once the first push has resolved it.
        repo_type: model, dataset or space, None if it was not given.
        repo_revision: branch, None if it was not given.
        scheduler: the interface of huggingface_hub's CommitScheduler.
    """

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
        **kwargs: Unpack[WriterArguments],
    ) -> None:
        """Build a writer; the arguments stand at the class."""
        if unknown := sorted(kwargs.keys() - WriterArguments.__optional_keys__):
            raise TypeError(f"HFSummaryWriter.__init__() got an unexpected keyword argument {unknown[0]!r}")
        super().__init__(
            logdir=logdir,
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
            **kwargs,
        )
        self.repo_type = repo_type
        self.repo_revision = repo_revision
        self._on_arrival()

    def _on_arrival(self) -> None:
        if self._destination is not None and self._worker is not None:
            self.scheduler = CommitScheduler(self._worker, self._destination, self._settings, self._token)
            self.scheduler.repo_type, self.scheduler.revision = self.repo_type, self.repo_revision
            if not self._uploads:
                self.scheduler.stop()

    @property
    def repo_id(self) -> str:
        """The repository; with its namespace once the first push has resolved it."""
        return self.scheduler.repo_id
