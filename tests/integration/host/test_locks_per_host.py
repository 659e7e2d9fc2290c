"""Two hosts share a run directory on a filesystem whose locks do not reach from one to the other."""

from __future__ import annotations

import json
import os

from programs import wait_for
from repository import HELPERS

from hf_mpwriter.localhub import View
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.status import UploaderStatus
from hf_mpwriter.spool.workers.members import Members
from hf_mpwriter.testing import oracle

LOG = """
import os, sys, time
from hf_mpwriter import HFSummaryWriter
with HFSummaryWriter("me/run", logdir=sys.argv[1], path_in_repo="", commit_every=float(sys.argv[4])) as writer:
    step = 0
    while not os.path.exists(sys.argv[2]):
        writer.add_scalar("loss", 1.0, step)
        step += 1
        time.sleep(0.1)
    print("silent", flush=True)
    while not os.path.exists(sys.argv[3]):
        time.sleep(0.1)
"""
STATUS = """
import sys
from hf_mpwriter.cli.main import main
main(["status", sys.argv[1], "--json"], standalone_mode=False)
"""


def on_host(number: int) -> dict[str, str]:
    """The environment of a rank on a host of its own."""
    own, rest = HELPERS / "locks_per_host", os.environ["PYTHONPATH"]
    rank = {"RANK": str(number), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    return rank | {"HOST_NAME": f"host-{number}", "PYTHONPATH": f"{own}:{rest}"}


def check_that_silent_workers_live(start, spool: Spool) -> None:
    """A worker that has written nothing for long lives on as its host has an uploader, whichever host asks."""
    for name in spool.members.names():
        os.utime(spool.members / name, (0, 0))
    members = Members(spool).all()
    for path in (path for member in members for path in member.files):
        os.utime(spool.run / path, (0, 0))
    assert all(member.alive for member in Members(spool).all()), "as seen from a host without an uploader"
    for number in (0, 1):
        status = json.loads(start(STATUS, spool.run_dir, env=on_host(number)).succeed())
        alive = [worker["name"] for worker in status["workers"] if worker["state"] == "alive"]
        assert alive == ["main", "rank_00001"], f"as seen from host {number}"
        assert all(file["growing"] for file in status["files"])


COMMIT_EVERY = 3.0  # seconds


def test_each_hosts_uploader_takes_the_workers_of_its_own_host(start, hub, run_dir, tmp_path):
    """Both make a commit now and then, neither takes the other's workers for dead, and all arrives once."""
    silent, enough = tmp_path / "silent", tmp_path / "enough"
    caches = [{"XDG_CACHE_HOME": str(tmp_path / f"cache-{number}")} for number in (0, 1)]
    ranks = [
        start(LOG, run_dir, silent, enough, COMMIT_EVERY / 60, env=on_host(number) | caches[number])
        for number in (0, 1)
    ]
    spool = Spool(str(run_dir))
    wait_for(lambda: len(spool.host_ids()) == 2, "each host has an uploader")
    statuses = [spool.host(host) for host in spool.host_ids()]
    wait_for(lambda: all(UploaderStatus.read(host).commits for host in statuses), "each has made a commit")
    before = {host: UploaderStatus.read(host) for host in statuses}

    def has_gone_on(host) -> bool:
        status = UploaderStatus.read(host)
        return status.beat > before[host].beat + 2 * COMMIT_EVERY and status.commits > before[host].commits

    wait_for(lambda: all(map(has_gone_on, statuses)), "a while, and a commit of each")
    now = {host: UploaderStatus.read(host) for host in statuses}
    for host in statuses:
        made, seconds = now[host].commits - before[host].commits, now[host].beat - before[host].beat
        assert 1 <= made <= seconds / COMMIT_EVERY + 2
    assert len(Members(spool).all()) == 2
    silent.touch()
    assert [rank.process.stdout.readline() for rank in ranks] == ["silent\n"] * 2
    check_that_silent_workers_live(start, spool)
    enough.touch()
    for rank in ranks:
        code, _, err = rank.finish()
        assert code == 0, err
        assert "was removed while it was in use" not in err
        assert "are not on the Hub" not in err
    report = oracle.check(str(run_dir), View(hub.store, "me/run", run_dir.name))
    assert report.problems == []
    assert any("locks do not reach" in notice.text for host in statuses for notice in UploaderStatus.read(host).notices)
