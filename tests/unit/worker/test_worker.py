"""The worker: what never raises into training, and never blocks it."""

from __future__ import annotations

import pytest
from programs import succeed
from runs import run

from hf_mpwriter.base.errors import SettingsError
from hf_mpwriter.spool.layout import Spool


def test_a_token_that_is_no_string_is_refused(tmp_path):
    """In the constructor, not when the worker first keeps house."""
    from hf_mpwriter import HFSummaryWriter

    with pytest.raises(SettingsError, match="token must be a string"):
        HFSummaryWriter("me/run", logdir=str(tmp_path / "run"), token=True)


def test_closing_while_other_threads_log_does_not_deadlock(tmp_path, start):
    """Locks are taken in one order: threads that open files and a close that seals them all get through."""
    source = """
import sys, threading
from hf_mpwriter import SummaryWriter
sys.setswitchinterval(1e-5)
for attempt in range(30):
    writer = SummaryWriter(f"{sys.argv[1]}/{attempt}")
    def log(number):
        for step in range(20):
            writer.add_scalars(f"t{number}_{step}", {"a": 1.0}, step)
    threads = [threading.Thread(target=log, args=(number,), daemon=True) for number in range(3)]
    for thread in threads: thread.start()
    writer.close()
    for thread in threads: thread.join()
"""
    start(source, tmp_path / "runs").succeed(deadline=60)


def test_what_is_dropped_stands_in_the_member_file_while_the_worker_lives(run_dir):
    """`hf-mpwriter status` shows it without asking the process; `writer.dropped` is the same."""
    from hf_mpwriter import SummaryWriter
    from hf_mpwriter.spool.members import Members

    writer = SummaryWriter(run_dir, memory_limit=0)

    def refuse() -> str:
        raise OSError("refused")

    home = writer._worker.files
    home.directory, directory = refuse, home.directory
    for step in range(3):
        writer.add_scalar("a", 1.0, step)
    home.directory = directory
    writer._worker.keep_house()
    (member,) = Members(Spool(str(run_dir))).all()
    assert (member.alive, member.dropped, writer.dropped) == (True, 3, 3)
    assert "dropped: 3 records of main" in run("status", run_dir).stdout
    writer.flush()
    writer.add_scalar("a", 1.0, 3)
    writer.close()
    assert writer.dropped == 3


LONG_HANDLER = """
import os, signal, sys
from hf_mpwriter import SummaryWriter
from hf_mpwriter.worker import worker
worker.HOUSEKEEPING_EVERY = worker.STUCK_AFTER = 0.0  # the handler takes longer than any housekeeping
writer = SummaryWriter(sys.argv[1])
def handle(*_):
    for step in range(3):
        writer.add_scalar("handled", 1.0, step)
signal.signal(signal.SIGUSR1, handle)
check = worker.Worker._rejoin
def interrupted(self):
    worker.Worker._rejoin = check
    os.kill(os.getpid(), signal.SIGUSR1)
    check(self)
worker.Worker._rejoin = interrupted
writer.add_scalar("loss", 1.0, 1)
print(worker.Worker._rejoin is check)
"""


def test_housekeeping_that_is_interrupted_for_long_raises_nothing(tmp_path):
    """A handler saves a checkpoint for minutes and logs: others keep house meanwhile, the interrupted one ends well."""
    assert succeed(LONG_HANDLER, tmp_path / "run") == "True\n"


INTERRUPTED = """
import os, signal, sys
from hf_mpwriter import SummaryWriter
from hf_mpwriter.system import disk
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in the background of a shell
rename = disk.rename
def interrupted(*arguments):
    disk.rename = rename
    os.kill(os.getpid(), signal.SIGINT)
    rename(*arguments)
disk.rename = interrupted
try:
    SummaryWriter(sys.argv[1])
except KeyboardInterrupt:
    SummaryWriter(sys.argv[1]).add_scalar("loss", 1.0, 1)
print(*(name for name in os.listdir(sys.argv[1]) if not name.startswith(".")))
"""


def test_an_interrupt_while_a_process_joins_costs_no_name(tmp_path):
    """Control-C in a notebook, and the cell again: what is logged goes where it would have gone."""
    (name,) = succeed(INTERRUPTED, tmp_path / "run").split()
    assert "tfevents" in name


REMOVED = """
import shutil, sys
from hf_mpwriter import HFSummaryWriter
writer = HFSummaryWriter("me/run", logdir=sys.argv[1])
writer.close()
shutil.rmtree(sys.argv[1])
writer._worker.keep_house()
"""


def test_a_run_directory_that_was_removed_stays_so(tmp_path):
    """A temporary directory is over before the process is: housekeeping at its end must not bring it back."""
    succeed(REMOVED, tmp_path / "run")
    assert not (tmp_path / "run").exists()
