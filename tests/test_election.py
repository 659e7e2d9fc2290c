"""The election: one seat, handed over with its lock; failures are backed off and never raised."""

from __future__ import annotations

import logging
import os
import signal
import sys

import pytest
from conftest import wait_for

from hf_mpwriter import election, locks
from hf_mpwriter.election import Election
from hf_mpwriter.settings import Destination
from hf_mpwriter.spool import Spool


@pytest.fixture
def spool(tmp_path):
    """A spool with a destination where nobody listens."""
    spool = Spool(str(tmp_path / "run"))
    spool.create()
    spool.record_destination(Destination("http://127.0.0.1:9", "me/run"))
    return spool


CONTEND = """
import os, sys
from hf_mpwriter.election import Election
from hf_mpwriter.spool import Spool
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
    # a member keeps the uploader in its seat while the others look
    from hf_mpwriter.identity import Process
    from hf_mpwriter.roster import Card
    from hf_mpwriter.settings import Settings

    card = Card(spool, "main", Process.current(), Settings())
    for contender in contenders:
        contender.stdin.write("go\n")
        contender.stdin.flush()
    answers = [contender.communicate(timeout=60)[0].strip() for contender in contenders]
    assert sorted(answers) == ["False"] * 31 + ["True"]
    card.leave(0)
    wait_for(lambda: not locks.is_held(spool.seat), "the uploader leaves")


def test_the_seat_is_taken_from_the_moment_of_the_look(spool):
    """No gap between the worker's lock and the uploader's: the seat is held when `look` returns."""
    one = Election(spool)
    assert one.look()
    assert locks.is_held(spool.seat)
    assert not one.look()
    wait_for(lambda: not one.reap(), "the first half ends and is collected")
    wait_for(lambda: not locks.is_held(spool.seat), "the uploader finds nobody and leaves")


def test_the_uploader_inherits_only_the_seat(spool, tmp_path):
    """A descriptor without close-on-exec does not live on in the uploader; it is nobody's child, in its own session."""
    leak = os.open(tmp_path / "leak", os.O_WRONLY | os.O_CREAT)
    os.set_inheritable(leak, True)
    from hf_mpwriter.identity import Process
    from hf_mpwriter.progress import Progress
    from hf_mpwriter.roster import Card
    from hf_mpwriter.settings import Settings

    card = Card(spool, "main", Process.current(), Settings())
    try:
        assert Election(spool).look()
        pid = wait_for(lambda: Progress(spool).uploader().pid, "its first report")
        paths = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        log = spool.host(next(iter(spool.host_ids()))).log
        assert paths - {"/dev/null", log, spool.seat, spool.workers} == set()
        assert os.getsid(pid) != os.getsid(0)
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        os.kill(pid, signal.SIGKILL)
    finally:
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
    assert not locks.is_held(spool.seat)


def test_uploaders_that_die_at_once_are_not_started_for_ever(spool, monkeypatch, caplog):
    """Three starts in a minute, then a pause: an interpreter that always fails is no fork bomb."""
    monkeypatch.setattr(election, "_BOOT", "raise SystemExit(1)")
    now = [1000.0]
    one = Election(spool, clock=lambda: now[0])
    starts = 0
    with caplog.at_level(logging.WARNING):
        for _ in range(30):
            starts += one.look()
            wait_for(lambda: not one.reap(), "it ends")
            now[0] += 1.0
    assert starts <= election.STARTS_LIMIT + 4
    assert len(caplog.records) == 1


def test_the_token_reaches_the_uploader_by_environment_only(spool):
    """Nothing of the token is in the argument list."""
    env = election.child_environment({"PATH": "/bin", "PYTHONSTARTUP": "x"}, "hf_secret")
    assert env["HF_TOKEN"] == "hf_secret"
    assert "PYTHONSTARTUP" not in env
    assert election.child_environment({"HF_TOKEN": "theirs"}, None)["HF_TOKEN"] == "theirs"
