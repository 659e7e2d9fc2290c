"""The facts of a run: gathered without reading what the Hub has."""

from __future__ import annotations

import os

from support import event_file

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.cli.status.facts import gather
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import Ledger
from hf_mpwriter.system import disk

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
