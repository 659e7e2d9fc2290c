"""Many nodes, one repository: each takes its part of the commits, and its turn where all want one at once."""

from __future__ import annotations

import heapq
import itertools
import random

import pytest

from hf_mpwriter.base.job import Nodes
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Moved, Retry
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.notices import read_notices
from hf_mpwriter.spool.outbox import Batch
from hf_mpwriter.spool.status import LINGER, UploaderStatus
from hf_mpwriter.system import locks
from hf_mpwriter.system.directory import at
from hf_mpwriter.uploader import outcome
from hf_mpwriter.uploader.loop import Uploader
from hf_mpwriter.uploader.pace import pacing
from hf_mpwriter.uploader.pace.pacing import Pacing
from hf_mpwriter.uploader.pace.rate_limit import HOUR, RateLimit, Rule

HERE = Destination("https://hub", "me/run")


class Node:
    """The pace of one node of a job, with a clock that the test moves."""

    def __init__(self, folder, nodes: Nodes, *, limit: float = 100.0) -> None:
        self.now = 1_000_000.0
        host = f"host-{nodes.rank}"
        self.limit = RateLimit(HERE, limit, [at(folder)], lambda: self.now, nodes=nodes, host=host)
        self.pace = Pacing(lambda: self.now, random.Random(1), self.limit, self.now + 2)

    def next_commit(self, *, urgent: bool = False, beside_others: bool = True) -> float:
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


@pytest.mark.parametrize("count", [2, 8, 16, 20, 21, 64])
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
    end = start + 24 * HOUR
    for node in nodes:
        node.now = end
    ends = [node.next_commit(urgent=True) for node in nodes]
    assert most_in_an_hour(times) <= 100 + 2, "one of them is that by which the first node finds the others"
    assert most_in_an_hour(ends) <= 100 + 1
    assert len(times) > 3 * 75, "what is there is used"
    distances = [later - earlier for earlier, later in zip(sorted(ends), sorted(ends)[1:], strict=False)]
    assert min(distances) >= 3.0 - 1e-6, "they do not come at once"


@pytest.mark.parametrize("rank", [0, 5])
def test_a_node_that_logs_alone_divides_nothing(tmp_path, rank):
    """As rank 0 does with the Trainer: its commits follow each other, so it makes one whenever one is due."""
    node = Node(tmp_path, Nodes(64, rank))
    times = [node.next_commit(beside_others=number == 0) for number in range(4)]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert pauses[0] == (0.0 if rank == 0 else pytest.approx(64 * HOUR / 95))
    assert max(pauses[1:]) <= 300.0, "the commit interval"
    node.next_commit(beside_others=True)
    assert node.limit.rule.parts == 64, "another one logs, too"


def test_an_audit_tells_nothing_of_other_nodes(tmp_path):
    """`sync` reads back what has not moved, too."""
    node = Node(tmp_path, Nodes(64, 0))
    for beside_others in (True, False, None):
        node.pace.done(committed=True, beside_others=beside_others)
    assert node.limit.rule.parts == 1


def test_a_thousand_nodes_take_their_turns():
    """The last one comes after what the limit needs for all of them, and not much later."""
    rule = Rule(100.0, parts=1000.0)
    turns = [rule.turn(index) for index in range(1000)]
    assert turns == sorted(turns)
    assert 994 / 95 <= turns[-1] / HOUR <= 1000 / 95
    assert rule.pause == pytest.approx(1000 * HOUR / 95)


def test_nodes_that_share_the_run_directory_divide_nothing(tmp_path):
    """One uploader serves all of them; a part of them shares a part."""
    node = Node(tmp_path, Nodes(16, 15))
    assert not node.pace.take(urgent=True)
    assert node.pace.turn_at == node.now + 45.0
    node.pace.saw({f"host-{rank}" for rank in range(16)})
    assert node.pace.next_try <= node.now, "the wait for its turn is over"
    assert node.pace.take(urgent=True)
    half = Node(tmp_path / "half", Nodes(16, 15))
    half.pace.saw({f"host-{rank}" for rank in range(8, 16)})
    assert half.limit.rule == Rule(100.0, parts=2.0)


def test_nodes_that_share_the_bucket_divide_nothing(tmp_path):
    """A home on NFS: the bucket lists the hosts that use it, and who waits for a turn looks there."""
    nodes = [Node(tmp_path, Nodes(4, rank)) for rank in range(4)]
    assert not nodes[3].pace.take(urgent=True)
    for node in nodes[:3]:
        node.pace.take(urgent=True)
        node.pace.saw({f"host-{node.limit}"})
    nodes[3].pace.saw({"host-3"})
    assert nodes[3].limit.rule.parts == 1
    assert nodes[3].pace.take(urgent=True)
    apart = Node(tmp_path / "apart", Nodes(4, 3))
    apart.pace.take(urgent=True)
    apart.pace.saw({"host-3"})
    assert apart.limit.rule.parts == 4


def test_one_node_waits_for_no_turn(tmp_path):
    """Nor does one whose process has to end now."""
    assert Node(tmp_path / "one", Nodes()).pace.take(urgent=True)
    assert Node(tmp_path / "end", Nodes(16, 15)).pace.take(urgent=True, at_once=True)


