"""The uploader and what surrounds it: logs, /proc, interpreters that print, processes that fork."""

from __future__ import annotations

import contextlib
import os
import signal
import ssl

import psutil
import pytest
from lives import HURRY, TAKES_THE_LOCK, grown, log_without_uploader
from programs import wait_for
from runs import acknowledged, check_oracle, finished, kill_uploaders, uploader_pid, uploaders

from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers.members import Members


def test_a_log_that_cannot_be_written_is_no_reason_to_end(hub, run_dir, start):
    """The disk is full from the first line on, and the uploader still works."""
    Spool(str(run_dir)).create()
    log_without_uploader(start, run_dir, 5)
    start(TAKES_THE_LOCK.format("os.dup2(os.open('/dev/full', os.O_WRONLY), 2)"), run_dir).finish()
    assert finished(run_dir)
    assert [file.hub_events for file in check_oracle(run_dir, hub).files.values()] == [5]


def test_an_uploader_needs_no_proc(hub, run_dir, start):
    """A container may lack it: the priority may stay higher, but the uploader uploads and is still nice."""
    Spool(str(run_dir)).create()
    log_without_uploader(start, run_dir, 5)
    without = "import psutil; psutil.PROCFS_PATH = '/nowhere'"
    code, _, errors = start(TAKES_THE_LOCK.format(without), run_dir).finish()
    assert (code, "not as low as wanted" in errors) == (0, True), errors
    assert finished(run_dir)


CHILDREN = (
    HURRY
    + """
import contextlib, os, signal, subprocess, sys, threading, time
import psutil
from hf_mpwriter import HFSummaryWriter
def reap(*_):
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
def wait_for_ever():
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(0.001)
how = sys.argv[2]
if how == "ignored":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
elif how == "handled":
    signal.signal(signal.SIGCHLD, reap)
elif how == "waited for":
    threading.Thread(target=wait_for_ever, daemon=True).start()
with HFSummaryWriter("me/run", logdir=sys.argv[1], commit_every=0.01) as writer:
    step, end = 0, time.monotonic() + 150
    while time.monotonic() < end and not (writer.status().on_hub and not psutil.Process().children()):
        writer.add_scalar("loss", 1.0, step)
        step += 1
        time.sleep(0.01)
print(psutil.Process().children())
"""
)


def test_the_users_own_handling_of_children_does_no_harm(hub, tmp_path, start):
    """A wait for any child, a handler, or SIGCHLD ignored: no zombie, no error, all data arrives."""
    places = {how: tmp_path / "runs" / how for how in ("ignored", "handled", "waited for")}
    programs = [start(CHILDREN, place, how) for how, place in places.items()]
    for code, out, errors in [program.finish() for program in programs]:
        assert (code, out) == (0, "[]\n")
        assert "child process" not in errors
    for place in places.values():
        wait_for(lambda place=place: finished(place), "the uploader leaves")


FORKS = (
    HURRY
    + """
import contextlib, os, sys, threading, time
from hf_mpwriter import HFSummaryWriter
def fork():
    for number in range(10**6):
        if not os.fork():
            time.sleep(0 if number % 10 else 300)  # longer than its parent lives
            os._exit(0)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.005)
def reopen():
    for number in range(10**6):
        writer = HFSummaryWriter("me/run", logdir=sys.argv[1], commit_every=0.01)
        writer.add_scalar("forks", 1.0, number)
        time.sleep(0.1)
        writer.close()
threading.Thread(target=fork, daemon=True).start()
threading.Thread(target=reopen, daemon=True).start()
reopen()
"""
)


def test_a_thread_that_forks_all_the_time_does_no_harm(hub, run_dir, start):
    """Member files, claims and the uploader lock come and go: no deadlock, one uploader, no lock in a child."""
    worker = start(FORKS, run_dir)
    children: list[psutil.Process] = []
    try:
        for _ in range(2):
            pid = wait_for(lambda: uploader_pid(run_dir), "an uploader")
            wait_for(grown(run_dir, acknowledged(run_dir)), "a commit")
            kill_uploaders(run_dir)
            wait_for(lambda pid=pid: uploader_pid(run_dir) not in (0, pid), "another one")
        wait_for(lambda: len(uploaders(run_dir)) == 1, "one uploader; a push looks like one as it starts")
        os.kill(worker.pid, signal.SIGSTOP)
        children = psutil.Process(worker.pid).children()
        os.kill(worker.pid, signal.SIGKILL)
        worker.process.wait()
        assert any(child.is_running() for child in children), "they outlive it"
        members = Members(Spool(str(run_dir)))
        wait_for(lambda: not any(member.alive for member in members.all()), "a child that was just forked lets go")
        wait_for(lambda: finished(run_dir), "all data arrives")
        assert any(child.is_running() for child in children)
    finally:
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    check_oracle(run_dir, hub)


