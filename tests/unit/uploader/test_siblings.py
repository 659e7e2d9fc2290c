"""Siblings: what counts as an unfinished run of ours, and what a directory that hangs costs."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace

import pytest
from hanging import hanging, why_not
from programs import wait_for

from hf_mpwriter.base import state
from hf_mpwriter.base.settings import Destination, Settings
from hf_mpwriter.base.storage import staged_name, staging_root
from hf_mpwriter.daemon.starts import StartRecord
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging import MirrorRecord
from hf_mpwriter.spool.workers.members import MemberFile
from hf_mpwriter.system import launch, locks
from hf_mpwriter.system.process import Process
from hf_mpwriter.uploader import siblings

HERE = "http://127.0.0.1:9"


def unfinished(path, endpoint: str = HERE) -> Spool:
    """A run directory with the member file of a dead process."""
    spool = Spool(str(path))
    spool.create()
    spool.record_destination(Destination(endpoint, "me/other"))
    MemberFile(spool, "main", Process.current(), Settings()).leave()
    return spool


@pytest.fixture
def start(tmp_path) -> StartRecord:
    """Of the uploader of a run in a directory with others."""
    return StartRecord(str(tmp_path / "ours"), destination=Destination(HERE, "me/run"), seeks_siblings=True)


def found(start: StartRecord, patience: float = 2.0) -> list[str]:
    """The names of the runs that are found."""
    runs = siblings.unfinished(start.run_dir, start.destination.endpoint, patience)
    return [os.path.basename(spool.run_dir) for spool, _ in runs]


def test_unfinished_runs_of_ours_on_the_same_hub_are_found(tmp_path, start):
    """However the URL is written; the run itself, files, finished runs, links and runs for another Hub are not."""
    for name, endpoint in [("a", HERE), ("b", f"{HERE}/"), ("elsewhere", "http://127.0.0.1:8"), ("ours", HERE)]:
        unfinished(tmp_path / name, endpoint)
    finished = unfinished(tmp_path / "finished")
    for name in os.listdir(finished.members):
        os.unlink(os.path.join(finished.members, name))
    (tmp_path / "file").touch()
    os.symlink(tmp_path / "a", tmp_path / "link")
    (tmp_path / "empty").mkdir()
    assert found(start) == ["a", "b"]


def test_unfinished_staged_runs_are_found_from_a_staged_run(tmp_path):
    """Each has a directory of its own there. The spool of a run that logs elsewhere is none of them."""
    places = {}
    for logdir in ("s3://bucket/ours", "s3://bucket/other", "/mnt/local"):
        places[logdir] = tmp_path / staging_root(os.geteuid()) / staged_name(logdir)
        spool = unfinished(places[logdir])
        if "://" in logdir:
            MirrorRecord(logdir, 1.0).publish(spool)
    runs = list(siblings.unfinished(str(places["s3://bucket/ours"]), HERE))
    assert [(spool.run_dir, spool.logdir) for spool, _ in runs] == [
        (str(places["s3://bucket/other"]), "s3://bucket/other")
    ]


def test_a_copy_is_left_to_its_user(tmp_path, start):
    """What was unpacked from an archive may name any repository of this user; a run that was moved is still found."""
    made = unfinished(tmp_path / "made")
    shutil.copytree(made.run_dir, tmp_path / "unpacked")
    os.rename(made.run_dir, tmp_path / "moved")
    assert found(start) == ["moved"]


def test_a_parent_that_cannot_be_listed_has_no_runs():
    """As on scratch disks: a directory that can be passed but not listed."""
    assert list(siblings.unfinished("/nowhere/run", HERE)) == []


def test_no_more_than_a_few_uploaders_are_started(tmp_path, start):
    """A folder with hundreds of unfinished runs does not get hundreds of uploaders at once; they search nothing."""
    others = [unfinished(tmp_path / f"run{number}") for number in range(siblings.SERVED + 2)]
    children = siblings.search(start)
    for pid in children:
        os.waitpid(pid, 0)
    assert len(children) == siblings.SERVED
    assert [bool(other.host_ids()) for other in others] == [True] * siblings.SERVED + [False] * 2
    for other in others:
        wait_for(lambda lock=other.uploader_lock: not locks.is_held(lock), "it has nothing to send, and leaves")


@pytest.mark.root
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")
def test_a_directory_that_hangs_costs_the_others_little(tmp_path, start):
    """Each is looked at in a thread of its own."""
    unfinished(tmp_path / "z")
    with hanging(tmp_path / "m"):
        assert found(start) == ["z"]


@pytest.mark.root
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")
def test_a_search_that_hangs_is_ended_by_its_timer(tmp_path):
    """Also when the directory that holds the run directory hangs itself."""
    with hanging(tmp_path / "runs"):
        start = StartRecord(
            str(tmp_path / "runs" / "ours"), destination=Destination(HERE, "me/run"), seeks_siblings=True
        )
        pid = launch.start("search", state.dump(start), start.run_dir, {}, limit=1.0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGALRM


def test_nothing_is_searched_beside_a_run_that_is_alone(start):
    """A process costs more than the list of one directory."""
    search = siblings.Search(start)
    assert not search._pid
    search.reap()


def test_an_uploader_does_not_list_the_folder_of_its_run(tmp_path, start, monkeypatch):
    """It may hold a million names, on a slow mount: the search lists them, which has a timer."""
    (tmp_path / "other").mkdir()
    monkeypatch.setattr(siblings, "_listed", None)
    search = siblings.Search(start)
    assert os.waitpid(search._pid, 0)[0] == search._pid


def test_an_uploader_that_is_not_to_search_starts_nothing(tmp_path, start):
    """That of a sibling, and that of `hf-mpwriter sync`."""
    (tmp_path / "other").mkdir()
    search = siblings.Search(replace(start, seeks_siblings=False))
    assert not search._pid
    search.reap()
