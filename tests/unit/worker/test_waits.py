"""What an end and a push wait for in a staged run."""

from __future__ import annotations

import os
import sys
import time

import pytest

from hf_mpwriter.base import state
from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.base.timing import Timing
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.events import framing
from hf_mpwriter.events.limits import Limits
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.staging import Mirrored, MirrorStatus
from hf_mpwriter.system import disk
from hf_mpwriter.system.process import host_id
from hf_mpwriter.worker.looking import publish_record
from hf_mpwriter.worker.patience import Terms
from hf_mpwriter.worker.worker import Worker
from hf_mpwriter.writer.hf_summary_writer import PushFuture, UploadError

REFUSED = "events.out.tfevents.1000000000.there.1.0123abcd"
TIMEOUT = 0.5  # seconds


@pytest.fixture
def worker(tmp_path) -> Worker:
    """A worker of a staged run; it starts no process."""
    spool = Spool.of(str(tmp_path / "local" / "exp1"), logdir=str(tmp_path / "mount" / "exp1"))
    spool.create()
    publish_record(spool)
    worker = Worker(spool, Limits(), timing=Timing(asked_within=1000.0))
    worker.configure(None, Settings(exit_timeout=TIMEOUT), None)
    worker.sealing.made_at = time.time()
    return worker


def test_what_other_threads_log_after_the_seal_is_not_waited_for(worker, monkeypatch):
    """It is in a segment that stays open: no mirror would bring it in time."""
    file = worker.files.open("", "", None)
    file.append(framing.session_start_event(1.0, 1))
    monkeypatch.setattr(worker, "keep_house", lambda: file.append(framing.session_start_event(1.0, 2)))
    first = os.path.basename(file.path)
    assert list(worker.request_push(at_once=True).lengths) == [first]
    assert os.path.basename(file.path) != first
    worker.files.close()


def test_what_the_logdir_refuses_for_good_makes_no_later_wait_shorter(worker, monkeypatch):
    """One wait in vain is enough for a logdir that is away, not for one file that is in the way."""
    monkeypatch.setattr(worker, "keep_house", lambda **_: None)
    host = worker.spool.host(host_id())
    os.makedirs(host.root)
    Mirrored(refused={REFUSED: "another file is there"}).save(host)
    waits = lambda own: worker._ending.wait(own, Terms(TIMEOUT), time.time(), is_asked=False)  # noqa: E731
    os.makedirs(worker.spool.run_dir, exist_ok=True)
    for name in (REFUSED, f"{REFUSED}.other"):
        with open(os.path.join(worker.spool.run_dir, name), "wb") as file:
            file.write(b"12345")
    started = time.monotonic()
    waits({REFUSED: 5})
    between = time.monotonic()
    waits({REFUSED: 5, f"{REFUSED}.other": 5})
    assert time.monotonic() - between >= TIMEOUT
    assert between - started < 60


def mirrored(worker: Worker, *paths: str) -> None:
    """Let the mirror have brought all of these files."""
    host = worker.spool.host(host_id())
    os.makedirs(host.root, exist_ok=True)
    lengths = worker.files.written()
    Mirrored({path: lengths[path] for path in paths}).save(host)


@pytest.fixture
def ignoring(worker, monkeypatch) -> tuple[Worker, str, str]:
    """A worker with a destination that has logged in two files, and which of them the Hub is not to get."""
    monkeypatch.setattr(worker, "keep_house", lambda **_: None)
    settings = Settings(exit_timeout=TIMEOUT, ignore_patterns=("*.mine",))
    worker.configure(Destination("http://127.0.0.1:9", "me/run"), settings, None)
    paths = []
    for suffix in ("", ".mine"):
        file = worker.files.open("", suffix, None)
        file.append(framing.session_start_event(1.0, 1))
        paths.append(os.path.basename(file.path))
    worker.files.close()
    lengths = worker.files.written()
    worker.spool.record_destination(worker.membership.destination)
    ledger = Ledger(worker.membership.destination)
    ledger.acknowledge({paths[0]: Sent(lengths[paths[0]], "0" * 64)}, "commit", 1.0)
    ledger.note_asked(host_id(), time.time())
    os.makedirs(worker.spool.host(host_id()).root, exist_ok=True)
    ledger.save(worker.spool.host(host_id()).ledger)
    return worker, *paths


