"""The election: one seat, handed over with its lock; failures are backed off and never raised."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import wait_for
from support import run_python

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Refused, Retry
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import launch, locks
from hf_mpwriter.system.process import host_id
from hf_mpwriter.worker import election
from hf_mpwriter.worker.election import Election, unfinished_siblings


@pytest.fixture
def spool(tmp_path):
    """A spool with a destination where nobody listens."""
    spool = Spool(str(tmp_path / "run"))
    spool.create()
    spool.record_destination(Destination("http://127.0.0.1:9", "me/run"))
    return spool


CONTEND = """
import os, sys
from hf_mpwriter.worker.election import Election
from hf_mpwriter.spool.layout import Spool
one = Election(Spool(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
print(one.look(), flush=True)
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
    assert one.look()
    assert locks.is_held(spool.uploader_lock)
    assert not one.look()
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
        assert Election(spool).look()
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


def test_an_uploader_that_cannot_start_is_told_once_and_tried_again_later(spool, monkeypatch, caplog):
    """A broken interpreter: one warning, no exception, longer and longer pauses, no lock kept."""
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    now = [1000.0]
    one = Election(spool, clock=lambda: now[0])
    tries = 0
    with caplog.at_level(logging.WARNING):
        for _ in range(600):
            quiet = one._quiet_until
            assert not one.look()
            tries += one._quiet_until != quiet
            now[0] += 1.0
    assert len(caplog.records) == 1
    assert tries <= 10, "5 s, 10 s, 20 s ... up to 5 min"
    assert not locks.is_held(spool.uploader_lock)
    monkeypatch.undo()
    now[0] += election.LONGEST_BACKOFF
    assert one.look(), "the cause is gone"
    wait_for(lambda: not one.reap() and not locks.is_held(spool.uploader_lock), "it finds nobody and leaves")
    monkeypatch.setattr(sys, "executable", None)  # as in a program that embeds Python
    assert not one.look()
    assert len(caplog.records) == 2, "another trouble is told again"


def test_uploaders_that_die_at_once_are_not_started_for_ever(spool, monkeypatch, caplog):
    """Three starts in a minute, then longer and longer pauses: an interpreter that always fails is no fork bomb."""
    monkeypatch.setattr(launch, "UPLOADER_BOOT", "raise SystemExit(1)")
    now = [1000.0]
    one = Election(spool, clock=lambda: now[0])
    starts = 0
    with caplog.at_level(logging.WARNING):
        for _ in range(1200):
            starts += one.look()
            wait_for(lambda: not one.reap(), "it ends")
            now[0] += 1.0
    assert starts <= election.STARTS_LIMIT + 10, "5 s, 10 s, 20 s ... up to 5 min"
    assert len(caplog.records) == 1


def test_uploaders_that_do_their_work_and_leave_are_started_as_often_as_needed(spool, caplog):
    """Many short runs one after the other: an uploader that left in good order is no trouble."""
    one = Election(spool)
    with caplog.at_level(logging.WARNING):
        for _ in range(election.STARTS_LIMIT + 2):
            assert one.look()
            wait_for(lambda: not one.reap() and not locks.is_held(spool.uploader_lock), "it finds nobody and leaves")
    assert caplog.records == []


WITHOUT_PROCESSES = """
import logging, os, resource, sys
from hf_mpwriter.worker.election import Election
from hf_mpwriter.system.process import host_id
from hf_mpwriter.spool.layout import Spool
host_id()  # nobody may import what is still missing
os.setgroups([]); os.setgid(65534); os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
logging.basicConfig()
one = Election(Spool(sys.argv[1]))
print([one.look() for _ in range(3)])
"""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else, and root has no limit")
def test_a_user_without_processes_to_spare_goes_on():
    """`ulimit -u` is reached: one warning, no exception, no lock kept."""
    with tempfile.TemporaryDirectory() as place:  # pytest's own are for root only
        spool = Spool(os.path.join(place, "run"))
        spool.create()
        for directory, _, names in os.walk(place):
            for path in [directory, *(os.path.join(directory, name) for name in names)]:
                os.chown(path, 65534, 65534)
        result = run_python(WITHOUT_PROCESSES, spool.run_dir)
        assert (result.returncode, result.stdout) == (0, "[False, False, False]\n"), result.stderr
        assert result.stderr.count("cannot start an uploader: [Errno 11]") == result.stderr.count("\n") == 1
        assert not locks.is_held(spool.uploader_lock)


def test_a_parent_that_cannot_be_listed_has_no_runs():
    """Else each look would end there, before the user is told what the uploader has to say."""
    assert unfinished_siblings(Spool("/nowhere/run"), Destination("http://hub", "me/run")) == []


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
    teller.publish(phase=phase, repo_id="", queue=0, push=None, commits=0, blocked_until=0.0)
    report = json.loads(Path(host.status).read_text())
    Path(host.status).write_text(json.dumps(report | {"beat": report["beat"] - age}))
    for born, expected in ((1000.0, starts), (1000.5, True)):
        one = Election(spool, token_issued_at=born)
        assert one.look() is expected
        if not expected:
            assert not locks.is_held(spool.uploader_lock)
        else:
            wait_for(lambda one=one: not one.reap() and not locks.is_held(spool.uploader_lock), "it finds nobody and leaves")
            return


def test_the_token_reaches_the_uploader_by_environment_only(spool):
    """Nothing of the token is in the argument list."""
    env = election.child_environment({"PATH": "/bin", "PYTHONSTARTUP": "x"}, "hf_secret")
    assert env["HF_TOKEN"] == "hf_secret"
    assert "PYTHONSTARTUP" not in env
    assert election.child_environment({"HF_TOKEN": "theirs"}, None)["HF_TOKEN"] == "theirs"
