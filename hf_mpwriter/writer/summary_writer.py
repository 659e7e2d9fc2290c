"""`SummaryWriter`: the interfaces of tensorboardX's and torch's class, with a destination on the Hub.

    open        constructed: the process has joined the run; the first record creates the event file
    closed      no event file is open; the next record opens a new one
    pickled     its settings only: on arrival, the writer joins the run from the other process

This module holds construction, closing and pickling; `scalars`, `add_methods` and `trials` hold what can be logged.
Every method raises `NotLoggableError` for what cannot be logged.

Invariant: no file ever contains a token. A pickled writer keeps it only on the way to a process that is being started.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import FunctionType
from typing import Any, Self, TypeVar

from tensorboardX.writer import DummyFileWriter

from hf_mpwriter.base.arguments import check_memory_limit, check_rank, check_step, patterns, text_or_none, token_or_none
from hf_mpwriter.base.errors import HfMpWriterError, LogdirError, SettingsError
from hf_mpwriter.base.names import check_suffix
from hf_mpwriter.base.settings import (
    DEFAULT_COMMIT_EVERY,
    DEFAULT_EXIT_TIMEOUT,
    Destination,
    Environment,
    Settings,
    check_repo_id,
    live_bucket,
)
from hf_mpwriter.base.storage import normalised_logdir
from hf_mpwriter.delivery.status import Status
from hf_mpwriter.spool import storage
from hf_mpwriter.system import disk
from hf_mpwriter.system.interrupts import ours, suppress
from hf_mpwriter.worker import registry, role
from hf_mpwriter.worker.messages import tell_environment, url_of
from hf_mpwriter.worker.patience import is_failure
from hf_mpwriter.worker.role import Attempt
from hf_mpwriter.worker.worker import Worker
from hf_mpwriter.writer.file_writer import FileWriter
from hf_mpwriter.writer.refusals import refusing
from hf_mpwriter.writer.trials import TrialMethods

# attributes that belong to one process, and do not travel in a pickle
_PROCESS_STATE = (
    *("_worker", "_user", "_encoders", "_last_logged", "_scalars_directories", "_exported", "_purged", "scheduler"),
)
_Class = TypeVar("_Class", bound=type)


def named_for_users(cls: _Class) -> _Class:
    """Name the public methods of a class after it, wherever their code stands: Python's errors have that name.

    That costs a call nothing. What another package has written keeps its name.
    """
    package = cls.__module__.partition(".")[0]
    for name in dir(cls):
        method = getattr(cls, name)
        while isinstance(method, FunctionType) and not name.startswith("_"):
            if method.__module__.partition(".")[0] != package:
                break
            method.__module__, method.__qualname__ = cls.__module__, f"{cls.__qualname__}.{name}"  # pickle finds it
            method = getattr(method, "__wrapped__", None)
    return cls


@contextlib.contextmanager
def _usable(logdir: str) -> Iterator[None]:
    """A block of a constructor: whatever of ours fails there is an error that it may raise."""
    try:
        yield
    except HfMpWriterError:
        raise
    except ours(Exception) as error:
        raise LogdirError(f"The logdir {logdir!r} cannot be used: {error!r}.", hint="Give another one.") from error


for _name in dir(TrialMethods):
    if _name.startswith("add_") and _name != "add_scalar":  # the short path has it in its own body
        setattr(TrialMethods, _name, refusing(getattr(TrialMethods, _name)))


@named_for_users
class SummaryWriter(TrialMethods):
    """Writes events for TensorBoard from any number of processes; with `repo_id`, uploads them to the Hub.

    Args:
        logdir: the run directory, shared by all processes of a run; a path or a URL. Default: `runs/<job>` if the
            launcher names the job, else `runs/<date>_<host>`.
        comment: appended to the default logdir.
        purge_step: for a run that resumes at this step: TensorBoard hides what was logged at this step and later.
        max_queue, flush_secs: accepted and ignored; every record is written at once.
        filename_suffix: appended to the names of event files; no "/", and short enough for the filesystem.
        write_to_disk: if false, the writer writes nothing.
        log_dir: torch's name for `logdir`.
        comet_config: accepted if it disables Comet.
        repo_id: repository on the Hub; None keeps the run local.
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
        exit_timeout: seconds that the end of the process may wait for the Hub, at most HF_MPWRITER_EXIT_TIMEOUT; None
            for that, or 60.
        memory_limit: bytes of records that this process keeps in memory while the disk refuses them, for all its
            writers together. What exceeds it is dropped and counted. Default: 16 MiB.
        system_metrics: whether a process logs what this machine does. None for HF_MPWRITER_SYSTEM_METRICS, or no.
        live: True, or the id of a bucket of the Hub: what is logged is there within seconds, beside the commits. True
            is the bucket `<repo_id>-live`. None for HF_MPWRITER_LIVE, or no.
        rank: global rank of this process, also of an actor of your own; None for that of the launcher, or of
            torch.distributed.

    Raises:
        SettingsError: an argument is not valid.
        TypeError: there is no argument of that name.
        LogdirError: the logdir cannot be used.
        SpoolFormatError: another version of hf_mpwriter wrote into this logdir.
        DestinationError: this run directory is recorded for another destination.
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
        system_metrics: bool | None = None,
        live: bool | str | None = None,
        rank: int | None = None,
    ) -> None:
        """Build a writer; the arguments and errors stand at the class."""
        if not (comet_config or {"disabled": True}).get("disabled"):
            raise SettingsError("comet_config asks for Comet.", hint="hf_mpwriter does not log to Comet.")
        environment = Environment.read()
        purge_step, self._rank, self._parent_rank = check_step(purge_step), check_rank(rank), None
        tell_environment(self._rank, disabled=environment.disabled)
        logdir = normalised_logdir(logdir or log_dir or role.default_logdir(comment or ""))
        timeout = environment.exit_timeout if exit_timeout is None else exit_timeout
        self._destination: Destination | None = None
        if repo_id is not None:
            above = text_or_none("path_in_repo", path_in_repo) or ""
            folder = "/".join(filter(None, [above.strip("/"), os.path.basename(logdir)]))
            endpoint, kind, branch = environment.endpoint, repo_type or "model", repo_revision or "main"
            self._destination = Destination(endpoint, check_repo_id(repo_id), kind, branch, folder)
        allow = None if repo_allow_patterns is None else patterns("repo_allow_patterns", repo_allow_patterns)
        self._settings = Settings(
            commit_every=commit_every,
            squash_history=squash_history,
            private=repo_private,
            allow_patterns=allow,
            ignore_patterns=patterns("repo_ignore_patterns", repo_ignore_patterns),
            exit_timeout=DEFAULT_EXIT_TIMEOUT if timeout is None else timeout,
            system_metrics=environment.system_metrics if system_metrics is None else system_metrics,
            live=live_bucket(environment.live if live is None else live, self._destination),
        ).within(environment.exit_timeout)
        self._uploads = self._destination is not None and not environment.disabled
        self._token, self._memory_limit = token_or_none(token), check_memory_limit(memory_limit)
        filename_suffix = check_suffix(filename_suffix, lambda: disk.longest_name(logdir))
        self._reset_process_state()
        self._closed = self._is_closing = self._exits = False
        if write_to_disk:
            self._worker = self._enter(logdir)
            self._has_purge_step = purge_step is not None and self._worker.purge(purge_step)
        with _usable(logdir):
            super().__init__(
                logdir=logdir,
                comment=comment,
                purge_step=purge_step,
                max_queue=max_queue,
                flush_secs=flush_secs,
                filename_suffix=filename_suffix,
                write_to_disk=write_to_disk,
            )

    def _enter(self, logdir: str, attempt: Attempt | None = None) -> Worker:
        with _usable(logdir):
            return registry.enter(
                self._user,
                storage.find(logdir),
                self._destination if self._uploads else None,
                self._settings,
                self._token,
                self._memory_limit,
                attempt=attempt,
                rank=self._rank,
                parent_rank=self._parent_rank,
            )

    def _get_file_writer(self) -> Any:
        """Return the FileWriter of the worker directory; after `close` a new one, on a new event file."""
        if self._worker is None:
            if self.file_writer is None:
                self.file_writer = DummyFileWriter(logdir=self.logdir)
                self.all_writers = {self.logdir: self.file_writer}
            return self.file_writer
        if self.file_writer is None:
            if self._closed:
                self._worker.enter_again(self._user, self._rank)
                self._closed = False
            file_writer = FileWriter(self._worker, "", self._filename_suffix, self._take_purge_step(""))
            self.all_writers = {self.logdir: file_writer}
            self.file_writer = file_writer
            return file_writer  # self.file_writer may be None again, if another thread closes this writer
        return self.file_writer

    # torch's attributes

    @property
    def log_dir(self) -> str:
        """The run directory."""
        return str(self.logdir)

    @property
    def max_queue(self) -> Any:
        """As it was given; there is no queue."""
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

    def __repr__(self) -> str:
        """The run, where it goes, and whether the writer is closed."""
        known = vars(self)  # an exception may have left the constructor
        local = "this machine only" if self._worker else "nowhere"
        to = self.url or local
        return f"<{type(self).__name__} of {known.get('logdir')} to {to}{', closed' * known.get('_closed', False)}>"

    # the Hub

    @property
    def url(self) -> str | None:
        """The page of the run on the Hub, which opens after the first commit; None if the run is local."""
        if self._worker is None or self._destination is None or not self._uploads:
            return None
        return url_of(self._worker.spool, self._destination)

    def push(self, wait: float = 0.0) -> bool:
        """Request a push of what this process has logged so far.

        Args:
            wait: seconds to wait for its outcome.

        Returns:
            Whether everything is on the Hub.
        """
        return self._worker is not None and self._worker.push(wait)

    def status(self) -> Status:
        """Return how much of what this process has logged is on the Hub, and why the last push failed.

        Of a staged run also how much is in the logdir, and what keeps the rest from it.
        """
        return self._worker.status() if self._worker else Status()

    # the end

    def flush(self) -> None:
        """Make everything logged so far survive a power cut."""
        if self._worker is not None and self.all_writers is not None:
            self._worker.flush()

    def close(self, wait: bool = False) -> None:
        """Seal the event files and request a push. The next call of an `add_*` method opens a new event file.

        Args:
            wait: whether to wait, at most `exit_timeout` seconds, until everything is on the Hub. Ctrl-C ends the wait
                and nothing else.
        """
        if not self._closed or self._is_closing:  # a signal handler may have interrupted it
            self._closed = self._is_closing = True
            self.all_writers = self.file_writer = None
            if self._worker is not None:
                self._worker.leave(self._user, waits=wait or self._exits)
            self._is_closing = False
        if wait:
            self._wait(is_asked=True)

    def _wait(self, *, is_asked: bool) -> None:
        """Wait for the Hub; an interrupt ends the wait and nothing else."""
        if self._worker is not None:
            with suppress(KeyboardInterrupt):
                self._worker.wait(is_asked=is_asked)

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, exc_type: object, error: BaseException | None = None, *_: object) -> None:
        """Close; with a destination, wait for the Hub while that helps. An exception of the block propagates.

        It waits for a push that is under way, or comes within 10 seconds; an uploader sends the rest. Ctrl-C ends the
        wait and nothing else. After an exception the wait comes at the end of the interpreter: the traceback is
        printed first.
        """
        failed = is_failure(error)
        try:
            self._exits = not failed
            self.close()
        finally:
            self._exits = False
        if not failed:
            self._wait(is_asked=False)
        elif self._worker is not None:
            self._worker.has_failed = True

    @property
    def dropped(self) -> int:
        """Number of records that were dropped because the disk refused them."""
        return self._worker.dropped if self._worker else 0

    def _on_arrival(self) -> None:
        """Complete a writer that arrived in a pickle; for subclasses."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the settings; on arrival, the writer opens an event file of its own."""
        state = {name: value for name, value in self.__dict__.items() if name not in _PROCESS_STATE}
        state |= {"file_writer": None, "all_writers": None, "_closed": False, "_is_closing": False, "_exits": False}
        state["_attempt"] = self._worker.files.attempt._replace(is_inherited=True) if self._worker else None
        state["_rank"], state["_parent_rank"] = None, self._worker.role.rank if self._worker else None
        if not is_spawning():
            state["_token"] = None  # this pickle may be written to a file
        elif self._worker:
            self._worker.membership.lend_name()
        return _unpickle, (type(self), state)


def _unpickle(cls: type[SummaryWriter], state: dict[str, Any]) -> SummaryWriter:
    writer = cls.__new__(cls)
    writer.__dict__.update(state)
    writer._reset_process_state()
    if writer._write_to_disk:
        writer._worker = writer._enter(writer.logdir, attempt=writer._attempt)
    writer.all_writers = {}
    writer._on_arrival()
    return writer


def is_spawning() -> bool:
    """Return whether multiprocessing is starting a process right now, which is then the only reader of a pickle."""
    from multiprocessing import context

    return context.get_spawning_popen() is not None
