"""Attachments in the loop of the uploader: they go when event files leave time for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from attached import copies, quarantined, write
from support import event_file
from uploaders import uploader

from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.base.verdicts import Done, Refused, Sent, Unknown
from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.outbox import Batch
from hf_mpwriter.spool.workers.member_lines import MemberName
from hf_mpwriter.system.directory import Directory
from hf_mpwriter.system.process import host_id
from hf_mpwriter.uploader import in_flight
from hf_mpwriter.uploader.decision import Action, decide
from hf_mpwriter.uploader.loop import Uploader


@pytest.fixture
def one(run_dir) -> Uploader:
    """An uploader in this process, which wants all files and never pushes."""
    spool = Spool(str(run_dir))
    spool.create()
    spool.record_destination(Destination("http://127.0.0.1:9", "me/run"))
    made = uploader(spool)
    made.sending.ledger.settings = Settings(allow_patterns=None)
    return made


def scanned(one: Uploader) -> list[str]:
    """What a scan puts into a batch."""
    if one.sending.attachments.scan(lambda _: True, alone=True):
        one.sending.in_flight.save_ledger()
    return [file.path for batch in one.sending.attachments.batches for file in batch.files]


def test_an_uploader_that_leaves_sweeps_once_more(one):
    """A worker that was killed while it joined may not have been reaped when the uploader started."""
    name = MemberName("rank_00001", host_id(), 2**22 + 1, 1, 1)
    path = Path(one._spool.members, f".{name}.tmp")
    path.touch()
    assert decide(one._situation()) is not Action.LEAVE, "what was left behind is scanned first"
    assert one.leave()
    assert not path.exists()


def test_what_the_hub_has_lost_is_looked_at_again_at_once(one, run_dir):
    """Nobody lives and nothing waits, but a read-back has found a file gone: it is not left to the next start."""
    path = write(run_dir, "gone.txt", b"one")
    (file,) = attachments.Attachments(Directory(run_dir)).scan(lambda _: True).files
    one.sending.ledger.acknowledge({path.name: file.content}, "c", 1.0)
    one.sending.scan()
    assert decide(one._situation()) is Action.ATTACH
    one.sending.attach()
    assert decide(one._situation()) is Action.LEAVE
    assert HubSink(Spool(str(run_dir))).missing({path.name: 3}) == {}
    one.sending.in_flight._sent = (one.sending.events, Batch(0, ()))
    one.sending._conclude(Done("c" * 40, own=False, repo_id="me/run", files={path.name: Sent(0, "")}, checked=True))
    assert decide(one._situation()) is Action.SCAN
    assert HubSink(Spool(str(run_dir))).missing({path.name: 3}) == {path.name: 3}
    one.sending.scan()
    one.sending.attach()
    assert one.sending.attachments.batches[0].files == (file,)
    one.sending.in_flight.push.kill()


def test_a_file_above_the_limit_is_parked_with_what_to_do(one, run_dir, monkeypatch):
    """It is named in the ledger and neither read nor copied; what is beside it goes on; small enough, it goes too."""
    monkeypatch.setattr(attachments, "LIMIT", 5)
    write(run_dir, "big.bin", b"too much")
    write(run_dir, "small.txt", b"fits")
    assert scanned(one) == ["small.txt"]
    assert "hf upload" in quarantined(run_dir)["big.bin"]
    assert len(copies(run_dir)) == 1
    write(run_dir, "big.bin", b"less")
    one.sending.attachments.done(one.sending.attachments.batches[0], committed=True)
    assert scanned(one) == ["big.bin", "small.txt"]
    assert quarantined(run_dir) == {}


class Slow:
    """A push that never ends by itself."""

    pid = 1
    asked_at = 0.0
    is_answered = False
    lingers = False

    def __init__(self) -> None:
        self.killed = False

    def kill(self) -> None:
        """End it."""
        self.killed = True

    def listen(self):
        """What it says."""
        return [], Unknown("the push ended by signal 9") if self.killed else None

    def wait(self, timeout: float) -> None:
        """Nothing to wait for."""


@pytest.fixture
def pushes(monkeypatch) -> list[Slow]:
    """The pushes that are started."""
    made: list[Slow] = []

    def start(*_: object) -> Slow:
        made.append(Slow())
        return made[-1]

    monkeypatch.setattr(in_flight, "PushHandle", start)
    return made


def test_a_push_of_attachments_ends_at_once_on_sigterm_and_events_go_first(one, run_dir, pushes):
    """Its outcome is unknown, so it is uncertain; then the events are looked at and pushed, and nothing else."""
    write(run_dir, "slow.bin", b"slow")
    one.sending.attach()
    event_file(run_dir / "events.out.tfevents.0000000001.h.1.aa", 3)
    assert one.tick()
    assert not pushes[0].killed
    one.terminate()
    assert one.tick()
    assert (pushes[0].killed, list(one.sending.ledger.uncertain), copies(run_dir)) == (True, ["slow.bin"], [])
    assert one.tick()
    assert [file.path for file in one.sending.in_flight._sent[1].files] == ["events.out.tfevents.0000000001.h.1.aa"]


def test_attachments_name_their_parent_however_busy_the_branch_is(one, run_dir, pushes):
    """Without it they might replace what others have just put there; event files only grow."""
    one.sending.pacing._moved = 100
    write(run_dir, "a.txt", b"one")
    one.sending.attach()
    assert one.sending.in_flight._fenced
    assert '"fenced": true' in Path(one.host.in_flight).read_text()
    one.sending.in_flight._sent = None
    one.sending.push(one.sending.events, Batch(1, ()))
    assert not one.sending.in_flight._fenced


def test_attachments_that_fail_do_not_hold_back_events(one, run_dir, pushes):
    """The Hub has trouble with them alone: events are looked at as before, and may be pushed."""
    write(run_dir, "a.txt", b"one")
    for _ in range(9):
        one.sending.attach()
        one.sending._conclude(Unknown("502"))
    assert one.sending.pacing.next_try <= one._clock()
    event_file(run_dir / "events.out.tfevents.0000000001.h.1.aa", 3)
    assert decide(one._situation()) is Action.SCAN
    one.sending.scan()
    assert decide(one._situation()) is Action.PUSH
    one.sending.attach()
    one.sending._conclude(Refused("403", "a token"))
    assert one.sending.pacing.next_try > one._clock(), "then nothing is sent"
