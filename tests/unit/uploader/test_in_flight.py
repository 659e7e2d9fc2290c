"""The batch in flight: its record, what becomes of it when its outcome is not known, and which push carries it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from attached import write
from support import event_file
from uploaders import Site, has, push_events, uploader

from hf_mpwriter.base.settings import Settings
from hf_mpwriter.base.verdicts import Moved, Refused, Retry, Sent, Unknown
from hf_mpwriter.push.job import SCRATCH
from hf_mpwriter.snapshot.attachments import Attachments
from hf_mpwriter.spool import outbox
from hf_mpwriter.spool.outbox import Batch, Outbox
from hf_mpwriter.spool.staging import MirrorRecord
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.spool.workers import peers
from hf_mpwriter.spool.workers.members import MemberFile
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.process import Process, host_id
from hf_mpwriter.uploader import branch, in_flight
from hf_mpwriter.uploader.decision import Action, decide

replace = disk.replace
NAME = "events.out.tfevents.1700000000.here.1.0123abcd"
FAILURES = [Unknown("504"), Retry("503"), Refused("401", "")]


@pytest.fixture
def place(site) -> Site:
    """One event file and one attachment; nothing was sent yet."""
    event_file(site.root / NAME, 3)
    write(site.root, "a.txt", b"one")
    return site


def test_the_settle_time_outlives_the_uploader(place):
    """A request without a parent may still be under way: the record of it stays until the time is over.

    A later success of the same batch does not end it. A successor waits as long, from its own start on.
    """
    one = place.uploader()
    one.branch.pacing._counts[Moved] = 100
    push_events(one)
    assert not place.jobs[-1].fenced
    one.conclude(Unknown("504"))
    one.push_events()
    assert place.jobs[-1].fenced
    one.conclude(has(**{NAME: place.jobs[-1].files[0].length}))
    assert decide(one.upload.situation()) is Action.WAIT, "it does not leave before the time is over"
    place.now += 100.0
    two = place.uploader()
    for later, settles in ((0.0, True), (in_flight.SETTLE_TIME - 1, True), (in_flight.SETTLE_TIME, False)):
        place.now = 1100.0 + later
        two.sending.catch_up()
        assert two.sending.in_flight.is_settling is settles
        assert (outbox.interrupted(two.upload.host) is not None) is settles
        assert decide(two.upload.situation()) is (Action.WAIT if settles else Action.SCAN)


def test_after_the_settle_time_the_hub_is_read_back(place):
    """What came late may have changed any file, also one that no commit since has carried."""
    one = place.uploader()
    one.branch.pacing._counts[Moved] = 100
    push_events(one)
    one.conclude(Unknown("504"))
    for records, waits, head in ((4, 0.0, None), (5, 1.0, "c" * 40), (6, in_flight.SETTLE_TIME, None)):
        event_file(place.root / NAME, records)
        place.now += waits
        one.sending.catch_up()
        push_events(one)
        assert place.jobs[-1].own_head == head
        one.conclude(has(**{NAME: place.jobs[-1].files[0].length}))


def refuse(path: str, data: bytes, word: str, *, durable: bool = True) -> None:
    """The disk has room for anything but the ledger."""
    if word == "ledger.save":
        raise OSError("full")
    replace(path, data, word, durable=durable)


def test_no_push_starts_while_the_ledger_is_not_on_disk(place, monkeypatch):
    """Its record would take the place of the one that says which attachments the Hub may have."""
    one = place.uploader()
    one.attach()
    assert len(place.jobs) == 1
    record = Path(one.upload.host.in_flight).read_bytes()
    with monkeypatch.context() as full:
        full.setattr(disk, "replace", refuse)
        one.conclude(Unknown("504"))
        push_events(one)
    assert (len(place.jobs), Path(one.upload.host.in_flight).read_bytes()) == (1, record)
    assert one.upload.status.status.kind == "Retry"
    place.now += 1000.0
    one.sending.catch_up()
    assert not os.path.exists(one.upload.host.in_flight)
    push_events(one)
    assert len(place.jobs) == 2
    assert list(place.uploader().sending.ledger.uncertain) == ["a.txt"]


def test_the_record_of_a_dead_host_costs_one_settle_time(place):
    """Its push without a parent may be under way, once; a newer record of that host is another one."""
    other = Outbox(place.host(), place.spool.run)
    other.mark_in_flight(Batch(1, ()), fenced=False)
    one = place.uploader()
    assert one.sending.in_flight.is_settling
    assert place.uploader().sending.in_flight.is_settling, "it was not over"
    place.now += in_flight.SETTLE_TIME
    one.sending.catch_up()
    assert not place.uploader().sending.in_flight.is_settling
    assert os.path.exists(place.host().in_flight), "it is that host's"
    other.mark_in_flight(Batch(2, ()), fenced=False)
    assert place.uploader().sending.in_flight.is_settling


def test_what_a_dead_host_was_sending_is_uncertain_once(place):
    """When the Hub was read back it is known, and no later start makes it uncertain again."""
    (file,) = Attachments(place.spool.run).scan(lambda _: True).files
    Outbox(place.host(), place.spool.run).mark_in_flight(Batch(0, (file,)), fenced=True)
    one = place.uploader()
    assert list(one.sending.ledger.uncertain) == ["a.txt"]
    one.sending.ledger.acknowledge({"a.txt": file.content}, "c", 1.0)
    one.sending.in_flight.save_ledger()
    assert place.uploader().sending.ledger.uncertain == {}


def no_time(_: object) -> float:
    """The disk refuses to tell the time."""
    raise OSError(5, "EIO")


def test_a_commit_names_no_parent_only_while_no_other_host_can_send(place, monkeypatch):
    """Another host's uploader has a heartbeat; it has left, or has been silent for minutes."""
    status = place.host().daemon("uploader").status

    def is_fenced() -> bool:
        one = place.uploader()
        one.branch.pacing._counts[Moved] = 100
        push_events(one)
        os.unlink(one.upload.host.in_flight)  # the outcome is known
        return place.jobs[-1].fenced

    assert not is_fenced()
    place.hear()
    assert is_fenced()
    earlier = os.stat(status).st_mtime - peers.OTHERS_SILENCE - 60
    os.utime(status, (earlier, earlier))
    assert not is_fenced()
    with monkeypatch.context() as patch:
        patch.setattr(disk, "time_of", no_time)
        assert is_fenced(), "nothing tells how long it has been silent"
    Path(status).write_bytes(b"garbage")
    assert is_fenced(), "nothing tells whether it has left"
    place.hear("left")
    assert not is_fenced()