def test_after_a_commit_what_is_left_of_the_same_goes_at_once(tmp_path):
    """Several batches are one turn; what comes later waits for another."""
    node = Node(tmp_path, Nodes(4, 3))
    first = node.next_commit(urgent=True)
    assert first == 1_000_000.0 + 9
    assert node.next_commit(urgent=True) == first
    node.now += pacing.TURN_LASTS
    assert not node.pace.take(urgent=True)


def test_without_a_number_the_name_of_the_host_is_its_turn(tmp_path):
    """No two turns of a hundred nodes need differ, but they are spread."""
    turns = set()
    for number in range(100):
        limit = RateLimit(HERE, 100.0, [at(tmp_path)], nodes=Nodes(100), host=f"host-{number}")
        turns.add(limit.turn)
    assert len(turns) > 50


def test_a_refusal_for_the_rate_stretches_the_pauses_and_commits_take_that_back(tmp_path):
    """429 doubles them, to a limit; nothing but 412 adds to them; the way back is slow."""
    node = Node(tmp_path, Nodes())
    usual = node.limit.rule.pause
    for _ in range(9):
        node.pace.learn(Retry("429", limited=True))
    assert node.limit.rule.pause == pacing.LARGEST_STRETCH * usual
    node.pace.scanned(5)
    assert node.pace.next_commit == node.now + 300 * pacing.LARGEST_STRETCH
    node.pace.done(committed=True)
    assert node.limit.stretch == pacing.LARGEST_STRETCH - pacing.STRETCH_BACK
    node.pace.done(committed=False)
    assert node.limit.stretch == pacing.LARGEST_STRETCH - pacing.STRETCH_BACK
    for _ in range(100):
        node.pace.done(committed=True)
    assert node.limit.stretch == 1.0
    node.pace.learn(Retry("503"))
    assert node.limit.stretch == 1.0
    node.pace.learn(Moved("412"))
    assert node.limit.stretch == 1.0 + pacing.STRETCH_ON_412


@pytest.mark.parametrize(("count", "waits"), [(16, False), (64, True)])
def test_where_nodes_are_many_a_second_failure_costs_the_turn(tmp_path, count, waits):
    """Else all that could not commit during an outage would do so at its end."""
    node = Node(tmp_path, Nodes(count, 0))
    for _ in range(2):
        node.limit.committed(beside_others=True)
    for _ in range(2):
        assert node.pace.take(urgent=True)
        node.pace.learn(Retry("no connection"))
        node.pace.failed(Retry("no connection"))
    assert node.pace.take(urgent=True) is not waits


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
def one(run_dir, monkeypatch, clock) -> Uploader:
    """The uploader of node 63 of 64, with a cache folder of its own."""
    monkeypatch.setenv("HF_MPWRITER_COMMITS_PER_HOUR", "100")
    monkeypatch.setenv("XDG_CACHE_HOME", str(run_dir.parent / "cache"))
    spool = Spool(str(run_dir))
    spool.create()
    lock = locks.try_exclusive(spool.uploader_lock)
    return Uploader(spool, HERE, lock, clock, random.Random(1), nodes=Nodes(64, 63))


def test_an_uploader_without_workers_waits_for_its_turn_and_says_when_that_is(one, clock):
    """The wait ends later than the ten minutes of an uploader without workers; those follow."""
    assert not one.run.pacing.take(urgent=True)
    one.run.explain_wait()
    one.run.publish()
    status = UploaderStatus.read(one.run.host)
    assert status.blocked_until == one.run.pacing.turn_at > clock.now + 3 * LINGER
    assert status.reason.startswith("the next commit is due at about ")
    clock.now = status.blocked_until - 1
    assert one._situation([]).abandoned_for < 0
    clock.now = status.blocked_until + LINGER - 1
    assert one._situation([]).abandoned_for < LINGER
    clock.now += 2
    assert one._situation([]).abandoned_for > LINGER


def test_a_wait_that_the_hub_wishes_outlasts_the_ten_minutes(one, clock):
    """429 with an hour: the uploader tries again after it, and has ten minutes from then; but not for ever."""
    one.run.in_flight._sent = (one.run.events, Batch(0, ()))
    outcome.conclude(one.run, Retry("429", 3600.0, limited=True))
    clock.now += 3599
    assert one._situation([]).abandoned_for < 0
    clock.now += LINGER
    assert one._situation([]).abandoned_for < LINGER
    for _ in range(30):
        one.run.pacing.failed(Retry("429", 3600.0, limited=True))
        one._situation([])
        clock.now += 3600
    assert one._situation([]).abandoned_for > LINGER


def test_the_user_reads_that_the_nodes_share_the_commits(one):
    """How many, how often this one commits, and what helps."""
    assert not one.run.pacing.take(urgent=True)
    one.run.explain_wait()
    (text,) = [notice.text for notice in read_notices(one.run.host)]
    assert text.startswith("64 nodes share the 100 commits per hour of this repository")
    assert "about one in 40 minutes" in text
    assert "one logdir for all nodes" in text
