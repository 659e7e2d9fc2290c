"""The election with real uploaders: one seat, handed over with its lock."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from pathlib import Path

import pytest
from programs import wait_for

from hf_mpwriter.base.verdicts import Refused, Retry
from hf_mpwriter.system import locks
from hf_mpwriter.system.process import host_id
from hf_mpwriter.worker import election
from hf_mpwriter.worker.election import Election

CONTEND = """
import os, sys
from hf_mpwriter.worker.election import Election
from hf_mpwriter.spool.layout import Spool
one = Election(Spool(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
print(one.ensure_uploader(), flush=True)
while one.reap():
    pass
"""


def test_of_many_contenders_one_starts_an_uploader(spool):
    """32 processes look at the same moment: one of them starts an uploader, the others go on at once."""
    import subprocess

    contenders = [
        subprocess.Popen(
            [sys.executable, "-c", CONTEND, spool.run_dir], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(32)
    ]
    for contender in contenders:
        assert contender.stdout.readline() == "ready\n"
    # a member keeps the uploader in its uploader lock while the others look
    from hf_mpwriter.base.settings import Settings
    from hf_mpwriter.spool.members import MemberFile
    from hf_mpwriter.system.process import Process

    card = MemberFile(spool, "main", Process.current(), Settings())
    for contender in contenders:
        contender.stdin.write("go\n")
        contender.stdin.flush()
    answers = [contender.communicate(timeout=60)[0].strip() for contender in contenders]
    assert sorted(answers) == ["False"] * 31 + ["True"]
    card.leave(0)
    wait_for(lambda: not locks.is_held(spool.uploader_lock), "the uploader leaves")


def test_the_seat_is_taken_from_the_moment_of_the_look(spool):
    """No gap between the worker's lock and the uploader's: the uploader lock is held when `look` returns."""
    one = Election(spool)
    assert one.ensure_uploader()
    assert locks.is_held(spool.uploader_lock)
    assert not one.ensure_uploader()
    wait_for(lambda: not one.reap(), "the first half ends and is collected")
    wait_for(lambda: not locks.is_held(spool.uploader_lock), "the uploader finds nobody and leaves")


def test_the_uploader_inherits_only_the_seat(spool, tmp_path):
    """A descriptor without close-on-exec does not live on in the uploader; it is nobody's child, in its own session."""
    low = os.open(tmp_path / "leak", os.O_WRONLY | os.O_CREAT)
    leak, limits = os.dup2(low, 500), resource.getrlimit(resource.RLIMIT_NOFILE)
    os.set_inheritable(low, True)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, limits[1]))  # one may be above what is allowed since
    from hf_mpwriter.base.settings import Settings
    from hf_mpwriter.spool.members import MemberFile
    from hf_mpwriter.spool.progress import Progress
    from hf_mpwriter.system.process import Process

    card = MemberFile(spool, "main", Process.current(), Settings())
    try:
        assert Election(spool).ensure_uploader()
        pid = wait_for(lambda: Progress(spool).uploader().pid, "its first report")
        paths = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        log = spool.host(next(iter(spool.host_ids()))).log
        assert paths - {"/dev/null", log, spool.uploader_lock, spool.members} == set()
        assert os.getsid(pid) != os.getsid(0)
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        os.kill(pid, signal.SIGKILL)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        os.close(low)
        os.close(leak)
        card.withdraw()


def test_uploaders_that_do_their_work_and_leave_are_started_as_often_as_needed(spool, caplog):
    """Many short runs one after the other: an uploader that left in good order is no trouble."""
    one = Election(spool)
    with caplog.at_level(logging.WARNING):
        for _ in range(election.STARTS_LIMIT + 2):
            assert one.ensure_uploader()
            wait_for(lambda: not one.reap() and not locks.is_held(spool.uploader_lock), "it finds nobody and leaves")
    assert caplog.records == []


@pytest.mark.parametrize(
    ("phase", "kind", "age", "starts"),
    [
        ("left", "Refused", 0.0, False),
        ("left", "Refused", election.LONGEST_BACKOFF, True),  # nobody younger has come: try again
        ("left", "Refused", -3600.0, True),  # the clock was set
        ("left", "Retry", 0.0, True),
        ("waiting", "Refused", 0.0, True),  # it was killed
    ],
)
def test_who_is_no_younger_than_a_refused_token_leaves_the_seat_to_others(spool, phase, kind, age, starts):
    """Known from the last report; a younger worker starts one at once."""
    from hf_mpwriter.spool.status import StatusFile
    from hf_mpwriter.system.process import Process

    host = spool.host(host_id())
    os.makedirs(host.root)
    teller = StatusFile(host, Process.current(), lambda: 0.0, token_issued_at=1000.0)
    teller.complain({"Refused": Refused("no", ""), "Retry": Retry("no")}[kind], 1)
    teller.publish(phase=phase, repo_id="", waiting=0, push=None, commits=0, blocked_until=0.0)
    report = json.loads(Path(host.status).read_text())
    Path(host.status).write_text(json.dumps(report | {"beat": report["beat"] - age}))
    for born, expected in ((1000.0, starts), (1000.5, True)):
        one = Election(spool, token_issued_at=born)
        assert one.ensure_uploader() is expected
        if not expected:
            assert not locks.is_held(spool.uploader_lock)
        else:
            wait_for(
                lambda one=one: not one.reap() and not locks.is_held(spool.uploader_lock), "it finds nobody and leaves"
            )
            return
