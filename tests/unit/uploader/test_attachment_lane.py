"""The lane of attachments: they take the time that event files leave, a little at a time."""

from __future__ import annotations

import dataclasses
import os
import random

import pytest

from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.base.timing import USUAL
from hf_mpwriter.base.verdicts import Moved, Quarantine, Retry, Split, Unknown
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.outbox import Batch
from hf_mpwriter.uploader import lanes
from hf_mpwriter.uploader.decision import Attached
from hf_mpwriter.uploader.lanes import AttachmentLane
from hf_mpwriter.uploader.pacing import Backoff, Clocks, Retries

SETTINGS = Settings(allow_patterns=None, commit_every=5)


class Run:
    """A run directory with files `0.txt`, `1.txt`, ..., and who looks at them."""

    def __init__(self, root, count: int) -> None:
        self.spool, self.now = Spool(str(root)), 1000.0
        self.ledger = Ledger(Destination("https://hub", "me/run"), settings=SETTINGS)
        self.spool.create()
        for number in range(count):
            self.write(f"{number}.txt", b"%d" % number)
        self.one = self.made()

    def made(self) -> AttachmentLane:
        """A new one, as a new uploader makes it."""
        host = self.spool.host("h")
        timing = dataclasses.replace(USUAL, first_scan_after=0.0)
        clocks = Clocks(lambda: self.now, lambda: self.now + 5e8, random.Random(1), timing)
        self.retries = Retries(self.ledger, clocks)
        return AttachmentLane(self.spool, host, self.ledger, Backoff(clocks), self.retries, clocks)

    def is_over(self, living: int = 0) -> bool:
        """Whether nothing is left to scan or to send."""
        return self.one.state(living) is Attached.OVER

    def is_due(self, living: int = 0) -> bool:
        """Whether attachments may be scanned or sent."""
        return self.one.state(living) in (Attached.DUE, Attached.STARVED)

    def write(self, path: str, data: bytes) -> None:
        """An attachment."""
        with open(os.path.join(self.spool.run_dir, path), "wb") as file:
            file.write(data)

    def scan(self, *, alone: bool = True) -> list[str]:
        """What a scan puts into a batch."""
        self.one.scan(lambda _: True, alone=alone)
        return [file.path for batch in self.one.batches for file in batch.files]

    def start(self) -> Batch:
        """A push of the next batch starts."""
        batch = self.one.batches[0]
        self.one.started(batch)
        return batch

    def land(self) -> None:
        """The Hub takes the entry that comes next."""
        batch = self.start()
        self.ledger.acknowledge({file.path: file.content for file in batch.files}, "c", self.now)
        self.ledger.note_stamps(batch.files)
        self.one.backoff.succeeded()
        self.one.done(batch, committed=True)

    def fail(self, verdict) -> None:
        """The push of the entry that comes next ends like this."""
        batch = self.start()
        self.one.backoff.failed(verdict)
        if isinstance(self.one.failed(verdict, batch, self.one.backoff.attempts), Quarantine):
            self.one.drop(batch)

    def copies(self) -> int:
        """How many there are."""
        directory = self.spool.host("h").copies
        return len(os.listdir(directory)) if os.path.isdir(directory) else 0


@pytest.fixture
def run(tmp_path) -> Run:
    """Five files."""
    return Run(tmp_path / "run", 5)


def test_an_entry_is_small_and_the_rest_follows(run, monkeypatch):
    """One entry has copies at a time; when all are sent the round is over, and nothing stays behind."""
    monkeypatch.setattr(lanes, "BATCH_FILES", 2)
    sent = []
    while not run.is_over(living=0):
        assert run.is_due(living=0)
        if found := run.scan():
            assert run.copies() == len(found) <= 2
            sent += found
            run.land()
    assert sent == [f"{number}.txt" for number in range(5)]
    assert run.copies() == 0


def test_the_bytes_of_an_entry_are_those_of_the_copies(run, monkeypatch):
    """A file that grows after it was looked at goes into the next entry."""
    monkeypatch.setattr(lanes, "ATTACHED_BYTES", 4)
    run.one = run.made()
    identify = run.one._scanner.identify

    def identify_then_grow(path: str):
        found = identify(path)
        if path == "1.txt":
            run.write(path, b"grown")
        return found

    monkeypatch.setattr(run.one._scanner, "identify", identify_then_grow)
    assert run.scan() == ["0.txt"]
    assert run.copies() == 1
    run.land()
    assert run.scan() == ["1.txt"], "one that is larger than the bound goes alone"


