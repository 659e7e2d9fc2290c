"""The datagram from a worker to its supervisor: who may send, what is taken, and that no worker waits."""

from __future__ import annotations

import os
import socket

import pytest

from hf_mpwriter.system.contact import VARIABLE, Inbox, supervisor, tell
from hf_mpwriter.system.process import Process


@pytest.fixture
def inbox():
    """An inbox of this process."""
    made = Inbox()
    yield made
    os.close(made.fd)


def test_a_worker_tells_its_run_directory(inbox):
    """Any bytes that a path may have; the name says who the supervisor is."""
    environ = {VARIABLE: inbox.name}
    path = os.fsdecode(b"/runs/\xff exp")
    assert tell(path, environ)
    assert list(inbox.read()) == [path]
    assert list(inbox.read()) == []
    assert supervisor(environ) == Process.current()


@pytest.mark.parametrize("name", ["", "x", "hf-mpwriter.1.2.3", "hf-mpwriter.1.2.3.0123456789abcdef"])
def test_without_a_supervisor_there_is_nothing_to_do(name):
    """None is named, or it has ended."""
    assert tell("/runs/exp", {VARIABLE: name})


@pytest.mark.parametrize("data", [b"runs/exp", b"", b"/runs/\0"])
def test_what_is_no_path_is_not_taken(inbox, data):
    """Relative, empty, with a NUL."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
        sending.sendto(data, f"\0{inbox.name}")
    assert list(inbox.read()) == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_what_another_user_sends_is_not_taken(inbox):
    """As the kernel says who has sent it."""
    if not (pid := os.fork()):
        os.setuid(12345)
        os._exit(not tell("/runs/exp", {VARIABLE: inbox.name}))
    assert os.waitpid(pid, 0)[1] == 0
    assert list(inbox.read()) == []


def test_a_worker_does_not_wait_while_the_supervisor_reads_nothing(inbox):
    """It tries again later, and nothing of it is lost."""
    environ, sent = {VARIABLE: inbox.name}, 0
    while tell(f"/runs/{sent}", environ):
        sent += 1
    assert len(list(inbox.read())) == sent > 0
    assert tell("/runs/again", environ)
    assert list(inbox.read()) == ["/runs/again"]
