"""The runs below a folder."""

from __future__ import annotations

import os

import pytest

from hf_mpwriter.base.home import staging_root
from hf_mpwriter.cli.status import finding
from hf_mpwriter.cli.status.finding import runs_below
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging.record import MirrorRecord


def test_runs_are_found_at_any_depth_and_nothing_else(tmp_path):
    """Also one within another; no folder with a dot in front, no link, no folder that only has the name of a spool."""
    for name in ("a", "b/c/d", "b/c/d/e", ".hidden/f"):
        Spool(str(tmp_path / name)).create()
    (tmp_path / "g" / ".hf_mpwriter").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "b")
    assert runs_below(str(tmp_path)) == ["a", "b/c/d", "b/c/d/e"]
    assert runs_below(str(tmp_path / "a")) == ["."]


def test_a_search_ends(tmp_path, monkeypatch):
    """A folder may hold millions of others."""
    monkeypatch.setattr(finding, "MOST", 10)
    for number in range(20):
        (tmp_path / "data" / str(number)).mkdir(parents=True)
    Spool(str(tmp_path / "data" / "0" / "run")).create()
    assert runs_below(str(tmp_path)) == []


@pytest.mark.parametrize(("to", "found"), [("logs/exp1", ["logs/exp1"]), ("../other", [])])
def test_a_run_that_is_kept_elsewhere_is_found_by_its_logdir(tmp_path, monkeypatch, to, found):
    """If that is below the folder."""
    monkeypatch.setenv("HF_MPWRITER_STAGING", str(tmp_path / "staging"))
    folder = tmp_path / "here"
    folder.mkdir()
    spool = Spool(str(tmp_path / "staging" / staging_root(os.geteuid()) / "0123" / "exp1"))
    spool.create()
    MirrorRecord(os.path.abspath(folder / to), 1.0).publish(spool)
    assert runs_below(str(folder)) == found


def test_a_run_whose_logdir_is_a_url_is_below_no_folder(tmp_path, monkeypatch):
    """And it hides no other."""
    monkeypatch.setenv("HF_MPWRITER_STAGING", str(tmp_path / "staging"))
    Spool(str(tmp_path / "here" / "a")).create()
    spool = Spool(str(tmp_path / "staging" / staging_root(os.geteuid()) / "0123" / "exp1"))
    spool.create()
    MirrorRecord("s3://bucket/exp1", 1.0).publish(spool)
    assert runs_below(str(tmp_path / "here")) == ["a"]
