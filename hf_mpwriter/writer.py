"""`SummaryWriter`: a `tensorboardX.SummaryWriter` that loses nothing and may have a destination on the Hub.

Every record is one write by the calling thread.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
import tensorboardX
from tensorboardX.summary import _clean_tag, hparams, scalar
from tensorboardX.writer import DummyFileWriter

from hf_mpwriter import identity, records, worker
from hf_mpwriter.errors import LogdirError, SettingsError
from hf_mpwriter.filewriter import FileWriter
from hf_mpwriter.settings import (
    DEFAULT_COMMIT_EVERY,
    DEFAULT_EXIT_TIMEOUT,
    Destination,
    Environment,
    Settings,
    check_repo_id,
    patterns,
)
from hf_mpwriter.spool import Spool

TAGS_KEPT = 4096  # encoded tags that a writer remembers


def default_logdir(comment: str) -> str:
    """Where a run goes that was given no logdir: the same for all ranks of a job, and after a requeue."""
    rank = identity.rank_of(os.environ)
    name = identity.job_name(os.environ, identity.launch_time(rank), identity.host_name())
    return os.path.join("runs", name + comment)


def _absolute(logdir: str | os.PathLike[str]) -> str:
    text = os.fspath(logdir)
    if "://" in text:
        raise LogdirError(f"The logdir {text!r} is a URL.", hint="Use a directory; repo_id= sends it to the Hub.")
    return os.path.abspath(os.path.expanduser(text))


class SummaryWriter(tensorboardX.SummaryWriter):
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
        repo_allow_patterns: patterns of the files to upload, None for all event files.
        repo_ignore_patterns: patterns of files to leave out.
        token: for the Hub; None takes the one of the environment or of `hf auth login`.
        exit_timeout: seconds that the end of the process may wait for the Hub.

    Raises:
        SettingsError: a value is not valid.
        LogdirError: the logdir cannot be used.
        SpoolFormatError: another version of hf_mpwriter wrote into this logdir.
        DestinationError: the run directory is recorded for another destination.
    """

    _worker: worker.Worker | None = None
    file_writer: Any
    all_writers: Any

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
    ) -> None:
        if not (comet_config or {"disabled": True}).get("disabled"):
            raise SettingsError("comet_config asks for Comet.", hint="hf_mpwriter does not log to Comet.")
        environment = Environment.read()
        run_dir = _absolute(logdir or log_dir or default_logdir(comment or ""))
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
        self._tags: dict[str, bytes] = {}
        self._closed = False
        if write_to_disk:
            self._worker = self._enter(run_dir)
        super().__init__(
            logdir=run_dir,
            comment=comment,
            purge_step=purge_step,
            max_queue=max_queue,
            flush_secs=flush_secs,
            filename_suffix=filename_suffix,
            write_to_disk=write_to_disk,
        )

    def _enter(self, run_dir: str, *, join: bool = True) -> worker.Worker:
        destination = self._destination if self._uploads else None
        return worker.enter(Spool(run_dir), destination, self._settings, self._token, join=join)

    def _get_file_writer(self) -> Any:
        """The default FileWriter; after `close` a new one, on a new event file."""
        if self._worker is None:
            if self.file_writer is None:
                self.file_writer = DummyFileWriter(logdir=self.logdir)
                self.all_writers = {self.logdir: self.file_writer}
            return self.file_writer
        if self.file_writer is None:
            if self._closed:
                self._enter(self.logdir)
                self._closed = False
            self.file_writer = FileWriter(self._worker, "", self._filename_suffix, self.purge_step)
            self.all_writers = {self.logdir: self.file_writer}
        return self.file_writer

    def _sub_writer(self, sub: str) -> Any:
        """The FileWriter of a directory below the worker directory."""
        self._get_file_writer()
        key = os.path.join(self.logdir, sub)
        if key not in self.all_writers:
            if self._worker is None:
                self.all_writers[key] = DummyFileWriter(logdir=key)
            else:
                self.all_writers[key] = FileWriter(self._worker, sub, self._filename_suffix, self.purge_step)
        return self.all_writers[key]

    # torch's names

    @property
    def log_dir(self) -> str:
        """The run directory, by torch's name."""
        return str(self.logdir)

    def get_logdir(self) -> str:
        """The run directory."""
        return str(self.logdir)

    # add_*

    def add_scalar(
        self,
        tag: str,
        scalar_value: Any,
        global_step: Any = None,
        walltime: float | None = None,
        display_name: str | bool = "",
        summary_description: str = "",
        *,
        new_style: bool = False,
        double_precision: bool = False,
    ) -> None:
        """Add a scalar.

        Args:
            tag: its name.
            scalar_value: a number, a numpy scalar, a tensor or an array of one element.
            global_step: step.
            walltime: unix time in seconds, None for now.
            display_name: title of the plot; a bool is torch's `new_style`.
            summary_description: text behind the information icon of the plot.
            new_style: accepted; the classic form is what every reader knows.
            double_precision: accepted; a classic scalar is a float32.
        """
        file_writer = self.file_writer or self._get_file_writer()
        title = "" if isinstance(display_name, bool) else display_name
        value = _number(scalar_value)
        if self._worker is None or value is None or title or summary_description or file_writer._default_metadata:
            file_writer.add_summary(scalar(tag, scalar_value, title, summary_description), global_step, walltime)
            return
        step = global_step if global_step is None or type(global_step) is int else int(global_step)
        encoded = self._tags.get(tag) or self._encode_tag(tag)
        now = time.time() if walltime is None else walltime
        file_writer.event_writer.append(records.scalar_event(now, step, encoded, value))

    def _encode_tag(self, tag: str) -> bytes:
        if len(self._tags) >= TAGS_KEPT:
            self._tags.clear()
        encoded = self._tags[tag] = records.tag_field(_clean_tag(tag))
        return encoded

    def add_scalars(
        self,
        main_tag: str,
        tag_scalar_dict: dict[str, Any],
        global_step: Any = None,
        walltime: float | None = None,
    ) -> None:
        """Add several scalars to one plot, each in a run of its own at `<main_tag>/<tag>/`.

        Args:
            main_tag: name of the plot.
            tag_scalar_dict: value per tag.
            global_step: step.
            walltime: unix time in seconds, None for now.
        """
        walltime = time.time() if walltime is None else walltime
        for tag, value in tag_scalar_dict.items():
            self._sub_writer(os.path.join(main_tag, tag)).add_summary(scalar(main_tag, value), global_step, walltime)

    def add_hparams(
        self,
        hparam_dict: dict[str, Any],
        metric_dict: dict[str, Any],
        name: str | None = None,
        global_step: Any = None,
        *,
        hparam_domain_discrete: dict[str, list[Any]] | None = None,
        run_name: str | None = None,
    ) -> None:
        """Add hyperparameters and metrics, in a run of their own.

        Args:
            hparam_dict: values of the hyperparameters.
            metric_dict: values of the metrics.
            name: directory below this worker's, default the time.
            global_step: step of the metrics.
            hparam_domain_discrete: accepted; tensorboardX has no domains.
            run_name: torch's name for `name`.
        """
        if type(hparam_dict) is not dict or type(metric_dict) is not dict:
            raise TypeError("hparam_dict and metric_dict should be dictionary.")
        sub = self._sub_writer(name or run_name or str(time.time()))
        for summary in hparams(hparam_dict, metric_dict):
            sub.add_summary(summary)
        for tag, value in metric_dict.items():
            sub.add_summary(scalar(tag, value), global_step)

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
                self._worker.leave()
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
        state = {name: value for name, value in self.__dict__.items() if name not in ("_worker", "_tags", "scheduler")}
        state |= {"file_writer": None, "all_writers": None, "_closed": False}
        if not _spawning():
            state["_token"] = None  # a token is never in a file
        return _arrive, (type(self), state)


def _arrive(cls: type[SummaryWriter], state: dict[str, Any]) -> SummaryWriter:
    writer = cls.__new__(cls)
    writer.__dict__.update(state)
    writer._tags = {}
    if writer._write_to_disk:
        # a spawned child does not know its own name yet while it unpickles: it joins at its first event
        writer._worker = writer._enter(writer.logdir, join=False)
    writer.all_writers = {}
    writer._arrived()
    return writer


def _spawning() -> bool:
    """Whether a process is being started right now, so that a pickle goes to it and nowhere else."""
    from multiprocessing import context

    return context.get_spawning_popen() is not None


def _number(value: Any) -> float | None:
    """The value as a float if it is plainly one; None leaves it to tensorboardX."""
    if type(value) is float:
        return value
    if isinstance(value, (int, np.number)) or getattr(value, "ndim", None) == 0:
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            return None
    return None