MOVES = """
import os, sys
os.chdir(sys.argv[2])
from hf_mpwriter import HFSummaryWriter
before = dict(os.environ)
with HFSummaryWriter("me/run", logdir=sys.argv[1]) as writer:
    os.chdir(sys.argv[3])
    writer.add_scalar("loss", 1.0, 1)
assert dict(os.environ) == before
"""
RELATIVE = {
    "HF_HOME": "cache",
    **dict.fromkeys(("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ASSETS_CACHE"), "hub"),
    **dict.fromkeys(("HF_XET_CACHE", "HF_STORED_TOKENS_PATH", "PYTHONPYCACHEPREFIX"), "cache"),
    **dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"), "ca.pem"),
    **dict.fromkeys(("TMPDIR", "SSL_CERT_DIR"), "tmp"),
    "SSLKEYLOGFILE": "keys",
    "HF_XET_LOG_DEST": "xet.log",
}


def test_relative_paths_in_the_environment_are_those_of_the_start(hub, run_dir, tmp_path, start, monkeypatch):
    """The token is found, caches are where the program started, and nothing is made where it goes, or in the root."""
    here, there, root = tmp_path / "here", tmp_path / "there", set(os.listdir("/"))
    for directory in (here / "tmp", here / "cache", there):
        directory.mkdir(parents=True)
    (here / "cache" / "token").write_text("hf_right")
    known = ssl.create_default_context().get_ca_certs(binary_form=True)
    (here / "ca.pem").write_text("".join(map(ssl.DER_cert_to_PEM_cert, known[:1])))
    hub.set_token("hf_right")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "")
    monkeypatch.chdir(here)  # the interpreter writes bytecode before the program runs
    start(MOVES, run_dir, here, there, env=RELATIVE).succeed()
    wait_for(lambda: finished(run_dir), "all is sent")
    check_oracle(run_dir, hub)
    assert (os.listdir(there), set(os.listdir("/")) - root) == ([], set())
    assert not list(run_dir.glob(".hf_mpwriter/hosts/*/cache")), "the user's own can be written"


HOMELESS = """
import ctypes, os, sys
libc, READ = ctypes.CDLL(None), 2
libc.prctl(8, 1)  # the interpreter may be where only root can read: the right to read everything is kept
os.setgroups([]); os.setgid(4711); os.setuid(4711)
libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(1 << READ, 1 << READ, 1 << READ, 0, 0, 0))
assert libc.prctl(47, 2, READ, 0, 0) == 0
for name in set(os.environ) - {"HF_ENDPOINT", "PYTHONPATH", "HF_TOKEN"}:
    del os.environ[name]
os.environ |= {"PYTHONDONTWRITEBYTECODE": "1"}
from hf_mpwriter import HFSummaryWriter
with HFSummaryWriter("me/run", logdir=sys.argv[1]) as writer:
    writer.add_scalar("loss", 1.0, 1)
"""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_without_entry_and_home_needs_neither(hub, open_place, start):
    """`env -i` and a uid that the system does not know, as in a container: caches are the spool's own."""
    run_dir, root = open_place / "exp1", set(os.listdir("/"))
    run_dir.mkdir()
    os.chown(run_dir, 4711, 4711)
    start(HOMELESS, run_dir).succeed()
    wait_for(lambda: finished(run_dir), "all is sent")
    check_oracle(run_dir, hub)
    assert set(os.listdir("/")) - root == set()
    assert {name for path in run_dir.glob(".hf_mpwriter/hosts/*") for name in os.listdir(path)} >= {"cache"}
    (log,) = run_dir.glob(".hf_mpwriter/hosts/*/uploader.log")
    assert "RecursionError" not in log.read_text()