def test_one_look_reads_no_more_than_its_share(run, monkeypatch):
    """The next one goes on where it ended, without an entry in between."""
    monkeypatch.setattr(lanes, "SCAN_BYTES", 2)
    run.ledger.acknowledge({file.path: file.content for file in run.one._scanner.scan(lambda _: True).files}, "c", 1.0)
    run.one = run.made()
    looks = 0
    while not run.is_over(living=0):
        before = run.one._read
        assert run.scan() == []
        assert run.one._read - before <= 2
        looks += 1
    assert looks == 3


def test_while_somebody_lives_there_is_one_commit_per_interval(run, monkeypatch):
    """A request brings the rest sooner: at once; without workers, too."""
    monkeypatch.setattr(lanes, "BATCH_FILES", 1)
    assert run.scan(alone=False) == ["0.txt"]
    run.land()
    assert not run.is_due(living=1)
    run.now += 60 * SETTINGS.commit_every
    assert run.is_due(living=1)
    run.scan(alone=False)
    run.land()
    assert not run.is_due(living=1)
    assert run.is_due(living=0)
    run.one.request()
    assert run.is_due(living=1)


def test_whoever_asks_is_answered_by_a_round_that_begins_afterwards(run, monkeypatch):
    """What the round under way has looked at already may have changed."""
    monkeypatch.setattr(lanes, "BATCH_FILES", 3)
    run.scan(alone=False)
    run.one.request()
    run.write("0.txt", b"new")
    run.land()
    assert run.scan(alone=False) == ["3.txt", "4.txt"]
    run.land()
    assert run.is_due(living=1)
    assert run.scan(alone=False) == ["0.txt"]
    run.land()
    assert not run.is_due(living=1)
    assert not run.is_over(living=0), "it started while a worker lived"


@pytest.mark.parametrize("verdict", [Retry("down"), Unknown("lost"), Moved("412")])
def test_while_pushes_fail_no_copy_takes_room(run, verdict):
    """The second failure removes them; what was in the entry is looked at again."""
    before, batches = run.scan(), run.one.batches
    run.fail(verdict)
    assert (run.copies(), run.one.batches) == (5, batches), "it is repeated as it is, once"
    run.fail(verdict)
    assert (run.copies(), run.one.batches) == (0, [])
    assert not run.is_due(living=0)
    assert not run.is_over(living=0)
    run.now += 1000
    assert run.scan() == before
    assert bool(run.ledger.uncertain) == isinstance(verdict, Unknown)


def test_a_refused_entry_is_split_until_the_file_is_found(run):
    """It is quarantined when it is refused alone; the others are sent. It is tried again, alone."""
    bad = "3.txt"
    for _ in range(30):
        if not run.one.batches and not run.scan():
            break
        if bad in [file.path for file in run.one.batches[0].files]:
            run.fail(Split("bad"))
        else:
            run.land()
    assert run.ledger.reasons == {bad: "bad"}
    assert sorted(run.ledger.files) == ["0.txt", "1.txt", "2.txt", "4.txt"]
    assert run.is_over(living=0)
    assert run.copies() == 0
    run.now += USUAL.refused_retry_first
    for number in (1, 4):
        run.write(f"{number}.txt", b"new %d" % number)
    assert run.is_due(living=0)
    assert run.is_due(living=1)
    assert run.scan() == ["1.txt"]
    run.land()
    assert run.scan() == [bad]
    run.land()
    assert run.scan() == ["4.txt"]
    run.land()
    assert run.ledger.quarantined == {}


def test_a_refused_file_that_was_changed_back_is_let_in_by_a_push_only(run):
    """What the ledger says of a refused file is not believed: others may have replaced it."""
    run.scan()
    run.land()
    run.write("1.txt", b"other")
    run.one.request()
    assert run.scan() == ["1.txt"]
    run.fail(Split("400"))
    run.write("1.txt", b"1")
    run.now += USUAL.refused_retry_first
    assert run.scan() == ["1.txt"]
    assert list(run.ledger.quarantined) == ["1.txt"]
    assert run.copies() == 1
    run.land()
    assert run.ledger.quarantined == {}
    run.write("1.txt", b"other")
    run.one.request()
    assert run.scan() == ["1.txt"]


def test_a_refused_file_that_gets_due_during_a_round_is_tried_in_the_next_one(run, monkeypatch):
    """The round has passed it by then."""
    monkeypatch.setattr(lanes, "BATCH_FILES", 1)
    run.retries.refused("0.txt", "400", certain=False)
    assert run.scan() == ["1.txt"]
    run.now += USUAL.refused_retry_first
    sent = []
    while not run.is_over(living=0):
        sent += [file.path for batch in run.one.batches for file in batch.files]
        run.land()
        run.scan()
    assert sent == ["1.txt", "2.txt", "3.txt", "4.txt", "0.txt"]


