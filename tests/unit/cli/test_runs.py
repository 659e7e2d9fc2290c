"""LOGDIR: the runs below a folder, whose folder it is, and what to say where there is no run."""

from __future__ import annotations

import functools
import os

import pytest
from support import event_file

from hf_mpwriter.base.storage import staged_name, staging_root
from hf_mpwriter.cli import runs
from hf_mpwriter.cli.runs import is_own_folder, named, nearest_first, no_run, others_below, runs_below
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging import MirrorRecord


def test_runs_are_found_at_any_depth_and_nothing_else(tmp_path):
    """Also one within another; no folder with a dot in front, no link, no folder that only has the name of a spool."""
    for name in ("a", "b/c/d", "b/c/d/e", ".hidden/f"):
        Spool(str(tmp_path / name)).create()
    (tmp_path / "g" / ".hf_mpwriter").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "b")
    assert runs_below(str(tmp_path)) == ["a", "b/c/d", "b/c/d/e"]
    assert runs_below(str(tmp_path / "a")) == ["."]


def test_event_files_of_others_belong_to_the_topmost_folder_that_can_become_a_run(tmp_path):
    """Not those of a run; links are not followed. Beside runs, each folder below stands for itself."""
    Spool(str(tmp_path / "mixed" / "run")).create()
    for path in ("a/b", "a", "mixed", "mixed/c/d", "mixed/run/child"):
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
        event_file(tmp_path / path / "events.out.tfevents.1700000000.host", 1)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert others_below(str(tmp_path), runs_below(str(tmp_path))) == ["a", "mixed", "mixed/c/d"]
    assert others_below(str(tmp_path / "mixed" / "run"), ["."]) == []


def test_many_names_are_counted_and_the_nearest_comes_first():
    """So that a message stays one line."""
    assert named([str(number) for number in range(7)]) == "0, 1, 2, 3, 4 and 2 more"
    assert nearest_first("epx1", ["other", "exp10", "exp1"]) == ["exp1", "exp10", "other"]


def test_a_search_ends(tmp_path, monkeypatch):
    """A folder may hold millions of others."""
    monkeypatch.setattr(runs, "MOST", 10)
    for number in range(20):
        (tmp_path / "data" / str(number)).mkdir(parents=True)
    Spool(str(tmp_path / "data" / "0" / "run")).create()
    assert runs_below(str(tmp_path)) == []


@pytest.mark.parametrize(("to", "found"), [("logs/exp1", ["a", "logs/exp1"]), ("../other", ["a"]), ("s3://b/x", ["a"])])
def test_a_run_that_is_kept_elsewhere_is_found_by_its_logdir(tmp_path, monkeypatch, to, found):
    """If that is below the folder; one whose logdir is a URL hides no other."""
    monkeypatch.setenv("HF_MPWRITER_STAGING", str(tmp_path / "staging"))
    folder = tmp_path / "here"
    Spool(str(folder / "a")).create()
    to = to if "://" in to else os.path.abspath(folder / to)
    spool = Spool(str(tmp_path / "staging" / staging_root(os.geteuid()) / staged_name(to)))
    spool.create()
    MirrorRecord(to, 1.0).publish(spool)
    assert runs_below(str(folder)) == found


def test_where_no_run_is_the_answer_fits_what_is_there(tmp_path, monkeypatch):
    """The folder of several runs, one of another writer, an empty one, none at all, a URL."""
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a", "runs/b"):
        Spool(str(tmp_path / name)).create()
    (tmp_path / "torch").mkdir()
    event_file(tmp_path / "torch" / "events.out.tfevents.1700000000.host", 1)
    (tmp_path / "empty").mkdir()
    say = functools.partial(no_run, is_elsewhere=False)
    assert say("runs") == "runs is not a run. Runs below it: runs/a, runs/b"
    assert say("torch").endswith("To upload them: hf-mpwriter sync ./torch --repo-id NAME")
    assert say("empty") == "empty has no event files, and no run below it."
    assert say("none").startswith("none does not exist.")
    assert "found on its machine only" in say("s3://bucket/runs/a")
    assert "found on its machine only" in no_run("runs/a", is_elsewhere=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_folder_is_this_users_if_he_owns_it(tmp_path):
    """Root may write everywhere, but not everything is his; what is not there yet would be."""
    assert is_own_folder(str(tmp_path))
    assert is_own_folder(str(tmp_path / "gone"))
    os.chown(tmp_path, 12345, -1)
    assert not is_own_folder(str(tmp_path))
