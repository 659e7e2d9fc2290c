"""A daemon holds one lock, gives it up when it leaves, and takes it back if something came in between."""

from __future__ import annotations

import os
import random

import pytest

from hf_mpwriter.daemon.loop import Daemon
from hf_mpwriter.daemon.starts import uploader_start
from hf_mpwriter.daemon.status_file import StatusFile
from hf_mpwriter.spool.status import SOUND_AFTER, Starts, UploaderStatus
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.process import host_id


class One(Daemon):
    """An uploader that does nothing."""

    kind = "uploader"

    def __init__(self, spool, clock=lambda: 0.0) -> None:
        start = uploader_start(spool, spool.destination(), 0.0)
        super().__init__(spool, start, locks.try_exclusive(spool.uploader_lock), clock, random.Random(1))
        self.status = StatusFile(self.host, self._process, clock, 0.0)
        self.recovered, self.comes_back = 0, False

    def tick(self) -> bool:
        """Leave."""
        return not self.leave()

    def recover(self) -> None:
        """Count."""
        self.recovered += 1

    def close(self) -> None:
        """Say so."""
        self.forget_starts(is_over=True)

    def is_over(self) -> bool:
        """As the test wants; the lock is free meanwhile."""
        assert not locks.is_held(self._spool.uploader_lock)
        return not self.comes_back


@pytest.mark.parametrize("how", ["sound", "over"])
def test_a_daemon_that_does_well_clears_the_count_of_its_starts(spool, how):
    """It lives for a minute, or it leaves in good order: the next one is started at once."""
    now, host = [0.0], spool.host(host_id())
    disk.make_dirs(host.root)
    UploaderStatus(starts=Starts("boot", 3, 1.0)).save(host)
    one = One(spool, lambda: now[0])
    one.forget_starts(is_over=False)
    one.status.beat()
    assert UploaderStatus.read(host).starts.count == 3
    now[0] = SOUND_AFTER if how == "sound" else 1.0
    one.forget_starts(is_over=how == "over")
    one.status.beat()
    assert UploaderStatus.read(host).starts.count == 0


def test_a_daemon_that_leaves_takes_its_lock_back_if_something_came_in_between(spool):
    """It reads the disk again: another one may have been here. When another one is here, it is over."""
    one = One(spool)
    one.comes_back = True
    assert (one.tick(), one.recovered, locks.is_held(spool.uploader_lock)) == (True, 1, True)
    one.comes_back = False
    assert (one.tick(), one.recovered, locks.is_held(spool.uploader_lock)) == (False, 1, False)


@pytest.mark.parametrize("what", ["is_over", "recover"])
def test_a_daemon_whose_disk_refuses_another_look_is_over(spool, monkeypatch, what):
    """It would go on with what it knew before, though another one may have been here; the next one reads the disk."""

    def refuse() -> None:
        raise OSError(5, "EIO")

    one = One(spool)
    one.comes_back = True
    monkeypatch.setattr(one, what, refuse)
    assert not one.tick()


def test_a_daemon_works_no_more_once_its_lock_is_another_file(spool):
    """Or two would work at a time."""
    one = One(spool)
    assert one.is_in_place()
    os.unlink(spool.uploader_lock)
    assert not one.is_in_place()
