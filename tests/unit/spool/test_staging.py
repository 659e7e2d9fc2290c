"""What the processes of a staged run know of its logdir, and what is told of what is not there."""

from __future__ import annotations

import os
import time

import pytest
from staged import stage

from hf_mpwriter.base import state
from hf_mpwriter.spool.staging.logdir import Logdir, Shortfall
from hf_mpwriter.spool.staging.record import Mirrored, MirrorPlaces, MirrorRecord, MirrorStatus, mirror_lock
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


def test_the_first_logdir_that_is_recorded_stays(staged_spool):
    """Racing workers of one run name the same; another run directory is not staged at all."""
    MirrorRecord("s3://other", 1.0).publish(staged_spool)
    assert MirrorRecord.read(staged_spool).to == Logdir(staged_spool).to == "s3://bucket/exp1"


def test_a_run_that_is_not_staged_misses_nothing(own_spool):
    """So all that waits may ask, whatever the run is."""
    logdir = Logdir(own_spool)
    assert not logdir.is_staged
    assert logdir.missing({FIRST: 100}) == {}
    assert logdir.wait({FIRST: 100}, 60.0, pytest.fail) == {}
    assert logdir.shortfall({FIRST: 100}).sentence() == ""


def test_what_is_missing_is_by_all_hosts_and_leaves_attachments_out(staged_spool):
    """A file counts as a whole, by the greatest length; what one host has brought is not refused."""
    ours, theirs = (staged_spool.host(host) for host in (host_id(), "other-00000000"))
    Mirrored({FIRST: 100}, {SECOND: "why"}).save(ours)
    logdir = Logdir(staged_spool)
    assert logdir.missing({FIRST: 100, SECOND: 50, "notes.txt": 9}) == {SECOND: 50}
    assert logdir.refused({SECOND: 50}) == {SECOND: f"{SECOND}: why"}
    Mirrored({FIRST: 90, SECOND: 50}).save(theirs)
    assert logdir.missing({FIRST: 100, SECOND: 50}) == {}
    assert logdir.missing({FIRST: 101}) == {FIRST: 101}


def test_later_files_of_a_writer_wait_for_one_that_is_refused(staged_spool):
    """They are told with its reason; those of other writers are not held up."""
    Mirrored({}, {FIRST: "why"}).save(staged_spool.host(host_id()))
    other = SECOND + ".suffix"
    assert Logdir(staged_spool).refused({SECOND: 1, other: 1}) == {SECOND: f"{FIRST}: why"}


@pytest.mark.parametrize("name", ["mirrored", "status"])
@pytest.mark.parametrize("data", [b"", b"{}", b"[", b'{"files": {"../x": 1}, "refused": {}, "way": ""}'])
def test_damage_counts_as_nothing(staged_spool, name, data):
    """The next mirror compares with the logdir."""
    host = staged_spool.host(host_id())
    with open(getattr(MirrorPlaces.of(host), name), "wb") as file:
        file.write(data)
    assert Mirrored.read(host) == Mirrored()
    assert MirrorStatus.read(host) == MirrorStatus()
    assert Logdir(staged_spool).missing({FIRST: 1}) == {FIRST: 1}


def publish(spool, **fields) -> None:
    """Let a mirror say something."""
    status = MirrorStatus(**{"beat": time.time(), "phase": "waiting", **fields})
    with open(MirrorPlaces.of(spool.host(host_id())).status, "wb") as file:
        file.write(state.dump(status))


def test_a_wait_ends_when_nothing_can_come(staged_spool):
    """At its end, when all is refused, when the next try comes too late, and when the logdir refuses all."""
    logdir, wanted, asked = Logdir(staged_spool), {FIRST: 1}, []
    assert logdir.wait(wanted, 0.0, lambda: asked.append(1)) == wanted
    assert asked == [1]
    lock = locks.try_exclusive(mirror_lock(staged_spool))
    later = time.time() + 3600
    publish(staged_spool, failures=1, reason="why", failed_at=later, next_try=later)
    assert logdir.wait(wanted, 600.0, lambda: None) == wanted
    publish(staged_spool, failures=1, reason="why", failed_at=later, is_refused=True)
    assert logdir.wait(wanted, 600.0, lambda: None) == wanted
    locks.release(lock)
    publish(staged_spool)
    Mirrored({}, {FIRST: "why"}).save(staged_spool.host(host_id()))
    assert logdir.wait(wanted, 600.0, lambda: None) == wanted
    assert logdir.wait(wanted, 600.0, lambda: None, lambda missing: missing == wanted) == wanted


def test_what_was_known_before_does_not_count_for_a_command(staged_spool):
    """`sync` believes what was compared with the logdir after it has asked."""
    logdir, now = Logdir(staged_spool), time.time()
    Mirrored({FIRST: 1}).save(staged_spool.host(host_id()))
    seen = []

    def compare() -> None:
        seen.append(1)
        publish(staged_spool, checked=now + 1)

    assert logdir.wait({FIRST: 1}, 600.0, compare, since=now) == {}
    assert seen


@pytest.mark.parametrize(
    ("fields", "sentence", "outlook"),
    [
        ({}, "1 B in 1 file are not in s3://b/x yet.", "no mirror runs. To finish: hf-mpwriter sync s3://b/x"),
        ({"reason": "no space."}, "yet: no space.", "no mirror runs"),
        ({"is_alive": True}, "yet.", "a mirror goes on trying; then: hf-mpwriter sync s3://b/x"),
        ({"is_alive": True, "stillness": "it hangs"}, "yet.", "does not work: it hangs. To finish then: hf-mpwriter"),
        (
            {"refused": {FIRST: "f: it differs"}, "reason": "x"},
            "yet: f: it differs.",
            "When that is mended: hf-mpwriter",
        ),
    ],
)
def test_each_row_of_what_is_told(fields, sentence, outlook):
    """As the head of the module says, with both places and the command."""
    shortfall = Shortfall("/run", "s3://b/x", {FIRST: 1}, **fields)
    assert shortfall.sentence().endswith(sentence)
    assert outlook in shortfall.outlook()
