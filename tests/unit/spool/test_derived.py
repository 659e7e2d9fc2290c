"""The derived event file of an uploader: it counts as growing while the process that writes it lives."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time

import pytest

from hf_mpwriter.base import state
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers import derived
from hf_mpwriter.spool.workers.derived import Derived
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.system.process import Process, host_id

PATH = "_all_ranks/events.out.tfevents.1700000000.host.1.00000000"


@pytest.fixture
def spool(tmp_path):
    """A spool with two hosts."""
    found = Spool(str(tmp_path / "run"))
    found.create()
    for host in (host_id(), "other-host"):
        os.makedirs(str(found.host(host).root))
    return found


def put(spool, host, process):
    """Leave the record of a process."""
    place = spool.host(host).root / "all_ranks_open.json"
    with open(str(place), "wb") as file:
        file.write(state.dump(Derived(PATH, process)))


def test_a_derived_file_grows_until_that_is_taken_back(spool):
    """For everybody who asks which files grow."""
    assert Members(spool).growing() == set()
    derived.record(spool.host(host_id()), PATH)
    assert Members(spool).growing() == {PATH}
    derived.clear(spool.host(host_id()))
    assert Members(spool).growing() == set()
    derived.clear(spool.host(host_id()))


def test_that_of_a_killed_uploader_never_grows_again(spool):
    """Its later files need not wait; a process id that is used again is another process."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = Process.of(child.pid)
    put(spool, host_id(), process)
    assert derived.open_files(spool) == {PATH}
    child.communicate(b"\n")
    assert derived.open_files(spool) == set()
    put(spool, host_id(), dataclasses.replace(Process.current(), ticks=1))
    assert derived.open_files(spool) == set()


def test_that_of_another_host_grows_while_its_uploader_is_heard_of(spool):
    """No process of another host can be looked at."""
    put(spool, "other-host", dataclasses.replace(Process.current(), host="other-host"))
    assert derived.open_files(spool) == set()
    status = str(spool.host("other-host").status)
    with open(status, "wb"):
        pass
    assert derived.open_files(spool) == {PATH}
    long_ago = time.time() - derived.SILENCE - 60
    os.utime(status, (long_ago, long_ago))
    assert derived.open_files(spool) == set()


@pytest.mark.parametrize("content", [b"", b"{", b'{"open": 1}', b"\xff", state.dump(Derived(PATH, Process.current()))])
def test_damage_counts_as_no_record(spool, content):
    """A path that leads out of the run directory is damage, too."""
    with open(str(spool.host(host_id()).root / "all_ranks_open.json"), "wb") as file:
        file.write(content.replace(b"_all_ranks", b"../x"))
    assert derived.open_files(spool) == set()
