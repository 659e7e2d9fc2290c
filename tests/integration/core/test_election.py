"""The election with real uploaders: one uploader lock, handed over without a gap."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys

import pytest
from programs import DEADLINE, wait_for
from runs import uploaders
from supervised import NAMESPACE, why_no_namespace

from hf_mpwriter.daemon.election import Election
from hf_mpwriter.daemon.starts import uploader_start
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.system import locks
from hf_mpwriter.system.process import host_id
from hf_mpwriter.uploader.meeting import folder_of

CONTEND = """
import os, sys
from hf_mpwriter.daemon.election import Election
from hf_mpwriter.daemon.starts import uploader_start
from hf_mpwriter.spool.layout import Spool
ready, is_ready = os.pipe()
go, start = os.pipe()
contenders = []
for _ in range(32):
    contenders.append(os.fork())
    if not contenders[-1]:
        os.close(start)
        spool = Spool(sys.argv[1])
        one, record = Election(spool, "uploader"), uploader_start(spool, spool.destination(), 1.0)
        os.write(is_ready, b".")
        os.read(go, 1)  # all at once, when the parent closes its end
        os.write(1, b"%d\\n" % one.ensure(record))
        while one.reap():
            pass
        os._exit(0)
for _ in contenders:
    assert os.read(ready, 1) == b"."
os.close(start)
assert all(os.waitpid(pid, 0)[1] == 0 for pid in contenders)
"""


def test_of_many_contenders_one_starts_an_uploader(spool, start):
    """32 processes ensure an uploader at the same moment: one of them starts an uploader, the rest go on at once."""
    from hf_mpwriter.base.settings import Settings
    from hf_mpwriter.spool.workers.members import MemberFile
    from hf_mpwriter.system.process import Process

    member_file = MemberFile(
        spool, "main", Process.current(), Settings()
    )  # it keeps the uploader alive while the others try
    answers = start(CONTEND, spool.run_dir).succeed().split()
    assert sorted(answers) == ["0"] * 31 + ["1"]
    member_file.leave()
    wait_for(lambda: not locks.is_held(spool.uploader_lock), "the uploader leaves")


RANK_OF_MANY_NODES = """
import sys, time
from hf_mpwriter import HFSummaryWriter
writer = HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=0)
writer.add_scalar("loss", 1.0, 0)
writer.scheduler.trigger()
step = 1
while True:
    writer.add_scalar("loss", 1.0, step)
    step += 1
    time.sleep(0.1)
