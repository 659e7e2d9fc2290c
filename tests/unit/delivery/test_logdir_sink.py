"""The logdir of a staged run, as its processes know it, and the wait for it."""

from __future__ import annotations

import os
import time

import pytest
from staged import stage

from hf_mpwriter.base import state
from hf_mpwriter.delivery.sinks import LogdirSink, Question
from hf_mpwriter.delivery.wait import Wanted, wait_for
from hf_mpwriter.spool.pulled import note_pulled
from hf_mpwriter.spool.staging import Mirrored, MirrorStatus
from hf_mpwriter.system import locks
from hf_mpwriter.system.process import host_id

FIRST, SECOND = (f"events.out.tfevents.100000000{n}.h.1.0123abcd" for n in (1, 2))


@pytest.fixture
def staged_spool(tmp_path):
    """The spool of a staged run on this host."""
    spool = stage(tmp_path / "run", "s3://bucket/exp1")
    for host in (host_id(), "other-00000000"):
        os.makedirs(spool.host(host).root)
    return spool


def test_a_run_that_is_not_staged_misses_nothing(own_spool):
    """So all that waits may ask, whatever the run is."""
    logdir = LogdirSink(own_spool)
    assert not logdir.is_staged
    assert logdir.missing({FIRST: 100}) == {}
    assert logdir.look({FIRST: 100}).is_complete


def test_what_is_missing_is_by_all_hosts_and_leaves_attachments_out(staged_spool):
    """A file counts as a whole, by the greatest length; what one host has brought is not refused."""
    ours, theirs = (staged_spool.host(host) for host in (host_id(), "other-00000000"))
    Mirrored({FIRST: 100}, {SECOND: "why"}).save(ours)
    logdir = LogdirSink(staged_spool)
    assert logdir.missing({FIRST: 100, SECOND: 50, "notes.txt": 9}) == {SECOND: 50}
    assert logdir.refused({SECOND: 50}) == {SECOND: f"{SECOND}: why"}
    Mirrored({FIRST: 90, SECOND: 50}).save(theirs)
    assert logdir.missing({FIRST: 100, SECOND: 50}) == {}
    assert logdir.missing({FIRST: 101}) == {FIRST: 101}


def test_later_files_of_a_writer_wait_for_one_that_is_refused(staged_spool):
    """They are told with its reason; those of other writers are not held up."""
    Mirrored({}, {FIRST: "why"}).save(staged_spool.host(host_id()))
    other = SECOND + ".suffix"
    assert LogdirSink(staged_spool).refused({SECOND: 1, other: 1}) == {SECOND: f"{FIRST}: why"}
    note_pulled(staged_spool, {FIRST: 1})
    assert LogdirSink(staged_spool).refused({FIRST: 1, SECOND: 1}) == {FIRST: f"{FIRST}: why"}, "of another machine"


def publish(spool, **fields) -> None:
    """Let a mirror say something."""
    status = MirrorStatus(**{"beat": time.time(), "phase": "waiting", **fields})
    with open(spool.host(host_id()).daemon("mirror").status, "wb") as file:
        file.write(state.dump(status))


def looks(spool, seconds: float, question: Question | None = None) -> int:
    """How often a wait looks at most; a wait that goes on is ended."""
    wanted = Wanted(LogdirSink(spool), {FIRST: 1}, question or Question(time.time()))
    for number, _ in enumerate(wait_for([wanted], time.monotonic() + seconds, pause=lambda _: None)):
        if number:
            return number
    return 0


def test_a_wait_ends_when_nothing_can_come(staged_spool):
    """At its end, when all is refused, when the next try comes too late, and when the logdir refuses all."""
    assert looks(staged_spool, 0.0) == 0
    assert looks(staged_spool, 600.0) == 1
    lock = locks.try_exclusive(staged_spool.lock_of("mirror"))
    later = time.time() + 3600
    publish(staged_spool, failures=1, reason="why", failed_at=later, next_try=later)
    assert looks(staged_spool, 600.0) == 0
    assert looks(staged_spool, 6000.0) == 1
    publish(staged_spool, failures=1, reason="why", failed_at=later, is_refused=True)
    assert looks(staged_spool, 600.0) == 0
    publish(staged_spool, failures=1, reason="why", failed_at=1.0, is_refused=True)
    assert looks(staged_spool, 600.0) == 1, "it has failed before"
    locks.release(lock)
    publish(staged_spool)
    Mirrored({}, {FIRST: "why"}).save(staged_spool.host(host_id()))
    assert looks(staged_spool, 600.0) == 0


def test_what_was_known_before_does_not_count_for_a_command(staged_spool):
    """`sync` believes what was compared with the logdir after it has asked."""
    now = time.time()
    question = Question(now, compared=now)
    Mirrored({FIRST: 1}).save(staged_spool.host(host_id()))
    assert looks(staged_spool, 600.0) == 0
    assert looks(staged_spool, 600.0, question) == 1
    publish(staged_spool, checked=now + 1)
    assert looks(staged_spool, 600.0, question) == 0


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, None),
        ({"listed": 20.0}, ""),
        ({"listed": 20.0, "returning": 1}, None),
        ({"listed": 9.0}, None),
        ({"listed": 20.0, "unread": {"a": "it is gone"}}, "a: it is gone"),
        ({"failures": 1, "failed_at": 20.0, "reason": "no route"}, "no route"),
        ({"failures": 1, "failed_at": 9.0, "reason": "no route"}, None),
    ],
)
def test_when_all_has_come_back(staged_spool, fields, why):
    """What was listed, or has failed, before the question is no answer to it."""
    publish(staged_spool, **fields)
    assert LogdirSink(staged_spool).has_come_back(10.0) == why
