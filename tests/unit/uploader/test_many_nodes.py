"""Many nodes, one repository: each takes its share of the commits per hour."""

from __future__ import annotations

import heapq
import itertools
import random

import pytest
from uploaders import Driven, uploader

from hf_mpwriter.base.job import Nodes
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Retry
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.outbox import Batch
from hf_mpwriter.spool.status import LINGER, UploaderStatus
from hf_mpwriter.system.directory import at
from hf_mpwriter.uploader.branch import Parcel
from hf_mpwriter.uploader.pacing import Clocks, Pacing
from hf_mpwriter.uploader.rate_limit import HOUR, RateLimit, Rule

HERE = Destination("https://hub", "me/run")


class Node:
    """The pace of one node of a job, with a clock that the test moves."""

    def __init__(self, folder, nodes: Nodes, *, limit: float = 100.0) -> None:
        self.now = 1_000_000.0
        host = f"host-{nodes.rank}"
        rng = random.Random(nodes.rank)
        self.limit = RateLimit(HERE, limit, at(folder), lambda: self.now, nodes=nodes, host=host, rng=rng)
        self.pace = Pacing(Clocks(lambda: self.now, lambda: self.now, rng), self.limit)

    def next_commit(self, *, urgent: bool = False, beside_others: bool | None = True) -> float:
        """Commit as soon as it may; the time of that."""
        while not self.pace.take(urgent=urgent):
            self.now = max(self.now, self.pace.next_try)
        self.pace.done(committed=True, beside_others=beside_others)
        return self.now


def most_in_an_hour(times: list[float]) -> int:
    """The greatest number of times in any hour."""
    times, first, most = sorted(times), 0, 0
    for last, moment in enumerate(times):
        while moment - times[first] >= HOUR:
            first += 1
        most = max(most, last - first + 1)
    return most


@pytest.mark.parametrize("count", [2, 8, 16, 20])
def test_all_nodes_together_stay_below_the_limit(tmp_path, count):
    """They start at the same moment and commit whenever they may; later all rest, and end at the same moment."""
    nodes = [Node(tmp_path / str(rank), Nodes(count, rank)) for rank in range(count)]
    start = nodes[0].now
    times, waiting = [], [(start, rank) for rank in range(count)]
    while waiting[0][0] < start + 3 * HOUR:
        _, rank = heapq.heappop(waiting)
        nodes[rank].now += 1.0
        times.append(nodes[rank].next_commit())
        heapq.heappush(waiting, (times[-1], rank))
    for node in nodes:
        node.now = start + 24 * HOUR
    ends = [node.next_commit(urgent=True) for node in nodes]
    assert most_in_an_hour(times) <= 100 + 2, "one of them is that by which the first node finds the others"
    assert most_in_an_hour(ends) <= 100 + 1
    assert len(times) > 3 * 75, "what is there is used"


def test_more_nodes_than_a_burst_do_not_start_at_the_same_moment(tmp_path):
    """A new bucket lacks a random part of its only token; after that, each node waits for its interval."""
    nodes = [Node(tmp_path / str(rank), Nodes(64, rank)) for rank in range(1, 64)]
    interval = nodes[0].limit.rule.pause
    assert interval == pytest.approx(64 * HOUR / 80)
    start = nodes[0].now
    first = sorted(node.next_commit() - start for node in nodes)
    assert 0 < first[0] < interval / 8
    assert interval * 7 / 8 < first[-1] <= interval
    assert max(later - earlier for earlier, later in itertools.pairwise(first)) < interval / 4
    seconds = [node.next_commit() - node.now for node in nodes]
    assert max(seconds) <= interval + 1e-6


@pytest.mark.parametrize("rank", [0, 5])
def test_a_node_that_logs_alone_divides_nothing(tmp_path, rank):
    """As rank 0 does with the Trainer: its commits follow each other, so it makes one whenever one is due."""
    node = Node(tmp_path, Nodes(64, rank))
    times = [node.next_commit(beside_others=number == 0) for number in range(4)]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert pauses[0] == (0.0 if rank == 0 else pytest.approx(64 * HOUR / 80))
    assert max(pauses[1:]) <= 300.0, "the commit interval"
    node.next_commit(beside_others=None)
    assert node.limit.rule.nodes == 1, "an audit tells nothing of other nodes"
    node.next_commit(beside_others=True)
    assert node.limit.rule.nodes == 64, "another one logs, too"


