"""Where the spool of a logdir is."""

from __future__ import annotations

import dataclasses
import os
import pickle
import stat

import pytest

from hf_mpwriter import SummaryWriter
from hf_mpwriter.base.errors import LogdirError, SettingsError
from hf_mpwriter.base.storage import Layout, staged_name, staging_root
from hf_mpwriter.cli.runs import RepoPlace
from hf_mpwriter.spool import storage
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging import MirrorRecord
from hf_mpwriter.spool.storage import find, spool_of
from hf_mpwriter.system.filesystem import Mount, find_mount


@pytest.fixture
def staging(tmp_path, monkeypatch):
    """A directory that HF_MPWRITER_STAGING names."""
    (tmp_path / "staging").mkdir()
    monkeypatch.setenv("HF_MPWRITER_STAGING", str(tmp_path / "staging"))
    return tmp_path / "staging"


def test_a_local_logdir_is_its_own_home(tmp_path):
    """Nothing is created, and the spool is in the logdir."""
    home = find(str(tmp_path / "run"))
    assert (home.layout, home.run_dir, home.why) == (Layout.DIRECT, str(tmp_path / "run"), "")
    assert spool_of(home).root == home.spool == str(tmp_path / "run" / ".hf_mpwriter")
    assert not (tmp_path / "run").exists()


def test_a_named_staging_directory_takes_every_run(tmp_path, staging):
    """A staged run has the name of its logdir, lies in a private directory, and is found from there, too."""
    logdir = str(tmp_path / "runs" / "exp1")
    with SummaryWriter(logdir) as writer:
        writer.add_scalar("loss", 1.0, 1)
    home = find(logdir)
    root = staging / f"hf_mpwriter-{os.geteuid()}"
    assert (home.layout, home.logdir) == (Layout.STAGED, logdir)
    assert home.run_dir == str(root / staged_name(os.path.realpath(logdir)))
    assert os.path.basename(home.run_dir) == "exp1"
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert spool_of(home).exists()
    assert find(home.run_dir).layout is Layout.DIRECT, "no run is staged twice"
    assert find(home.run_dir).run_dir == home.run_dir


def test_a_logdir_that_is_reached_by_a_link_has_the_same_home(tmp_path, staging):
    """Two processes of one run may name it in different ways; a link that leads elsewhere is another run."""
    for name in ("exp1", "exp2"):
        (tmp_path / name).mkdir()
    (tmp_path / "one").symlink_to("exp1")
    (tmp_path / "other").symlink_to("exp2")
    assert find(str(tmp_path / "one")).run_dir == find(str(tmp_path / "exp1")).run_dir
    assert find(str(tmp_path / "one")).logdir == str(tmp_path / "one")
    logdir = spool_of(find(str(tmp_path / "one"))).logdir
    assert RepoPlace("me/run", path_in_repo="").of(logdir).path_in_repo == "one", "as its writer names the folder"
    assert find(str(tmp_path / "other")).run_dir == find(str(tmp_path / "exp2")).run_dir


@pytest.mark.parametrize("url", ["s3://bucket/runs/exp1", "gs://bucket/exp1/"])
def test_a_url_is_staged(staging, url):
    """Its spool is on this host."""
    home = find(url)
    assert home.layout is Layout.STAGED
    assert os.path.basename(home.run_dir) == "exp1"
    assert home.run_dir.startswith(str(staging))


def test_without_staging_a_url_is_refused(monkeypatch):
    """The message names the variable."""
    monkeypatch.setenv("HF_MPWRITER_STAGING", "never")
    with pytest.raises(LogdirError, match="HF_MPWRITER_STAGING"):
        find("s3://bucket/exp1")


def test_staging_is_an_absolute_path(monkeypatch):
    """A relative one would be another directory in another process."""
    monkeypatch.setenv("HF_MPWRITER_STAGING", "some/where")
    with pytest.raises(SettingsError, match="absolute"):
        find("/runs/exp1")


def test_a_spool_travels_with_its_place(tmp_path, staging):
    """A pickled spool that lies elsewhere is the same one on arrival."""
    spool = spool_of(find("s3://bucket/exp1"))
    arrived = pickle.loads(pickle.dumps(spool))  # noqa: S301 - it was made here
    assert (arrived.run_dir, arrived.root, arrived.logdir) == (spool.run_dir, spool.root, "s3://bucket/exp1")


def test_a_staging_directory_of_another_kind_is_not_used(tmp_path, monkeypatch):
    """A link, or a place where everybody may rename, is refused; the next candidate is taken."""
    bad, good = tmp_path / "bad", tmp_path / "good"
    for place in (bad, good):
        place.mkdir()
    (bad / f"hf_mpwriter-{os.geteuid()}").symlink_to(good)
    monkeypatch.delenv("HF_MPWRITER_STAGING", raising=False)
    monkeypatch.setenv("SLURM_TMPDIR", str(bad))
    monkeypatch.setenv("TMPDIR", str(good))
    assert find("s3://bucket/one").run_dir.startswith(f"{good}/hf_mpwriter-")
    good.chmod(0o777)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert find("s3://bucket/two").run_dir.startswith(f"{tmp_path}/state/hf_mpwriter-")


