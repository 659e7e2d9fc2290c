"""What is sent, and when, and what follows a verdict: both lanes in the loop of the uploader."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from attached import copies, quarantined, write
from support import event_file
from uploaders import Driven, has, push_events, uploader

from hf_mpwriter.base import files
from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.base.verdicts import Quarantine, Refused, Retry, Sent, Unknown
from hf_mpwriter.delivery.sinks import NEVER, HubSink
from hf_mpwriter.events import framing
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.snapshot.event_files import EventFileScan
from hf_mpwriter.spool import ledger as ledger_module
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.outbox import Batch
from hf_mpwriter.spool.workers.member_lines import MemberName
from hf_mpwriter.spool.workers.members import OBSERVER, MemberFile
from hf_mpwriter.system import locks
from hf_mpwriter.system.process import Process, host_id
from hf_mpwriter.uploader import lanes, peers
from hf_mpwriter.uploader.decision import Action, decide
from hf_mpwriter.uploader.pacing import Step

NAME = "events.out.tfevents.1700000000.here.1.0123abcd"
THEIRS = "events.out.tfevents.1700000000.theirs"


def test_an_uploader_that_leaves_sweeps_once_more(site):
    """A worker that was killed while it joined may not have been reaped when the uploader started."""
    one, name = site.uploader(), MemberName("rank_00001", host_id(), 2**22 + 1, 1, 1)
    path = Path(site.spool.members, f".{name}.tmp")
    path.touch()
    assert decide(one.upload.situation()) is not Action.LEAVE, "what was left behind is scanned first"
    assert one.upload.leave()
    assert not path.exists()


def test_a_look_that_fails_forgets_no_host_that_has_left(site, monkeypatch):
    """What that host was to send is scanned for at the next tick, whatever the disk refuses meanwhile."""
    others = [frozenset({"other-12345678"})]
    monkeypatch.setattr(peers, "living_others", lambda *_: others[0])
    one = site.uploader()
    one.tick()
    one.sending.events.has_scanned, others[0] = True, frozenset()
    site.now += peers.LOOK_EVERY
    with monkeypatch.context() as failing:
        failing.setattr(one.upload.peers.members, "all", lambda: (_ for _ in ()).throw(OSError(5, "EIO")))
        with pytest.raises(OSError, match="EIO"):
            one.upload.peers.look()
    one.upload.peers.look()
    one.sending.note()
    assert not one.sending.events.has_scanned


def test_a_request_with_nothing_to_send_asks_the_hub_once(site):
    """Others may have changed what it has; not before it has anything, and not for a worker that is gone."""
    one, worker = site.uploader(), MemberFile(site.spool, "main", Process.current(), Settings())

    def is_asked() -> bool:
        one.upload.look()
        one.sending.scan()
        parcel = one.sending.parcel(one.sending.events)
        return parcel is not None and parcel.batch.files == ()

    worker.count(requests=1)
    assert not is_asked()
    one.sending.ledger.acknowledge({NAME: Sent(5, "0" * 64)}, "c" * 40, 1.0)
    worker.count(requests=1)
    assert is_asked()
    assert decide(one.upload.situation()) is Action.SCAN, "it is tried until the Hub has answered"
    one.push_events()
    one.conclude(has(own=False, checked=True))
    assert not is_asked()
    assert HubSink(site.spool).asked(within=60) == NEVER, "a push a moment later takes that for an answer"
    assert 0 < HubSink(site.spool).asked(within=0) <= one.sending.ledger.asked
    worker.count(requests=1)
    assert not is_asked(), "it was asked a moment ago"
    one.sending.ledger.asks = {host: at - 60_000 for host, at in one.sending.ledger.asks.items()}
    assert is_asked()
    worker.leave()
    assert not is_asked()


def asking(site) -> Driven:
    """An uploader that asks the Hub for a worker, and has nothing to send."""
    one, worker = site.uploader(), MemberFile(site.spool, "main", Process.current(), Settings())
    one.sending.ledger.acknowledge({NAME: Sent(5, "0" * 64)}, "c" * 40, 1.0)
    worker.count(requests=1)
    one.upload.look()
    one.sending.scan()
    one._push([(one.upload, one.sending.events)])
    assert one.branch.parcels[0].batch.files == ()
    return one


def test_a_hub_that_does_not_answer_is_asked_again_for_minutes_and_that_is_no_outage(site, caplog):
    """A push may wait for that; there is nothing that does not get there."""
    caplog.set_level("INFO", "hf_mpwriter")
    one = asking(site)
    one.conclude(Retry("503"))
    status = one.upload.status.status
    assert (status.kind, status.failing_since) == ("Retry", 0.0)
    assert [text for text in caplog.messages if re.search(r"next try in [0-5] s", text)], caplog.messages
    site.now = one.sending.next_try
    assert decide(one.upload.situation()) is Action.SCAN
    site.now += 1000.0
    one.sending.scan()
    one._push([(one.upload, one.sending.events)])
    one.conclude(Retry("503"))
    assert one.sending.parcel(one.sending.events) is None


def test_a_hub_that_refuses_is_not_asked_again_until_the_next_request(site):
    """A person has to help, and that push has ended."""
    one = asking(site)
    one.conclude(Refused("404", ""))
    assert one.sending.parcel(one.sending.events) is None


def test_requests_let_no_hub_that_fails_be_asked_at_every_tick(site):
    """They end a wait the shortest one after the last try at the earliest, as they do where something waits."""
    one = asking(site)
    one.conclude(Retry("503"))
    one.branch.pacing.hold(Step(100.0))
    one.branch.pacing.requested()
    assert one.branch.pacing.next_try == site.now + one.branch.clocks.timing.push_retry_first


def test_the_hub_is_asked_while_the_rate_limit_refuses_a_commit(site, monkeypatch):
    """A worker all of whose data is there does not wait for what others have logged, which still waits."""
    one = asking(site)
    one.conclude(has(own=False))
    event_file(site.root / NAME, 200)
    one.sending.ledger.asks.clear()
    MemberFile(site.spool, "rank_00001", Process.current(), Settings()).count(requests=1)
    one.upload.look()
    monkeypatch.setattr(one.branch.pacing, "take", lambda **_: False)
    push_events(one)
    assert one.branch.parcels[0].batch.files == ()
    one.conclude(has(own=False))
    push_events(one)
    assert one.branch.push is None, "that was answered"
    assert one.sending.events.batches


def test_who_asks_the_hub_uses_up_no_squash(site):
    """Nothing is committed for that; the next commit squashes."""
    event_file(site.root / NAME, 2)
    one = site.uploader()
    MemberFile(site.spool, "main", Process.current(), Settings(allow_patterns=None, squash_history=True)).count()
    one.upload.look()
    one.sending.scan()
    assert not one.sending.starts(Batch(0, ()))
    assert one.sending.starts(one.sending.events.batches[0])


# event files


def test_a_push_that_the_rate_limit_refuses_has_not_started(site, monkeypatch):
    """A large file that grows is not taken for copied, and its next turn is not an hour away."""
    event_file(site.root / NAME, 2)
    one, started = site.uploader(), []
    one.sending.scan()
    monkeypatch.setattr(one.sending.events._large, "started", started.append)
    monkeypatch.setattr(one.branch.pacing, "take", lambda **_: False)
    one.push_events()
    assert (started, one.branch.push) == ([], None)


@pytest.mark.parametrize("verdict", [Retry("503"), Unknown("504"), Refused("401", "")])
def test_after_a_failure_a_scan_comes_before_the_next_push(site, verdict):
    """It may be minutes later, and there is more to send then."""
    event_file(site.root / NAME, 2)
    one = site.uploader()
    push_events(one)
    one.conclude(verdict)
    site.now = one.branch.pacing.next_try
    assert decide(one.upload.situation()) is Action.SCAN


def test_a_file_that_the_hub_has_refused_takes_no_commit_of_those_that_are_kept_for_requests(site, monkeypatch):
    """It is tried again for ever; the last records of a run, and what a request waits for, come before it."""
    event_file(site.root / NAME, 2)
    one, asked = site.uploader(), []
    monkeypatch.setattr(one.branch.pacing, "take", lambda *, urgent, **_: asked.append(urgent))
    push_events(one)
    one.sending.ledger.quarantine(NAME, "too bad", 1, 0.0)
    one.push_events()
    assert asked == [True, False]


def test_sync_gets_a_large_file_again_whose_push_has_failed(site, monkeypatch):
    """It need not wait for the hour of its last copy, also after the Hub was compared."""
    monkeypatch.setattr(files, "PAYLOAD_LIMIT", 1)
    one = site.uploader()
    MemberFile(site.spool, "main", Process.current(), Settings())
    MemberFile(site.spool, OBSERVER, Process.current(), Settings()).count(requests=1)
    one.upload.peers.look()
    one.sending.note()
    event_file(site.root / THEIRS, 1)
    one.upload.requests.audit = False  # a smaller batch has gone before
    for _ in range(2):
        one.sending.scan()
        assert any(file.is_large for batch in one.sending.events.batches for file in batch.files)
        for batch in one.sending.events.batches:
            one.sending.events._large.started(batch.files)


def test_a_failure_after_the_first_batch_does_not_make_sync_forget_the_rest(tmp_path, site, monkeypatch):
    """The first push has read back all; the files that are not of this host are asked for all the same."""
    for number in range(150):
        (tmp_path / "tb" / f"v{number}").mkdir(parents=True)
        event_file(tmp_path / "tb" / f"v{number}" / "events.out.tfevents.1700000000.elsewhere", 1)
    spool = Spool.of(str(tmp_path / "tb"), str(tmp_path / "staging" / ".hf_mpwriter"))
    spool.create()
    (tmp_path / "staging" / ".hf_mpwriter" / "claims" / "rank_00001.lock").touch()  # a worker has lived here
    spool.record_destination(Destination("http://127.0.0.1:9", "me/run"))
    one = uploader(spool, lambda: site.now, lock=locks.try_exclusive(spool.uploader_lock))
    monkeypatch.setattr(one, "_sleep", lambda: None)
    MemberFile(spool, OBSERVER, Process.current(), Settings()).count(requests=1)

    def sent() -> int:
        before = len(site.jobs)
        while len(site.jobs) == before or not site.jobs[-1].files:
            site.now += 30
            one.tick()
        return len(site.jobs[-1].files)

    assert sent() == 100
    one.conclude(has(checked=True, **{file.path: file.length for file in site.jobs[-1].files}))
    assert sent() == 50
    one.conclude(Retry("503"))
    assert sent() == 50


def test_a_copy_that_is_not_ours_any_more_counts_for_nothing(site):
    """The ledger claims the length no more, so a wait does not end; of other files it says what it said."""
    one, other = site.uploader(), "other.tfevents"
    ledger = one.sending.ledger
    ledger.acknowledge({NAME: Sent(5, "00"), other: Sent(7, "00")}, "c", 1.0)
    for verdict, length in (
        (Quarantine({NAME: "a .gitignore"}, committed=True), 5),
        (Quarantine({NAME: "differs"}), 0),
    ):
        one.push_events()
        one.conclude(verdict)
        assert (ledger.length(NAME), ledger.length(other)) == (length, 7)
        assert list(ledger.quarantined) == [NAME]
        assert ledger_module.load(site.spool, ledger.destination).length(NAME) == length, "on disk, too"


def test_a_path_that_the_hub_takes_again_has_the_other_refused_ones_tried(site):
    """A .gitignore that was mended lets them all in, not one of them an hour."""
    one = site.uploader()
    for path in (NAME, THEIRS):
        event_file(site.root / path, 1)
        one.sending.retries.refused(path, "the repository's .gitignore leaves it out", certain=True)
    site.now += 600.0
    one.sending.retries.postpone([THEIRS])
    push_events(one)
    (file,) = site.jobs[-1].files
    assert file.path == NAME
    one.conclude(has(**{NAME: file.length}))
    assert one.sending.retries.due(attachments=False) == {THEIRS}


def test_the_log_counts_only_what_the_hub_did_not_have(site):
    """An event file counts with what it has grown by; an attachment as a whole, unless it is the same."""
    one = site.uploader()
    new = one.sending._new_bytes
    assert new(NAME, Sent(100, "a")) == 100
    one.sending.ledger.acknowledge({NAME: Sent(100, "a"), "notes.txt": Sent(7, "b")}, "c" * 40, 5.0)
    assert (new(NAME, Sent(130, "c")), new(NAME, Sent(90, "d"))) == (30, 0)
    assert (new("notes.txt", Sent(7, "b")), new("notes.txt", Sent(8, "e"))) == (0, 8)


# attachments


def test_a_refused_attachment_is_sent_with_what_the_hub_may_hold_of_it(site):
    """Its last content is no file of others."""
    write(site.root, "a.txt", b"one")
    one, held = site.uploader(), Sent(1, "0" * 64, "0" * 40)
    one.sending.ledger.acknowledge({"a.txt": held}, "c", 1.0)
    one.sending.retries.refused("a.txt", "400", certain=False)
    site.now += 600.0
    one.attach()
    assert [file.path for file in site.jobs[-1].files] == ["a.txt"]
    assert site.jobs[-1].parts[0].uncertain == {"a.txt": [held]}


def test_what_the_hub_has_lost_is_looked_at_again_at_once(site):
    """Nobody lives and nothing waits, but a read-back has found a file gone: it is not left to the next start."""
    write(site.root, "gone.txt", b"one")
    one, sink = site.uploader(), HubSink(Spool(str(site.root)))
    (file,) = attachments.Attachments(site.spool.run).scan(lambda _: True).files
    one.sending.ledger.acknowledge({file.path: file.content}, "c", 1.0)
    one.sending.scan()
    assert decide(one.upload.situation()) is Action.ATTACH
    one.attach()
    assert decide(one.upload.situation()) is Action.LEAVE
    assert sink.missing({file.path: 3}) == {}
    one.push_events()
    one.conclude(has(own=False, checked=True, **{file.path: Sent(0, "")}))
    assert decide(one.upload.situation()) is Action.SCAN
    assert sink.missing({file.path: 3}) == {file.path: 3}
    one.sending.scan()
    one.attach()
    assert site.jobs[-1].files == [file]


def test_a_file_above_the_limit_is_parked_with_what_to_do(site, monkeypatch):
    """It is named in the ledger and neither read nor copied; what is beside it goes on; small enough, it goes too."""
    monkeypatch.setattr(attachments, "LIMIT", 5)
    write(site.root, "big.bin", b"too much")
    write(site.root, "small.txt", b"fits")
    one = site.uploader()
    one.attach()
    assert [file.path for file in site.jobs[-1].files] == ["small.txt"]
    assert "hf upload" in quarantined(site.root)["big.bin"]
    assert len(copies(site.root)) == 1
    write(site.root, "big.bin", b"less")
    one.conclude(has(**{file.path: file.content for file in site.jobs[-1].files}))
    one.attach()
    assert [file.path for file in site.jobs[-1].files] == ["big.bin"]
    assert one.sending.ledger.quarantined == {}


def test_a_push_of_attachments_ends_at_once_on_sigterm_and_events_go_first(site):
    """Its outcome is unknown, so it is uncertain; then the events are looked at and pushed, and nothing else."""
    write(site.root, "slow.bin", b"slow")
    one = site.uploader()
    one.attach()
    event_file(site.root / NAME, 3)
    assert one.tick()
    assert not site.pushes[0].killed
    one.terminate()
    assert one.tick()
    assert (site.pushes[0].killed, list(one.sending.ledger.uncertain), copies(site.root)) == (
        True,
        ["slow.bin"],
        [],
    )
    assert one.upload.status.status.kind == "", "it was ended from here, which is no failure"
    assert one.tick()
    assert [file.path for file in site.jobs[-1].files] == [NAME]


@pytest.mark.parametrize(("after", "pushes"), [(None, 2), (600.0, 1)])
def test_after_a_failure_sigterm_pushes_once_more_unless_the_hub_asked_for_a_wait(site, after, pushes):
    """Its node may be taken away, and with it what is not sent."""
    event_file(site.root / NAME, 3)
    one = site.uploader()
    while not site.jobs:
        assert one.tick()
    for _ in range(4):
        one.branch.pacing.failed(Unknown("503"))
    one.conclude(Unknown("503", after))
    one.terminate()
    while one.tick() and len(site.jobs) < 2:
        site.now += 0.01
    assert len(site.jobs) == pushes


def test_attachments_that_fail_do_not_hold_back_events(site):
    """The Hub has trouble with them alone: events are looked at as before, and may be pushed."""
    write(site.root, "a.txt", b"one")
    one = site.uploader()
    for _ in range(9):
        one.attach()
        one.conclude(Unknown("502"))
    assert one.branch.pacing.next_try <= site.now
    event_file(site.root / NAME, 3)
    assert decide(one.upload.situation()) is Action.SCAN
    one.sending.scan()
    assert decide(one.upload.situation()) is Action.PUSH
    one.attach()
    one.conclude(Refused("403", "a token"))
    assert one.branch.pacing.next_try > site.now, "then nothing is sent"


def test_what_one_scan_does_not_read_of_others_is_read_by_the_next_ones(site, monkeypatch):
    """A few scans in a row go before a push, so commits stay few; then what was found goes, whatever is left."""
    monkeypatch.setitem(EventFileScan.__init__.__kwdefaults__, "foreign_bytes", 1 << 20)
    record = framing.frame(bytes(1 << 18))
    (site.root / THEIRS).write_bytes(40 * record)
    event_file(site.root / NAME, 2)
    one, lengths = site.uploader(), []
    for _ in range(10):
        scans = 1
        while not one.sending.scan():
            scans += 1
            assert decide(one.upload.situation()) is Action.SCAN
        (batch,) = one.sending.events.batches
        lengths += [file.length // len(record) for file in batch.files if file.path == THEIRS]
        if one.sending.events.has_scanned:
            break
        assert scans == lanes.SCANS_OF_ONE_PUSH
        one.push_events()
        one.conclude(has(**{file.path: file.length for file in batch.files}))
        assert decide(one.upload.situation()) is Action.SCAN, "no worker lives, and yet it stays"
    assert lengths == sorted(set(lengths))
    assert lengths[-1] == 40
