"""Which folders `sync` makes a run of, and where it keeps what it knows of them."""

from __future__ import annotations

import os

import click
import pytest
from support import event_file

from hf_mpwriter.cli import destination
from hf_mpwriter.cli.destination import is_own_folder, spool_at
from hf_mpwriter.cli.syncing import folders
from hf_mpwriter.cli.syncing.folders import spool_for
from hf_mpwriter.spool.layout import Spool


@pytest.fixture
def folder(tmp_path):
    """A folder with an event file of another writer."""
    path = tmp_path / "theirs"
    path.mkdir()
    event_file(path / "events.out.tfevents.1700000000.host", 2)
    return path


def test_a_folder_with_event_files_becomes_a_run(folder):
    """Its spool is in it, and is found by the next command."""
    spool = spool_for(str(folder), is_wanted=True)
    assert spool.exists()
    assert os.listdir(folder / ".hf_mpwriter")
    assert spool_for(str(folder), is_wanted=False).root == spool.root


def test_without_a_repository_nothing_is_created(folder):
    """The message has the command."""
    with pytest.raises(click.ClickException, match=r"sync .*theirs --repo-id NAME"):
        spool_for(str(folder), is_wanted=False)
    assert os.listdir(folder) == ["events.out.tfevents.1700000000.host"]


def test_a_folder_without_event_files_is_no_run(tmp_path):
    """Nor is one that does not exist; nothing is created."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(click.ClickException, match="has no event files"):
        spool_for(str(tmp_path / "empty"), is_wanted=True)
    with pytest.raises(click.ClickException, match="does not exist"):
        spool_for(str(tmp_path / "gone"), is_wanted=True)
    assert os.listdir(tmp_path / "empty") == []


def test_a_folder_of_runs_is_no_run(tmp_path):
    """It would upload them a second time, to another place."""
    Spool(str(tmp_path / "runs" / "a")).create()
    event_file(tmp_path / "runs" / "a" / "events.out.tfevents.1700000000.host", 2)
    with pytest.raises(click.ClickException, match=r"has 1 below it: .*--all"):
        spool_for(str(tmp_path / "runs"), is_wanted=True)


def test_a_folder_of_a_run_is_no_run(tmp_path):
    """It would be missing in the run that it is a part of."""
    Spool(str(tmp_path / "exp1")).create()
    event_file(tmp_path / "exp1" / "group" / "a" / "events.out.tfevents.1700000000.host", 2)
    with pytest.raises(click.ClickException, match=r"part of a run, .*hf-mpwriter sync .*/exp1"):
        spool_for(str(tmp_path / "exp1" / "group" / "a"), is_wanted=True)


def test_nothing_is_written_into_a_folder_of_another_user(folder, tmp_path, monkeypatch):
    """The spool is in the staging directory, where each command finds it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for module in (destination, folders):
        monkeypatch.setattr(module, "is_own_folder", lambda path: path != str(folder))
    spool = spool_for(str(folder), is_wanted=True)
    assert os.listdir(folder) == ["events.out.tfevents.1700000000.host"]
    assert (spool.run_dir, spool.exists()) == (str(folder), True)
    assert not spool.root.startswith(str(folder))
    assert spool_at(str(folder)).root == spool.root


def test_a_folder_where_runs_are_staged_is_refused_with_the_reason(folder, tmp_path, monkeypatch):
    """Its event files would not be in the run directory."""
    monkeypatch.setenv("HF_MPWRITER_STAGING", str(tmp_path))
    with pytest.raises(click.ClickException, match="Copy it to a local disk"):
        spool_for(str(folder), is_wanted=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_folder_is_this_users_if_he_owns_it(folder):
    """Root may write everywhere, but not everything is his; what is not there yet would be."""
    assert is_own_folder(str(folder))
    assert is_own_folder(str(folder / "gone"))
    os.chown(folder, 12345, -1)
    assert not is_own_folder(str(folder))
