"""The facts of a run: its workers, by what they have left on disk; gathered without reading what the Hub has."""

from __future__ import annotations

import contextlib
import os

from support import event_file

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.cli.status.facts import gather
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.spool.workers import members
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
        members.remember(spool.host(host_id()).died, [last])
        workers = {worker.name: worker.state for worker in gather(spool).workers}
        assert workers == {"main": "ended", "proc_00001": "ended", "rank_00001": state}


def test_a_record_of_deaths_that_cannot_be_read_is_none(tmp_path):
    """It is for display."""
    spool = Spool(str(tmp_path))
    spool.create()
    disk.make_dirs(spool.host(host_id()).root)
    with contextlib.suppress(FileNotFoundError):
        assert members.remembered(spool) == frozenset()
    (tmp_path / ".hf_mpwriter" / "hosts" / host_id() / "died.json").write_text("{")
    assert members.remembered(spool) == frozenset()
