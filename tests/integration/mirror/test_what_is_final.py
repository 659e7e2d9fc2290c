"""Which files come to a logdir, and in which order; how long the mirror stays."""

from __future__ import annotations

import os
import signal
import time

from programs import wait_for
from staged import event_files, leftovers, mirror_pid, stage
from support import event_file

from hf_mpwriter.base.settings import Settings
from hf_mpwriter.daemon.election import Election
from hf_mpwriter.delivery.sinks import LogdirSink
from hf_mpwriter.mirror.posix import MARK
from hf_mpwriter.snapshot.event_files import UNCHANGED
from hf_mpwriter.spool.workers.members import MemberFile
from hf_mpwriter.system.process import Process


def ours(second: int, suffix: str = "") -> str:
    """The name of an event file of ours."""
    return f"events.out.tfevents.{1000000000 + second}.there.1.0123abcd{suffix}"


def test_what_never_grows_again_comes_in_order(tmp_path):
    """Sealed files of a live worker, all of dead ones; foreign ones that rest; none before an earlier one."""
    run_dir, logdir = tmp_path / "here" / "exp1", tmp_path / "there" / "exp1"
    spool = stage(run_dir, logdir)
    worker = MemberFile(spool, "main", Process.current(), Settings())
    sealed, growing, dead, later = ours(1), ours(2), f"rank_00001/{ours(1)}", f"rank_00002/{ours(2)}"
    first, resting, fresh = f"rank_00002/{ours(1)}", "events.out.tfevents.1.torch", "events.out.tfevents.2.torch"
    for name in (sealed, growing, dead, first, later, resting, fresh):
        event_file(run_dir / name, 5)
    (run_dir / "notes.txt").write_text("no event file")
    for name in (sealed, growing):
        worker.write({"open": name})
    worker.write({"seal": sealed})
    os.utime(run_dir / resting, (0, time.time() - 2 * UNCHANGED))
    with open(run_dir / dead, "ab") as file:
        file.write(b"torn")
    # another file is in the place of the first of rank 2; a part of an old copy lies there
    (logdir / "rank_00002").mkdir(parents=True)
    (logdir / first).write_bytes(bytes(10_000))
    (logdir / f".{MARK}-00000000.0.part").write_text("")
    os.utime(logdir / f".{MARK}-00000000.0.part", (0, 0))
    election, view = Election(spool, "mirror"), LogdirSink(spool)
    assert election.ensure(view.start())
    assert not election.ensure(view.start()), "one at a time"
    wait_for(lambda: view.status().checked, "all that is final is compared")
    assert sorted(view.mirrored().files) == sorted([sealed, dead, resting])
    assert sorted(event_files(logdir)) == sorted([sealed, dead, resting, first])
    assert (logdir / dead).read_bytes() + b"torn" == (run_dir / dead).read_bytes()
    assert list(view.mirrored().refused) == [first]
    assert list(view.refused({first: 1, later: 1})) == [first, later]
    assert leftovers(logdir) == []
    # the first of rank 2 goes away; a request asks again
    (logdir / first).unlink()
    with_request = MemberFile(spool, "~sync", Process.current(), Settings())
    with_request.count(requests=1)
    wait_for(lambda: {first, later} <= view.mirrored().files.keys(), "both are brought")
    with_request.withdraw()
    # the worker dies: the rest is final, and the mirror leaves
    worker.leave()
    wait_for(lambda: {growing, fresh} <= view.mirrored().files.keys(), "the rest is brought")
    wait_for(lambda: not mirror_pid(spool), "the mirror leaves")
    assert {name: path.stat().st_size for name, path in event_files(logdir).items()} == view.mirrored().files
    # SIGTERM: what is final is brought, a live worker or not
    worker = MemberFile(spool, "main", Process.current(), Settings())
    wait_for(lambda: election.ensure(view.start()), "a mirror")
    wait_for(lambda: view.status().pid == mirror_pid(spool) != 0 and view.status().checked, "it is idle")
    event_file(run_dir / "rank_00003" / ours(1), 5)
    os.kill(view.status().pid, signal.SIGTERM)
    wait_for(lambda: not mirror_pid(spool), "it ends")
    assert f"rank_00003/{ours(1)}" in view.mirrored().files
    worker.withdraw()
