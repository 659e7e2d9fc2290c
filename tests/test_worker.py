"""The worker: what never raises into training, never blocks it, and never tells a token to strangers."""

from __future__ import annotations

import os
import socket

import pytest
from conftest import wait_for
from support import succeed
from test_cli import run

from hf_mpwriter.base.errors import SettingsError
from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.members import MemberFile
from hf_mpwriter.system.process import Process

LOG = """
import sys
from hf_mpwriter import HFSummaryWriter
{before}
writer = HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=0)
writer.add_scalar("loss", 1.0, 1)
{after}
writer.add_scalar("loss", 2.0, 2)
print("trained")
"""


def unfinished(path, endpoint) -> Spool:
    """A run directory with a card of somebody who is dead."""
    spool = Spool(str(path))
    spool.create()
    spool.record_destination(Destination(endpoint, "me/other"))
    MemberFile(spool, "main", Process.current(), Settings()).leave(0)
    return spool


@pytest.mark.parametrize("whose", ["for another Hub", "of another user", "open to others"])
def test_an_uploader_for_a_strange_run_beside_ours_is_not_started(tmp_path, start, monkeypatch, whose):
    """It would carry the user's token to an endpoint that somebody else has written down."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        strange = f"http://127.0.0.1:{listener.getsockname()[1]}"
        other = unfinished(tmp_path / "runs" / "b", strange if whose == "for another Hub" else "http://127.0.0.1:9")
        if whose == "of another user":
            if os.geteuid():
                pytest.skip("only root can give a directory away")
            os.chown(other.root, 65534, 65534)
        elif whose == "open to others":
            os.chmod(other.root, 0o777)  # noqa: S103 - that is what must be noticed
        start(LOG.format(before="", after=""), tmp_path / "runs" / "a").succeed()
        assert not os.path.exists(other.uploader_lock)
        assert other.host_ids() == []


def test_an_unfinished_run_of_ours_beside_it_is_finished(hub, tmp_path, start):
    """A run that crashed under another name: the next start in the same folder uploads it."""
    dead = start(LOG.format(before="", after="import os; os._exit(1)"), tmp_path / "runs" / "dead")
    dead.finish()
    other = Spool(str(tmp_path / "runs" / "dead"))
    for pid in [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if holds(pid, other.run_dir)]:
        os.kill(pid, 9)
    wait_for(lambda: not any(holds(int(p), other.run_dir) for p in os.listdir("/proc") if p.isdecimal()), "it is dead")
    if not other.is_unfinished(hub.endpoint):
        pytest.skip("its uploader was faster than the kill")
    start(LOG.format(before="", after=""), tmp_path / "runs" / "next").succeed()
    wait_for(lambda: not os.listdir(other.members), "the card of the dead is served")


def holds(pid: int, run_dir: str) -> bool:
    """Whether a process is the uploader of a run directory."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            line = file.read()
    except OSError:
        return False
    return b"uploader.main" in line and os.fsencode(run_dir) in line


def test_a_token_that_is_no_string_is_refused(tmp_path):
    """In the constructor, not in the first look."""
    from hf_mpwriter import HFSummaryWriter

    with pytest.raises(SettingsError, match="token must be a string"):
        HFSummaryWriter("me/run", logdir=str(tmp_path / "run"), token=True)


@pytest.mark.parametrize(
    "trouble",
    [
        "sys.path.append(None)",
        "sys.executable = '/nonexistent'",
        "import shutil; shutil.rmtree(sys.argv[1] + '/.hf_mpwriter')",
        "import shutil; shutil.rmtree(sys.argv[1] + '/.hf_mpwriter'); open(sys.argv[1] + '/.hf_mpwriter', 'w')",
        "from hf_mpwriter.system import launch; launch.start_uploader = None",
    ],
)
def test_no_trouble_of_ours_is_raised_into_training(tmp_path, start, monkeypatch, trouble):
    """Whatever happens to interpreter, path, spool or election: training goes on and ends well."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    hurry = "import hf_mpwriter.worker.worker as worker; worker.LOOK_EVERY = 0.0\n"
    assert "trained" in start(LOG.format(before=hurry, after=trouble), tmp_path / "run").succeed()


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


def test_what_is_dropped_stands_on_the_card_while_the_worker_lives(run_dir):
    """Whoever looks after the run sees it without asking the process; `writer.dropped` says the same."""
    from hf_mpwriter import SummaryWriter
    from hf_mpwriter.spool.layout import Spool
    from hf_mpwriter.spool.members import Members

    writer = SummaryWriter(run_dir, memory_limit=0)
    file = writer.file_writer.event_writer.file

    def refuse() -> str:
        raise OSError("refused")

    file._locate, locate = refuse, file._locate
    for step in range(3):
        writer.add_scalar("a", 1.0, step)
    file._locate = locate
    writer._worker.look()
    (member,) = Members(Spool(str(run_dir))).members()
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
worker.LOOK_EVERY = worker.STUCK_AFTER = 0.0  # the handler takes longer than any look
writer = SummaryWriter(sys.argv[1])
def handle(*_):
    for step in range(3):
        writer.add_scalar("handled", 1.0, step)
signal.signal(signal.SIGUSR1, handle)
check = worker.Worker._check_card
def interrupted(self):
    worker.Worker._check_card = check
    os.kill(os.getpid(), signal.SIGUSR1)
    check(self)
worker.Worker._check_card = interrupted
writer.add_scalar("loss", 1.0, 1)
print(worker.Worker._check_card is check)
"""


def test_a_look_that_is_interrupted_for_long_raises_nothing(tmp_path):
    """A handler saves a checkpoint for minutes and logs: others look meanwhile, the interrupted look ends well."""
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


def test_a_destination_that_could_not_be_written_again_is_written_later(hub, run_dir, start):
    """The spool is removed, and the disk refuses run.json when it is made anew: without it no uploader would stay."""
    after = """
import os, shutil
from hf_mpwriter.system import disk
spool = writer._worker.spool
shutil.rmtree(spool.root)
disk._failpoints["spool.run.write"] = ("enospc", 1)
writer._worker.look()
assert spool.exists() and not spool.has_destination()
writer._worker.look()
assert spool.has_destination()
"""
    start(LOG.format(before="", after=after), run_dir).succeed()
    wait_for(lambda: not os.listdir(Spool(str(run_dir)).members), "everything is on the Hub, the card removed")


REMOVED = """
import shutil, sys
from hf_mpwriter import HFSummaryWriter
writer = HFSummaryWriter("me/run", logdir=sys.argv[1])
writer.close()
shutil.rmtree(sys.argv[1])
writer._worker.look()
"""


def test_a_run_directory_that_was_removed_stays_so(tmp_path):
    """A temporary directory is over before the process is: the look at its end must not bring it back."""
    succeed(REMOVED, tmp_path / "run")
    assert not (tmp_path / "run").exists()
