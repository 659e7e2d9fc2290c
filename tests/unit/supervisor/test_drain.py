"""When a supervisor has nothing to wait for any more."""

from __future__ import annotations

import time

from support import event_file

from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.progress import Progress
from hf_mpwriter.spool.workers.members import SUPERVISOR, MemberFile
from hf_mpwriter.supervisor.drain import Upload
from hf_mpwriter.system.process import Process


def test_a_rank_that_ends_first_does_not_wait_for_those_that_still_follow_the_folder(tmp_path, monkeypatch):
    """All is on the Hub, and the uploader stays for the others. The last one waits until it has left."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(Progress, "uploader_is_alive", lambda _: True)
    monkeypatch.setattr(Progress, "missing", lambda *_, **__: {})
    event_file(tmp_path / "exp1" / "events.out.tfevents.1700000000.host", 1)
    spool = Spool(str(tmp_path / "exp1"))
    spool.create()
    spool.record_destination(Destination("http://127.0.0.1:9", "me/run", path_in_repo="tensorboard/exp1"))
    other = MemberFile(spool, SUPERVISOR, Process.current(), Settings())
    assert Upload(spool, time.monotonic, with_others=True).finish().is_over
    other.leave()
    assert not Upload(spool, time.monotonic, with_others=True).finish().is_over
