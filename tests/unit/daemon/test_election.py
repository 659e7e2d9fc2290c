"""The election: the lock is handed over, failures are backed off and never raised."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time

import pytest
from programs import run_python, wait_for

from hf_mpwriter.daemon.election import Election, environment
from hf_mpwriter.daemon.starts import uploader_start
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.status import LONGEST_PAUSE, STARTS_LIMIT, UploaderStatus
from hf_mpwriter.spool.workers.peers import living_others
from hf_mpwriter.system import disk, failpoints, launch, locks
from hf_mpwriter.system.process import Process, host_id


@pytest.fixture
def crashing(monkeypatch):
    """An uploader that ends as soon as it is started."""
    monkeypatch.setitem(launch.BOOTS, "uploader", "raise SystemExit(1)")


@pytest.fixture
def record(spool):
    """A start record of the run."""
    return uploader_start(spool, spool.destination(), 1.0)


def ended(one: Election, spool) -> None:
    """Wait until what was started has ended."""
    wait_for(lambda: not one.reap() and not locks.is_held(spool.uploader_lock), "it ends")


def test_an_uploader_that_cannot_start_is_logged_once_and_tried_again_later(spool, record, monkeypatch, caplog):
    """A broken interpreter: one warning, no exception, longer and longer pauses, no lock kept; others do not pause."""
    monkeypatch.setenv("HF_MPWRITER_PYTHON", "/nonexistent/python")
    now = [1000.0]
    one = Election(spool, "uploader", clock=lambda: now[0])
    tries = 0
    with caplog.at_level(logging.WARNING):
        for _ in range(600):
            quiet = one.quiet_until
            assert not one.ensure(record)
            tries += one.quiet_until != quiet
            now[0] += 1.0
    assert len(caplog.records) == 1
    assert tries <= 10, "5 s, 10 s, 20 s ... up to 5 min"
    assert not locks.is_held(spool.uploader_lock)
    assert UploaderStatus.read(spool.host(host_id())).starts.count == 0, "for the others"
    monkeypatch.undo()
    now[0] += LONGEST_PAUSE
    assert one.ensure(record), "the cause is gone"
    ended(one, spool)
    monkeypatch.setattr(sys, "frozen", True, raising=False)  # as in a program that holds its Python
    assert not one.ensure(record)
    assert len(caplog.records) == 2, "another trouble is logged again"


@pytest.mark.parametrize(("workers", "last_of_the_first"), [(1, 3.0), (12, 0.0)])
def test_many_workers_start_no_more_than_one(spool, record, crashing, caplog, workers, last_of_the_first):
    """The count stands on disk; each of them asks it under the uploader lock. An interpreter that always fails is no
    fork bomb.
    """
    now = [1000.0]
    all_of_them, found = [Election(spool, "uploader", clock=lambda: now[0]) for _ in range(workers)], 0
    for _ in range(70):
        for one in all_of_them:
            if one.ensure(record):
                found += 1
                ended(one, spool)
        now[0] += 1.0
    assert found == STARTS_LIMIT + 1 + 3, "then after 5 s, 10 s and 20 s; the next would be after 40 s"
    assert {one.quiet_until for one in all_of_them} == {1000.0 + last_of_the_first + 35.0 + 40.0}
    assert len(caplog.records) == workers, "each warns once"


@pytest.mark.parametrize("heard_of", [0, 1000])
def test_a_start_is_no_heartbeat(spool, record, crashing, heard_of):
    """A host on which no uploader lives has none for others, however often it is tried: they send its files."""
    host = spool.host(host_id())
    status = host.daemon("uploader").status
    if heard_of:
        disk.make_dirs(host.root)
        UploaderStatus(process=Process.current()).save(host)
        os.utime(status, (heard_of, heard_of))
    one = Election(spool, "uploader")
    assert one.ensure(record)
    ended(one, spool)
    assert (os.stat(status).st_mtime, UploaderStatus.read(host).starts.count) == (heard_of, 1)
    assert living_others(spool, "another", 0.0, time.time) == frozenset()


def test_a_disk_that_refuses_the_count_prevents_no_start(spool, record, crashing):
    """The worker counts for itself then; what it has counted is written as soon as the disk allows it."""
    now = [1000.0]
    one = Election(spool, "uploader", clock=lambda: now[0])
    for number in range(STARTS_LIMIT + 3):
        failpoints.armed["status.write"] = ("enospc", 1)
        assert one.ensure(record) is (number <= STARTS_LIMIT)
        ended(one, spool)
    assert UploaderStatus.read(spool.host(host_id())).starts.count == 0
    del failpoints.armed["status.write"]
    now[0] = one.quiet_until
    assert one.ensure(record)
    ended(one, spool)
    assert not Election(spool, "uploader", clock=lambda: now[0]).ensure(record), "another one reads it"


WITHOUT_PROCESSES = """
import logging, os, resource, sys
from hf_mpwriter.daemon.election import Election
from hf_mpwriter.daemon.starts import uploader_start
from hf_mpwriter.system.process import host_id
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.spool.layout import Spool
host_id()  # nothing can be imported once the user is another one
os.setgroups([]); os.setgid(65534); os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
logging.basicConfig()
spool = Spool(sys.argv[1])
one, record = Election(spool, "uploader"), uploader_start(spool, Destination("http://127.0.0.1:9", "me/run"), 1.0)
print([one.ensure(record) for _ in range(3)])
"""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user, and root has no limit")
def test_a_user_without_processes_to_spare_goes_on():
    """`ulimit -u` is reached: one warning, no exception, no lock kept."""
    with tempfile.TemporaryDirectory() as place:  # pytest's own are for root only
        spool = Spool(os.path.join(place, "run"))
        spool.create()
        for directory, _, names in os.walk(place):
            for path in [directory, *(os.path.join(directory, name) for name in names)]:
                os.chown(path, 65534, 65534)
        env = {"HF_MPWRITER_PYTHON": "/bin/sh"}  # the Python may be for root only; none is started
        result = run_python(WITHOUT_PROCESSES, spool.run_dir, env=env)
        assert (result.returncode, result.stdout) == (0, "[False, False, False]\n"), result.stderr
        assert result.stderr.count("cannot start an uploader: [Errno 11]") == result.stderr.count("\n") == 1
        assert result.stderr.endswith("; nothing is uploaded meanwhile\n"), "not that all is on disk"
        assert not locks.is_held(spool.uploader_lock)


def test_the_token_reaches_the_uploader_by_environment_only():
    """Nothing of the token is in the argument list."""
    env = environment("uploader", {"PATH": "/bin", "PYTHONSTARTUP": "x"}, "hf_secret", "/")
    assert env["HF_TOKEN"] == "hf_secret"
    assert "PYTHONSTARTUP" not in env
    assert environment("uploader", {"HF_TOKEN": "theirs"}, None, "/")["HF_TOKEN"] == "theirs"


def test_a_mirror_gets_no_token_of_the_hub():
    """It does not talk to the Hub; what the filesystem of the logdir needs stays."""
    environ = {"HF_TOKEN": "hf_x", "HUGGING_FACE_HUB_TOKEN": "hf_y", "AWS_ACCESS_KEY_ID": "key", "HOME": "/home/me"}
    found = environment("mirror", environ, None, "/")
    assert "AWS_ACCESS_KEY_ID" in found
    assert not {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"} & found.keys()
