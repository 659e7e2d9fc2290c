"""The Hub, as it is known of one run: what is missing, told from the ledgers alone."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import pytest

from hf_mpwriter.base.settings import OFFLINE, Destination
from hf_mpwriter.base.verdicts import Refused, Sent
from hf_mpwriter.daemon.status_file import StatusFile
from hf_mpwriter.delivery import sinks
from hf_mpwriter.delivery.sinks import HubSink, Question
from hf_mpwriter.delivery.wait import Wanted, wait_for
from hf_mpwriter.snapshot.attachments import stamp_of
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.status import SILENCE, UploaderStatus
from hf_mpwriter.system import locks
from hf_mpwriter.system.process import Process

HERE = Destination("https://hub", "me/run")
FOUR = Sent(4, "5" * 64, "6" * 40)
EVENTS = "events.out.tfevents.1700000000.here.1.0123abcd"


@pytest.fixture
def spool(tmp_path) -> Spool:
    """A run with a destination, a host, and one attachment that is a minute old."""
    made = Spool(str(tmp_path / "run"))
    made.create()
    made.record_destination(HERE)
    os.makedirs(made.host("h").root)
    with open(os.path.join(made.run_dir, "a.tsv"), "w", encoding="utf-8") as file:
        file.write("four")
    return made


def stamp(spool: Spool) -> tuple[int, ...]:
    """Of the attachment as it is now."""
    return stamp_of(os.stat(os.path.join(spool.run_dir, "a.tsv")))


def view(
    spool: Spool,
    seen: tuple[int, ...] = (),
    sent: Sent = FOUR,
    quarantined: tuple[str, ...] = (),
    refusals: int = 1,
    checked: int = 0,
    tried: float = 7.0,
) -> HubSink:
    """A view of a ledger that holds the attachment, which had that stamp."""
    ledger = Ledger(HERE, checks={"h": checked})
    ledger.acknowledge({"a.tsv": sent, EVENTS: Sent(10, "7" * 64)}, "c", 1.0)
    ledger.files["a.tsv"] = dataclasses.replace(ledger.files["a.tsv"], stamp=seen)
    for path in quarantined:
        ledger.quarantine(path, "why", refusals, tried)
    ledger.save(spool.host("h").ledger)
    return HubSink(spool)


def test_an_attachment_has_arrived_when_it_has_the_stamp_of_what_was_sent(spool):
    """It is not read. Not what has changed, is gone on the Hub, is quarantined, or was sent before the question."""
    wanted, now = {"a.tsv": 4}, stamp(spool)
    assert view(spool, now).missing(wanted) == {}
    for changed in range(4):
        other = tuple(value + (place == changed) for place, value in enumerate(now))
        assert view(spool, other).missing(wanted) == wanted
    assert view(spool).missing(wanted) == wanted
    assert view(spool, now, sent=Sent(0, "")).missing(wanted) == wanted
    assert view(spool, now, quarantined=("a.tsv",)).missing(wanted) == wanted
    assert view(spool, now).missing(wanted, Question(compared=1)) == wanted


def test_what_an_attachment_becomes_after_the_question_is_not_waited_for(spool):
    """What was sent is as new as the file was then, however often it changes; and what is gone is gone."""
    seen, newer = stamp(spool), (0, 0, 0, stamp(spool)[-1] + 1)
    asked = view(spool).changes(["a.tsv", "b.tsv", EVENTS])
    assert asked == {"a.tsv": seen[-1]}
    assert view(spool, newer).missing({"a.tsv": 4}, Question(changes=asked)) == {}
    assert view(spool, (0, 0, 0, seen[-1] - 1)).missing({"a.tsv": 4}, Question(changes=asked)) == {"a.tsv": 4}
    os.unlink(os.path.join(spool.run_dir, "a.tsv"))
    assert view(spool).missing({"a.tsv": 4}) == {}


def test_an_attachment_that_is_quarantined_holds_back_no_other(spool):
    """Only later event files of a directory wait for a quarantined event file."""
    missing = {"a.tsv": 4, "b.tsv": 4, EVENTS: 20}
    assert view(spool, quarantined=("a.tsv",)).refused(missing).keys() == {"a.tsv"}
    assert view(spool, quarantined=(EVENTS,)).refused(missing).keys() == {EVENTS}
    later = EVENTS.replace("17", "18")
    assert view(spool, quarantined=(EVENTS,)).refused({later: 1}).keys() == {later}


def test_a_refusal_of_before_the_question_is_tried_again(spool):
    """A new question, as of `sync`, does not give up on what the ledger says of the past."""
    refused = view(spool, quarantined=("a.tsv",), checked=50)
    assert refused.look({"a.tsv": 4}).is_final
    assert refused.look({"a.tsv": 4}, Question(compared=49)).is_final
    assert not refused.look({"a.tsv": 4}, Question(compared=51)).is_final
    assert not refused.look({"a.tsv": 4, EVENTS: 20}).is_final


def test_a_wait_ends_when_its_path_is_refused_after_it_has_begun(spool):
    """One refusal more is news, an old one is none, be it the Hub's or this disk's: that may be over."""
    missing, once = {"a.tsv": 4}, view(spool, quarantined=("a.tsv",))
    now = once.question([])
    assert once.look(missing).is_final
    assert not once.look(missing, now).is_final
    assert view(spool, quarantined=("a.tsv",), refusals=2).look(missing, now).is_final
    unreadable = view(spool, quarantined=("a.tsv",), refusals=0)
    now = unreadable.question([])
    assert not unreadable.look(missing, now).is_final
    assert view(spool, quarantined=("a.tsv",), refusals=0, tried=8.0).look(missing, now).is_final


def test_many_refused_attachments_are_told_from_many_others_at_once(spool):
    """Of a directory the first quarantined event file counts; the work does not grow with the product."""
    paths = [f"{number}.tsv" for number in range(20_000)]
    refused = view(spool, quarantined=(*paths[::2], EVENTS)).refused(
        dict.fromkeys([*paths, EVENTS.replace("17", "18")], 1)
    )
    assert len(refused) == 10_001


class SlowReading:
    """Clocks by which each reading of the ledgers keeps the processor busy for some seconds."""

    def __init__(self, monkeypatch, seconds: float) -> None:
        self.now, self.reads = 1000.0, 0
        self._seconds, self._load = seconds, sinks.load
        monkeypatch.setattr(sinks.time, "thread_time", lambda: self.now)
        monkeypatch.setattr(sinks, "load", self._read)

    def _read(self, *args) -> Ledger:
        self.now += self._seconds
        self.reads += 1
        return self._load(*args)


@pytest.fixture
def slow(monkeypatch) -> SlowReading:
    """Three seconds, as for 200,000 paths on a slow machine."""
    return SlowReading(monkeypatch, 3.0)


def test_a_ledger_that_takes_seconds_to_read_is_not_read_all_the_time(spool, slow):
    """An uploader saves it after each batch; a fifth of the time goes to reading it at most."""
    view(spool)
    mine = HubSink(spool, lambda: slow.now)
    started = slow.now
    while slow.now < started + 60:
        view(spool)
        assert mine.missing({EVENTS: 20}) == {EVENTS: 10}
        slow.now += 0.05
    assert 3 <= slow.reads <= 5


def test_a_ledger_is_not_read_if_that_takes_longer_than_the_wait(spool, slow):
    """What was read before counts then; a small one is read until the end."""
    view(spool)
    mine = HubSink(spool, lambda: slow.now)
    mine.ledger()
    view(spool)
    slow.now += 20.0
    mine.until = slow.now + 2.9
    mine.ledger()
    assert slow.reads == 1
    mine.until = slow.now + 3.1
    mine.ledger()
    assert slow.reads == 2


def test_a_wait_ends_in_time_however_long_a_check_takes(spool, slow, monkeypatch):
    """Its first reading takes three seconds, each check half a second, and the ledger changes all the time."""
    view(spool)
    mine = HubSink(spool, lambda: slow.now)
    missing = mine.missing

    def check(*args: object) -> dict[str, int]:
        view(spool)
        slow.now += 0.5
        return missing(*args)

    def sleep(seconds: float) -> None:
        slow.now += seconds

    monkeypatch.setattr(mine, "missing", check)
    started, wanted = slow.now, Wanted(mine, {EVENTS: 20})
    for look in wait_for([wanted], slow.now + 20.0, lambda: slow.now, sleep):
        assert look.deliveries[0].missing == {EVENTS: 10}
    assert 20.0 <= slow.now - started <= 20.5
    assert slow.reads <= 2


def test_a_spool_that_was_replaced_by_one_that_is_not_used_raises_nothing(spool):
    """`push` and `status` go on with what was known; a stranger may rename in the run directory."""
    known = view(spool, stamp(spool))
    assert known.missing({EVENTS: 10}) == {}
    spool.directory.release()
    os.rename(spool.root, spool.root + ".away")
    os.mkdir(spool.root)
    os.chmod(spool.root, 0o730)  # noqa: S103 - that is the fault
    spool = Spool(spool.run_dir)
    assert HubSink(spool).ledger() is None
    assert HubSink(spool).missing({EVENTS: 10}) == {EVENTS: 10}
    assert HubSink(spool).look({EVENTS: 10}).missing == {EVENTS: 10}
    known._spool = spool
    assert known.missing({EVENTS: 10}) == {}


ELSEWHERE = Process("there-1234", "another boot", 1, 4711, 5)


def publish(spool: Spool, host: str, phase: str, process: Process, at: float, blocked_until: float = 0.0) -> None:
    """Publish the status of an uploader, by the clock of its host."""
    os.makedirs(spool.host(host).root, exist_ok=True)
    file = StatusFile(spool.host(host), process, lambda: 1000.0, 0.0, lambda: at)
    file.publish(phase=phase, waiting=0, commits=0, blocked_until=blocked_until)


def test_the_uploader_is_the_one_that_was_heard_of_last_on_whichever_host(spool):
    """By the clock of the filesystem: the clocks of hosts differ. A status that cannot be read counts for nothing."""
    now, here = time.time(), Process.current()
    assert HubSink(spool).status() == UploaderStatus()
    publish(spool, "h", "idle", here, now + 7200)
    os.utime(spool.host("h").daemon("uploader").status, (now - 60, now - 60))
    publish(spool, "other", "pushing", ELSEWHERE, now)
    assert HubSink(spool).status().process == ELSEWHERE
    publish(spool, "h", "waiting", here, now + 7200)
    os.utime(spool.host("h").daemon("uploader").status, (now + 1, now + 1))
    assert HubSink(spool).status().phase == "waiting"
    Path(spool.host("h").daemon("uploader").status).write_text("{")
    assert HubSink(spool).status().process == ELSEWHERE


def test_a_pause_that_the_hub_wants_is_known_on_other_hosts(spool):
    """Their monotonic clock is another one. Of an uploader that has left, or is silent, it is not believed."""
    now, mono = time.time(), time.monotonic()
    publish(spool, "other", "waiting", ELSEWHERE, now, blocked_until=1000.0 + 300)
    assert mono + 295 < HubSink(spool).status().blocked_until < mono + 400
    publish(spool, "other", "waiting", ELSEWHERE, now - 2 * SILENCE, blocked_until=1000.0 + 300)
    assert HubSink(spool).status().blocked_until == 0.0
    publish(spool, "other", "left", ELSEWHERE, now, blocked_until=1000.0 + 300)
    assert HubSink(spool).status().blocked_until == 0.0
    publish(spool, "other", "waiting", Process.current(), now, blocked_until=1234.5)
    assert HubSink(spool).status().blocked_until == 1234.5


def looks(spool: Spool, question: Question) -> int:
    """How often a wait of an hour looks; one that goes on is ended."""
    wanted = Wanted(HubSink(spool), {EVENTS: 10}, question)
    for number, _ in enumerate(wait_for([wanted], time.monotonic() + 3600, pause=lambda _: None)):
        if number:
            return number
    return 0


def test_a_refusal_while_the_files_were_still_scanned_ends_the_wait(spool):
    """It came after the request and before the wait. Nobody tries again at once."""
    asked_at = time.time()
    file = StatusFile(spool.host("h"), Process.current(), lambda: 1000.0, 0.0)
    file.failed(Refused("token refused (401)", "log in"), 1)
    file.publish(phase="waiting", waiting=1, commits=0, blocked_until=0.0)
    assert looks(spool, Question(asked_at)) == 0
    assert looks(spool, Question(time.time() + 1)) == 1


def test_a_wait_ends_if_the_hub_allows_nothing_before(spool):
    """429 with more than the wait: what is missing cannot come."""
    publish(spool, "h", "waiting", Process.current(), time.time(), blocked_until=time.monotonic() + 4000)
    assert looks(spool, Question()) == 0
    publish(spool, "h", "waiting", Process.current(), time.time(), blocked_until=time.monotonic() + 1000)
    assert looks(spool, Question()) == 1


def test_a_wait_for_an_answer_alone_goes_on_while_no_commit_is_allowed(spool):
    """The Hub is asked without one."""
    lock = locks.try_exclusive(spool.uploader_lock)
    assert lock is not None
    file = StatusFile(spool.host("h"), Process.current(), time.monotonic, 0.0)
    file.publish(phase="waiting", waiting=1, commits=0, blocked_until=time.monotonic() + 4000, in_line=True)
    assert looks(spool, Question(asked=0)) == 0, "there is more to come"
    view(spool)
    assert looks(spool, Question(asked=0)) == 1
    os.close(lock)


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_nothing_is_waited_for(spool, monkeypatch, name):
    """What is missing is told with the variable as its reason; what is there needs no Hub."""
    monkeypatch.setenv(name, "on")
    assert looks(spool, Question()) == 0
    assert HubSink(spool).look({EVENTS: 10}).carrier.reason == OFFLINE
    view(spool)
    assert HubSink(spool).look({EVENTS: 10}).carrier.reason == ""


def test_what_was_deleted_there_is_not_missing_but_what_was_logged_since_is(spool):
    """It does not come by itself, which is the reason that is told; an attachment stays away as it is."""
    path, wanted = Path(spool.run_dir, EVENTS), {EVENTS: 12, "a.tsv": 4}
    path.write_bytes(b"12 bytes ...")
    os.utime(path, (900, 900))
    ledger = Ledger(HERE)
    ledger.acknowledge(dict.fromkeys(wanted, Sent(0, "", deleted=True)), "c", 1000.0)
    ledger.save(spool.host("h").ledger)
    sink = HubSink(spool)
    assert sink.missing(wanted) == {}
    os.utime(path, (1100, 1100))
    delivery = sink.look(wanted)
    assert (delivery.missing, delivery.refused, delivery.is_final) == (
        {EVENTS: 12},
        {EVENTS: sinks.STAYS_DELETED},
        True,
    )
