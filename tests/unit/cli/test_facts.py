"""The facts of a run, gathered without reading what the Hub has, and the judgement on them."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
from facts import FACTS, FILE, HALF, NOW, RUNNING
from runs import run
from support import event_file

from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.base.verdicts import Cause, Sent
from hf_mpwriter.cli.facts import RunHealth, WorkerFacts, gather, judge
from hf_mpwriter.events import framing
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.snapshot.attachments import NEVER_SENT, Attachments
from hf_mpwriter.snapshot.event_files import Damage, EventFileScan
from hf_mpwriter.snapshot.search import LEVELS
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


def test_what_others_have_put_beyond_all_bounds_needs_a_person(tmp_path):
    """What a search has left out may be of the run: nobody is told that all of it is there."""
    spool = Spool(str(tmp_path))
    spool.create()
    event_file(tmp_path / NAME, 1)
    (tmp_path / "/".join("d" * (LEVELS + 2))).mkdir(parents=True)
    facts = gather(spool)
    (left_out,) = facts.left_out
    assert left_out.startswith(f"folders more than {LEVELS} deep, such as d/d")
    judgement = judge(facts, str(tmp_path))
    assert (judgement.state, left_out in judgement.next) == (RunHealth.PERSON, True)
    done = run("status", tmp_path, "--json")
    assert (done.exit_code, json.loads(done.output)["left_out"]) == (4, [left_out])
    assert f"left out: {left_out}" in run("status", tmp_path).output


def test_what_one_look_does_not_read_waits(tmp_path, monkeypatch):
    """It is there, and not known to be on the Hub; of what was sent as it is now, nothing is read."""
    spool = Spool(str(tmp_path))
    spool.create()
    spool.record_destination(HUB)
    (tmp_path / "theirs.tfevents").write_bytes(framing.frame(bytes(1 << 16)) * 40)
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_bytes(bytes(1000))
        os.utime(tmp_path / name, (1, 1))
    found = {file.path: file for file in Attachments(spool.run).scan(lambda _: True).files}
    ledger, host = Ledger(HUB, repo_id=HUB.repo_id, settings=Settings(allow_patterns=None)), spool.host("h-1")
    ledger.acknowledge({"a.txt": found["a.txt"].content}, "c", 1.0)
    ledger.note_stamps([found["a.txt"]])
    disk.make_dirs(host.root)
    ledger.save(host.ledger)
    monkeypatch.setitem(EventFileScan.__init__.__kwdefaults__, "foreign_bytes", 1 << 20)
    monkeypatch.setattr(attachments, "SCAN_BYTES", 1000)
    opened, original = [], os.open
    monkeypatch.setattr(os, "open", lambda path, *args, **kw: opened.append(str(path)) or original(path, *args, **kw))
    facts = gather(spool)
    assert {"a.txt", "b.txt", "c.txt"} & set(opened) == {"b.txt"}
    sizes = {file.path: (file.bytes, file.on_hub) for file in facts.files}
    assert sizes == {
        "a.txt": (1000, 1000),
        "b.txt": (1000, 0),
        "c.txt": (1000, 0),
        "theirs.tfevents": (os.path.getsize(tmp_path / "theirs.tfevents"), 0),
    }
    assert facts.left_out == ()


def test_a_status_of_many_files_looks_no_more_often_into_the_spool(tmp_path, monkeypatch):
    """Of 20,000 files it took 20 seconds, as each asked whether the run is staged."""
    spool, original, counts = Spool(str(tmp_path)), os.open, []
    spool.create()
    for count in (1, 20):
        for second in range(count):
            event_file(tmp_path / f"events.out.tfevents.{1700000000 + second}.host.1.0123abcd", 1)
        opened = list[str]()
        with monkeypatch.context() as counting:
            counting.setattr(
                os, "open", lambda path, *args, into=opened, **kw: into.append(str(path)) or original(path, *args, **kw)
            )
            gather(spool)
        counts.append(len([path for path in opened if "tfevents" not in path]))
    assert counts[0] == counts[1]
