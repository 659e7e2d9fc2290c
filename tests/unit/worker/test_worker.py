"""The worker: what never raises into training, and never blocks it."""

from __future__ import annotations

from programs import succeed
from runs import run

from hf_mpwriter import SummaryWriter
from hf_mpwriter.daemon.election import Election
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import process_state
from hf_mpwriter.system.directory import Directory
from hf_mpwriter.worker.mirroring import Mirroring


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
    start(source, tmp_path / "runs").succeed()


CLOSED_UNDER_A_LOCK = """
import logging, os, signal, sys, threading
from hf_mpwriter import SummaryWriter
writer = SummaryWriter(sys.argv[1], memory_limit=0)
inside, closing = threading.Event(), threading.Event()
class Handler(logging.Handler):
    def emit(self, record):
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            closing.wait()
        writer.add_text("log", record.getMessage())
def close(*_):
    closing.set()
    writer.close()
signal.signal(signal.SIGTERM, close)
home = writer._worker.files
directory = home.directory
def refuse():
    raise OSError("refused")
def refuse_and_be_interrupted():
    home.directory = directory
    other.start()
    inside.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    raise OSError("refused")
home.directory = refuse
writer.add_scalar("a", 1.0, 1)
logging.getLogger().addHandler(Handler())
home.directory = refuse_and_be_interrupted
other = threading.Thread(target=lambda: logging.getLogger("user").warning("hello"), daemon=True)
writer.flush()  # the disk is tried again, at the next record
writer.add_scalar("a", 1.0, 2)
other.join()
print("closed")
"""


def test_a_log_handler_that_logs_events_and_a_close_that_warns_do_not_wait_for_each_other(tmp_path, start):
    """A signal handler closes inside a write: what was dropped is logged after the lock of that write is released."""
    code, out, err = start(CLOSED_UNDER_A_LOCK, tmp_path / "run").finish()
    assert (code, out) == (0, "closed\n"), err


UNDER_HOUSEKEEPING = """
import logging, sys
from hf_mpwriter import SummaryWriter
from hf_mpwriter.system import process_state
writer = SummaryWriter(sys.argv[1])
class Handler(logging.Handler):
    def emit(self, record):
        print(record.getMessage().partition(": ")[2], process_state.is_any_held())
logging.getLogger().addHandler(Handler())
def fail(*_):
    raise OSError("no housekeeping")
writer._worker.membership.rejoin = fail
writer._worker.keep_house()
"""


def test_housekeeping_warns_after_it(tmp_path):
    """A log handler that takes its time does not keep others from keeping house."""
    assert succeed(UNDER_HOUSEKEEPING, tmp_path / "run") == "no housekeeping False\n"


def test_what_is_dropped_stands_in_the_member_file_while_the_worker_lives(run_dir):
    """`hf-mpwriter status` shows it without asking the process; `writer.dropped` is the same."""
    from hf_mpwriter import SummaryWriter
    from hf_mpwriter.spool.workers.members import Members

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
    assert "lost: 3 records of main" in run("status", run_dir).stdout
    writer.flush()
    writer.add_scalar("a", 1.0, 3)
    writer.close()
    assert writer.dropped == 3


LONG_HANDLER = """
import os, signal, sys
from hf_mpwriter import SummaryWriter
from hf_mpwriter.worker import worker
worker.STUCK_AFTER = 0.0  # the handler takes longer than any housekeeping
os.environ["HF_MPWRITER_TIMING"] += " housekeeping_every=0"
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


def test_a_local_run_asks_for_no_process_when_it_keeps_house(tmp_path, monkeypatch):
    """Without system metrics nothing is started, so nothing is to be collected: process 1 would read files for that."""
    asked = []
    monkeypatch.setattr(Election, "reap", lambda one: bool(asked.append(one)))
    monkeypatch.setattr(Mirroring, "keep_house", lambda mirroring: bool(asked.append(mirroring)))
    with SummaryWriter(str(tmp_path / "run")) as writer:
        writer.add_scalar("loss", 0.5, 1)
        writer._worker.keep_house()
    assert asked == []
    monkeypatch.setattr(Election, "_start_if_free", lambda *_: True)
    with SummaryWriter(str(tmp_path / "other"), system_metrics=True) as writer:
        writer.add_scalar("loss", 0.5, 1)
        assert asked, "one that was started is collected"


def test_the_path_of_the_run_is_looked_at_without_a_lock(tmp_path, monkeypatch):
    """A signal handler may log meanwhile, and wait for a thread that opens its first event file."""
    writer = SummaryWriter(tmp_path)
    held, look = [], Directory.is_at_path
    monkeypatch.setattr(Directory, "is_at_path", lambda self: held.append(process_state.is_any_held()) or look(self))
    writer._worker.try_to_join()
    monkeypatch.undo()
    writer.close()
    assert held
    assert not any(held)
