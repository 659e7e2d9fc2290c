"""Requests: a request is for all that was written by then, and satisfied once that is on the Hub."""

from __future__ import annotations

import pytest

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.outbox import Batch
from hf_mpwriter.spool.workers.members import OBSERVER, MemberFile, Members
from hf_mpwriter.system import locks
from hf_mpwriter.system.process import Process
from hf_mpwriter.uploader.requests import Requests

MINE, THEIRS = "events.out.tfevents.1", "rank_00001/events.out.tfevents.1"


class Run:
    """A run directory with its members, and what an uploader knows of their requests."""

    def __init__(self, root) -> None:
        self.spool = Spool(str(root))
        self.spool.create()
        self.members, self.requests = Members(self.spool), Requests()
        self.ledger = Ledger(Destination("https://hub", "me/run"))

    def join(self, worker: str) -> MemberFile:
        """A member file of this process."""
        return MemberFile(self.spool, worker, Process.current(), Settings())

    def scan(self, *waiting: str) -> None:
        """A scan that finds both files and leaves these in the outbox."""
        self.requests.scanned(self.members.all(), [LocalFile(path, 100, True) for path in (MINE, THEIRS)])
        self.settle(*waiting)

    def settle(self, *waiting: str) -> None:
        """See who is satisfied while these files wait in the outbox."""
        batches = [Batch(1, tuple(LocalFile(path, 100, True) for path in waiting))]
        self.requests.satisfy(batches, self.ledger, self.members)

    def is_urgent(self) -> bool:
        """Whether event files should go at once."""
        return self.requests.any_urgent(self.members.all())


@pytest.fixture
def run(tmp_path):
    """A run with nothing in it."""
    yield Run(tmp_path / "run")
    for fd in list(locks._table):
        locks.release(fd)


def test_a_request_is_urgent_until_what_was_written_before_it_is_sent(run):
    """Not when it was scanned, but when nothing of its member waits; what others have waiting does not matter."""
    mine = run.join("main")
    mine.write({"open": MINE})
    assert not run.is_urgent()
    mine.count(requests=1)
    assert run.is_urgent()
    run.scan(MINE, THEIRS)
    assert run.is_urgent()
    run.settle(THEIRS)
    assert not run.is_urgent()


def test_a_request_that_comes_after_the_scan_needs_another_one(run):
    """What was logged between scan and request is not in the outbox."""
    mine = run.join("main")
    mine.write({"open": MINE})
    mine.count(requests=1)
    run.scan(MINE)
    mine.count(requests=1)
    run.settle()
    assert run.is_urgent()
    run.scan()
    assert not run.is_urgent()


def test_an_observer_asks_for_the_files_of_all(run):
    """`sync` has no files of its own: it is satisfied when nothing waits at all."""
    run.join(OBSERVER).count(requests=1)
    run.scan(THEIRS)
    assert run.is_urgent()
    run.settle()
    assert not run.is_urgent()


def test_half_a_number_that_was_read_loses_no_request(run):
    """A reader may meet the counters while they are written: whatever it saw, the next request is news."""
    mine = run.join("main")
    mine.count(requests=99)
    with open(mine.path, "r+b") as file:  # the new tens, the old ones: 199 instead of 100
        content = file.read()
        file.seek(0)
        file.write(content.replace(b'"requests": 99, ', b'"requests": 199,'))
    run.scan()
    assert not run.is_urgent()
    mine.count(requests=1)
    assert run.is_urgent()
    run.scan()
    assert not run.is_urgent()


def test_the_member_file_of_the_dead_goes_when_all_its_files_are_on_the_hub(run):
    """Sealed ones included, and not before."""
    mine = run.join("main")
    mine.write({"open": MINE})
    mine.write({"seal": MINE})
    mine.leave()
    run.scan()
    assert run.members.all()
    run.ledger.acknowledge({MINE: Sent(100, "0" * 64)}, "c", 1000.0)
    run.scan()
    assert run.members.all() == []
