"""Looking: who asks what is in the logdir, how long training waits for it, and what it knows afterwards."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time

import pytest

from hf_mpwriter.base import state
from hf_mpwriter.base.errors import SettingsError
from hf_mpwriter.base.settings import Settings
from hf_mpwriter.spool.copies import CopyHandle, Failure, Finished, Listed
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging import LastPlace, Listing, MirrorRecord, look_lock
from hf_mpwriter.spool.workers.members import MemberFile
from hf_mpwriter.system import locks
from hf_mpwriter.system.filesystem import Mount, find_mount
from hf_mpwriter.system.process import Process
from hf_mpwriter.worker import looking


@pytest.fixture
def staged(tmp_path) -> Spool:
    """The spool of a staged run."""
    spool = Spool.of(str(tmp_path / "local" / "exp1"), logdir=str(tmp_path / "mount" / "exp1"))
    spool.create()
    return spool


@pytest.fixture
def asked(monkeypatch) -> list[Listed | Failure]:
    """Answers to those who look; what is left was not asked for."""
    answers: list[Listed | Failure] = []
    monkeypatch.setattr(looking, "_asked", lambda *_: answers.pop(0))
    return answers


def prepare(spool: Spool, longest: float = 5.0) -> looking.Staged:
    """Make a run ready for a process that has not joined."""
    return looking.prepare(spool, is_joined=False, longest=longest)


def event_name(second: int) -> str:
    """The name of an event file of ours."""
    return f"events.out.tfevents.{second:010d}.h.1.00000001"


def listed(*seconds: int) -> Listed:
    """An answer with event files of these seconds."""
    return Listed({event_name(second): 5 for second in seconds})


def test_a_run_in_its_logdir_costs_nothing(tmp_path):
    """Nothing is locked, written or asked."""
    assert prepare(Spool(str(tmp_path / "exp1"))) == looking.Staged()
    assert not (tmp_path / "exp1").exists()


def test_the_first_member_of_an_attempt_asks_and_the_others_do_not(staged, asked):
    """Also where the run was here before: it may have gone on elsewhere."""
    asked += [listed(1000, 2000), listed(1000, 3000)]
    for last in (2000, 3000):
        assert prepare(staged) == looking.Staged(1000.0, last, is_behind=True)
        member = MemberFile(staged, "main", Process.current(), Settings())
        assert prepare(staged) == looking.Staged(1000.0, last, is_behind=True)
        member.leave()
    assert MirrorRecord.read(staged) == MirrorRecord(staged.logdir, 1000.0, find_mount(staged.logdir))
    assert asked == []


def test_of_processes_that_start_together_one_asks(staged, asked, monkeypatch):
    """The others take its answer, also a failure."""
    for answer in (Listing(last=7), Listing(last=8, failure="it hangs")):
        held = locks.try_exclusive(look_lock(staged))

        def answered(_: float, answer: Listing = answer, held: int = held) -> None:
            dataclasses.replace(answer, at=time.time()).save(staged)
            locks.release(held)

        monkeypatch.setattr(time, "sleep", answered)
        assert prepare(staged).after == answer.last


def recorded_mount(staged, recorded: Mount) -> Mount | None:
    """The mount of the record after a start, where it was another one before."""
    MirrorRecord(staged.logdir, 1000.0, recorded).publish(staged)
    prepare(staged)
    return MirrorRecord.read(staged).mount


@pytest.mark.skipif(sys.platform != "linux", reason="mountinfo is Linux's")
def test_a_start_takes_what_is_mounted_in_place_of_the_mount(staged, asked, caplog):
    """And says so: the user has mounted it, and has started training there."""
    asked += [Listed({})]
    here = find_mount(staged.logdir)
    assert recorded_mount(staged, Mount(here.point, "fuse.gcsfuse", "bucket")) == here
    assert f"it was on gcsfuse (bucket) at {here.point}, and is on {here} now" in caplog.text


def test_a_start_without_the_mount_keeps_it_in_mind(staged, asked, caplog, tmp_path):
    """What the mount has left is not taken for it."""
    asked += [Listed({})]
    gone = Mount(str(tmp_path / "mount"), "fuse.gcsfuse", "bucket")
    assert recorded_mount(staged, gone) == gone
    assert "goes on there" not in caplog.text


def test_a_record_that_was_lost_is_written_without_a_look_at_the_logdir(staged, asked, monkeypatch):
    """While training goes on the mount may hang."""
    asked += [Listed({})]
    prepare(staged)
    before = MirrorRecord.read(staged)
    os.unlink(str(MirrorRecord.place(staged)))
    monkeypatch.setattr(looking, "find_mount", None)
    looking._publish(staged, before.made_at)
    assert MirrorRecord.read(staged) == before


def test_a_failure_is_told_and_not_repeated_at_once(staged, asked, caplog):
    """Processes that follow each other do not all wait for a mount that hangs; names sort behind what is known."""
    Listing({event_name(5): 5}, last=7).save(staged)
    asked += [Failure("it hangs", is_refused=False), listed(5)]
    for _ in range(3):
        assert prepare(staged)[1:] == (7, True)
    assert len(asked) == 1
    assert caplog.text.count("what earlier attempts logged there is not known yet: it hangs. Training goes on") == 1
    assert f"hf-mpwriter pull {staged.logdir}" in caplog.text
    Listing(last=7, failure="it hangs", at=time.time() - looking.RETRY_AFTER - 1).save(staged)
    assert prepare(staged)[1:] == (7, True)
    assert (asked, Listing.read(staged).failure) == ([], "")


def test_the_place_on_another_host_is_told_once_though_the_first_look_has_failed(staged, asked, caplog):
    """It is told by the first look that is answered."""
    place = LastPlace("node7-01234567", "/scratch/hf_mpwriter-1/0123456789abcdef/exp1")
    asked += [Failure("it hangs", is_refused=False), *[dataclasses.replace(listed(5), place=place)] * 2]
    prepare(staged)
    Listing(failure="it hangs", at=time.time() - looking.RETRY_AFTER - 1).save(staged)
    prepare(staged)
    prepare(staged)
    assert asked == []
    assert caplog.text.count(f"kept on another host, node7-01234567, in {place.run_dir}") == 1


def test_a_url_that_cannot_be_used_is_refused(staged, asked):
    """Nothing is left that makes the run a staged one, and no lock is held."""
    asked += [Failure("s3fs is not installed", is_refused=True, is_setting=True)]
    with pytest.raises(SettingsError, match="s3fs"):
        prepare(staged)
    assert MirrorRecord.read(staged) is None
    assert not locks.is_held(look_lock(staged))


def test_a_lock_that_stays_is_not_waited_for_for_ever(staged, asked, caplog):
    """The look of another process hangs in the kernel; this one goes on, after a word."""
    held = locks.try_exclusive(look_lock(staged))
    prepare(staged, longest=0.1)
    locks.release(held)
    assert "another process that asks for it gets no answer" in caplog.text


def line(message: Listed | Failure | Finished) -> bytes:
    """What a look writes, with its end."""
    return state.to_line(message) + b"\n"


class Told(CopyHandle):
    """A look that has printed this, and has ended or not."""

    def __init__(self, data: bytes, *, ends: bool) -> None:
        self._pipe, away = os.pipe()
        os.set_blocking(self._pipe, False)
        os.write(away, data)
        os.close(away)
        self.code, self._received, self._is_silent = 0 if ends else None, b"", False
        self._last = None
        self.allow(math.inf)

    def has_ended(self) -> bool:
        """As it was said."""
        return self.code is not None


def heard(data: bytes, *, ends: bool) -> Listed | Failure:
    """What a look has said that has printed this."""
    look = Told(data, ends=ends)
    try:
        return looking.heard(look, 60.0 if ends else 0.3)
    finally:
        look.close()


def test_a_wait_ends_with_the_look():
    """What libraries print does not count, and the last line may lack its end."""
    noise = b"a library prints\n" + line(listed(1)) + b"Listed {}\n\nListed"
    assert heard(noise + b"\n" + line(Finished()) + b"more", ends=True) == listed(1)
    assert heard(b"Listed {}\n", ends=True).reason == "the copy ended by exit code 0"
    failed = Failure("no such bucket", is_refused=True)
    assert heard(line(failed), ends=True) == failed


def test_a_wait_for_a_look_that_hangs_ends():
    """With what is known until then: a list of embeddings may be on its way."""
    assert "did not answer within 1 s" in heard(b"", ends=False).reason
    assert heard(line(listed(3)), ends=False) == listed(3)
