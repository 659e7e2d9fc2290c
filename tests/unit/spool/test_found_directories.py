"""Directories of ours in places where others write, that are there before us: used only if they are ours alone."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest
from forks import in_child
from runs import run
from shared_spools import GROUP, ONE, TWO, become, root_only
from staged import stage

from hf_mpwriter import SummaryWriter
from hf_mpwriter.base.errors import LogdirError
from hf_mpwriter.base.settings import Settings
from hf_mpwriter.base.storage import Layout, staged_name, staging_root
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.storage import aside, beside, find, spool_of
from hf_mpwriter.system import user_cache
from hf_mpwriter.worker.messages import announcement

URL = "s3://bucket/exp1"


@pytest.fixture
def places(tmp_path, monkeypatch) -> list[Path]:
    """Three directories in which runs may be staged, the best first."""
    monkeypatch.delenv("HF_MPWRITER_STAGING", raising=False)
    found = [tmp_path / name for name in ("first", "second", "third")]
    for variable, place in zip(("SLURM_TMPDIR", "TMPDIR", "XDG_STATE_HOME"), found, strict=True):
        place.mkdir()
        monkeypatch.setenv(variable, str(place))
    return found


def staging_in(place: Path) -> Path:
    """The staging directory of this user there."""
    return place / staging_root(os.geteuid())


def staged(place: Path, logdir: str) -> Path:
    """A run that an earlier start has staged there; its run directory."""
    staging_in(place).mkdir(mode=0o700, exist_ok=True)
    run_dir = staging_in(place) / staged_name(logdir)
    stage(run_dir, logdir).release()
    return run_dir


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o2770, 0o777, 0o701])
def test_what_others_may_enter_is_refused_and_named_and_stays_as_it_is(places, mode):
    """Whoever could write there before a change of its mode still could: it may be open in his process."""
    staging_in(places[0]).mkdir()
    staging_in(places[0]).chmod(mode)
    found = find(URL)
    assert found.run_dir.startswith(str(staging_in(places[1])))
    assert stat.S_IMODE(staging_in(places[0]).stat().st_mode) == mode
    assert stat.S_IMODE(staging_in(places[1]).stat().st_mode) == 0o700
    named = f"Not used: {staging_in(places[0])}: Other users may enter it. If all in it is yours: chmod go-rwx "
    assert named in found.refused
    assert named in announcement(found, Settings(), uploads=True)
    assert named in run("doctor", URL).output
    for other in (beside("/etc").spool, aside(Spool("/etc")).root):
        assert other.startswith(str(staging_in(places[1])))


def test_where_every_place_is_refused_each_is_named(places, monkeypatch):
    """A named one has no other to fall back on."""
    monkeypatch.setenv("HF_MPWRITER_STAGING", str(places[0]))
    staging_in(places[0]).symlink_to(places[1])
    with pytest.raises(LogdirError, match=f"{staging_in(places[0])}: It is a link"):
        SummaryWriter(URL)
    assert list(places[1].iterdir()) == []


def test_a_run_goes_on_where_it_stands_whichever_place_comes_first(places):
    """As after a job that had no SLURM_TMPDIR."""
    run_dir = staged(places[1], URL)
    assert (find(URL).run_dir, find(URL).refused) == (str(run_dir), "")
    assert list(places[0].iterdir()) == []
    assert find("s3://bucket/exp2").run_dir.startswith(str(staging_in(places[0])))


def test_a_run_in_a_place_that_is_refused_is_told_by_all_that_look_for_it(places, tmp_path, monkeypatch):
    """It is neither gone on with nor removed."""
    monkeypatch.chdir(tmp_path)
    run_dir = staged(places[0], URL)
    (run_dir / "events.out.tfevents.1700000000.h.1.00000001").touch()
    staging_in(places[0]).chmod(0o755)
    told = f"What an earlier start has left of this run is in {run_dir}"
    assert told in find(URL).refused
    for words in (["status", URL], ["sync", URL], ["verify", URL], ["doctor", URL]):
        assert told in run(*words).output, words
    assert f"Keeping {run_dir}: it may not be yours alone" in run("clean", "--older-than", "0").output
    staging_in(places[0]).chmod(0o700)
    assert find(URL).run_dir == str(run_dir)


def test_a_run_below_the_current_folder_in_a_place_that_is_refused_is_told(places, tmp_path, monkeypatch):
    """`status` without a name finds it, too."""
    monkeypatch.chdir(tmp_path)
    staged(places[0], str(tmp_path / "bucket" / "exp1"))
    assert "bucket/exp1" in run("status").output
    staging_in(places[0]).chmod(0o755)
    assert "bucket/exp1" in run("status").output


@pytest.mark.parametrize("part", ["", "rate_limit"])
def test_a_folder_in_the_cache_that_a_link_leads_to_is_not_used(tmp_path, part):
    """Old files are removed from the folders of the cache, so a link would have them removed anywhere."""
    mine = tmp_path / "mine" / "rate_limit"
    mine.mkdir(parents=True, mode=0o700)
    (tmp_path / "mine").chmod(0o700)
    (mine / "results.json").touch()
    os.utime(mine / "results.json", (1, 1))
    link = tmp_path / "cache" / "hf_mpwriter" / part
    link.parent.mkdir(parents=True)
    (tmp_path / "cache" / "hf_mpwriter").chmod(0o700) if part else None
    link.symlink_to(mine if part else mine.parent)
    folder = user_cache.folder_of("rate_limit", {"XDG_CACHE_HOME": str(tmp_path / "cache")})
    with pytest.raises((PermissionError, NotADirectoryError, FileExistsError)), user_cache.locked(folder):
        user_cache.forget(folder, before=time.time())
    assert [path.name for path in mine.iterdir()] == ["results.json"]


@root_only
@pytest.mark.root
def test_a_folder_that_another_user_puts_in_the_place_of_ours_is_not_filled(open_place):
    """He may rename what its group may write, and works in it; no change of its mode would end that."""
    scratch, project, home = open_place / "scratch", open_place / "project", open_place / "home"
    for path, mode, owner in ((scratch, 0o1777, 0), (project, 0o2775, ONE), (home, 0o700, ONE)):
        path.mkdir()
        os.chown(path, owner, GROUP)
        path.chmod(mode)
    for name in ("results", "notes"):
        (project / name).mkdir()
        os.chown(project / name, ONE, GROUP)
        (project / name).chmod(0o2770)
    os.environ.pop("HF_MPWRITER_STAGING", None)

    def as_attacker() -> None:
        become(TWO)
        os.rename(project / "results", scratch / staging_root(ONE))
        os.mkdir(scratch / staging_root(ONE) / staged_name(URL)[:16])
        os.mkdir(scratch / "hf_mpwriter")
        os.chmod(scratch / "hf_mpwriter", 0o777)  # noqa: S103 - that is the attack
        os.rename(project / "notes", scratch / "hf_mpwriter" / "rate_limit")

    def as_victim() -> None:
        become(ONE)
        os.environ |= {"TMPDIR": str(scratch), "SLURM_TMPDIR": "", "XDG_STATE_HOME": str(home), "HOME": str(home)}
        found = find(URL)
        assert found.layout is Layout.STAGED
        assert found.run_dir.startswith(f"{home}/hf_mpwriter-")
        assert f"{scratch / staging_root(ONE)}: Other users may enter it" in found.refused
        spool_of(found).create()
        folder = user_cache.folder_of("rate_limit", {"XDG_CACHE_HOME": str(scratch)})
        with pytest.raises(PermissionError), user_cache.locked(folder):
            pass

    assert in_child(as_attacker) == 0
    before = sorted(map(str, scratch.rglob("*")))
    assert in_child(as_victim) == 0
    assert sorted(map(str, scratch.rglob("*"))) == before
    assert stat.S_IMODE((scratch / staging_root(ONE)).stat().st_mode) == 0o2770
