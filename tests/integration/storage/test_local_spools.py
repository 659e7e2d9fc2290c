"""A logdir without modes: event files grow in it, and each host keeps a spool of its own."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from fuse_models import NO_MODES, mounted, why_not
from programs import wait_for
from repository import HELPERS

from hf_mpwriter.base import names
from hf_mpwriter.base.storage import Layout, staged_name, staging_root
from hf_mpwriter.cli.main import main
from hf_mpwriter.events import framing
from hf_mpwriter.localhub import View
from hf_mpwriter.spool import storage
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ledger import load
from hf_mpwriter.spool.workers.peers import LEFT_ALONE
from hf_mpwriter.testing import oracle

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(why_not()), reason=why_not())]

LOG = """
import os, sys, time
from hf_mpwriter import HFSummaryWriter
with HFSummaryWriter("me/run", logdir=sys.argv[1], path_in_repo="", commit_every=0.01) as writer:
    step = 0
    while not os.path.exists(sys.argv[2]):
        writer.add_scalar("loss", 1.0, step)
        step += 1
        time.sleep(0.05)
"""


def on_host(number: int, tmp_path: Path) -> dict[str, str]:
    """The environment of a rank on a host of its own, with a disk of its own."""
    disk = tmp_path / f"disk-{number}"
    disk.mkdir()
    rank = {"RANK": str(number), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    path = f"{HELPERS / 'locks_per_host'}:{os.environ['PYTHONPATH']}"
    own = {"TMPDIR": str(disk), "XDG_CACHE_HOME": str(disk / "cache"), "XDG_STATE_HOME": str(disk / "state")}
    return rank | own | {"HOST_NAME": f"host-{number}", "PYTHONPATH": path}


def leave(run_dir: Path, age: float) -> str:
    """An event file that a host which is gone has left so many seconds ago; its name."""
    name = names.event_name(os.listdir(run_dir), 1.7e9, "host-9", 7, "")
    (run_dir / name).write_bytes(framing.frame(b"\x09" + bytes(8)))
    os.utime(run_dir / name, (0, time.time() - age))
    return name


def test_each_host_uploads_its_own_from_a_logdir_without_modes(start, hub, tmp_path, monkeypatch):
    """All arrives once; no spool is in the logdir; what a third host has left behind minutes ago is sent, too."""
    enough = tmp_path / "enough"
    with mounted(NO_MODES, tmp_path / "mount") as mount:
        run_dir = mount.place / "exp1"
        run_dir.mkdir()
        left, young = leave(run_dir, LEFT_ALONE + 600), leave(run_dir, 0)
        environments = [on_host(number, tmp_path) for number in (0, 1)]
        ranks = [start(LOG, run_dir, enough, env=env) for env in environments]
        name = os.path.join(staging_root(os.geteuid()), staged_name(str(run_dir)), names.SPOOL_NAME)
        spools = [Spool.of(str(run_dir), os.path.join(env["TMPDIR"], name)) for env in environments]

        def ledger(number: int) -> set[str]:
            spool = spools[number]
            return set(load(spool, spool.destination()).files) if spool.exists() and spool.has_destination() else set()

        wait_for(lambda: all(map(ledger, (0, 1))), "each host has sent something")
        enough.touch()
        for number, rank in enumerate(ranks):
            code, _, err = rank.finish()
            assert code == 0, err
            assert err.count("exfat does not keep the mode of a file") == (number == 0), "rank 0 says it, once"
            assert "are not on the Hub" not in err
        assert os.listdir(run_dir / ".hf_mpwriter") == [], "no more than its name"
        assert left in ledger(0)
        assert young not in ledger(0) | ledger(1)
        hosts = [{names.event_host(os.path.basename(path)) for path in ledger(number)} for number in (0, 1)]
        assert hosts == [{"host-0", "host-9"}, {"host-1"}]
        os.unlink(run_dir / young)
        report = oracle.check(str(run_dir), View(hub.store, "me/run", "exp1"))
        assert report.problems == []
        # what its modes say of a spool would mean nothing: the run is found again by its logdir, here
        monkeypatch.setenv("TMPDIR", environments[0]["TMPDIR"])
        kept = storage.find(str(run_dir))
        assert (kept.layout, kept.run_dir, kept.spool) == (Layout.LOCAL_SPOOL, str(run_dir), spools[0].root)
        shown = CliRunner().invoke(main, ["status", str(run_dir)])
        assert shown.exit_code == 0, shown.output
        told = CliRunner().invoke(main, ["doctor", str(run_dir)]).output
        assert re.search(r"(?m)^ok +filesystem .*: files grow in place, without modes$", told)
        assert re.search(r"(?m)^ok +storage +local spool: each host", told)
        assert f"the spool is {kept.spool}" in told


def test_each_host_sends_its_own_of_a_run_that_both_stage(start, hub, tmp_path):
    """The second one brings back what the first one mirrors, and leaves it to that one; commits name their parents."""
    enough, logdir = tmp_path / "enough", tmp_path / "bucket" / "exp1"
    environments = [on_host(number, tmp_path) for number in (0, 1)]
    for env in environments:
        env["HF_MPWRITER_STAGING"] = env["TMPDIR"]
    places = [storage.find(str(logdir), env) for env in environments]
    spools = [storage.spool_of(kept) for kept in places]

    def ledger(number: int) -> set[str]:
        spool = spools[number]
        return set(load(spool, spool.destination()).files) if spool.exists() and spool.has_destination() else set()

    first = start(LOG, logdir, enough, env=environments[0])
    wait_for(lambda: list(logdir.rglob("*tfevents*")), "the first host has mirrored something")
    second = start(LOG, logdir, enough, env=environments[1])
    wait_for(lambda: all(map(ledger, (0, 1))), "each host has sent something")
    enough.touch()
    for rank in (first, second):
        code, _, err = rank.finish()
        assert code == 0, err
    brought = {names.event_host(path.name) for path in Path(places[1].run_dir).rglob("*tfevents*")}
    assert brought == {"host-0", "host-1"}
    hosts = [{names.event_host(os.path.basename(path)) for path in ledger(number)} for number in (0, 1)]
    assert hosts == [{"host-0"}, {"host-1"}]
    report = oracle.check(str(logdir), View(hub.store, "me/run", "exp1"))
    assert report.problems == []
