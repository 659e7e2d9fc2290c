"""What `sync` asks for beyond the share of this host: until all of it is there, whatever happens in between."""

from __future__ import annotations

from silent_pushes import Silent
from support import event_file
from uploaders import uploader

from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.base.verdicts import Done, Retry, Sent
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers.members import OBSERVER, MemberFile
from hf_mpwriter.system import locks
from hf_mpwriter.system.process import Process
from hf_mpwriter.uploader import in_flight


def test_a_failure_after_the_first_batch_does_not_make_sync_forget_the_rest(tmp_path, monkeypatch):
    """The first push has read back all; the files that are not of this host are asked for all the same."""
    monkeypatch.setattr(in_flight, "PushHandle", lambda *_: Silent())
    now = [1000.0]
    for number in range(150):
        (tmp_path / "tb" / f"v{number}").mkdir(parents=True)
        event_file(tmp_path / "tb" / f"v{number}" / "events.out.tfevents.1700000000.elsewhere", 1)
    spool = Spool.of(str(tmp_path / "tb"), str(tmp_path / "staging" / ".hf_mpwriter"))
    spool.create()
    (tmp_path / "staging" / ".hf_mpwriter" / "claims" / "rank_00001.lock").touch()  # a worker has lived here
    spool.record_destination(Destination("http://127.0.0.1:9", "me/run"))
    lock = locks.try_exclusive(spool.uploader_lock)
    one = uploader(spool, lambda: now[0], lock=lock)
    monkeypatch.setattr(one, "_sleep", lambda: None)
    asking = MemberFile(spool, OBSERVER, Process.current(), Settings())
    asking.count(requests=1)

    def sent() -> int:
        for _ in range(30):
            now[0] += 30
            one.tick()
            if one.sending.in_flight._sent:
                return len(one.sending.in_flight._sent[1].files)
        return 0

    assert sent() == 100
    files = {file.path: Sent(file.length, "x") for file in one.sending.in_flight._sent[1].files}
    one.sending._conclude(Done("c" * 40, own=True, repo_id="me/run", files=files, checked=True))
    assert sent() == 50
    one.sending._conclude(Retry("503"))
    assert sent() == 50
    asking.leave()