def test_a_push_waits_in_the_logdir_for_what_the_hub_is_not_to_get(ignoring):
    """The patterns are about the Hub; the logdir gets every event file."""
    worker, sent, ignored = ignoring
    mirrored(worker, sent)
    assert not worker.push(0.1)
    mirrored(worker, sent, ignored)
    assert worker.push(60)


def test_a_push_that_does_not_wait_takes_an_answer_to_an_earlier_one_once(ignoring):
    """By the number in the ledger, so the clocks of hosts may differ; the next one begins anew."""
    worker, *paths = ignoring
    mirrored(worker, *paths)
    worker._asks.within = 0.0
    host = worker.spool.host(host_id())
    said = []
    for is_asked in (False, False, True, False, True):
        if is_asked:
            ledger = HubSink(worker.spool).ledger()
            ledger.note_asked(host_id(), time.time())
            ledger.save(host.ledger)
        said.append(worker.push(0.0))
    assert said == [False, False, True, False, True]


def test_an_end_waits_in_the_logdir_for_what_the_hub_is_not_to_get(ignoring, caplog):
    """And names it if it did not come."""
    worker, sent, ignored = ignoring
    mirrored(worker, sent)
    worker.wait()
    assert f"of {worker.spool.logdir} are not in the logdir yet" in caplog.text
    caplog.clear()
    mirrored(worker, sent, ignored)
    worker.wait()
    assert "are not in" not in caplog.text


def test_the_status_tells_of_the_logdir(ignoring):
    """What is there, what waits, and why a copy has failed; the same of a run without a repository."""
    worker, sent, ignored = ignoring
    mirrored(worker, sent)
    lengths, host = worker.files.written(), worker.spool.host(host_id())
    disk.replace(host.daemon("mirror").status, state.dump(MirrorStatus(failures=1, reason="no room", beat=1.0)), "test")
    found = worker.status()
    assert (found.logdir, found.in_logdir, found.waiting) == (worker.spool.logdir, lengths[sent], lengths[ignored])
    assert found.on_hub == lengths[sent]
    assert found.error == f"{worker.spool.logdir}: no room."
    mirrored(worker, sent, ignored)
    assert (worker.status().waiting, worker.status().error) == (0, "")


def test_a_future_resolves_when_the_logdir_has_it_too(ignoring):
    """A failure of a copy since the request is its exception."""
    worker, sent, ignored = ignoring
    mirrored(worker, sent)
    future = PushFuture(worker, worker.logged(), time.time())
    assert not future.done()
    with pytest.raises(TimeoutError):
        future.result(0.1)
    mirrored(worker, sent, ignored)
    assert future.result(60) == "commit"
    mirrored(worker, sent)
    failed = PushFuture(worker, worker.logged(), time.time())
    status = MirrorStatus(failures=1, reason="no room", failed_at=time.time() + 1, beat=1.0)
    disk.replace(worker.spool.host(host_id()).daemon("mirror").status, state.dump(status), "test")
    with pytest.raises(UploadError, match="no room"):
        failed.result(60)


def test_a_future_that_is_only_asked_learns_what_has_arrived_since(ignoring):
    """Who polls `done` does not wait."""
    worker, sent, ignored = ignoring
    mirrored(worker, sent, ignored)
    host, now = worker.spool.host(host_id()), time.time()
    before = Ledger(worker.membership.destination)
    before.save(host.ledger)
    future = PushFuture(worker, worker.logged(), now)
    assert not future.done()
    assert not future.done()
    before.acknowledge({sent: Sent(worker.files.written()[sent], "0" * 64)}, "commit", now)
    before.save(host.ledger)
    end = time.monotonic() + 60
    while not future.done():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert future.result(0) == "commit"


def test_a_future_waits_for_no_other_run_and_for_no_callback(ignoring, tmp_path):
    """A run that never arrives, such as one on a mount that hangs, and a callback that exits keep no other Future."""
    worker, sent, ignored = ignoring
    other = Worker(Spool.of(str(tmp_path / "other")), Limits())
    other.spool.create()
    other.configure(worker.membership.destination, worker.membership.settings, None)
    other.stop()  # no uploader
    file = other.files.open("", "", None)
    file.append(framing.session_start_event(1.0, 1))
    never = PushFuture(other, other.logged(), time.time())
    mirrored(worker, sent, ignored)
    first = PushFuture(worker, worker.logged(), time.time())
    first.add_done_callback(lambda _: sys.exit("of a callback"))
    assert [first.result(60), PushFuture(worker, worker.logged(), time.time()).result(60)] == ["commit", "commit"]
    assert not never.done()
    other.files.close()
