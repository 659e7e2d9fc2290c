"""The batch in flight: what becomes of it when its outcome is not known."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from attached import write
from silent_pushes import Silent
from support import event_file
from uploaders import uploader

from hf_mpwriter.base import files
from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.base.verdicts import Done, Quarantine, Refused, Retry, Sent, Unknown
from hf_mpwriter.daemon.status_file import StatusFile
from hf_mpwriter.events import framing
from hf_mpwriter.push.job import SCRATCH, Job
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.spool import ledger as ledger_module
from hf_mpwriter.spool import outbox
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.outbox import Batch, Outbox
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.spool.workers import peers
from hf_mpwriter.spool.workers.members import OBSERVER, MemberFile
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.process import Process, host_id
from hf_mpwriter.uploader import in_flight
from hf_mpwriter.uploader.decision import Action, decide
from hf_mpwriter.uploader.loop import Uploader

replace = disk.replace
NAME = "events.out.tfevents.1700000000.here.1.0123abcd"


def test_the_settle_time_outlives_the_uploader(tmp_path):
    """A request without a parent may still be under way: the record of it stays until the time is over.

    A later success of the same batch does not end it, and a successor waits for it too.
    """
    spool = Spool(str(tmp_path / "run"))
    spool.create()
    spool.record_destination(Destination("http://127.0.0.1:9", "me/run"))
    name = "events.out.tfevents.1700000000.here.1.0123abcd"
    (tmp_path / "run" / name).write_bytes(framing.frame(framing.version_event(1.0)))
    lock, now = locks.try_exclusive(spool.uploader_lock), [1000.0]

    def successor() -> Uploader:
        return uploader(spool, lambda: now[0], lock=lock)

    one = successor()
    one.sending.scan()
    batch = one.sending.events.batches[0]
    one.sending.in_flight._fenced = False
    one.sending.in_flight._outbox.mark_in_flight(batch, fenced=False)
    one.sending.in_flight._sent = (one.sending.events, batch)
    one.sending._conclude(Unknown("504"))
    one.sending.in_flight._sent = (one.sending.events, batch)
    one.sending._conclude(Done("c" * 40, own=True, repo_id="me/run", files={name: Sent(batch.files[0].length, "00")}))
    assert decide(one._situation()) is Action.WAIT, "it does not leave before the time is over"
    two = successor()
    assert decide(two._situation()) is Action.WAIT, "its successor makes no scan either"
    now[0] += in_flight.SETTLE_TIME
    two.sending.in_flight.catch_up()
    assert decide(two._situation()) is Action.SCAN
    assert outbox.interrupted(two.host) is None


def test_a_successor_waits_as_long_as_a_request_may_be_under_way(tmp_path):
    """From its own start on: it does not know when the request was sent."""
    spool = Spool(str(tmp_path / "run"))
    spool.create()
    spool.record_destination(Destination("http://127.0.0.1:9", "me/run"))
    (tmp_path / "run" / NAME).write_bytes(framing.frame(framing.version_event(1.0)))
    lock, now = locks.try_exclusive(spool.uploader_lock), [1000.0]
    one = uploader(spool, lambda: now[0], lock=lock)
    one.sending.scan()
    one.sending.in_flight._outbox.mark_in_flight(one.sending.events.batches[0], fenced=False)
    two = uploader(spool, lambda: now[0], lock=lock)
    for later, settles in ((0.0, True), (in_flight.SETTLE_TIME - 1, True), (in_flight.SETTLE_TIME, False)):
        now[0] = 1000.0 + later
        two.sending.in_flight.catch_up()
        assert two.sending.in_flight.is_settling is settles


@pytest.mark.parametrize(
    ("verdict", "fenced", "settles"),
    [
        (Unknown("504"), False, True),
        (Unknown("504"), True, False),
        (Refused("quota", "buy more"), False, False),
        (Retry("429"), False, False),
    ],
)
def test_only_an_unknown_outcome_without_a_parent_settles(tmp_path, verdict, fenced, settles):
    """A request that was answered, or that named its parent, cannot arrive late."""
    spool = Spool(str(tmp_path / "run"))
    spool.create()
    spool.record_destination(Destination("http://127.0.0.1:9", "me/run"))
    (tmp_path / "run" / NAME).write_bytes(framing.frame(framing.version_event(1.0)))
    one = uploader(spool)
    one.sending.scan()
    one.sending.in_flight._fenced = fenced
    one.sending.in_flight._sent = (one.sending.events, one.sending.events.batches[0])
    one.sending.in_flight.end(verdict)
    assert one.sending.in_flight.is_settling is settles


@pytest.fixture
def jobs(monkeypatch) -> list[Job]:
    """The jobs of the pushes that are started."""
    made: list[Job] = []

    def start(job: Job, *_: object) -> Silent:
        made.append(job)
        return Silent()

    monkeypatch.setattr(in_flight, "PushHandle", start)
    return made


class Place:
    """A run directory with one event file and one attachment, and its uploaders."""

    def __init__(self, root) -> None:
        self.spool, self.root, self.now = Spool(str(root)), root, 1000.0
        self.spool.create()
        self.spool.record_destination(Destination("http://127.0.0.1:9", "me/run"))
        event_file(root / NAME, 3)
        write(root, "a.txt", b"one")
        self.lock = locks.try_exclusive(self.spool.uploader_lock)

    def uploader(self) -> Uploader:
        """An uploader, as of now."""
        made = uploader(self.spool, lambda: self.now, lock=self.lock)
        made.sending.ledger.settings = Settings(allow_patterns=None)
        return made

    def other(self, name: str = "other-00000000"):
        """Another host."""
        host = self.spool.host(name)
        os.makedirs(host.root, exist_ok=True)
        return host


@pytest.fixture
def place(tmp_path) -> Place:
    """Nothing was sent yet."""
    return Place(tmp_path / "run")


def refuse(path: str, data: bytes, word: str, *, durable: bool = True) -> None:
    """The disk has room for anything but the ledger."""
    if word == "ledger.save":
        raise OSError("full")
    replace(path, data, word, durable=durable)


def test_no_push_starts_while_the_ledger_is_not_on_disk(place, jobs, monkeypatch):
    """Its record would take the place of the one that says which attachments the Hub may have."""
    one = place.uploader()
    one.sending.attach()
    assert len(jobs) == 1
    record = Path(one.host.in_flight).read_bytes()
    with monkeypatch.context() as full:
        full.setattr(disk, "replace", refuse)
        one.sending._conclude(Unknown("504"))
        one.sending.scan()
        one.sending.push(one.sending.events, one.sending.events.batches[0])
    assert (len(jobs), Path(one.host.in_flight).read_bytes()) == (1, record)
    assert one.status.failure == "Retry"
    place.now += 1000.0
    one.sending.in_flight.catch_up()
    assert not os.path.exists(one.host.in_flight)
    one.sending.scan()
    one.sending.push(one.sending.events, one.sending.events.batches[0])
    assert len(jobs) == 2
    assert list(place.uploader().sending.ledger.uncertain) == ["a.txt"]


def test_the_record_of_a_dead_host_costs_one_settle_time(place):
    """Its push without a parent may be under way, once; a newer record of that host is another one."""
    other = Outbox(place.other(), place.spool.run)
    other.mark_in_flight(Batch(1, ()), fenced=False)
    one = place.uploader()
    assert one.sending.in_flight.is_settling
    assert place.uploader().sending.in_flight.is_settling, "it was not over"
    place.now += in_flight.SETTLE_TIME
    one.sending.in_flight.catch_up()
    assert not place.uploader().sending.in_flight.is_settling
    assert os.path.exists(place.other().in_flight), "it is that host's"
    other.mark_in_flight(Batch(2, ()), fenced=False)
    assert place.uploader().sending.in_flight.is_settling


def test_what_a_dead_host_was_sending_is_uncertain_once(place):
    """When the Hub was read back it is known, and no later start makes it uncertain again."""
    (file,) = attachments.Attachments(place.spool.run).scan(lambda _: True).files
    Outbox(place.other(), place.spool.run).mark_in_flight(Batch(0, (file,)), fenced=True)
    one = place.uploader()
    assert list(one.sending.ledger.uncertain) == ["a.txt"]
    one.sending.ledger.acknowledge({"a.txt": file.content}, "c", 1.0)
    one.sending.in_flight.save_ledger()
    assert place.uploader().sending.ledger.uncertain == {}


def test_a_commit_names_no_parent_only_while_no_other_host_can_send(place, jobs):
    """Another host's uploader has a heartbeat; it has left, or has been silent for minutes."""
    host = place.other()

    def is_fenced() -> bool:
        one = place.uploader()
        one.sending.pacing._moved = 100
        one.sending.scan()
        one.sending.push(one.sending.events, one.sending.events.batches[0])
        os.unlink(one.host.in_flight)  # the outcome is known
        return jobs[-1].fenced

    assert not is_fenced()
    status = StatusFile(host, Process.current(), lambda: place.now, 0.0)
    status.publish(phase="idle", waiting=0, push=None, commits=0, blocked_until=0.0)
    assert is_fenced()
    earlier = os.stat(host.daemon("uploader").status).st_mtime - peers.OTHERS_SILENCE - 60
    os.utime(host.daemon("uploader").status, (earlier, earlier))
    assert not is_fenced()
    status.publish(phase="left", waiting=0, push=None, commits=0, blocked_until=0.0)
    assert not is_fenced()


