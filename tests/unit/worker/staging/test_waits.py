"""What an end and a push wait for in a staged run."""

from __future__ import annotations

import os
import time

import pytest

from hf_mpwriter.base.settings import Settings
from hf_mpwriter.events import framing
from hf_mpwriter.events.limits import Limits
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging.record import Mirrored
from hf_mpwriter.system.process import host_id
from hf_mpwriter.worker.staging.restoring import publish_record
from hf_mpwriter.worker.worker import Worker

REFUSED = "events.out.tfevents.1000000000.there.1.0123abcd"
TIMEOUT = 0.5  # seconds


@pytest.fixture
def worker(tmp_path) -> Worker:
    """A worker of a staged run; it starts no process."""
    spool = Spool.of(str(tmp_path / "local" / "exp1"), logdir=str(tmp_path / "mount" / "exp1"))
    spool.create()
    publish_record(spool)
    worker = Worker(spool, Limits())
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
    monkeypatch.setattr(worker, "keep_house", lambda: None)
    host = worker.spool.host(host_id())
    os.makedirs(host.root)
    Mirrored(refused={REFUSED: "another file is there"}).save(host)
    waits = lambda own: worker._waits.wait(own, worker._voice, worker.logged, worker.keep_house, 0.0, failed=False)  # noqa: E731
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
