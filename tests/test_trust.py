"""Whose spool is followed: this user's own, or one that is shared within a group on purpose."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import wait_for
from support import in_child, succeed
from test_end_to_end import LOG_AND_EXIT, judge, no_uploader

from hf_mpwriter.base.errors import ForeignSpoolError
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.spool.layout import MemberName, Spool
from hf_mpwriter.spool.ownership import check_ownership
from hf_mpwriter.system import disk

GROUP = 54321
ONE, TWO, STRANGER = 54301, 54302, 54303  # users; the first two are in the group
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")


@pytest.fixture
def place(tmp_path):
    """A spool of this user."""
    spool = Spool(str(tmp_path / "exp1"))
    spool.create()
    return spool


@pytest.fixture
def open_place():
    """A directory that other users can reach; pytest's are root's own."""
    top = Path(tempfile.mkdtemp())
    top.chmod(0o755)
    yield top
    shutil.rmtree(top)


def modes(top: str) -> dict[str, int]:
    """The mode of each directory and regular file, by path."""
    found = {}
    for directory, _, names in os.walk(top):
        for path in [directory, *(os.path.join(directory, name) for name in names)]:
            found[os.path.relpath(path, top)] = stat.S_IMODE(os.lstat(path).st_mode)
    return found


def test_all_of_a_spool_is_for_its_owner_only(hub, run_dir, start):
    """Directories 0700, files 0600, whatever the umask; event files are as the umask says."""
    before = os.umask(0)
    try:
        start(LOG_AND_EXIT, run_dir, 5).succeed()
    finally:
        os.umask(before)
    wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
    found = modes(Spool(str(run_dir)).root)
    assert {mode for path, mode in found.items() if os.path.isdir(os.path.join(run_dir, ".hf_mpwriter", path))} == {
        0o700
    }
    assert set(found.values()) == {0o700, 0o600}
    assert "hosts" in found
    (event_file,) = run_dir.glob("*tfevents*")
    assert stat.S_IMODE(event_file.stat().st_mode) == 0o666


@pytest.mark.parametrize(
    ("mode", "says"), [(0o777, "everybody"), (0o2772, "everybody"), (0o770, "its group"), (0o750, ""), (0o2770, "")]
)
def test_a_spool_into_which_others_may_write_is_refused(place, mode, says):
    """Unless it was opened to its group on purpose: setgid tells."""
    os.chmod(place.root, mode)
    with pytest.raises(ForeignSpoolError, match=says) if says else contextlib.nullcontext():
        place.create()
    with pytest.raises(ForeignSpoolError, match=says) if says else contextlib.nullcontext():
        assert place.destination() is None


def test_a_spool_that_is_a_link_is_refused(place):
    """Also if it leads to a spool of ours."""
    os.rename(place.root, place.run_dir + "-spool")
    os.symlink(place.run_dir + "-spool", place.root)
    with pytest.raises(ForeignSpoolError, match="symbolic link"):
        place.create()


@root_only
@pytest.mark.root
@pytest.mark.parametrize("group_access", ["", "1"])
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o2770])
def test_the_spool_of_another_user_is_refused(open_place, monkeypatch, mode, group_access):
    """Unless both share it within a group that this user is in."""
    place = Spool(str(open_place / "exp1"))
    place.create()
    monkeypatch.setenv("HF_MPWRITER_GROUP", group_access)
    os.chown(place.root, ONE, GROUP)
    os.chmod(place.root, mode)
    with pytest.raises(ForeignSpoolError, match=f"belongs to user {ONE}"):
        check_ownership(place.root)

    def as_colleague() -> None:
        os.setgroups([GROUP])
        os.setuid(TWO)
        check_ownership(place.root)

    assert in_child(as_colleague) == (0 if group_access and mode == 0o2770 else 1)


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


@pytest.mark.parametrize("how", ["link", "open", "theirs"])
def test_a_strange_spool_does_not_break_training_and_gets_no_token(place, tmp_path, start, monkeypatch, how):
    """It names another Hub: nothing is asked there, what is logged stays here, one warning says what to do."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    place.record_destination(Destination("http://127.0.0.1:9", "me/other"))
    if how == "link":
        os.rename(place.root, tmp_path / "elsewhere")
        os.symlink(tmp_path / "elsewhere", place.root)
    elif how == "open":
        os.chmod(place.root, 0o777)  # noqa: S103 - that is what must be noticed
    else:
        if os.geteuid():
            pytest.skip("only root can give a directory away")
        os.chown(place.root, ONE, GROUP)
    before = modes(place.root)
    code, out, err = start(FOREIGN, place.run_dir, env={"HF_TOKEN": "hf_secret"}).finish()
    assert (code, out) == (0, "trained\n"), err
    assert err.count("not uploaded") == 1, err
    assert err.count(place.root) == 1 + (how == "open"), "and what helps"
    assert modes(place.root) == before, "nothing was written there"
    assert len(list(Path(place.run_dir).glob("*tfevents*"))) == 2
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
    assert sum(file.hub_events for file in judge(run_dir, hub).files.values()) == 4


