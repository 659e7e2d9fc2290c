"""What `HFSummaryWriter.scheduler` offers: the face of huggingface_hub's CommitScheduler, without its thread.

`trigger()` writes a request onto this worker's card; the uploader answers by its ledger. The Future has no thread
behind it: `done`, `result` and `exception` look at the ledger.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Self

from hf_mpwriter.base.errors import HfMpWriterError
from hf_mpwriter.spool.progress import Progress, wait

if TYPE_CHECKING:
    from hf_mpwriter.base.settings import Destination, Settings
    from hf_mpwriter.worker.worker import Worker


FOREVER = 10 * 365 * 86400.0  # seconds


class UploadError(HfMpWriterError):
    """The push that was asked for has failed; the data is safe on disk and is tried again."""


class PushFuture(Future[str | None]):
    """Resolves to the commit that holds what was logged when it was made, None if there was nothing to push."""

    def __init__(self, worker: Worker, lengths: dict[str, int]) -> None:
        super().__init__()
        self._worker, self._lengths = worker, lengths
        self._view = Progress(worker.spool)
        self._asked = time.time()

    def _settle(self, timeout: float) -> None:
        """Look at the ledger for up to `timeout` seconds; resolve if there is an outcome."""
        if super().done():
            return
        failed: list[str] = []

        def tell(_: dict[str, int]) -> None:
            report = self._view.uploader()
            if report.reason and report.failed_at > self._asked:
                failed.append(f"{report.reason} {report.hint}".strip())

        def enough(missing: dict[str, int]) -> None:
            tell(missing)
            if failed:
                raise UploadError(failed[-1])

        try:
            missing = wait(self._view, self._lengths, timeout, self._worker.keep_house, enough)
        except UploadError as error:
            self.set_exception(error)
            return
        if not missing:
            self.set_result(self._commit())
        elif refused := self._view.refused(missing):
            self.set_exception(UploadError("; ".join(refused.values())))

    def _commit(self) -> str | None:
        book = self._view.ledger()
        held = [book.files[path] for path in self._lengths if book and path in book.files]
        return max(held, key=lambda one: one.time).commit if held else None

    def done(self) -> bool:
        """Whether what was logged is on the Hub, or the push has failed."""
        self._settle(0.0)
        return super().done()

    def result(self, timeout: float | None = None) -> str | None:
        """The commit.

        Args:
            timeout: seconds, None waits for the outcome of the push.

        Raises:
            UploadError: the push has failed.
            TimeoutError: there is no outcome yet.
        """
        self._settle(FOREVER if timeout is None else timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The error of a failed push, None if it went well; TimeoutError as for `result`."""
        self._settle(FOREVER if timeout is None else timeout)
        return super().exception(0)


class CommitScheduler:
    """Asks for pushes; the uploader makes them.

    Attributes:
        folder_path: the run directory.
        path_in_repo: folder in the repository.
        every: minutes between two commits.
        lock: for code that held CommitScheduler's lock while it wrote files; nothing of ours waits for it.
        last_future: of the last `trigger`.
        repo_type, revision: as they were given, None for the defaults.
    """

    def __init__(self, worker: Worker, destination: Destination, settings: Settings, token: str | None) -> None:
        self._worker = worker
        self._destination = destination
        self.repo_type: str | None = None
        self.revision: str | None = None
        self.folder_path = Path(worker.spool.run_dir)
        self.path_in_repo = destination.path_in_repo
        self.every = settings.commit_every
        self.squash_history = settings.squash_history
        self.allow_patterns = settings.allow_patterns
        self.ignore_patterns = settings.ignore_patterns
        self.token = token
        self.lock = threading.Lock()
        self.last_future: Future[str | None] | None = None

    @property
    def repo_id(self) -> str:
        """The repository; its full name once a push has resolved a name without a namespace."""
        book = Progress(self._worker.spool).ledger()
        return (book.repo_id if book else "") or self._destination.repo_id

    def trigger(self) -> Future[str | None]:
        """Ask for a push of what this process has logged so far; returns at once."""
        if self._worker.is_stopped:
            future: Future[str | None] = Future()
            future.set_result(None)
        else:
            future = PushFuture(self._worker, self._worker.request_push())
        self.last_future = future
        return future

    def push_to_hub(self) -> str | None:
        """Push what this process has logged and wait for it; the commit, None if there was nothing."""
        return self.trigger().result()

    def stop(self) -> None:
        """This process asks for no more pushes, starts no uploader and does not wait at its end."""
        self._worker.stop()

    def __enter__(self) -> Self:
        """Nothing to start."""
        return self

    def __exit__(self, *_: object) -> None:
        """Push, then stop."""
        self.push_to_hub()
        self.stop()
