"""Shutdown: what a process answers for at its end."""

from __future__ import annotations

from support import event_file

from hf_mpwriter.base.settings import Settings
from hf_mpwriter.snapshot.event_files import EventFileScan
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.progress import Progress
from hf_mpwriter.worker.role import Role
from hf_mpwriter.worker.shutdown import lengths_to_await


def test_what_is_known_is_not_read_again_at_the_end(run_dir):
    """Gigabytes would take minutes, before the wait that is bounded: only what comes after it is parsed."""
    path = run_dir / "events.out.tfevents.1000000000.there.1.0123abcd"
    length = event_file(path, 20)
    with open(path, "r+b") as file:
        file.write(bytes(100))  # a reader of the beginning stops there
    spool, own = Spool(str(run_dir)), {path.name: length - 50}
    assert lengths_to_await(spool, Settings(), Role(None, None), own, Progress(spool)) == own
    half = event_file(run_dir / "half" / path.name, 10)
    assert lengths_to_await(spool, Settings(), Role(None, None), {path.name: half}, Progress(spool)) == {
        path.name: half,
        f"half/{path.name}": half,
    }
    assert EventFileScan(str(run_dir), lambda _: half).files(lambda _: True, set)[0].length == length