def test_an_uploader_does_not_follow_a_strange_spool(place, start):
    """Whoever starts one: it looks itself before it reads where to upload, or removes what is a ruin."""
    ruin = Path(place.member_file(MemberName("main", "host-0", 1, 2, 3)))
    ruin.touch()
    place.record_destination(Destination("http://127.0.0.1:9", "me/other"))
    os.chmod(place.root, 0o777)  # noqa: S103 - that is what must be noticed
    source = """
import sys
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.uploader.loop import Uploader
import random, time
Uploader(Spool(sys.argv[1]), 0, time.monotonic, random.Random(1))
"""
    code, _, err = start(source, place.run_dir).finish()
    assert code == 1
    assert "ForeignSpoolError" in err
    assert ruin.exists()
    for command in ("status", "sync", "verify"):
        result = subprocess.run(
            [sys.executable, "-m", "hf_mpwriter", command, place.run_dir], capture_output=True, text=True, check=False
        )
        assert result.returncode == 1
        assert f"Run: chmod o-w {place.root}" in result.stderr


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
def test_two_users_of_a_group_share_a_run(hub, open_place, start):
    """Both log, each elects and uploads what both have logged, ranks take over each other's directories."""
    run_dir = open_place / "exp1"
    run_dir.mkdir()
    os.chown(run_dir, ONE, GROUP)
    for user, rank in ((ONE, "1"), (TWO, "1"), (ONE, "0")):
        home = open_place / f"home{user}"
        home.mkdir(exist_ok=True)
        os.chown(home, user, user)
        env = {"HF_MPWRITER_GROUP": "1", "RANK": rank, "WORLD_SIZE": "2", "PYTHONDONTWRITEBYTECODE": "1"}
        start(AS_USER + LOG_AND_EXIT, f"{user},{GROUP}", home, run_dir, 20, env=env).succeed()
        wait_for(lambda: no_uploader(run_dir), "the uploader leaves")
        judge(run_dir, hub)
    events = list(run_dir.rglob("*tfevents*"))
    assert sorted(path.stat().st_uid for path in events) == [ONE, ONE, TWO]
    found = modes(str(run_dir / ".hf_mpwriter"))
    assert set(found.values()) == {0o2770, 0o660}, found
    assert {os.lstat(run_dir / ".hf_mpwriter" / path).st_gid for path in found} == {GROUP}
    refused = start(AS_USER + LOG_AND_EXIT, f"{STRANGER}", open_place, run_dir, 1).finish()
    assert refused[0] == 1
    assert "cannot be written" in refused[2] or "belongs to" in refused[2]


def test_a_project_directory_that_is_open_to_its_group_does_not_open_the_spool(tmp_path, monkeypatch):
    """2775, as administrators make them: who may log there may not send this user's token elsewhere, unless asked."""
    run_dir = tmp_path / "exp1"
    run_dir.mkdir()
    run_dir.chmod(0o2775)
    place = Spool(str(run_dir))
    place.create()
    disk.make_dirs(place.host("h").outbox)
    assert {mode & 0o077 for mode in modes(place.root).values()} == {0}
    monkeypatch.setenv("HF_MPWRITER_GROUP", "1")
    place.create()
    assert set(modes(place.root).values()) == {0o2770, 0o660}


def test_a_spool_is_opened_to_the_group_while_files_come_and_go_in_it(place, monkeypatch):
    """Ranks that start at once have temporary files there: no start fails because one of them has gone."""
    real = os.lstat
    temporary = Path(place.root, ".FORMAT.1.tmp")
    temporary.touch()

    def lstat(path):
        temporary.unlink(missing_ok=True)
        return real(path)

    monkeypatch.setattr(os, "lstat", lstat)
    disk.open_tree(place.root, os.getegid())
    assert set(modes(place.root).values()) == {0o2770, 0o660}


def test_a_private_spool_is_opened_by_the_next_start_of_its_owner(place, monkeypatch):
    """All that is in it already, too; and not by a start without the variable."""
    disk.make_dirs(place.host("h").outbox)
    place.record_destination(Destination("http://hub", "me/run"))
    place.create()
    assert set(modes(place.root).values()) == {0o700, 0o600}
    monkeypatch.setenv("HF_MPWRITER_GROUP", "1")
    place.create()
    assert set(modes(place.root).values()) == {0o2770, 0o660}
    monkeypatch.delenv("HF_MPWRITER_GROUP")
    succeed(
        "import sys; from hf_mpwriter import SummaryWriter; SummaryWriter(sys.argv[1]).add_scalar('a', 1, 1)",
        place.run_dir,
    )
    assert set(modes(place.root).values()) == {0o2770, 0o660}, "the spool tells later processes"