"""


def test_the_uploader_knows_how_many_nodes_the_job_of_its_worker_has(run_dir, start):
    """It has no environment of a rank of its own to ask: the worker that starts it hands the number over."""
    several = {"RANK": "3199", "LOCAL_RANK": "1", "WORLD_SIZE": "3200", "LOCAL_WORLD_SIZE": "2"}
    env = several | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_MPWRITER_COMMITS_PER_HOUR": "2"}
    rank = start(RANK_OF_MANY_NODES, run_dir, env=env)
    host = Spool(str(run_dir)).host(host_id())

    def notices() -> list[str]:
        return [notice.text for notice in UploaderStatus.read(host).notices]

    try:
        wait_for(lambda: any("1600 nodes share the 2 commits per hour" in text for text in notices()), "it says so")
        wait_for(lambda: UploaderStatus.read(host).blocked_for > 60, "it waits for its share")
    finally:
        rank.process.kill()
        rank.process.wait()
        for pid in uploaders(str(run_dir)):
            os.kill(pid, signal.SIGKILL)


def test_the_uploader_lock_is_held_when_ensure_returns(spool):
    """There is no gap between the worker's lock and the uploader's."""
    one, record = Election(spool, "uploader"), uploader_start(spool, spool.destination(), 1.0)
    assert one.ensure(record)
    assert locks.is_held(spool.uploader_lock)
    assert not one.ensure(record)
    wait_for(lambda: not one.reap(), "the first half ends and is collected")
    wait_for(lambda: not locks.is_held(spool.uploader_lock), "the uploader finds no member and leaves")


def opened_by(pid: int) -> set[str]:
    """What the descriptors of a process are opened on."""
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # it was open for a moment
            name = os.readlink(f"/proc/{pid}/fd/{fd}")
            found.add("a socket" if name.startswith("socket:") else name)
    return found


def test_the_uploader_inherits_only_what_it_is_given(spool, tmp_path):
    """A descriptor without close-on-exec is closed in the uploader, which has a session of its own."""
    low = os.open(tmp_path / "leak", os.O_WRONLY | os.O_CREAT)
    leak, limits = os.dup2(low, 500), resource.getrlimit(resource.RLIMIT_NOFILE)
    os.set_inheritable(low, True)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, limits[1]))  # one may be above what is allowed since
    from hf_mpwriter.base.settings import Settings
    from hf_mpwriter.delivery.sinks import HubSink
    from hf_mpwriter.spool.workers.members import MemberFile
    from hf_mpwriter.system.process import Process

    member_file = MemberFile(spool, "main", Process.current(), Settings())
    try:
        assert Election(spool, "uploader").ensure(uploader_start(spool, spool.destination(), 1.0))
        pid = wait_for(lambda: HubSink(spool).status().pid, "its first status")
        wait_for(lambda: uploaders(spool.run_dir) == {pid}, "other tests find uploaders this way; its starter has left")
        log = str(spool.host(next(iter(spool.host_ids()))).daemon("uploader").log)
        fixed = {3: str(spool.uploader_lock), 5: spool.run_dir, 6: spool.root}
        assert {fd: os.readlink(f"/proc/{pid}/fd/{fd}") for fd in fixed} == fixed
        place = str(folder_of(os.environ))
        meeting = {place, os.path.dirname(place), "anon_inode:[eventpoll]"}
        known = {"/dev/null", log, *fixed.values(), str(spool.members), *meeting}
        wait_for(lambda: opened_by(pid) - known == {"a socket"}, "nothing stays open but the end of the meeting")
        assert os.getsid(pid) != os.getsid(0)
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        os.kill(pid, signal.SIGKILL)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        os.close(low)
        os.close(leak)
        member_file.withdraw()


FIRST_PROCESS = """
import os, signal, sys, time
from pathlib import Path
from hf_mpwriter import HFSummaryWriter
from hf_mpwriter.spool import status as starts
from hf_mpwriter.delivery.sinks import HubSink
starts.STARTS_LIMIT, kills = 1000, int(sys.argv[2])
os.environ["HF_MPWRITER_TIMING"] += " housekeeping_every=0"
assert os.getpid() == 1
writer = HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=0)
if not (rank := os.fork()):  # a rank that starts uploaders, too
    while True:
        writer.add_scalar("loss", 1.0, 0)
        time.sleep(0.05)
users = os.spawnv(os.P_NOWAIT, "/bin/sh", ["sh", "-c", "exit 7"])
view, killed = HubSink(writer._worker.spool), set()
def step():
    writer.add_scalar("loss", 1.0, 1)
    time.sleep(0.01)
while len(killed) < kills:
    step()
    status = view.status()
    if status.pid and status.phase != "left" and status.pid not in killed and Path(f"/proc/{status.pid}").exists():
        step()
        os.kill(status.pid, signal.SIGKILL)
        killed.add(status.pid)
def zombies():
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] == "Z" and int(name) != users:
            found.append(int(name))
    return found
def left():  # one that was killed a moment ago is no zombie yet
    return [pid for pid in killed if Path(f"/proc/{pid}").exists()] or zombies()
end = time.monotonic() + 150
while (pids := left()) and time.monotonic() < end:
    step()
print(pids, os.waitstatus_to_exitcode(os.waitpid(users, 0)[1]), flush=True)
os._exit(0)
"""


@pytest.mark.root
@pytest.mark.skipif(bool(why_no_namespace()), reason=why_no_namespace() or "-")
def test_training_that_is_process_1_collects_its_uploaders_and_no_child_of_the_user(hub, run_dir):
    """As in a container without an init: whichever rank started an uploader, no zombie is left; exit codes are kept."""
    command = [*NAMESPACE, sys.executable, "-c", FIRST_PROCESS, str(run_dir), "4"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert (result.returncode, result.stdout) == (0, "[] 7\n"), result.stderr