def test_where_each_host_has_a_spool_of_its_own_every_commit_names_its_parent(place):
    """Uploaders of other hosts may send the same files, and nothing in this spool tells of them."""
    MirrorRecord(str(place.root.parent / "logdir"), 1.0).publish(place.spool)
    one = place.uploader()
    one.branch.pacing._counts[Moved] = 100
    push_events(one)
    assert place.jobs[-1].fenced


def refuse_status(_: object) -> UploaderStatus:
    """The disk refuses to tell what another host's uploader does."""
    raise OSError(5, "EIO")


def test_a_disk_that_does_not_tell_of_other_hosts_delays_a_push(place, monkeypatch):
    """That is a failure as any other, and the uploader goes on."""
    place.hear()
    one = place.uploader()
    one.branch.pacing._counts[Moved] = 100
    with monkeypatch.context() as patch:
        patch.setattr(UploaderStatus, "read", refuse_status)
        push_events(one)
    assert (place.jobs, one.upload.status.status.kind) == ([], "Retry")
    one.push_events()
    assert len(place.jobs) == 1


def test_of_two_hosts_that_start_at_once_one_sees_the_other(place, monkeypatch):
    """One that starts says so before it reads records. A push looks again after its record is written."""
    said, interrupted = [], in_flight.interrupted

    def read(host):
        said.append(UploaderStatus.read(place.spool.host(host_id())).phase)
        return interrupted(host)

    with monkeypatch.context() as patch:
        patch.setattr(in_flight, "interrupted", read)
        one = place.uploader()
    assert said == ["idle"]
    one.branch.pacing._counts[Moved] = 100

    def another_starts(path: str, data: bytes, word: str, *, durable: bool = True) -> None:
        replace(path, data, word, durable=durable)
        if word == "outbox.in_flight":
            place.hear()

    monkeypatch.setattr(disk, "replace", another_starts)
    push_events(one)
    assert place.jobs[-1].fenced
    assert not outbox.interrupted(one.upload.host).fenced, "the one that started believes the worst"


def test_attachments_name_their_parent_however_busy_the_branch_is(place):
    """Without it they might replace what others have just put there; event files only grow."""
    one = place.uploader()
    one.branch.pacing._counts[Moved] = 100
    one.attach()
    assert (place.jobs[-1].fenced, outbox.interrupted(one.upload.host).fenced) == (True, True)


def test_an_uploader_that_takes_its_lock_again_believes_only_the_disk(place, monkeypatch):
    """In between another one was here: it has sent things, and its batches have numbers of their own."""
    one = place.uploader()
    one.sending.scan()
    number, free = one.sending.events.batches[0].number, locks.free

    def another_comes(fd: int) -> None:
        free(fd)
        lock = locks.try_exclusive(place.spool.uploader_lock)
        two = uploader(place.spool, lambda: place.now, lock=lock)
        event_file(place.root / NAME.replace("17", "18"), 3)
        two.sending.scan()
        two.sending.ledger.acknowledge({NAME: Sent(10_000, "0" * 64)}, "c", 1.0)
        two.sending.in_flight.save_ledger()
        locks.release(lock)

    monkeypatch.setattr(locks, "free", another_comes)
    MemberFile(place.spool, "main", Process.current(), Settings())
    assert not one.upload.leave()
    assert one.sending.ledger.length(NAME) == 10_000
    one.sending.scan()
    assert min(batch.number for batch in one.sending.events.batches) > number + 1


