"""Simulate the uploaders of a job of many nodes on virtual time.

    python scripts/bench/simulate_cluster.py --hosts 64 --ranks 8 --hours 24
    python scripts/bench/simulate_cluster.py --hosts 64 --shared      # one run directory for all nodes
    python scripts/bench/simulate_cluster.py --hosts 64 --undivided   # as if each node were alone
    python scripts/bench/simulate_cluster.py --table                  # the sizes of docs/benchmarks.md: 2 minutes

The decisions are the real ones: `decide`, `next_step`, `Pacing` and `RateLimit`, with its buckets on disk. What they
decide about is modelled: ranks that log all the time and close at the same moment, pushes, and a Hub that takes so many
commits an hour, each in two seconds, refuses a commit whose parent is not the head, and is down for an hour.

The lag of a commit is the age of its oldest record when the Hub has it. What is unsent at the end is counted when the
processes end, a minute after their last record, and again when every uploader has left.
"""

from __future__ import annotations

import argparse
import collections
import functools
import heapq
import itertools
import math
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.arguments import add_seed, make_parser
from lib.figures import quantile

from hf_mpwriter.base.job import Nodes
from hf_mpwriter.base.settings import DEFAULT_COMMIT_EVERY, DEFAULT_COMMITS_PER_HOUR, Destination
from hf_mpwriter.base.timing import USUAL
from hf_mpwriter.base.verdicts import Done, Moved, Retry, Verdict
from hf_mpwriter.push.commit import MOVED_TRIES
from hf_mpwriter.spool.status import LINGER
from hf_mpwriter.system.directory import at
from hf_mpwriter.uploader.decision import Action, Attached, Ending, Outgoing, Situation, abandoned_for, decide
from hf_mpwriter.uploader.pacing import Clocks, Pacing
from hf_mpwriter.uploader.rate_limit import RateLimit

HUB_LIMIT = 128  # commits per hour that the Hub takes
COMMIT_TAKES = 2.0  # seconds
UPLOAD_TAKES = 0.5  # seconds from the start of a push to its commit
NO_ANSWER = 5.0  # seconds until a push knows that the Hub is down
JOIN_WITHIN = 60.0  # seconds in which the ranks of a job start
STAY = 60.0  # seconds that a process waits for the Hub at its end
HOUR = 3600.0
HERE = Destination("https://hub", "me/run")
TABLE = (1, 4, 8, 16, 20, 32, 64, 256, 1000)


class Time:
    """Virtual seconds, and what is to happen when."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Have something happen in so many seconds."""
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), event))

    def run(self) -> None:
        """Let everything happen."""
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            event()


