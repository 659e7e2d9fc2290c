"""The election: the uploader lock is handed over, failures are backed off and never raised."""

from __future__ import annotations

import logging
import os
import sys
import tempfile

import pytest
from programs import run_python, wait_for

from hf_mpwriter.spool import starts
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import launch, locks
from hf_mpwriter.worker import election
from hf_mpwriter.worker.election import UploaderElection, mirror_environment


def test_an_uploader_that_cannot_start_is_logged_once_and_tried_again_later(spool, monkeypatch, caplog):
    """A broken interpreter: one warning, no exception, longer and longer pauses, no lock kept."""
    monkeypatch.setenv("HF_MPWRITER_PYTHON", "/nonexistent/python")
    now = [1000.0]
    one = UploaderElection(spool, spool.destination(), clock=lambda: now[0])
    tries = 0
    with caplog.at_level(logging.WARNING):
        for _ in range(600):
            quiet = one._quiet_until
            assert not one.ensure()
            tries += one._quiet_until != quiet
            now[0] += 1.0
    assert len(caplog.records) == 1
    assert tries <= 10, "5 s, 10 s, 20 s ... up to 5 min"
    assert not locks.is_held(spool.uploader_lock)
    monkeypatch.undo()
    now[0] += starts.LONGEST_PAUSE
    assert one.ensure(), "the cause is gone"
    wait_for(lambda: not one.reap() and not locks.is_held(spool.uploader_lock), "it finds no member and leaves")
    monkeypatch.setattr(sys, "frozen", True, raising=False)  # as in a program that holds its Python
    assert not one.ensure()
    assert len(caplog.records) == 2, "another trouble is logged again"


def test_uploaders_that_die_at_once_are_not_started_for_ever(spool, monkeypatch, caplog):
    """Three starts in a minute, then longer and longer pauses: an interpreter that always fails is no fork bomb."""
    monkeypatch.setitem(launch.BOOTS, "uploader", "raise SystemExit(1)")
    now = [1000.0]
    one = UploaderElection(spool, spool.destination(), clock=lambda: now[0])
    started = 0
    with caplog.at_level(logging.WARNING):
        for _ in range(1200):
            started += one.ensure()
            wait_for(lambda: not one.reap(), "it ends")
            now[0] += 1.0
    assert started <= starts.STARTS_LIMIT + 10, "5 s, 10 s, 20 s ... up to 5 min"
    assert len(caplog.records) == 1


WITHOUT_PROCESSES = """
import logging, os, resource, sys
from hf_mpwriter.worker.election import UploaderElection
from hf_mpwriter.system.process import host_id
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.spool.layout import Spool
host_id()  # nothing can be imported once the user is another one
os.setgroups([]); os.setgid(65534); os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
logging.basicConfig()
spool = Spool(sys.argv[1])
one = UploaderElection(spool, Destination("http://127.0.0.1:9", "me/run"))
print([one.ensure() for _ in range(3)])
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
        assert not locks.is_held(spool.uploader_lock)


def test_the_token_reaches_the_uploader_by_environment_only(spool):
    """Nothing of the token is in the argument list."""
    env = election.child_environment({"PATH": "/bin", "PYTHONSTARTUP": "x"}, "hf_secret", "/")
    assert env["HF_TOKEN"] == "hf_secret"
    assert "PYTHONSTARTUP" not in env
    assert election.child_environment({"HF_TOKEN": "theirs"}, None, "/")["HF_TOKEN"] == "theirs"


def test_a_mirror_gets_no_token_of_the_hub():
    """It does not talk to the Hub; what the filesystem of the logdir needs stays."""
    environ = {"HF_TOKEN": "hf_x", "HUGGING_FACE_HUB_TOKEN": "hf_y", "AWS_ACCESS_KEY_ID": "key", "HOME": "/home/me"}
    found = mirror_environment(environ, "/")
    assert "AWS_ACCESS_KEY_ID" in found
    assert not {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"} & found.keys()
