"""What an uploader is handed at its start: its destination is that of the worker, whatever stands in files."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from pathlib import Path

import pytest
from jobs import job
from lives import log_without_uploader
from programs import wait_for
from runs import no_uploader, run
from support import event_file

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Done
from hf_mpwriter.daemon.election import Election
from hf_mpwriter.daemon.starts import uploader_start
from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.push import handle
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system.process import host_id

NAME = "events.out.tfevents.1700000000.here.1.0123abcd"


@pytest.fixture
def stranger():
    """A server that must not be asked; its endpoint, and whether it was."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def was_asked(server: socket.socket) -> bool:
    """Whether a connection has come."""
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def logged(run_dir, start, hub) -> tuple[Spool, Destination]:
    """A run with five records that were not sent, and its destination."""
    spool = Spool(str(run_dir))
    spool.create()
    log_without_uploader(start, run_dir, 5)
    return spool, Destination(hub.endpoint, "me/run", path_in_repo="tensorboard/exp1")


def test_a_changed_record_of_the_destination_sends_nothing_anywhere(hub, run_dir, start, stranger, monkeypatch):
    """Others have put another endpoint into run.json: the uploader says so in log and status, and sends nothing."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    spool, destination = logged(run_dir, start, hub)
    path = Path(spool.root, "run.json")
    content = json.loads(path.read_text())
    content["destination"]["endpoint"] = f"http://127.0.0.1:{stranger.getsockname()[1]}"
    path.write_text(json.dumps(content))
    one, record = Election(spool, "uploader"), uploader_start(spool, destination, time.time())
    assert one.ensure(record)
    wait_for(lambda: not one.reap() and no_uploader(run_dir), "the uploader leaves")
    assert not was_asked(stranger)
    assert hub.store.repos() == []
    assert "the recorded destination has changed" in Path(spool.host(host_id()).daemon("uploader").log).read_text()
    status = HubSink(spool).status()
    assert (status.phase, status.kind) == ("left", "Refused")
    assert content["destination"]["endpoint"] in status.reason
    assert "run.json" in status.hint
    assert "the recorded destination has changed" in run("status", run_dir).output


def test_a_push_sends_what_lies_beneath_its_descriptors(hub, tmp_path):
    """Run directory and spool are swapped for others by name when the push starts: their files are not sent."""
    spool = Spool(str(tmp_path / "run"))
    spool.create()
    length = event_file(tmp_path / "run" / NAME, 5, tag="ours")
    ours = (tmp_path / "run" / NAME).read_bytes()
    one = job(
        spool.run_dir,
        folder="tensorboard/run",
        copies=spool.host("h").copies.name,
        cache=spool.host("h").cache.name,
        destination=Destination(hub.endpoint, "me/run"),
        files=(LocalFile(NAME, length, growing=True),),
        xet=False,
    )
    shutil.copytree(tmp_path / "run", tmp_path / "theirs")
    event_file(tmp_path / "theirs" / NAME, 5, tag="theirs")
    assert spool.run.fd > 2
    assert spool.directory.fd > 2
    os.rename(tmp_path / "run", tmp_path / "away")
    os.rename(tmp_path / "theirs", tmp_path / "run")
    push = handle.PushHandle(one, 150.0, [spool])
    (verdict,) = wait_for(lambda: push.listen()[1], "the verdict")
    assert isinstance(verdict, Done), verdict
    assert hub.store.read_blob("model", "me/run", f"tensorboard/run/{NAME}", "main") == ours
    assert not os.path.exists(tmp_path / "run" / ".hf_mpwriter" / "hosts" / "h")
