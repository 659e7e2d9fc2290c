"""The lane of event files: batches in the outbox, what a refusal does to them, and when a scan comes first."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from support import event_file

from hf_mpwriter.base import files as files_module
from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.base.verdicts import Moved, Quarantine, Refused, Retry, Sent, Split, Unknown
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.members import Members
from hf_mpwriter.spool.outbox import Outbox
from hf_mpwriter.uploader.decision import Outgoing
from hf_mpwriter.uploader.lanes import REFUSALS, EventFileLane
from hf_mpwriter.uploader.pacing import Backoff


class Run:
    """A run directory with four event files of other writers, and its lane."""

    def __init__(self, root) -> None:
        self.spool = Spool(str(root))
        self.spool.create()
        self.paths = [f"events.out.tfevents.{number:010d}.theirs" for number in range(1, 5)]
        for path in self.paths:
            event_file(root / path, 2)
        self.ledger = Ledger(Destination("https://hub", "me/run"), settings=Settings())
        self.outbox = Outbox(self.spool.host("h"), self.spool.run_dir)
        self.lane = self.new_lane()

    def new_lane(self) -> EventFileLane:
        """The lane of an uploader that has just started."""
        return EventFileLane(
            self.spool.run_dir, self.outbox, self.ledger, Backoff(lambda: 1000.0, random.Random(1)), lambda: 1000.0
        )

    def scan(self) -> None:
        """Put what the Hub lacks into the outbox."""
        self.lane.scan(Members(self.spool))

    def waiting(self) -> list[list[str]]:
        """The paths of each batch."""
        return [[file.path for file in batch.files] for batch in self.lane.batches]

    def done(self) -> None:
        """The Hub takes the next batch."""
        batch = self.lane.start()
        self.ledger.acknowledge({file.path: Sent(file.length, "0" * 64) for file in batch.files}, "c", 1000.0)
        self.lane.done(batch, committed=True)


@pytest.fixture
def run(tmp_path) -> Run:
    """Before the first scan."""
    return Run(tmp_path / "run")


def test_a_scan_makes_batches_ready_and_a_failure_makes_them_stale(run):
    """Stale batches are not sent: more may be on disk by now."""
    assert (run.lane.outgoing, run.lane.has_scanned) == (Outgoing.NONE, False)
    run.scan()
    assert (run.lane.outgoing, run.lane.has_scanned) == (Outgoing.READY, True)
    run.lane.require_scan()
    assert run.lane.outgoing is Outgoing.STALE
    run.scan()
    run.done()
    assert (run.waiting(), run.lane.outgoing, run.lane.commits) == ([], Outgoing.NONE, 1)


def test_a_refused_batch_is_split_until_one_file_is_quarantined(run):
    """Halves are sent as they are. After REFUSALS times alone the file is left out, and the others are on the Hub."""
    bad = run.paths[2]
    run.scan()
    alone = 0
    while run.lane.batches:
        batch = run.lane.start()
        if bad not in [file.path for file in batch.files]:
            run.done()
            continue
        alone += len(batch.files) == 1
        verdict, _ = run.lane.failed(Split("413"), batch)
        if isinstance(verdict, Quarantine):
            run.lane.drop(batch)
        assert isinstance(verdict, Quarantine if alone == REFUSALS else Split)
        assert not run.lane.batches or run.lane.outgoing is Outgoing.SPLIT
    assert (alone, run.ledger.quarantined) == (REFUSALS, {bad: "413"})
    assert sorted(run.ledger.files) == [path for path in run.paths if path != bad]
    run.scan()
    assert run.waiting() == [], "what is quarantined is not scanned again"


def test_a_success_starts_the_count_of_refusals_of_a_file_anew(run):
    """Only refusals in a row count; what becomes of other files says nothing about this one."""
    run.scan()
    for _ in range(2):
        run.lane.failed(Split("422"), run.lane.start())
    assert [len(paths) for paths in run.waiting()] == [1, 1, 2]
    for _ in range(REFUSALS - 1):
        run.lane.failed(Split("422"), run.lane.start())
    assert run.lane._refusals == {run.paths[0]: REFUSALS - 1}
    run.done()
    assert run.lane._refusals == {}
    assert run.ledger.quarantined == {}


@pytest.mark.parametrize("verdict", [Retry("down"), Unknown("lost"), Moved("412"), Refused("403", "")])
def test_any_other_failure_ends_the_splitting(run, verdict):
    """The halves may be older than what is on disk by then, so a scan comes before the next push."""
    run.scan()
    run.lane.failed(Split("413"), run.lane.start())
    assert run.lane.outgoing is Outgoing.SPLIT
    run.lane.require_scan()
    assert run.lane.failed(verdict, run.lane.start())[0] is verdict
    assert run.lane.outgoing is Outgoing.STALE
    assert run.lane.backoff.attempts == 2


def test_a_quarantined_path_takes_its_batch_out_of_the_outbox(run):
    """The next scan makes a batch of the others."""
    run.scan()
    batch = run.lane.start()
    run.lane.failed(Quarantine({run.paths[0]: "foreign"}), batch)
    assert run.waiting() == [run.paths], "not before the ledger is saved"
    run.lane.drop(batch)
    assert run.waiting() == []
    run.scan()
    assert run.waiting() == [run.paths[1:]]


def test_a_batch_whose_file_is_gone_is_not_split(run, tmp_path):
    """The disk cannot sync what is not there: the batch stays, and the next scan knows."""
    run.scan()
    (tmp_path / "run" / run.paths[0]).unlink()
    run.lane.failed(Split("413"), run.lane.start())
    assert len(run.waiting()) == 1
    assert run.lane.outgoing is Outgoing.READY


def test_a_large_file_for_which_there_is_no_room_is_told_and_holds_back_no_other(run, monkeypatch):
    """It is quarantined with its reason while there is none, and sent when there is; a live one once an hour."""
    path = run.paths[1]
    monkeypatch.setattr(files_module, "PAYLOAD_LIMIT", os.path.getsize(os.path.join(run.spool.run_dir, path)) - 1)
    for other in (run.paths[0], *run.paths[2:]):
        os.unlink(os.path.join(run.spool.run_dir, other))
    event_file(Path(run.spool.run_dir) / run.paths[0], 1)
    with monkeypatch.context() as patch:
        patch.setattr(attachments, "RESERVE", 1 << 60)
        run.scan()
        assert run.waiting() == [[run.paths[0]]]
        assert "too little room" in run.ledger.quarantined[path]
        run.done()
    run.lane = run.new_lane()  # the next uploader
    run.scan()
    assert (run.waiting(), run.ledger.quarantined) == ([[path]], {})
    run.lane.start()
    run.scan()
    assert (run.waiting(), run.ledger.quarantined) == ([], {})
    run.lane.scan(Members(run.spool), everything=True)
    assert run.waiting() == [[path]]
