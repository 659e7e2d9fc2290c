"""`SummaryWriter`: a `tensorboardX.SummaryWriter` that loses nothing and may have a destination on the Hub.

This is the life of a writer: built, closed, used again, pickled. What it can log is in `adders`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

from tensorboardX.writer import DummyFileWriter

from hf_mpwriter.base.errors import LogdirError, SettingsError
from hf_mpwriter.base.settings import (
    DEFAULT_COMMIT_EVERY,
    DEFAULT_EXIT_TIMEOUT,
    Destination,
    Environment,
    Settings,
    check_repo_id,
    patterns,
)
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.progress import Status
from hf_mpwriter.system import process
from hf_mpwriter.worker import registry, role
from hf_mpwriter.worker.worker import Worker
from hf_mpwriter.writer.add_methods import AddMethods
from hf_mpwriter.writer.file_writer import FileWriter

_PROCESS_STATE = (
    "_worker",
    "_user",
    "_encoders",
    "_groups",
    "_exported",
    "_purged",
    "scheduler",
)  # what does not travel in a pickle


def default_logdir(comment: str) -> str:
    """Where a run goes that was given no logdir: the same for all ranks of a job, and after a requeue."""
    rank = role.rank_of(os.environ)
    name = role.job_name(os.environ, role.launch_time(rank), process.host_name())
    return os.path.join("runs", name + comment)


def absolute(logdir: str | os.PathLike[str]) -> str:
    """A logdir as it is used.

    Raises:
        LogdirError: it is a URL.
    """
    text = os.fspath(logdir)
    if "://" in text:
        raise LogdirError(f"The logdir {text!r} is a URL.", hint="Use a directory; repo_id= sends it to the Hub.")
    return os.path.abspath(os.path.expanduser(text))


def _step(purge_step: Any) -> int | None:
    """As an int: a numpy number and a tensor are taken too."""
    if purge_step is None:
        return None
    step = int(purge_step)
    if isinstance(purge_step, str) or not -(1 << 63) <= step < 1 << 63:
        raise SettingsError(f"purge_step is {purge_step!r}.", hint="It is a global step, an integer of 64 bits.")
    return step


class SummaryWriter(AddMethods):
    """Writes events for TensorBoard, in any number of processes; with `repo_id`, delivers them to the Hub.

    Args:
        logdir: the run directory, shared by all processes of a run; made absolute. Default: `runs/<job>` where the
            launcher names the job, else `runs/<date>_<host>`.
        comment: appended to the default logdir.
        purge_step: on resuming at this step, TensorBoard hides what was logged at this step and later.
        max_queue: accepted and not needed; every record is written at once.
        flush_secs: accepted and not needed, likewise.
        filename_suffix: appended to the names of event files.
        write_to_disk: False makes a writer that writes nothing.
        log_dir: torch's name for `logdir`.
        comet_config: accepted if it is disabled.
        repo_id: repository on the Hub; None (the default) keeps the run local.
        commit_every: minutes between two commits.
        squash_history: whether to squash the branch after each commit of ours.
        repo_type: model, dataset or space.
        repo_revision: branch.
        repo_private: visibility of a repository that has to be created; None leaves it to the Hub: public, unless
            the organization's default is private.
        path_in_repo: folder in the repository; the name of the run directory is appended.
        repo_allow_patterns: patterns of the files of the run directory to upload, None for all; the default is event
            files only.
        repo_ignore_patterns: patterns of files to leave out.
        token: for the Hub; None takes the one of the environment or of `hf auth login`.
        exit_timeout: seconds that the end of the process may wait for the Hub.
        memory_limit: bytes of records that this process keeps in memory while the disk refuses them, for all its
            writers together; what is beyond is dropped and counted. Default: 16 MiB.

    Raises:
        SettingsError: a value is not valid.
        LogdirError: the logdir cannot be used.
        SpoolFormatError: another version of hf_mpwriter wrote into this logdir.
        DestinationError: the run directory is recorded for another destination.
    """

    def __init__(
        self,
        logdir: str | os.PathLike[str] | None = None,
        comment: str = "",
        purge_step: int | None = None,
        max_queue: int = 10,
        flush_secs: int = 120,
        filename_suffix: str = "",
        write_to_disk: bool = True,
        log_dir: str | os.PathLike[str] | None = None,
        comet_config: dict[str, Any] | None = None,
        *,
        repo_id: str | None = None,
        commit_every: float = DEFAULT_COMMIT_EVERY,
        squash_history: bool = False,
        repo_type: str | None = None,
        repo_revision: str | None = None,
        repo_private: bool | None = None,
        path_in_repo: str | None = "tensorboard",
        repo_allow_patterns: list[str] | str | None = "*.tfevents.*",
        repo_ignore_patterns: list[str] | str | None = None,
        token: str | None = None,
        exit_timeout: float | None = None,
        memory_limit: int | None = None,
    ) -> None:
        if not (comet_config or {"disabled": True}).get("disabled"):
            raise SettingsError("comet_config asks for Comet.", hint="hf_mpwriter does not log to Comet.")
        environment = Environment.read()
        run_dir = absolute(logdir or log_dir or default_logdir(comment or ""))
        waits = environment.exit_timeout if exit_timeout is None else exit_timeout
        settings = Settings(
            commit_every=commit_every,
            squash_history=bool(squash_history),
            private=repo_private,
            allow_patterns=None if repo_allow_patterns is None else patterns(repo_allow_patterns),
            ignore_patterns=patterns(repo_ignore_patterns),
            exit_timeout=DEFAULT_EXIT_TIMEOUT if waits is None else waits,
        )
        destination = None
        if repo_id is not None:
            folder = "/".join(filter(None, [(path_in_repo or "").strip("/"), Path(run_dir).name]))
            endpoint, kind, branch = environment.endpoint, repo_type or "model", repo_revision or "main"
            destination = Destination(endpoint, check_repo_id(repo_id), kind, branch, folder)
        self._destination = destination
        self._settings = settings
        if token is not None and not isinstance(token, str):
            raise SettingsError("token must be a string.", hint="None takes the one of `hf auth login` or HF_TOKEN.")
        self._token = token
        self._uploads = destination is not None and not environment.disabled
        if memory_limit is not None and (not isinstance(memory_limit, int) or memory_limit < 0):
            raise SettingsError(f"memory_limit is {memory_limit!r}.", hint="It is a number of bytes, 0 or more.")
        self._memory_limit = memory_limit
        purge_step = _step(purge_step)
        self._start_adding()
        self._closed = False
        self._purges = False
        if write_to_disk:
            self._worker = self._enter(run_dir)
            self._purges = purge_step is not None and self._worker.start_purge(purge_step)
        super().__init__(
            logdir=run_dir,
            comment=comment,
            purge_step=purge_step,
            max_queue=max_queue,
            flush_secs=flush_secs,
            filename_suffix=filename_suffix,
            write_to_disk=write_to_disk,
        )

    def _enter(self, run_dir: str, began: float | None = None) -> Worker:
        destination = self._destination if self._uploads else None
        limit = self._memory_limit
        return registry.enter(
            self._user, Spool(run_dir), destination, self._settings, self._token, limit, attempt_started_at=began
        )

    def _get_file_writer(self) -> Any:
        """The default FileWriter; after `close` a new one, on a new event file."""
        if self._worker is None:
            if self.file_writer is None:
                self.file_writer = DummyFileWriter(logdir=self.logdir)
                self.all_writers = {self.logdir: self.file_writer}
            return self.file_writer
        if self.file_writer is None:
            if self._closed:
                self._worker.enter_again(self._user)
                self._closed = False
            file_writer = FileWriter(self._worker, "", self._filename_suffix, self._purge_of(""))
            self.all_writers = {self.logdir: file_writer}
            self.file_writer = file_writer
            return file_writer  # another thread may close at this moment
        return self.file_writer

    # torch's names

    @property
    def log_dir(self) -> str:
        """The run directory."""
        return str(self.logdir)

    @property
    def max_queue(self) -> Any:
        """As it was given; nothing is queued."""
        return self._max_queue

    @property
    def flush_secs(self) -> Any:
        """As it was given; every record is written at once."""
        return self._flush_secs

    @property
    def filename_suffix(self) -> str:
        """Appended to the names of event files."""
        return str(self._filename_suffix)

    def get_logdir(self) -> str:
        """The run directory."""
        return str(self.logdir)

    # to the Hub

    def push(self, wait: float = 0.0) -> bool:
        """Ask for a push of what this process has logged so far.

        Args:
            wait: seconds to wait for it.

        Returns:
            Whether all of it is on the Hub.
        """
        return self._worker is not None and self._worker.push(wait)

    def status(self) -> Status:
        """How much of what this process has logged is on the Hub, and what went wrong last."""
        return self._worker.status() if self._worker else Status()

    # end

    def flush(self) -> None:
        """Make everything logged so far survive a power cut."""
        if self._worker is not None and self.all_writers is not None:
            self._worker.flush()

    def close(self, wait: bool = False) -> None:
        """Seal the event files and ask for a push.

        Args:
            wait: whether to wait, for at most `exit_timeout` seconds, until everything is on the Hub.
        """
        if not self._closed:
            self._closed = True
            self.all_writers = self.file_writer = None
            if self._worker is not None:
                self._worker.leave(self._user)
        if wait and self._worker is not None:
            self._worker.wait()

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(self, exc_type: object, *_: object) -> None:
        """Close; with a destination, wait until everything is on the Hub. An exception of the user's goes on."""
        try:
            self.close(wait=True)
        except KeyboardInterrupt:
            if exc_type is None:
                raise

    @property
    def dropped(self) -> int:
        """Records that the disk refused for good."""
        return self._worker.dropped if self._worker else 0

    def _arrived(self) -> None:
        """Called where a pickled writer has come to life again."""

    def __reduce__(self) -> tuple[Any, ...]:
        """A writer travels as its settings and opens its own file on arrival."""
        state = {name: value for name, value in self.__dict__.items() if name not in _PROCESS_STATE}
        state |= {"file_writer": None, "all_writers": None, "_closed": False}
        state["_attempt_began"] = self._worker.attempt_started_at if self._worker else None
        if not spawning():
            state["_token"] = None  # a token is never in a file
        return _arrive, (type(self), state)


def _arrive(cls: type[SummaryWriter], state: dict[str, Any]) -> SummaryWriter:
    writer = cls.__new__(cls)
    writer.__dict__.update(state)
    writer._start_adding()
    if writer._write_to_disk:
        writer._worker = writer._enter(writer.logdir, began=writer._attempt_began)
    writer.all_writers = {}
    writer._arrived()
    return writer


def spawning() -> bool:
    """Whether a process is being started right now, so that a pickle goes to it and nowhere else."""
    from multiprocessing import context

    return context.get_spawning_popen() is not None
