"""What an uploader and a mirror do about a sampler: they wait for its seal, and for nothing else of it."""

from __future__ import annotations

import os
import random
from dataclasses import replace

from staged import stage
from uploaders import uploader

from hf_mpwriter.base.names import sampler_name
from hf_mpwriter.base.settings import Settings
from hf_mpwriter.base.verdicts import Refused
from hf_mpwriter.daemon.loop import SEAL_WAIT
from hf_mpwriter.daemon.starts import MirrorStart
from hf_mpwriter.mirror.decision import MirrorAction
from hf_mpwriter.mirror.decision import decide as decide_of_a_mirror
from hf_mpwriter.mirror.loop import Mirror
from hf_mpwriter.spool.copies import Listed
from hf_mpwriter.spool.workers.member_lines import Member, MemberName
from hf_mpwriter.system import locks
from hf_mpwriter.system.process import Process, host_id
from hf_mpwriter.uploader.decision import Action, decide

PROCESS = Process.current()
NAME = MemberName.of(sampler_name("here"), PROCESS, 1)
OPEN = frozenset({"_system/here/events.out.tfevents.1795233002.here.1.0123abcd"})
SAMPLER = Member(
    name=NAME,
    alive=True,
    started_at=5e9,
    process=PROCESS,
    settings=Settings(commit_every=77.0),
    growing=OPEN,
    files=OPEN,
)  # younger than any token


def test_an_uploader_waits_for_the_seal_before_it_scans_once_more(spool):
    """At most SEAL_WAIT seconds; a sampler that lives on with a sealed file holds up nothing."""
    now = [1000.0]
    lock = locks.try_exclusive(spool.uploader_lock)
    one = uploader(spool, lambda: now[0], lock=lock)
    now[0] += SEAL_WAIT - 1
    one.upload.peers.here = [SAMPLER]
    one.sending.note()
    assert decide(one.upload.situation()) is Action.WAIT
    one.upload.peers.here = [replace(SAMPLER, growing=frozenset())]
    assert decide(one.upload.situation()) is Action.SCAN
    one.upload.peers.here = [SAMPLER]
    now[0] += 2
    assert decide(one.upload.situation()) is Action.SCAN


def test_a_sampler_brings_no_better_token_and_no_life(spool):
    """An uploader whose token was refused would leave for it, again and again."""
    one = uploader(spool)
    one.upload.status.failed(Refused("no", ""), 1)
    one.upload.peers.here = [replace(SAMPLER, requests=1)]
    assert not one.upload.is_better_token_there()
    assert one.upload.situation().living == 0


def test_a_sampler_that_is_left_over_decides_no_settings(spool):
    """It has those of the worker that has started it: patterns that a newer worker has narrowed would be wide again."""
    one = uploader(spool)
    one.upload.peers.here = [SAMPLER]
    one.sending.note()
    assert one.sending.ledger.settings == SAMPLER.settings, "nothing else is known"
    worker = replace(
        SAMPLER, name=MemberName.of("main", PROCESS, 2), started_at=4e9, settings=Settings(commit_every=1.0)
    )
    for members in ([worker, SAMPLER], [replace(worker, alive=False), SAMPLER], [SAMPLER]):
        one.upload.peers.here = members
        one.sending.note()
        assert one.sending.ledger.settings == worker.settings


def test_a_mirror_waits_for_the_seal_before_it_leaves(tmp_path):
    """Only what is sealed comes to the logdir."""
    now = [1000.0]
    spool = stage(tmp_path / "here", tmp_path / "there")
    os.makedirs(spool.host(host_id()).root)
    lock, start = locks.try_exclusive(spool.lock_of("mirror")), MirrorStart(spool.run_dir, to=spool.logdir)
    mirror = Mirror(spool, start, lock, lambda: now[0], random.Random(0))
    mirror._take(Listed({}))
    mirror._scan([SAMPLER])
    assert decide_of_a_mirror(mirror._situation([SAMPLER])) is MirrorAction.WAIT
    now[0] += SEAL_WAIT + 1
    assert decide_of_a_mirror(mirror._situation([SAMPLER])) is MirrorAction.LEAVE