GCSFUSE = Mount("/mnt/bucket", "fuse.gcsfuse", "bucket")


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A directory in which runs are staged, although none is named."""
    (tmp_path / "disk").mkdir()
    monkeypatch.delenv("HF_MPWRITER_STAGING", raising=False)
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "disk"))
    return tmp_path / "disk"


def staged_for(logdir, mount: Mount, disk) -> str:
    """A run that an earlier start has staged for a mount; its run directory."""
    root = disk / staging_root(os.geteuid())
    root.mkdir(mode=0o700, exist_ok=True)
    run_dir = root / staged_name(os.path.realpath(logdir))
    spool = Spool(str(run_dir))
    spool.create()
    MirrorRecord(str(logdir), 1.0, mount).publish(spool)
    spool.release()
    return str(run_dir)


def test_a_run_stays_staged_while_its_mount_is_not_there(tmp_path, disk, monkeypatch):
    """The empty directory on the local disk is no logdir; `never` overrides that, and no other run is meant."""
    logdir = tmp_path / "bucket" / "exp1"
    run_dir = staged_for(logdir, dataclasses.replace(GCSFUSE, point=str(tmp_path / "bucket")), disk)
    home = find(str(logdir))
    assert (home.layout, home.run_dir, home.logdir) == (Layout.STAGED, run_dir, str(logdir))
    assert home.why == f"gcsfuse (bucket) at {tmp_path / 'bucket'} is not mounted, or does not answer; mount it again"
    assert find(str(tmp_path / "bucket" / "exp2")).layout is Layout.DIRECT
    assert not logdir.parent.exists()
    monkeypatch.setenv("HF_MPWRITER_STAGING", "never")
    assert find(str(logdir)).layout is Layout.DIRECT


def test_what_is_mounted_in_place_of_the_mount_or_over_it_gets_what_is_staged(tmp_path, disk):
    """Where the logdir is now files could grow; but what is only here would be forgotten."""
    here = find_mount(str(tmp_path))
    for number, point in enumerate((here.point, "/")):
        run_dir = staged_for(tmp_path / f"exp{number}", dataclasses.replace(GCSFUSE, point=point), disk)
        home = find(str(tmp_path / f"exp{number}"))
        assert (home.layout, home.run_dir) == (Layout.STAGED, run_dir)
        assert home.why == "an earlier start has staged it"


def test_a_staging_directory_that_others_may_enter_is_not_believed(tmp_path, disk):
    """Else a stranger would choose where a run is written; it is told."""
    logdir = tmp_path / "bucket" / "exp1"
    run_dir = staged_for(logdir, dataclasses.replace(GCSFUSE, point=str(tmp_path / "bucket")), disk)
    (disk / staging_root(os.geteuid())).chmod(0o755)
    assert find(str(logdir)).layout is Layout.DIRECT
    assert find(str(logdir)).refused.endswith(f"What an earlier start has left of this run is in {run_dir}.")


def test_a_home_on_the_network_is_not_looked_at(tmp_path, disk, monkeypatch):
    """It may hang; a run is neither looked for there nor staged there, and the next directory is taken."""
    asked = []
    isdir, makedirs = os.path.isdir, os.makedirs
    network = Mount(str(disk), "nfs4", "server:/home")
    mount_unasked = lambda path, _: network if path == str(disk) else find_mount(path)  # noqa: E731
    monkeypatch.setattr("hf_mpwriter.base.storage.mount_unasked", mount_unasked)
    monkeypatch.setattr(os.path, "isdir", lambda path: asked.append(path) or isdir(path))
    monkeypatch.setattr(os, "makedirs", lambda path, *a, **k: asked.append(path) or makedirs(path, *a, **k))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "next"))
    assert find(str(tmp_path / "run")).layout is Layout.DIRECT
    assert find("s3://bucket/one").run_dir.startswith(f"{tmp_path}/next/")
    assert asked
    assert not [path for path in asked if str(path).startswith(str(disk))]


@pytest.mark.parametrize(("fstype", "is_fit"), [("fuse.mystery", True), ("nfs4", True), ("exfat", False)])
def test_a_named_staging_directory_is_believed_unless_it_is_known_to_be_unfit(
    tmp_path, staging, monkeypatch, fstype, is_fit
):
    """Of what is not known it is believed; a spool needs locks and modes."""
    monkeypatch.setattr(storage, "find_mount", lambda path: Mount(path, fstype, "x"))
    if is_fit:
        assert find(str(tmp_path / "exp1")).run_dir.startswith(str(staging))
        return
    with pytest.raises(LogdirError, match=f"in {staging}, exfat does not keep the mode of a file"):
        find(str(tmp_path / "exp1"))


@pytest.mark.parametrize(("setting", "layout"), [("", Layout.STAGED), ("never", Layout.DIRECT)])
def test_a_program_that_is_not_known_is_staged_unless_the_user_says_otherwise(
    tmp_path, disk, monkeypatch, setting, layout
):
    """Nothing is made there, or asked but the status of the logdir."""
    monkeypatch.setenv("HF_MPWRITER_STAGING", setting)
    (tmp_path / "mount").mkdir()
    mystery = Mount(str(tmp_path / "mount"), "fuse.mystery", "x")
    monkeypatch.setattr(storage, "mount_at", lambda _: mystery)
    assert find(str(tmp_path / "mount" / "exp1")).layout is layout
    assert list((tmp_path / "mount").iterdir()) == []