def test_the_outcome_of_a_push_of_before_a_request_for_a_new_repository_is_no_answer_to_it(place):
    """That push had no leave to create one, and the repository may be gone since; the next push has."""
    one = place.uploader()
    one.sending.ledger.acknowledge({NAME: Sent(1, "0" * 64)}, "c", 1.0)
    push_events(one)
    assert not place.jobs[-1].create
    one.sending.in_flight.may_create = True
    one.conclude(Refused("it is gone", "sync --create"))
    assert one.upload.status.status.kind == "Retry"
    one.push_events()
    assert place.jobs[-1].create
    one.conclude(Refused("401", "login"))
    assert one.upload.status.status.kind == "Refused"
    one.sending.in_flight.may_create = False
    for create in (False, True, False):
        event_file(place.root / NAME, len(place.jobs) + 4)
        push_events(one)
        assert place.jobs[-1].create is create
        one.sending.in_flight.may_create |= len(place.jobs) == 3
        one.conclude(has(**{NAME: place.jobs[-1].files[0].length}))


def test_an_audit_reads_back_whatever_was_in_flight_when_it_was_asked_for(place):
    """The push of before has a head of its own by then; the audit trusts none."""
    one = place.uploader()
    push_events(one)
    one.upload.requests.audit = True
    one.conclude(has(**{NAME: place.jobs[-1].files[0].length}))
    push_events(one)
    assert (place.jobs[-1].files, place.jobs[-1].own_head) == ([], None)


def test_what_a_killed_push_has_downloaded_is_removed(place):
    """It is in the cache of the host."""
    scratch = Path(place.uploader().upload.host.cache, SCRATCH)
    (scratch / "deep").mkdir(parents=True)
    (scratch / "deep" / "copy").write_bytes(b"x")
    place.uploader()
    assert not scratch.exists()


# which push


def test_a_push_that_went_well_gets_the_next_batch(site):
    """One process, as long as it takes what comes; then another one, and of the first nothing is left."""
    one = site.uploader()
    one.push_events()
    for count in (1, 2):
        site.pushes[0].lingers = True
        one.conclude(has())
        one.sending.catch_up()
        one.push_events()
        assert (len(site.pushes), len(site.pushes[0].taken)) == (1, count)
        assert one.branch.push is site.pushes[0]
    one.conclude(has())
    site.pushes[0].lingers = False
    assert not site.pushes[0].let_gone
    one.push_events()
    assert (site.pushes[0].let_gone, one.branch.push) == (True, site.pushes[1])


def test_the_push_that_a_request_leads_to_gets_ready_while_the_files_are_scanned(site, monkeypatch):
    """It imports its client meanwhile, and then takes the batch. Where no push may follow, none is started."""
    one = site.uploader()
    one.sending.scan()
    assert site.pushes == []
    one.upload.requests.audit, scan = True, one.sending.events.scan

    def watched(*given, **named):
        (push,) = site.pushes
        push.lingers = True
        return scan(*given, **named)

    monkeypatch.setattr(one.sending.events, "scan", watched)
    push_events(one)
    assert (len(site.pushes), [job.prepares for job in site.pushes[0].taken]) == (1, [False])
    assert one.branch.push is site.pushes[0]


@pytest.mark.parametrize("verdict", FAILURES)
def test_a_push_that_failed_gets_no_other_batch(site, verdict):
    """Whatever is wrong with its client, a new one begins afresh."""
    one = site.uploader()
    one.push_events()
    site.pushes[0].lingers = True
    one.conclude(verdict)
    one.push_events()
    assert (len(site.pushes), site.pushes[0].taken) == (2, [])


def test_pushes_that_follow_each_other_closely_share_a_process_that_waits_longer(site):
    """A commit every quarter of a minute imports the client twice in all; one every five minutes holds no memory."""
    one = site.uploader()
    for distance in (0, 15, 15, 300):
        site.now += distance
        if site.pushes and distance > site.pushes[-1].linger:
            site.pushes[-1].lingers, site.pushes[-1].ended = False, True
        one.push_events()
        site.pushes[-1].lingers = True
        one.conclude(has())
    shortly, long = branch.LINGER, branch.LINGER * branch.CLOSELY
    assert [(one.linger, len(one.taken)) for one in site.pushes] == [(shortly, 0), (long, 1), (shortly, 0)]


def test_an_uploader_that_leaves_ends_the_push_that_lingers(site):
    """It holds descriptors of the run directory, which may be removed next. One that has ended is collected before."""
    one = site.uploader()
    for ends in (True, False):
        one.push_events()
        site.pushes[-1].lingers, site.pushes[-1].ended = True, ends
        one.conclude(has())
        one.branch.spare.reap()
        assert site.pushes[-1].let_gone is ends
    one.upload.leave()
    one.close()
    assert site.pushes[-1].let_gone
