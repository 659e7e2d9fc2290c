"""What an uploader counts of its own work; with HF_MPWRITER_PROMETHEUS it is in the spool, for Prometheus.

    hosts/<host>/uploader.prom     replaced as a whole, every WRITE_EVERY seconds and when the uploader leaves

Counters begin at 0 with each uploader, as Prometheus expects of a process that restarts. The lag is how long ago
everything was logged that the Hub has: the age of the last scan of which nothing waits any more.

Invariants:
- The file is for display: it is not durable, and a disk that refuses it stops nothing.
- No two hosts of a run have a sample of the same labels: one exporter may read the files of all of them.
- No secret stands in it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping

from hf_mpwriter.base.names import is_attachment
from hf_mpwriter.base.verdicts import Done, Sent, Verdict
from hf_mpwriter.spool.layout import HostSpool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.system import disk
from hf_mpwriter.uploader.health.exposition import Family, render

logger = logging.getLogger("hf_mpwriter")

WRITE_EVERY = 10.0  # seconds between two versions of the file
EVENT_FILES = "event_files"  # the lane whose lag is told
KINDS = ("Done", "Retry", "Moved", "Unknown", "Split", "Refused", "Quarantine")  # of verdicts


class UploaderMetrics:
    """The numbers of one uploader."""

    def __init__(
        self,
        host: HostSpool | None,
        run: str,
        clock: Callable[[], float],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._host, self._run, self._clock, self._wall_clock = host, run, clock, wall_clock
        self._started_at, self._succeeded_at = wall_clock(), 0.0
        self._scanned_at = self._caught_up_at = clock()
        self._push_began: float | None = None
        self._written_at = -math.inf
        self._verdicts = dict.fromkeys(KINDS, 0)
        self._pushes, self._seconds, self._bytes, self._commits = 0, 0.0, 0, 0

    def scanned(self, began: float) -> None:
        """What is on disk was looked at."""
        self._scanned_at = began

    def concluded(self, verdict: Verdict, ledger: Ledger) -> tuple[int, float]:
        """A push has ended; the new bytes that it brought to the Hub, and the seconds that it took."""
        self._verdicts[type(verdict).__name__] += 1
        self._pushes += 1
        seconds = 0.0 if self._push_began is None else self._clock() - self._push_began  # 0: it could not be started
        self._seconds += seconds
        self._push_began, self._written_at, sent = None, -math.inf, 0  # the next tick writes what is new
        if isinstance(verdict, Done):
            self._succeeded_at = self._wall_clock()
            if verdict.own:
                self._commits += 1
                sent = sum(_new_bytes(ledger, path, content) for path, content in verdict.files.items())
                self._bytes += sent
        return sent, seconds

    def publish(
        self, waiting: Mapping[str, int], *, quarantined: int, repo_id: str, is_pushing: bool, is_over: bool
    ) -> None:
        """Write the file, if it is asked for and due; to be called in each tick."""
        if is_pushing and self._push_began is None:
            self._push_began = self._clock()
        if not waiting[EVENT_FILES]:
            self._caught_up_at = self._scanned_at
        if self._host is None or not (is_over or self._clock() - self._written_at >= WRITE_EVERY):
            return
        self._written_at = self._clock()
        labels = {"run": self._run, "repo": repo_id, "host": self._host.root.basename}
        text = render(self._families(waiting, quarantined, is_over=is_over), labels)
        try:
            disk.replace(self._host.metrics, text.encode(), "metrics.publish", durable=False)
        except OSError as error:
            logger.info("the metrics cannot be written: %s", error)

    def _families(self, waiting: Mapping[str, int], quarantined: int, *, is_over: bool) -> list[Family]:
        lag = self._clock() - self._caught_up_at
        return [
            _one("up", "gauge", "Whether an uploader works; 0 when it has left in good order.", not is_over),
            _one("heartbeat_timestamp_seconds", "gauge", "When this was written.", self._wall_clock()),
            _one("start_timestamp_seconds", "gauge", "When this uploader started.", self._started_at),
            _one("success_timestamp_seconds", "gauge", "When a push last succeeded, else 0.", self._succeeded_at),
            _one(
                "lag_seconds",
                "gauge",
                "So long ago event files were as they are on the Hub.",
                lag,
            ),
            Family(
                "hf_mpwriter_waiting_batches",
                "gauge",
                "Batches that wait for their commit.",
                [("", {"lane": lane}, count) for lane, count in waiting.items()],
            ),
            _one("refused_files", "gauge", "Files that the Hub refuses, or that cannot be read.", quarantined),
            _one("commits_total", "counter", "Commits made by this uploader.", self._commits),
            _one("sent_bytes_total", "counter", "New bytes of files that these commits brought.", self._bytes),
            Family(
                "hf_mpwriter_push_seconds",
                "summary",
                "How long pushes took.",
                [("_count", {}, self._pushes), ("_sum", {}, self._seconds)],
            ),
            Family(
                "hf_mpwriter_pushes_total",
                "counter",
                "Pushes by their verdict.",
                [("", {"verdict": kind.lower()}, count) for kind, count in self._verdicts.items()],
            ),
        ]


def _one(name: str, kind: str, explanation: str, value: float) -> Family:
    return Family(f"hf_mpwriter_{name}", kind, explanation, [("", {}, value)])


def _new_bytes(ledger: Ledger, path: str, sent: Sent) -> int:
    """Return how much of a file the Hub did not have: an event file grows, an attachment is replaced as a whole."""
    held = ledger.files.get(path)
    if held is None or is_attachment(path):
        return 0 if held is not None and held.sent == sent else sent.length
    return max(0, sent.length - held.length)