def test_of_two_hosts_that_start_at_once_one_sees_the_other(place, jobs, monkeypatch):
    """One that starts says so before it reads records. A push looks again after its record is written."""
    said, interrupted = [], in_flight.interrupted

    def read(host):
        said.append(UploaderStatus.read(place.spool.host(host_id())).phase)
        return interrupted(host)

    with monkeypatch.context() as patch:
        patch.setattr(in_flight, "interrupted", read)
        one = place.uploader()
    assert said == ["idle"]
    one.sending.pacing._moved = 100
    one.sending.scan()

    def another_starts(path: str, data: bytes, word: str, *, durable: bool = True) -> None:
        replace(path, data, word, durable=durable)
        if word == "outbox.in_flight":
            status = StatusFile(place.other(), Process.current(), lambda: place.now, 0.0)
            status.publish(phase="idle", waiting=0, push=None, commits=0, blocked_until=0.0)

    monkeypatch.setattr(disk, "replace", another_starts)
    one.sending.push(one.sending.events, one.sending.events.batches[0])
    assert jobs[-1].fenced
    assert not outbox.interrupted(one.host).fenced, "the one that started believes the worst"


def test_an_uploader_that_takes_its_lock_again_believes_only_the_disk(place, monkeypatch):
    """In between another one was here: it has sent things, and its batches have numbers of their own."""
    one = place.uploader()
    one.sending.scan()
    number, release = one.sending.events.batches[0].number, locks.release

    def another_comes(fd: int) -> None:
        release(fd)
        lock = locks.try_exclusive(place.spool.uploader_lock)
        two = uploader(place.spool, lambda: place.now, lock=lock)
        event_file(place.root / NAME.replace("17", "18"), 3)
        two.sending.scan()
        two.sending.ledger.acknowledge({NAME: Sent(10_000, "0" * 64)}, "c", 1.0)
        two.sending.in_flight.save_ledger()
        release(lock)

    monkeypatch.setattr(locks, "release", another_comes)
    MemberFile(place.spool, "main", Process.current(), Settings())
    assert not one.leave()
    assert one.sending.ledger.length(NAME) == 10_000
    one.sending.scan()
    assert min(batch.number for batch in one.sending.events.batches) > number + 1


