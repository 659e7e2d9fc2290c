"""The interface of huggingface_hub: `HFSummaryWriter`, and the CommitScheduler of its `scheduler`.

`trigger()` writes a request into the member file of this worker, and the uploader answers through its ledger, which a
thread of each run reads that resolves the Futures of this process, one after the other. It lives while there are any.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.base.settings import DEFAULT_COMMIT_EVERY, Destination, Settings, check_repo_id
from hf_mpwriter.delivery.sentences import damage_text
from hf_mpwriter.delivery.sinks import Delivery, HubSink, LogdirSink
from hf_mpwriter.delivery.status import Logged
from hf_mpwriter.delivery.wait import ENSURE_EVERY, POLL, Wanted, wait_for
from hf_mpwriter.system import process_state
from hf_mpwriter.system.interrupts import ours, suppress
from hf_mpwriter.worker.worker import Worker
from hf_mpwriter.writer.summary_writer import SummaryWriter

DISK_PATIENCE = 30.0  # seconds that a disk may refuse what a push asks for; it is tried again every 16 s at least


class UploadError(HfMpWriterError):
    """The requested push has failed. What is on disk stays there, and the uploader tries again."""


class PushFuture(Future[str | None]):
    """Resolves to the commit that holds what was logged before the request, None if there was nothing to push.

    Of a staged run it resolves when the logdir has it, too. Failures from before the request do not count. As the push
    is requested already, it cannot be cancelled.
    """

    def __init__(self, worker: Worker, logged: Logged, requested_at: float) -> None:
        super().__init__()
        self.set_running_or_notify_cancel()
        self._worker, self._requested_at = worker, requested_at
        self._hub, self._logdir = HubSink(worker.spool), LogdirSink(worker.spool)
        self._ask(logged)
        self._patient_until = time.monotonic() + DISK_PATIENCE
        _resolve_later(self, worker.spool.run_dir)

    def _ask(self, logged: Logged) -> None:
        """Ask for what was logged; what was refused until now is tried again."""
        self._logged = logged
        self._wanted = Wanted.now(self._hub, logged.lengths), Wanted.now(self._logdir, logged.written)

    def resolve(self) -> None:
        """Wait for an outcome."""
        try:
            self._wait_for_the_disk()
            while not self._is_there():
                time.sleep(ENSURE_EVERY)
            self._raise_lost()
            self.set_result(self._commit())
        except ours(Exception) as error:
            self.set_exception(error)

    def _wait_for_the_disk(self) -> None:
        """Wait until the disk has taken what waits in memory."""
        while self._logged.in_memory:
            self._requested_at = time.time()  # anew: what failed meanwhile was not this push
            self._ask(self._worker.request_push())
            if self._logged.in_memory and time.monotonic() > self._patient_until:
                text = f"{self._logged.in_memory} records wait in memory, the disk refuses them"
                raise UploadError(f"{text}: {self._logged.disk_error}")
            time.sleep(POLL)

    def _is_there(self) -> bool:
        """Wait until the sinks have all, or nothing more comes by itself."""
        for look in wait_for(self._wanted, math.inf):
            if look.is_due:
                self._worker.keep_house()
            self._raise_failure(look.deliveries)
        deliveries = [one.look() for one in self._wanted]
        for delivery in deliveries:
            if delivery.refused:
                raise UploadError("; ".join(dict.fromkeys(delivery.refused.values())))
        self._raise_failure(deliveries)
        return all(delivery.is_complete for delivery in deliveries)

    def _raise_failure(self, deliveries: Iterable[Delivery]) -> None:
        for delivery in deliveries:
            carrier = delivery.carrier
            if delivery.missing and carrier.reason and carrier.failed_at > self._requested_at:
                raise UploadError(f"not {delivery.place}: {carrier.why}")

    def _raise_lost(self) -> None:
        if lost := damage_text(self._hub.missing(self._logged.damaged)):
            raise UploadError(f"{lost} The others are on the Hub.")
        if self._logged.dropped:
            raise UploadError(f"The disk refused {self._logged.dropped} records for good; the others are on the Hub.")

    def _commit(self) -> str | None:
        ledger = self._hub.ledger()
        held = [ledger.files[path] for path in self._logged.lengths if ledger and path in ledger.files]
        return max(held, key=lambda one: one.time).commit if held else None


class _Resolver(threading.Thread):
    """Resolves the Futures of a run, one after the other: they were requested in this order, and so they become true.

    It lives while there are any.
    """

    def __init__(self, run_dir: str) -> None:
        super().__init__(name="hf_mpwriter-futures", daemon=True)
        self._run_dir = run_dir
        self.futures = deque[PushFuture]()

    def run(self) -> None:
        """Resolve what comes."""
        while (future := self._next()) is not None:
            with suppress(BaseException):  # of a callback; the others are waited for, too
                future.resolve()

    def _next(self) -> PushFuture | None:
        with _lock:
            if self.futures:
                return self.futures.popleft()
            if _resolvers.get(self._run_dir) is self:
                del _resolvers[self._run_dir]
            return None


_lock = process_state.thread_lock()
_resolvers: dict[str, _Resolver] = {}  # by run directory: no run waits for what another one waits for


def _resolve_later(future: PushFuture, run_dir: str) -> None:
    """Hand a Future of a run to a thread of this process."""
    with _lock:
        resolver = _resolvers.get(run_dir)
        if resolver is not None and resolver.is_alive():
            resolver.futures.append(future)
            return
        resolver = _Resolver(run_dir)
        resolver.futures.append(future)
        with suppress(RuntimeError):  # at the end of the interpreter, where Python starts no thread
            resolver.start()
            _resolvers[run_dir] = resolver
            return
    future.resolve()


class CommitScheduler:
    """Requests pushes, which the uploader makes.

    Attributes:
        folder_path: the run directory.
        path_in_repo: folder in the repository.
        every: minutes between two commits.
        lock: for code that holds CommitScheduler's lock while it writes files; nothing here waits for it.
        last_future: of the last `trigger`.
        repo_type: as it was given, None for the default.
        revision: as it was given, None for the default.
    """

    def __init__(
        self,
        worker: Worker,
        destination: Destination,
        settings: Settings,
        token: str | None,
        repo_type: str | None,
        revision: str | None,
    ) -> None:
        self._worker, self._destination = worker, destination
        self.repo_type, self.revision = repo_type, revision
        self.folder_path = Path(worker.spool.run_dir)
        self.every = settings.commit_every
        self.squash_history = settings.squash_history
        self.allow_patterns = settings.allow_patterns
        self.ignore_patterns = settings.ignore_patterns
        self.token = token
        self.lock = threading.Lock()
        self.last_future: Future[str | None] | None = None

    @property
    def path_in_repo(self) -> str:
        """The folder in the repository, one of its own where another run has the folder that was asked for."""
        return self._worker.spool.destination_of(self._destination).path_in_repo

    @property
    def repo_id(self) -> str:
        """The repository; with its namespace once a push has resolved it."""
        ledger = HubSink(self._worker.spool).ledger()
        return (ledger.repo_id if ledger else "") or self._destination.repo_id

    def trigger(self) -> Future[str | None]:
        """Request a push of what this process has logged so far, and return at once."""
        if self._worker.is_stopped:
            future: Future[str | None] = Future()
            future.set_result(None)
        else:
            future = PushFuture(self._worker, self._worker.request_push(), time.time())
        self.last_future = future
        return future

    def push_to_hub(self) -> str | None:
        """Push what this process has logged, wait for it, and return the commit, None if there was nothing to push.

        Raises:
            UploadError: the push has failed.
        """
        return self.trigger().result()

    def stop(self) -> None:
        """Let this process request no more pushes, start no uploader, and not wait at its end."""
        self._worker.stop()

    def __enter__(self) -> Self:
        """Return the scheduler; there is nothing to start."""
        return self

    def __exit__(self, *_: object) -> None:
        """Push, then stop."""
        self.push_to_hub()
        self.stop()


class WriterArguments(TypedDict, total=False):
    """Arguments that huggingface_hub's writer lacks; for their defaults and meaning see `SummaryWriter`."""

    purge_step: int | None
    exit_timeout: float | None
    memory_limit: int | None
    system_metrics: bool | None
    live: bool | str | None
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
        self.repo_type, self.repo_revision = repo_type, repo_revision
        self._on_arrival()

    def _on_arrival(self) -> None:
        if self._destination is not None and self._worker is not None:
            given = self._token, self.repo_type, self.repo_revision
            self.scheduler = CommitScheduler(self._worker, self._destination, self._settings, *given)
            if not self._uploads:
                self.scheduler.stop()

    @property
    def repo_id(self) -> str:
        """The repository; with its namespace once the first push has resolved it."""
        return self.scheduler.repo_id
