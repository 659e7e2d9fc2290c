"""Attaching: attachments take the time that event files leave, a little at a time, and nobody waits for them."""

from __future__ import annotations

import math
import os
import random
from dataclasses import replace

import pytest
from situations import QUIET

from hf_mpwriter.snapshot import attachments
from hf_mpwriter.uploader import attachment_lane
from hf_mpwriter.uploader.attachment_lane import AttachmentLane
from hf_mpwriter.base.verdicts import Moved, Quarantine, Retry, Split, Unknown
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.outbox import Batch
from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.spool.layout import Spool

SETTINGS = Settings(allow_patterns=None, commit_every=5)


class Run:
    """A run directory with files `0.txt`, `1.txt`, ..., and who looks at them."""

    def __init__(self, root, count: int) -> None:
        self.spool, self.now, self.book = Spool(str(root)), 1000.0, Ledger(Destination("https://hub", "me/run"))
        self.spool.create()
        for number in range(count):
            self.write(f"{number}.txt", b"%d" % number)
        self.one = self.made()

    def made(self) -> AttachmentLane:
        """A new one, as a new uploader makes it."""
        host = self.spool.host("h")
        return AttachmentLane(self.spool, host.copies, lambda: self.now, random.Random(1), self.now)

    def write(self, path: str, data: bytes) -> None:
        """An attachment."""
        with open(os.path.join(self.spool.run_dir, path), "wb") as file:
            file.write(data)

    def look(self, *, alone: bool = True) -> list[str]:
        """What a look puts into an entry."""
        self.one.look(self.book, SETTINGS, alone=alone)
        return [file.path for entry in self.one.entries for file in entry.files]

    def land(self) -> None:
        """The Hub takes the entry that comes next."""
        entry = self.one.mark_in_flight()
        self.book.acknowledge({file.path: file.content for file in entry.files}, "c", self.now)
        self.book.see(entry.files)
        self.one.clear_in_flight(entry, SETTINGS, own=True)

    def fail(self, verdict) -> None:
        """The push of the entry that comes next ends like this."""
        self.one.failed(verdict, self.one.mark_in_flight(), self.book)

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
    monkeypatch.setattr(attachment_lane, "ENTRY_FILES", 2)
    sent = []
    while not run.one.is_over(living=0):
        assert run.one.is_due(living=0)
        if found := run.look():
            assert run.copies() == len(found) <= 2
            sent += found
            run.land()
    assert sent == [f"{number}.txt" for number in range(5)]
    assert run.copies() == 0


def test_the_bytes_of_an_entry_are_those_of_the_copies(run, monkeypatch):
    """A file that grows after it was looked at goes into the next entry."""
    monkeypatch.setattr(attachment_lane, "BATCH_BYTES_ATTACHED", 4)
    run.one = run.made()
    identify = run.one._looking.identify

    def identify_then_grow(path: str):
        found = identify(path)
        if path == "1.txt":
            run.write(path, b"grown")
        return found

    monkeypatch.setattr(run.one._looking, "identify", identify_then_grow)
    assert run.look() == ["0.txt"]
    assert run.copies() == 1
    run.land()
    assert run.look() == ["1.txt"], "one that is larger than the bound goes alone"


def test_one_look_reads_no_more_than_its_share(run, monkeypatch):
    """The next one goes on where it ended, without an entry in between."""
    monkeypatch.setattr(attachment_lane, "LOOK_BYTES", 2)
    run.book.acknowledge({file.path: file.content for file in run.one._looking.scan(lambda _: True).files}, "c", 1.0)
    run.one = run.made()
    looks = 0
    while not run.one.is_over(living=0):
        before = run.one._read
        assert run.look() == []
        assert run.one._read - before <= 2
        looks += 1
    assert looks == 3


def test_while_somebody_lives_there_is_one_commit_per_interval(run, monkeypatch):
    """Who asks gets the rest sooner: two commits at once, then one in ten seconds; nobody alive: at once."""
    monkeypatch.setattr(attachment_lane, "ENTRY_FILES", 1)
    assert run.look(alone=False) == ["0.txt"]
    run.land()
    assert not run.one.is_due(living=1)
    run.now += 60 * SETTINGS.commit_every
    assert run.one.is_due(living=1)
    run.look(alone=False)
    run.land()
    assert not run.one.is_due(living=1)
    run.one.ask()
    run.now += attachment_lane.DISTANCE - 1
    assert not run.one.is_due(living=1)
    assert run.one.is_due(living=0)
    run.now += 1
    assert run.one.is_due(living=1)


def test_whoever_asks_is_answered_by_a_round_that_begins_afterwards(run, monkeypatch):
    """What the round under way has looked at already may have changed."""
    monkeypatch.setattr(attachment_lane, "ENTRY_FILES", 3)
    run.look(alone=False)
    run.one.ask()
    run.write("0.txt", b"new")
    run.land()
    assert run.look(alone=False) == ["3.txt", "4.txt"]
    run.land()
    run.now += attachment_lane.DISTANCE
    assert run.one.is_due(living=1)
    assert run.look(alone=False) == ["0.txt"]
    run.land()
    run.now += attachment_lane.DISTANCE
    assert not run.one.is_due(living=1)
    assert not run.one.is_over(living=0), "it began while somebody lived"


