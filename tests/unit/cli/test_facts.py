"""The facts of a run, gathered without reading what the Hub has, and the judgement on them."""

from __future__ import annotations

import dataclasses
import os

import pytest
from facts import FACTS, FILE, HALF, NOW, RUNNING
from support import event_file

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Cause, Sent
from hf_mpwriter.cli.facts import RunHealth, WorkerFacts, gather, judge
from hf_mpwriter.snapshot.attachments import NEVER_SENT
from hf_mpwriter.snapshot.event_files import Damage
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.staging import MirrorStatus
from hf_mpwriter.spool.status import FULL_DISK, UploaderStatus
from hf_mpwriter.spool.workers.members import claim
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.process import host_id

NAME = "events.out.tfevents.1700000000.host.1.0123abcd"
NEW = "events.out.tfevents.1700000001.host.1.0123abcd"
HUB = Destination("http://127.0.0.1:9", "me/run", path_in_repo="tensorboard/run")


def test_what_the_hub_has_is_not_read(tmp_path, monkeypatch):
    """Ten gigabytes that have arrived cost a look at the names; what waits is counted up to its last whole record."""
    there, waiting = event_file(tmp_path / NAME, 9), event_file(tmp_path / NEW, 3)
    spool = Spool(str(tmp_path))
    spool.create()
    spool.record_destination(HUB)
    ledger, host = Ledger(HUB, repo_id=HUB.repo_id), spool.host("h-1")
    ledger.acknowledge({NAME: Sent(there, "0" * 64)}, "c", 1.0)
    disk.make_dirs(host.root)
    ledger.save(host.ledger)
    opened, original = [], os.open
    monkeypatch.setattr(os, "open", lambda path, *args, **kw: opened.append(str(path)) or original(path, *args, **kw))
    facts = gather(spool)
    monkeypatch.undo()
    assert (facts.logged, facts.on_hub) == (there + waiting, there)
    assert NAME not in opened
    assert NEW in opened


def test_every_worker_that_has_a_file_is_shown_when_its_member_file_has_gone(tmp_path):
    """A second program in one logdir as well; a directory of `add_scalars` is no worker. Who died, stays dead."""
    spool = Spool(str(tmp_path))
    spool.create()
    for name in ("main", "proc_00001", "rank_00001"):
        locks.release(claim(spool, name).claim)
    disk.make_dirs(spool.host(host_id()).root)
    paths = [f"{folder}events.out.tfevents.1700000000.h.1.0123abcd" for folder in ("", "proc_00001/", "sub/")]
    paths += [f"rank_00001/events.out.tfevents.{second}.h.1.0123abcd" for second in (1700000000, 1700000001)]
    for path in paths:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        event_file(tmp_path / path, 1)
    for last, state in ((paths[3], "ended"), (paths[4], "died")):
        UploaderStatus(died=(last,)).save(spool.host(host_id()))
        workers = {worker.name: worker.state for worker in gather(spool).workers}
        assert workers == {"main": "ended", "proc_00001": "ended", "rank_00001": state}


SYNC = "hf-mpwriter sync ./exp1"
ALIVE = (WorkerFacts("main", "alive", "here", 7, is_here=True),)
REFUSED = dataclasses.replace(RUNNING, kind="Refused", reason="token refused (401)", hint="Look.", failures=2)
FULL = dataclasses.replace(RUNNING, kind="Retry", cause=Cause.DISK_FULL, reason=FULL_DISK, hint="free /x", failures=1)
THERE = {"to": "s3://b/exp1", "files": (dataclasses.replace(FILE, in_logdir=40),)}


@pytest.mark.parametrize(
    ("fields", "state", "words"),
    [
        ({}, RunHealth.COMPLETE, ""),
        ({"destination": None, "files": HALF}, RunHealth.COMPLETE, ""),
        ({"files": HALF, "uploader_is_alive": True}, RunHealth.WAITING, ""),
        ({"files": HALF, "workers": ALIVE}, RunHealth.WAITING, ""),
        ({"files": HALF}, RunHealth.PERSON, SYNC),
        (
            {"files": HALF, "uploader": REFUSED, "uploader_is_alive": True},
            RunHealth.PERSON,
            f"Look; then: {SYNC}",
        ),
        ({"uploader": REFUSED, "uploader_is_alive": True}, RunHealth.COMPLETE, ""),
        ({"files": HALF, "uploader": FULL, "uploader_is_alive": True}, RunHealth.PERSON, f"free /x; then: {SYNC}"),
        ({"uploader": FULL, "uploader_is_alive": True}, RunHealth.COMPLETE, ""),
        (
            {"files": HALF, "uploader": dataclasses.replace(RUNNING, beat=NOW - 3600), "uploader_is_alive": True},
            RunHealth.PERSON,
            "hf-mpwriter stop ./exp1",
        ),
        ({"quarantined": {FILE.path: "rewritten"}}, RunHealth.PERSON, f"see why {FILE.path} is refused; then: {SYNC}"),
        ({"quarantined": {FILE.path: NEVER_SENT}, "files": HALF}, RunHealth.COMPLETE, ""),
        ({"damage": (Damage("a.tfevents", 5, 6, is_incomplete=False),)}, RunHealth.PERSON, "restore a.tfevents"),
        ({"damage": (Damage("a.tfevents", 5, 6, is_incomplete=False),)}, RunHealth.PERSON, f"; then: {SYNC}"),
        ({"damage": (Damage("a.tfevents", 5, 6, is_incomplete=True),)}, RunHealth.COMPLETE, ""),
        ({"workers": (dataclasses.replace(ALIVE[0], in_memory=3),)}, RunHealth.PERSON, "free space on the disk of"),
        (THERE | {"mirror_is_alive": True}, RunHealth.WAITING, ""),
        (THERE, RunHealth.PERSON, SYNC),
        (
            THERE | {"refused_there": {"a": "no"}, "mirror_is_alive": True},
            RunHealth.PERSON,
            "see why a is refused in s3",
        ),
        (
            THERE | {"mirror": MirrorStatus(is_refused=True), "mirror_is_alive": True},
            RunHealth.PERSON,
            "see why the logdir is refused",
        ),
    ],
)
def test_the_state_follows_from_the_facts(fields, state, words):
    """What waits comes by itself; where it does not, the last line says what to type."""
    found = judge(dataclasses.replace(FACTS, **fields), "exp1")
    assert found.state is state
    assert words in found.next
    assert bool(found.next) == (state is RunHealth.PERSON)