def test_a_refusal_of_before_a_request_for_a_new_repository_is_no_answer_to_it(place, jobs):
    """The push that was under way had no leave to create one; the next one has."""
    one = place.uploader()
    one.sending.ledger.acknowledge({NAME: Sent(1, "0" * 64)}, "c", 1.0)
    one.sending.scan()
    one.sending.push(one.sending.events, one.sending.events.batches[0])
    assert not jobs[-1].create
    one.sending.in_flight.may_create = True
    one.sending._conclude(Refused("it is gone", "sync --create"))
    assert one.status.failure == "Retry"
    one.sending.push(one.sending.events, one.sending.events.batches[0])
    assert jobs[-1].create
    one.sending._conclude(Refused("401", "login"))
    assert one.status.failure == "Refused"


def test_a_success_of_before_a_request_for_a_new_repository_is_no_answer_to_it(place, jobs):
    """The repository may be gone since."""
    one = place.uploader()
    one.sending.ledger.acknowledge({NAME: Sent(1, "0" * 64)}, "c", 1.0)
    for create in (False, True, False):
        event_file(place.root / NAME, len(jobs) + 4)
        one.sending.scan()
        one.sending.push(one.sending.events, one.sending.events.batches[0])
        assert jobs[-1].create is create
        one.sending.in_flight.may_create |= len(jobs) == 1
        one.sending._conclude(Done("c" * 40, True, "me/run", {NAME: Sent(jobs[-1].files[0].length, "0" * 64)}))


def test_an_audit_reads_back_whatever_was_in_flight_when_it_was_asked_for(place, jobs):
    """The push of before has a head of its own by then; the audit trusts none."""
    one = place.uploader()
    one.sending.scan()
    one.sending.push(one.sending.events, one.sending.events.batches[0])
    one.requests.audit = True
    length = jobs[-1].files[0].length
    one.sending._conclude(Done("c" * 40, True, "me/run", {NAME: Sent(length, "0" * 64)}))
    one.sending.scan()
    assert (jobs[-1].files, jobs[-1].own_head) == ((), None)