class Hub:
    """The branch of one repository."""

    def __init__(self, time: Time, outages: frozenset[int]) -> None:
        self._time, self._outages, self._start = time, outages, time.now
        self._last_hour: collections.deque[float] = collections.deque()
        self.head = self.conflicts = self.refused = 0
        self.commits: list[float] = []

    @property
    def is_down(self) -> bool:
        """Whether it does not answer now."""
        return int((self._time.now - self._start) // HOUR) in self._outages

    def commit(self, parent: int | None) -> Verdict | None:
        """Apply a commit, or say why not; None for a conflict."""
        while self._last_hour and self._time.now - self._last_hour[0] >= HOUR:
            self._last_hour.popleft()
        if len(self._last_hour) >= HUB_LIMIT:
            self.refused += 1
            wait = self._last_hour[0] + HOUR - self._time.now
            return Retry("429", 60.0 * max(1, math.ceil(wait / 60)))
        if parent is not None and parent != self.head:
            self.conflicts += 1
            return None
        self.head += 1
        self.commits.append(self._time.now)
        self._last_hour.append(self._time.now)
        return Done(str(self.head), own=True, repo_id="me/run", files={})


class Node:
    """The uploader of one run directory, and the ranks that log there."""

    def __init__(
        self, time: Time, hub: Hub, pacing: Pacing, hosts: dict[str, float], end: float, rng: random.Random
    ) -> None:
        self._time, self._hub, self._pacing, self._hosts, self._end, self._rng = time, hub, pacing, hosts, end, rng
        self._first = min(hosts.values())
        self._next_commit = self._first + USUAL.first_scan_after
        self._outgoing, self._is_pushing, self._was_urgent = Outgoing.NONE, False, False
        self._unsent_since = self._scanned_at = self._first  # age of the oldest record that the Hub lacks
        self._progress_at = self._waited_until = 0.0
        self._own_head: int | None = None  # after our last commit, None after a failure
        self._is_beside_others = False
        self.lags: list[float] = []
        self.has_left, self.has_all, self.all_at = False, False, math.inf

    def is_unsent(self) -> bool:
        """Whether the Hub lacks something of what was logged until now."""
        return self._unsent_since < min(self._time.now, self._end)

    def tick(self) -> None:
        """One round of the uploader, as `loop` makes it; then the next one that may decide anything else."""
        if self.has_left or self._is_pushing:
            return
        now = self._time.now
        self._pacing.saw({host for host, joins in self._hosts.items() if joins <= now})
        living = now < self._end + STAY
        if living:
            self._progress_at = now
        is_urgent = now >= self._end and self.is_unsent()
        if is_urgent and not self._was_urgent:
            self._was_urgent = True
            self._pacing.requested()
        self._waited_until = max(self._waited_until, self._pacing.blocked_until)
        action = decide(self._situation(now, living=living, is_urgent=is_urgent))
        if action is Action.SCAN:
            self._scanned_at, self._outgoing = min(now, self._end), Outgoing.READY
            self._next_commit = now + 60 * DEFAULT_COMMIT_EVERY
        elif action is Action.PUSH and self._pacing.take(urgent=is_urgent or not living):
            self._is_pushing = True
            self._push(MOVED_TRIES)
            return
        elif action is Action.PUSH and self._pacing.used_up:
            self._outgoing = Outgoing.STALE
        elif action is Action.LEAVE:
            self.has_left = True
            return
        self._time.after(0.0 if action is Action.SCAN else self._pause(), self.tick)

    def _situation(self, now: float, *, living: bool, is_urgent: bool) -> Situation:
        return Situation(
            living=int(living),
            is_abandoned=abandoned_for(now, self._progress_at, self._waited_until) > LINGER,
            may_try=now >= self._pacing.next_try,
            due=(living and now < self._end and now >= self._next_commit) or is_urgent,
            outgoing=self._outgoing,
            settling=False,
            attached=Attached.LATER if living else Attached.OVER,
            ending=Ending.NOT_ASKED,
            orphaned=not living and self.is_unsent(),
        )

    def _pause(self) -> float:
        """Seconds until something may be decided that is not decided now."""
        now, pacing = self._time.now, self._pacing
        moments = [pacing.next_try, self._next_commit, self._end, self._end + STAY]
        moments += [*self._hosts.values(), self._progress_at + LINGER + 1.0]
        return max(1.0, min((moment for moment in moments if moment > now), default=now + 60.0) - now)

    def _push(self, tries: int) -> None:
        """Start to send; read the head and commit."""
        if self._hub.is_down:
            self._time.after(NO_ANSWER, functools.partial(self._conclude, Retry("no connection")))
            return
        parent = self._hub.head if self._pacing.is_fenced else None
        self._is_beside_others = self._hub.head != self._own_head
        self._time.after(UPLOAD_TAKES + COMMIT_TAKES, functools.partial(self._commit, parent, tries - 1))

    def _commit(self, parent: int | None, tries: int) -> None:
        verdict = self._hub.commit(parent)
        if verdict is None and tries:
            self._time.after(self._rng.uniform(0.1, 1.0), functools.partial(self._push, tries))
            return
        self._conclude(verdict or Moved("412"))

    def _conclude(self, verdict: Verdict) -> None:
        """Take in the verdict, as `sending` does."""
        self._is_pushing = False
        if isinstance(verdict, Done):
            self.lags.append(self._time.now - self._unsent_since)
            self._unsent_since, self._outgoing = self._scanned_at, Outgoing.NONE
            self._progress_at = self._time.now
            self._own_head = self._hub.head
            self._pacing.done(committed=True, beside_others=self._is_beside_others)
            if not self.is_unsent() and self._time.now >= self._end:
                self.all_at = self._time.now
        else:
            self._own_head = None
            self._pacing.learn([verdict])
            self._outgoing = Outgoing.STALE
            self._pacing.failed(verdict)
        self._time.after(0.0, self.tick)


def nodes_of(options: argparse.Namespace, time: Time, hub: Hub, folder: Path, end: float) -> Iterator[Node]:
    """The uploaders of a job: one for each node, or one for all."""
    rng = random.Random(options.seed)
    joins = {
        f"host-{rank}": time.now + min(rng.uniform(0, JOIN_WITHIN) for _ in range(options.ranks))
        for rank in range(options.hosts)
    }
    count = 1 if options.undivided else options.hosts
    for rank, (host, joined) in enumerate(joins.items()):
        if options.shared and joined > min(joins.values()):
            continue
        nodes, own = Nodes(count, None if options.undivided else rank), random.Random(options.seed + rank)
        place = at(folder / str(rank))
        limit = RateLimit(HERE, DEFAULT_COMMITS_PER_HOUR, place, lambda: time.now, nodes=nodes, host=host, rng=own)
        pacing = Pacing(Clocks(lambda: time.now, lambda: time.now, own), limit)
        yield Node(time, hub, pacing, joins if options.shared else {host: joined}, end, rng)


def simulate(options: argparse.Namespace) -> dict[str, str]:
    """Run one job; the columns of its row."""
    time = Time()
    start = time.now
    end = start + HOUR * options.hours
    hub = Hub(time, frozenset(options.outage))
    with tempfile.TemporaryDirectory(prefix="simulate-", dir=memory()) as folder:
        nodes = list(nodes_of(options, time, hub, Path(folder), end))
        unsent: list[Node] = []
        for node in nodes:
            time.after(node._first - start, node.tick)  # noqa: SLF001 - of this module
        time.after(end + STAY - start, lambda: unsent.extend(node for node in nodes if node.is_unsent()))
        time.run()
    lags = [lag for node in nodes for lag in node.lags]
    most = max(collections.Counter(int((moment - start) // HOUR) for moment in hub.commits).values(), default=0)
    never = sum(node.is_unsent() for node in nodes)
    last = max((node.all_at for node in nodes if node.all_at < math.inf), default=end)
    return {
        "nodes": f"{options.hosts}",
        "run directories": "one for all" if options.shared else "undivided" if options.undivided else "one each",
        "commits/hour, mean (most)": f"{sum(m < end for m in hub.commits) / options.hours:.0f} ({most})",
        "lag, p95": minutes(quantile(lags, 0.95)),
        "lag, worst": minutes(max(lags)),
        "412": f"{hub.conflicts}",
        "429": f"{hub.refused}",
        "unsent when the processes end": f"{len(unsent)}",
        "all on the Hub": f"{minutes(last - end)} later" if not never else f"never of {never}",
    }


def memory() -> str | None:
    """A folder in memory: a disk takes milliseconds for each change of a bucket, and there are a million."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - a folder with a random name in it


def minutes(seconds: float) -> str:
    """A duration for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * HOUR else f"{seconds / HOUR:.1f} h"


def show(rows: Iterable[dict[str, str]]) -> None:
    """Print a table in Markdown."""
    for number, row in enumerate(rows):
        if not number:
            print(f"| {' | '.join(row)} |", f"|{'---|' * len(row)}", sep="\n")
        print(f"| {' | '.join(row.values())} |", flush=True)


def table(options: argparse.Namespace) -> Iterator[dict[str, str]]:
    """The rows of all sizes."""
    for options.shared, options.undivided in ((False, False), (True, False), (False, True)):
        for options.hosts in TABLE:
            if options.hosts > 1 or not (options.shared or options.undivided):
                yield simulate(options)


def main() -> None:
    """Simulate what is asked for."""
    parser = make_parser(__doc__)
    parser.add_argument("--hosts", type=int, default=64, help="nodes of the job (default: %(default)s)")
    parser.add_argument("--ranks", type=int, default=8, help="ranks of a node (default: %(default)s)")
    parser.add_argument("--hours", type=float, default=24.0, help="that the job trains (default: %(default)s)")
    parser.add_argument("--outage", type=int, nargs="*", default=[8], help="hours in which the Hub is down")
    parser.add_argument("--shared", action="store_true", help="one run directory for all nodes")
    parser.add_argument("--undivided", action="store_true", help="no node knows of the others")
    parser.add_argument("--table", action="store_true", help="all sizes, each with run directories apart and shared")
    add_seed(parser)
    options = parser.parse_args()
    show(table(options) if options.table else [simulate(options)])


if __name__ == "__main__":
    main()
