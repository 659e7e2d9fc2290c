"""Restarts: better tokens, a reboot, an old ledger, SIGTERM."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import psutil
from lives import HURRIED, TAKES_THE_LOCK, end, grown, lives, log_without_uploader, push_of
from programs import wait_for
from runs import (
    LOG_AND_EXIT,
    LOG_AT_ONCE,
    LOG_FOR_EVER,
    OTHER_BOOT,
    acknowledged,
    check_oracle,
    finished,
    living_uploader,
    no_uploader,
    run,
    silent_hub,
)

from hf_mpwriter.delivery.sinks import HubSink
from hf_mpwriter.localhub import LocalHub
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.system import process

SLOWER = HURRIED.replace("housekeeping_every=0.05", "housekeeping_every=0.5")  # loses every race against one in a hurry


def test_a_worker_with_a_good_token_brings_it_into_use(tmp_path, run_dir, start, monkeypatch):
    """The uploader with a refused token leaves to a younger worker; workers with the old token let that one start it.

    The same when the uploader dies and a worker with the old token is the first to see it.
    """
    with LocalHub(tmp_path / "hub", token="hf_good") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        view = HubSink(Spool(str(run_dir)))
        old = start(HURRIED, run_dir, tmp_path / "journals", env={"RANK": "0", "HF_TOKEN": "hf_expired"})
        wait_for(lambda: view.status().kind == "Refused", "the token is refused")
        first = view.status().pid
        new = start(SLOWER, run_dir, tmp_path / "journals", env={"RANK": "1", "HF_TOKEN": "hf_good"})
        wait_for(lambda: acknowledged(run_dir), "a commit")
        second = living_uploader(run_dir)
        assert second not in (0, first)
        os.kill(new.pid, signal.SIGSTOP)
        os.kill(second, signal.SIGKILL)
        wait_for(lambda: view.status().kind == "Refused", "the old token is refused once more")
        wait_for(lambda: no_uploader(run_dir), "it makes way although no worker has joined since")
        before = acknowledged(run_dir)
        os.kill(new.pid, signal.SIGCONT)
        wait_for(grown(run_dir, before), "a commit with the good token")
        os.kill(old.pid, signal.SIGKILL)
        end(new, run_dir)
        check_oracle(run_dir, hub, tmp_path / "journals")
        for path in Path(run_dir, ".hf_mpwriter").rglob("*"):
            assert not path.is_file() or b"hf_good" not in path.read_bytes()


def test_a_login_ends_the_wait_after_a_refused_token(tmp_path, run_dir, start, monkeypatch):
    """`hf auth login` while training runs: the same uploader goes on at once, not minutes later."""
    token = tmp_path / "token"
    token.write_text("hf_expired")
    monkeypatch.setenv("HF_TOKEN_PATH", str(token))
    with LocalHub(tmp_path / "hub", token="hf_good") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        worker = start(LOG_FOR_EVER, run_dir, tmp_path / "journals")
        view = HubSink(Spool(str(run_dir)))
        wait_for(lambda: view.status().kind == "Refused", "the token is refused")
        token.write_text("hf_good")
        wait_for(lambda: acknowledged(run_dir), "a commit")
        assert lives(run_dir) == 1
        end(worker, run_dir)


def test_after_a_reboot_all_members_are_dead_and_the_spool_goes_on(hub, run_dir, tmp_path, start):
    """Member files, a heartbeat and a push in flight of another boot count as dead, delay nothing and lose nothing."""
    hub.stop()
    with silent_hub(hub.port):
        worker = start(LOG_FOR_EVER, run_dir, tmp_path / "journals")
        wait_for(lambda: push_of(run_dir), "a push")
        uploader = living_uploader(run_dir)
        for pid in (worker.pid, uploader):  # the worker would start another one
            os.kill(pid, signal.SIGKILL)
        worker.process.wait()
        wait_for(lambda: no_uploader(run_dir), "both are dead")
    spool = Spool(str(run_dir))
    host = spool.host(process.host_id())
    assert os.path.exists(host.in_flight)
    for path in (path for path in Path(spool.root).rglob("*") if path.is_file()):
        path.write_text(path.read_text().replace(process.boot_id(), OTHER_BOOT))
    report = json.loads(Path(host.daemon("uploader").status).read_text())
    assert report["process"]["boot"] == OTHER_BOOT
    report["process"] |= {"pid": os.getpid(), "ticks": process.start_ticks(os.getpid())}  # used again since
    waits = {"blocked_until": time.monotonic() + 1e6, "phase": "waiting"}
    Path(host.daemon("uploader").status).write_text(json.dumps(report | waits))
    assert not any(member.alive for member in Members(spool).all())
    status = run("status", run_dir)
    assert (status.exit_code, status.output.splitlines()[-1]) == (4, f"next: hf-mpwriter sync {run_dir}"), status.output
    assert re.search(r"^  workers +1 died: main$", status.output, re.MULTILINE), status.output
    assert re.search(r"^  uploader +none runs$", status.output, re.MULTILINE), status.output
    hub.start()
    code, _, errors = start(LOG_AND_EXIT, run_dir, 20).finish()
    assert (code, "not on the Hub" in errors) == (0, False), "what was logged before the reboot is not trusted"
    wait_for(lambda: finished(run_dir), "everything arrives")
    assert len(check_oracle(run_dir, hub, tmp_path / "journals").files) == 2


def test_a_ledger_that_is_older_or_missing_or_of_another_host_costs_nothing(hub, run_dir, start):
    """What it lacks is read back from the Hub: nothing is sent twice, nothing is lost."""
    start(LOG_AT_ONCE, run_dir, 20).succeed()
    wait_for(lambda: finished(run_dir), "the first run is over")
    host = Path(Spool(str(run_dir)).host(process.host_id()).root)
    (host / "ledger.json").rename(run_dir.parent / "older.json")
    start(LOG_AT_ONCE, run_dir, 20).succeed()  # missing
    wait_for(lambda: finished(run_dir), "the second run is over")
    shutil.copy(run_dir.parent / "older.json", host / "ledger.json")
    start(LOG_AT_ONCE, run_dir, 20).succeed()  # older
    wait_for(lambda: finished(run_dir), "the third run is over")
    host.rename(host.parent / "elsewhere-01234567")
    start(LOG_AT_ONCE, run_dir, 20).succeed()  # of another host
    wait_for(lambda: finished(run_dir), "the fourth run is over")
    report = check_oracle(run_dir, hub)
    assert [(file.hub_events, file.commits) for file in report.files.values()] == [(20, 1)] * 4
    assert (host / "ledger.json").exists()


def test_sigterm_ends_an_uploader_although_the_hub_hangs(run_dir, start, monkeypatch):
    """It tries once more, but not for ever: after its grace period it and its push end, and the lock is free."""
    with silent_hub() as listener:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        Spool(str(run_dir)).create()
        log_without_uploader(start, run_dir, 5)
        uploader = start(TAKES_THE_LOCK.format("loop.GRACE = 0.5"), run_dir)
        push = wait_for(lambda: push_of(run_dir), "a push")
        uploader.process.terminate()
        assert uploader.finish()[0] == -signal.SIGALRM
        wait_for(lambda: not psutil.pid_exists(push), "the push ends too")
        assert no_uploader(run_dir)