def test_what_a_killed_push_has_downloaded_is_removed(place):
    """It is in the cache of the host."""
    scratch = Path(place.uploader().host.cache, SCRATCH)
    (scratch / "deep").mkdir(parents=True)
    (scratch / "deep" / "copy").write_bytes(b"x")
    place.uploader()
    assert not scratch.exists()


def test_a_path_that_the_hub_takes_again_has_the_other_refused_ones_tried(place, jobs):
    """A .gitignore that was mended lets them all in, not one of them an hour."""
    one, other = place.uploader(), "events.out.tfevents.1700000000.theirs"
    for path in (NAME, other):
        event_file(place.root / path, 1)
        one.sending.retries.refused(path, "the repository's .gitignore leaves it out", certain=True)
    place.now += 600.0
    one.sending.retries.postpone([other])
    one.sending.scan()
    one.sending.push(one.sending.events, one.sending.events.batches[0])
    (file,) = jobs[-1].files
    assert file.path == NAME
    one.sending._conclude(Done("c" * 40, True, "me/run", {NAME: Sent(file.length, "0" * 64)}))
    assert one.sending.retries.due(attachments=False) == {other}


def test_a_refused_attachment_is_sent_with_what_the_hub_may_hold_of_it(place, jobs):
    """Its last content is no file of others."""
    one = place.uploader()
    one.sending.ledger.acknowledge({"a.txt": Sent(1, "0" * 64, "0" * 40)}, "c", 1.0)
    one.sending.retries.refused("a.txt", "400", certain=False)
    place.now += 600.0
    one.sending.attach()
    assert [file.path for file in jobs[-1].files] == ["a.txt"]
    assert jobs[-1].uncertain == {"a.txt": [Sent(1, "0" * 64, "0" * 40)]}


def test_sync_gets_a_large_file_again_whose_push_has_failed(place, jobs, monkeypatch):
    """It need not wait for the hour of its last copy, also after the Hub was compared."""
    monkeypatch.setattr(files, "PAYLOAD_LIMIT", 1)
    one = place.uploader()
    with_rank = MemberFile(place.spool, "main", Process.current(), Settings())
    sync = MemberFile(place.spool, OBSERVER, Process.current(), Settings())
    sync.count(requests=1)
    one.peers.look()
    one.sending.note()
    event_file(place.root / "events.out.tfevents.1.theirs", 1)
    one.requests.audit = False  # a smaller batch has gone before
    for _ in range(2):
        one.sending.scan()
        assert any(file.is_large for batch in one.sending.events.batches for file in batch.files)
        for batch in one.sending.events.batches:
            one.sending.events._large.started(batch.files)
    with_rank.leave()
    sync.leave()


def test_a_copy_that_is_not_ours_any_more_counts_for_nothing(tmp_path):
    """The ledger claims the length no more, so a wait does not end; of other files it says what it said."""
    spool = Spool(str(tmp_path / "run"))
    spool.create()
    spool.record_destination(Destination("http://127.0.0.1:9", "me/run"))
    one = uploader(spool, lambda: 1.0)
    ledger, other = one.sending.ledger, "other.tfevents"
    ledger.acknowledge({NAME: Sent(5, "00"), other: Sent(7, "00")}, "c", 1.0)
    for verdict, length in (
        (Quarantine({NAME: "a .gitignore"}, committed=True), 5),
        (Quarantine({NAME: "differs"}), 0),
    ):
        one.sending.in_flight._sent = (one.sending.events, Batch(0, ()))
        one.sending._conclude(verdict)
        assert (ledger.length(NAME), ledger.length(other)) == (length, 7)
        assert list(ledger.quarantined) == [NAME]
        assert ledger_module.load(spool, ledger.destination).length(NAME) == length, "on disk, too"


def test_a_push_that_the_rate_limit_refuses_has_not_started(tmp_path, monkeypatch):
    """A large file that grows is not taken for copied, and its next turn is not an hour away."""
    spool = Spool(str(tmp_path / "run"))
    spool.create()
    spool.record_destination(Destination("http://127.0.0.1:9", "me/run"))
    event_file(tmp_path / "run" / NAME, 2)
    one = uploader(spool, lambda: 1.0)
    one.sending.scan()
    started = []
    monkeypatch.setattr(one.sending.events._large, "started", started.append)
    monkeypatch.setattr(one.sending.pacing, "take", lambda **_: False)
    one._act(Action.PUSH)
    assert (started, one.sending.in_flight.push) == ([], None)