@pytest.mark.parametrize("verdict", [Retry("down"), Unknown("lost")])
def test_while_pushes_fail_no_copy_takes_room(run, verdict):
    """The second failure removes them; what was in the entry is looked at again."""
    before = run.look()
    run.fail(verdict)
    assert run.copies() == 5
    run.fail(verdict)
    assert (run.copies(), run.one.entries) == (0, [])
    assert not run.one.is_due(living=0)
    assert not run.one.is_over(living=0)
    run.now += 1000
    assert run.look() == before
    assert bool(run.book.uncertain) == isinstance(verdict, Unknown)


def test_a_moved_branch_keeps_the_entry(run):
    """It is repeated as it is, once; nothing of it is uncertain."""
    run.look()
    entries = run.one.entries
    run.fail(Moved("412"))
    assert run.one.entries == entries
    assert run.book.uncertain == {}


def test_a_refused_entry_is_split_until_the_file_is_found(run):
    """It is quarantined after three refusals alone; the others are sent."""
    bad = "3.txt"
    for _ in range(30):
        if not run.one.entries and not run.look():
            break
        if bad in [file.path for file in run.one.entries[0].files]:
            run.fail(Split("bad"))
        else:
            run.land()
    assert run.book.quarantined == {bad: "bad"}
    assert sorted(run.book.files) == ["0.txt", "1.txt", "2.txt", "4.txt"]
    assert run.one.is_over(living=0)
    assert run.copies() == 0


def test_a_park_offers_nothing_unless_it_was_found_after_the_commit(run):
    """A read-back refuses before anything is sent; what the .gitignore leaves out is known afterwards."""
    run.look()
    run.fail(Quarantine({"1.txt": "foreign"}))
    assert run.book.uncertain == {}
    assert run.look() == ["0.txt", "2.txt", "3.txt", "4.txt"]
    run.fail(Quarantine({"2.txt": "ignored"}, committed=True))
    assert sorted(run.book.uncertain) == ["0.txt", "2.txt", "3.txt", "4.txt"]
    assert run.look() == ["0.txt", "3.txt", "4.txt"], "not covered until the Hub was read back"


def test_files_that_cannot_be_copied_hold_back_no_others(run, monkeypatch):
    """They are named, tried once per round, and let in when it works."""
    monkeypatch.setattr(attachment_lane, "ENTRY_FILES", 2)
    take, tried = run.one._copies.take, []

    def refuse(file):
        tried.append(file.path)
        if file.path in ("0.txt", "1.txt"):
            raise attachments.ChangedError
        return take(file)

    monkeypatch.setattr(run.one._copies, "take", refuse)
    assert run.look() == ["2.txt", "3.txt"]
    run.land()
    assert run.look() == ["4.txt"]
    run.land()
    assert run.one.is_over(living=0)
    assert tried == [f"{number}.txt" for number in range(5)]
    assert list(run.book.quarantined) == ["0.txt", "1.txt"]
    monkeypatch.setattr(run.one._copies, "take", take)
    os.unlink(os.path.join(run.spool.run_dir, "1.txt"))
    run.one.ask()
    assert run.look() == ["0.txt"]
    assert run.book.quarantined == {}


def test_a_push_makes_way_for_event_files_that_are_due(run):
    """After a while, or at once on SIGTERM; only once; the next entry carries less and there is no copy meanwhile."""
    run.look()
    run.one.mark_in_flight()
    due = replace(QUIET, next_commit=1000.0, now=1000.0)
    later = replace(due, now=1001.0 + attachment_lane.PATIENCE)
    quiet = replace(later, next_commit=math.inf)
    assert not run.one.must_yield(due)
    assert not run.one.must_yield(quiet)
    assert not run.one.must_yield(later), "due only since now"
    assert run.one.must_yield(replace(quiet, terminating=True))
    assert not run.one.must_yield(replace(quiet, terminating=True))
    run.one.failed(Unknown("killed"), run.one.entries[0], run.book)
    assert run.copies() == 0
    run.now += 1000
    run.look()
    run.one.mark_in_flight()
    assert not run.one.must_yield(due)
    assert run.one.must_yield(later)


def test_attachments_starve_only_after_their_interval_and_some_patience(run):
    """From the last look or push on; then they get one turn, and the time runs anew."""
    allowed = 60 * SETTINGS.commit_every + attachment_lane.PATIENCE
    for turn in (run.look, run.one.take_off):
        turn()
        assert not run.one.is_starved(SETTINGS)
        run.now += allowed
        assert not run.one.is_starved(SETTINGS)
        run.now += 1
        assert run.one.is_starved(SETTINGS)


def test_no_copy_outlives_its_uploader(run):
    """It removes them when it leaves; a successor removes those of one that was killed, on any host."""
    run.look()
    assert run.copies() == 5
    run.one.close()
    assert run.copies() == 0
    run.one = run.made()
    run.look()
    other = run.spool.host("other").copies
    os.makedirs(other)
    with open(os.path.join(other, "5" * 64), "wb") as file:
        file.write(b"orphan")
    run.made()
    assert (run.copies(), os.listdir(other)) == (0, [])


def test_what_the_hub_lost_is_looked_at_again(run):
    """A finished round is begun anew, whoever was answered."""
    run.look()
    run.land()
    assert run.one.is_over(living=0)
    run.book.files.clear()
    run.one.restart()
    assert not run.one.is_over(living=0)
    assert len(run.look()) == 5


def test_an_entry_carries_attachments_or_event_files(run):
    """The empty one, which only asks the Hub, carries none."""
    run.look()
    assert run.one.entries[0].is_attached
    assert not Batch(0, ()).is_attached
