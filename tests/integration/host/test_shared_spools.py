"""Whose spool is used, under real workers and uploaders."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from programs import wait_for
from runs import LOG_AND_EXIT, check_oracle, no_uploader, run
from shared_spools import GROUP, ONE, TWO, modes, root_only

from hf_mpwriter.base.settings import Destination
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers.member_lines import MemberName


def test_all_of_a_spool_is_for_its_owner_only(hub, run_dir, start):
    """Directories 0700, files 0600, whatever the umask; event files are as the umask says."""
    start("import os\nos.umask(0)" + LOG_AND_EXIT, run_dir, 5).succeed()
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    found = modes(Spool(str(run_dir)).root)
    assert {mode for path, mode in found.items() if os.path.isdir(os.path.join(run_dir, ".hf_mpwriter", path))} == {
        0o700
    }
    assert set(found.values()) == {0o700, 0o600}
    assert "hosts" in found
    (event_file,) = run_dir.glob("*tfevents*")
    assert stat.S_IMODE(event_file.stat().st_mode) == 0o666


FOREIGN = """
import sys
from hf_mpwriter import HFSummaryWriter
with HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=30) as writer:
    writer.add_scalar("loss", 1.0, 1)
    assert writer.scheduler.trigger().result(30) is None
    assert not writer.push(wait=30)
    writer.add_scalar("loss", 2.0, 2)
with HFSummaryWriter("me/run", logdir=sys.argv[1]) as writer:
    writer.add_scalar("loss", 3.0, 3)
print("trained")
"""


def test_a_strange_spool_does_not_break_training_and_gets_no_token(own_spool, tmp_path, start, monkeypatch):
    """It names another Hub: no request goes there, records stay local, and one warning names what to do."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    own_spool.record_destination(Destination("http://127.0.0.1:9", "me/other"))
    os.chmod(own_spool.root, 0o777)  # noqa: S103 - that is what must be noticed
    before = modes(own_spool.root)
    code, out, err = start(FOREIGN, own_spool.run_dir, env={"HF_TOKEN": "hf_secret"}).finish()
    assert (code, out) == (0, "trained\n"), err
    assert err.count("not uploaded") == 1, err
    assert err.count(own_spool.root) == 2, "and names what helps"
    assert modes(own_spool.root) == before, "nothing was written there"
    assert len(list(Path(own_spool.run_dir).glob("*tfevents*"))) == 2
    (own,) = tmp_path.glob("hf_mpwriter-*")
    assert set(modes(str(own)).values()) == {0o700, 0o600}


OPENED = """
import os, sys
from hf_mpwriter import HFSummaryWriter
writer = HFSummaryWriter("me/run", logdir=sys.argv[1], exit_timeout=0)
writer.add_scalar("loss", 1.0, 1)
os.chmod(f"{sys.argv[1]}/.hf_mpwriter", 0o770)
if not (pid := os.fork()):
    writer.add_scalar("loss", 1.0, 2)
    writer.close()
    os._exit(writer.dropped)
assert os.waitpid(pid, 0)[1] == 0
writer.close()
writer.add_scalar("loss", 1.0, 3)
writer.close()
assert writer.dropped == 0
"""


def test_a_spool_that_is_opened_while_training_runs_costs_no_record(hub, run_dir, tmp_path, start, monkeypatch):
    """`chmod -R g+w` on the logs: children that are forked then and writers that are used again keep what they log."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    code, _, err = start(OPENED, run_dir).finish()
    assert (code, err.count("not uploaded")) == (0, 2), err
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    spool = Spool(str(run_dir))
    os.chmod(spool.root, 0o700)
    start(LOG_AND_EXIT, run_dir, 1).succeed()
    assert sum(file.hub_events for file in check_oracle(run_dir, hub).files.values()) == 4


def test_an_uploader_does_not_follow_a_strange_spool(own_spool, start):
    """However it is started, it checks the spool before it reads the destination or removes a ruin."""
    ruin = Path(own_spool.members / str(MemberName("main", "host-0", 1, 2, 3)))
    ruin.touch()
    own_spool.record_destination(Destination("http://127.0.0.1:9", "me/other"))
    os.chmod(own_spool.root, 0o777)  # noqa: S103 - that is what must be noticed
    source = """
import sys
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.daemon.starts import StartRecord
from hf_mpwriter.uploader.loop import Uploader
from hf_mpwriter.uploader.upload import HeldRun
import random, time
from hf_mpwriter.base.settings import Destination
start = StartRecord(run_dir=sys.argv[1], destination=Destination("http://127.0.0.1:9", "me/other"))
Uploader(start, time.monotonic, random.Random(1)).add(HeldRun(Spool(sys.argv[1]), start, 0))
"""
    code, _, err = start(source, own_spool.run_dir).finish()
    assert code == 1
    assert "ForeignSpoolError" in err
    assert ruin.exists()
    for command in ("status", "sync", "verify"):
        result = run(command, own_spool.run_dir)
        assert result.exit_code == (4 if command == "status" else 1)
        assert f"Run: chmod o-w {own_spool.root}" in (result.stdout if command == "status" else result.stderr)


# The interpreter may be where only root can read: the right to read everything is kept, no right to write is.
AS_USER = """
import ctypes, os, sys
user, *groups = map(int, sys.argv.pop(1).split(","))
libc, READ, KEEP_CAPABILITIES, AMBIENT, RAISE = ctypes.CDLL(None), 2, 8, 47, 2
libc.prctl(KEEP_CAPABILITIES, 1)
os.setgroups(groups); os.setgid(user); os.setuid(user)
libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(1 << READ, 1 << READ, 1 << READ, 0, 0, 0))
assert libc.prctl(AMBIENT, RAISE, READ, 0, 0) == 0
os.umask(0o022)
os.environ["HOME"] = sys.argv.pop(1); os.environ["HF_HOME"] = os.environ["HOME"] + "/hf"
"""


@root_only
@pytest.mark.root
def test_another_user_is_refused_and_trains_on(hub, open_place, start):
    """Of two users of a group, the second one is told whose run it is; nothing of his is uploaded from there."""
    run_dir = open_place / "exp1"
    run_dir.mkdir()
    os.chown(run_dir, ONE, GROUP)
    run_dir.chmod(0o2775)
    told = {}
    for user in (ONE, TWO):
        home = open_place / f"home{user}"
        home.mkdir()
        os.chown(home, user, user)
        env = {"TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
        code, _, told[user] = start(AS_USER + LOG_AND_EXIT, f"{user},{GROUP}", home, run_dir, 20, env=env).finish()
        assert code == 0, told[user]
        wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    assert "belongs to" not in told[ONE]
    assert f"belongs to user {ONE}, so it is not used. A run directory is for one user" in told[TWO]
    spool = run_dir / ".hf_mpwriter"
    assert {mode & 0o077 for mode in modes(str(spool)).values()} == {0}
    assert {os.lstat(spool / path).st_uid for path in modes(str(spool))} == {ONE}
    assert sorted(path.stat().st_uid for path in run_dir.rglob("*tfevents*")) == [ONE, TWO]
