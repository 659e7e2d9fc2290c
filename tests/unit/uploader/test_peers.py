"""Who is here, where locks do not reach from host to host: each uploader has the members of its own host."""

from __future__ import annotations

import os
import time
from dataclasses import replace

from hf_mpwriter.base.settings import Settings
from hf_mpwriter.base.timing import USUAL
from hf_mpwriter.delivery.sinks import LogdirSink
from hf_mpwriter.spool.staging import MirrorRecord
from hf_mpwriter.spool.workers.members import MemberFile
from hf_mpwriter.system import disk
from hf_mpwriter.system.process import Process, host_id
from hf_mpwriter.uploader import peers

OURS, THEIRS = "events.out.tfevents.1700000000.here.1.0123abcd", "events.out.tfevents.1700000000.there.1.0123abcd"


def test_the_members_of_an_uploader_that_may_live_are_left_to_it_until_it_can_have_said_so(site):
    """It was heard of shortly before this one took the lock. One that then says nothing has died: all is taken over."""
    disk.make_dirs(site.spool.host(host_id()).root)  # who starts an uploader has made it
    there = replace(Process.current(), host=site.host().root.basename)
    MemberFile(site.spool, "rank_00001", there, Settings()).write({"open": THEIRS})
    MemberFile(site.spool, "main", Process.current(), Settings()).write({"open": OURS})
    site.hear()
    os.utime(site.host().daemon("uploader").status, (time.time() - 2, time.time() - 2))
    one = site.uploader().upload
    one.peers.look()
    assert (one.peers.hosts, [member.name.worker for member in one.peers.here]) == ({there.host}, ["main"])
    assert (one.peers.takes(OURS), one.peers.takes(THEIRS)) == (True, False)
    assert one.peers.awaits_more
    assert one.status.status.notices == (), "it is not known yet whether locks reach"
    site.now += max(2 * USUAL.heartbeat_every, peers.LOOK_EVERY)
    one.peers.look()
    assert (one.peers.hosts, len(one.peers.here)) == (frozenset(), 2)
    assert (one.peers.takes(THEIRS), one.peers.take_news(), one.peers.awaits_more) == (True, True, False)


def test_an_uploader_that_goes_on_beside_this_one_is_told_of_once(site):
    """It has said something since this one took the lock, so it holds one of its own."""
    one = site.uploader().upload
    site.hear()
    for _ in range(2):
        site.now += peers.LOOK_EVERY
        one.peers.look()
    (notice,) = one.status.status.notices
    assert notice.text == f"{peers.LOCKS_DO_NOT_REACH}: {site.host().root.basename}"


def test_once_all_has_come_from_the_logdir_there_is_something_to_scan(site, monkeypatch):
    """Of a staged run, no worker lives: the last scan came before what has come back. Until then it does not leave."""
    MirrorRecord(str(site.root.parent / "logdir"), 1.0).publish(site.spool)
    one, returning = site.uploader().upload, [True]
    monkeypatch.setattr(LogdirSink, "is_returning", property(lambda _: returning[0]))
    one.peers.look()
    assert (one.peers.awaits_more, one.peers.take_news()) == (True, False)
    returning[0] = False
    one.peers.look()
    assert (one.peers.awaits_more, one.peers.take_news(), one.peers.take_news()) == (False, True, False)
