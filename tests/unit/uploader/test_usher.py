"""The usher: a process that is started as an uploader hands its run over, or is one."""

from __future__ import annotations

import json
import os
import select

import pytest
from programs import wait_for
from remote import Remote
from runs import uploaders

from hf_mpwriter.base import state
from hf_mpwriter.daemon.election import Election, environment
from hf_mpwriter.daemon.starts import uploader_start
from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.system import locks
from hf_mpwriter.system.process import start_directory
from hf_mpwriter.uploader.meeting import Key, Meeting, folder_of, surroundings


class Server:
    """An uploader that could as well have been started for the run of a spool."""

    def __init__(self, spool) -> None:
        record = state.dump(uploader_start(spool, spool.destination(), 1.0))
        environ = environment("uploader", os.environ, None, start_directory())
        self._folder, self._key = folder_of(environ), Key.of(record, environ, surroundings(spool.run.fd))

    def open(self) -> bool:
        """Listen."""
        self.meeting = Meeting.open(self._folder, self._key)
        return self.meeting is not None

    def answer(self, takes: bool) -> list[str]:
        """Wait for a request, and answer; the runs that they are about."""
        select.select([self.meeting.fd], [], [])
        while not (found := list(self.meeting.asked())):
            select.select([self.meeting.fd], [], [])
        for asked in found:
            if takes:
                assert asked.take()
            else:
                asked.refuse()
        return [json.loads(asked.record)["run_dir"] for asked in found]


@pytest.fixture
def server(spool):
    """Such an uploader, in a process of its own."""
    made = Remote(lambda: Server(spool))
    assert made.call("open")
    yield made
    made.kill()


def start(spool) -> None:
    """What a worker does."""
    assert Election(spool, "uploader").ensure(uploader_start(spool, spool.destination(), 1.0))


def test_a_process_that_hands_its_run_over_ends(spool, server):
    """It has not become an uploader, and the other one has the lock."""
    start(spool)
    assert server.call("answer", True) == [spool.run_dir]
    wait_for(lambda: not uploaders(spool.run_dir), "the usher ends")
    assert locks.is_held(spool.uploader_lock)
    assert not HubSink(spool).status().pid
    server.kill()
    assert not locks.is_held(spool.uploader_lock)


def test_a_process_whose_run_is_refused_is_an_uploader(spool, server):
    """It listens, too."""
    start(spool)
    assert server.call("answer", False) == [spool.run_dir]
    wait_for(lambda: HubSink(spool).status().pid, "its first status")
    assert locks.is_held(spool.uploader_lock)
    assert len(os.listdir(folder_of(os.environ))) == 2