def test_nodes_that_share_the_run_directory_divide_nothing(tmp_path):
    """One uploader serves all of them; half of them share two halves."""
    node = Node(tmp_path, Nodes(64, 63))
    assert not node.pace.take(urgent=True)
    assert node.pace.blocked_until > node.now
    node.pace.saw({f"host-{rank}" for rank in range(64)})
    assert node.pace.next_try <= node.now, "the wait for its share is over"
    assert node.pace.take(urgent=False)
    half = Node(tmp_path / "half", Nodes(16, 15))
    half.pace.saw({f"host-{rank}" for rank in range(8, 16)})
    assert half.limit.rule == Rule(100.0, nodes=2.0)
    half.pace.saw(set(), apart={f"host-{rank}" for rank in range(8, 15)})
    assert half.limit.rule == Rule(100.0, nodes=16.0), "each of them has an uploader"


def test_who_has_to_end_now_does_not_wait_for_its_share(tmp_path):
    """The Hub takes more than the limit; a push that fails gives no token back that it has not taken."""
    node = Node(tmp_path, Nodes(64, 63))
    assert not node.pace.take(urgent=True)
    before = node.pace.next_try
    assert node.pace.take(urgent=True, at_once=True)
    node.pace.learn([Retry("no connection")])
    assert not node.pace.take(urgent=True)
    assert node.pace.next_try == before


class Clock:
    """Monotonic seconds that the test moves."""

    now = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock."""
    return Clock()


@pytest.fixture
def one(run_dir, monkeypatch, clock) -> Driven:
    """The uploader of node 63 of 64, with a cache folder of its own."""
    monkeypatch.setenv("HF_MPWRITER_COMMITS_PER_HOUR", "100")
    monkeypatch.setenv("XDG_CACHE_HOME", str(run_dir.parent / "cache"))
    spool = Spool(str(run_dir))
    spool.create()
    return uploader(spool, clock, seed=2, destination=HERE, nodes=Nodes(64, 63))


def test_an_uploader_without_workers_waits_for_its_share_and_says_when_that_is(one, clock):
    """The wait ends later than the ten minutes of an uploader without workers; those follow."""
    assert not one.branch.pacing.take(urgent=True)
    one.sending.has_to_wait()
    (text,) = [notice.text for notice in UploaderStatus.read(one.upload.host).notices]
    assert text.startswith("64 nodes share the 100 commits per hour of this repository")
    assert "about one in 48 minutes" in text
    assert "one logdir for all nodes" in text
    one.upload.publish()
    status = UploaderStatus.read(one.upload.host)
    assert status.blocked_until == one.branch.pacing.due_at > clock.now + LINGER
    assert status.reason.startswith("the next commit is due at about ")
    clock.now = status.blocked_until - 1
    assert not one.upload.situation().is_abandoned
    clock.now = status.blocked_until + LINGER - 1
    assert not one.upload.situation().is_abandoned
    clock.now += 2
    assert one.upload.situation().is_abandoned


def test_a_wait_that_the_hub_wishes_outlasts_the_ten_minutes(one, clock):
    """429 with an hour: the uploader tries again after it, and has ten minutes from then; but not for ever."""
    one.branch._sent = [Parcel(one.sending.in_flight, one.sending.events, Batch(0, ()))]
    one.conclude(Retry("429", 3600.0))
    clock.now += 3599
    assert not one.upload.situation().is_abandoned
    clock.now += LINGER
    assert not one.upload.situation().is_abandoned
    for _ in range(30):
        one.branch.pacing.failed(Retry("429", 3600.0))
        one.upload.situation()
        clock.now += 3600
    assert one.upload.situation().is_abandoned