def test_a_park_offers_nothing_unless_it_was_found_after_the_commit(run):
    """A read-back refuses before anything is sent; what the .gitignore leaves out is known afterwards."""
    run.scan()
    run.fail(Quarantine({"1.txt": "foreign"}))
    assert run.ledger.uncertain == {}
    assert run.scan() == ["0.txt", "2.txt", "3.txt", "4.txt"]
    run.fail(Quarantine({"2.txt": "ignored"}, committed=True))
    assert sorted(run.ledger.uncertain) == ["0.txt", "2.txt", "3.txt", "4.txt"]
    assert run.scan() == ["0.txt", "3.txt", "4.txt"], "not covered until the Hub was read back"


def test_files_that_cannot_be_copied_hold_back_no_others(run, monkeypatch):
    """They are named, tried once per round, and let in when it works."""
    monkeypatch.setattr(lanes, "BATCH_FILES", 2)
    take, tried = run.one._copies.take, []

    def refuse(file):
        tried.append(file.path)
        if file.path in ("0.txt", "1.txt"):
            raise attachments.ChangedError
        return take(file)

    monkeypatch.setattr(run.one._copies, "take", refuse)
    assert run.scan() == ["2.txt", "3.txt"]
    run.land()
    assert run.scan() == ["4.txt"]
    run.land()
    assert run.is_over(living=0)
    assert tried == [f"{number}.txt" for number in range(5)]
    assert list(run.ledger.quarantined) == ["0.txt", "1.txt"]
    monkeypatch.setattr(run.one._copies, "take", take)
    os.unlink(os.path.join(run.spool.run_dir, "1.txt"))
    run.one.request()
    assert run.scan() == ["0.txt"]
    assert run.ledger.quarantined == {}


def test_a_push_makes_way_for_event_files_that_are_due(run):
    """After a while, or at once on SIGTERM; only once; the next entry carries less and there is no copy meanwhile."""
    run.scan()
    run.start()
    assert not run.one.must_yield(due=True, terminating=False)
    run.now += 1 + lanes.YIELD_AFTER
    assert not run.one.must_yield(due=False, terminating=False)
    assert not run.one.must_yield(due=True, terminating=False), "due only since now"
    assert run.one.must_yield(due=False, terminating=True)
    assert not run.one.must_yield(due=False, terminating=True)
    run.one.failed(Unknown("killed"), run.one.batches[0], 1)
    assert run.copies() == 0
    run.now += 1000
    run.scan()
    run.start()
    assert not run.one.must_yield(due=True, terminating=False)
    run.now += 1 + lanes.YIELD_AFTER
    assert run.one.must_yield(due=True, terminating=False)


def test_attachments_starve_only_after_their_interval_and_some_patience(run):
    """From the last look or push on; then they get one turn, and the time runs anew."""
    allowed = 60 * SETTINGS.commit_every + lanes.YIELD_AFTER
    for turn in (run.scan, run.start):
        turn()
        assert run.one.state(1) is not Attached.STARVED
        run.now += allowed
        assert run.one.state(1) is not Attached.STARVED
        run.now += 1
        assert run.one.state(1) is Attached.STARVED


def test_no_copy_outlives_its_uploader(run):
    """It removes them when it leaves; a successor removes those of one that was killed, on any host."""
    run.scan()
    assert run.copies() == 5
    run.one.close()
    assert run.copies() == 0
    run.one = run.made()
    run.scan()
    other = run.spool.host("other").copies
    os.makedirs(other)
    with open(os.path.join(other, "5" * 64), "wb") as file:
        file.write(b"orphan")
    run.made()
    assert (run.copies(), os.listdir(other)) == (0, [])


def test_what_this_disk_refuses_is_noted_in_each_round(run, monkeypatch):
    """A wait knows by it that the path was tried since; what the Hub refuses keeps the time of its last try."""
    run.ledger.quarantine("1.txt", "400", refusals=3, tried=1.0)
    monkeypatch.setattr(attachments, "LIMIT", 0)
    seen = set()
    for _ in range(2):
        run.now += 1000
        run.scan()
        seen.add(run.ledger.quarantined["0.txt"])
    assert len(seen) == 2
    assert {entry.refusals for entry in seen} == {0}
    assert run.ledger.quarantined["1.txt"].tried == 1.0
