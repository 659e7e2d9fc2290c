"""The view, as the uploader uses it: where it is, when it is sealed, and that it fails no upload."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest
from derived_runs import RankFiles, recomputed, shown

from hf_mpwriter.base.job import Nodes
from hf_mpwriter.base.settings import Settings
from hf_mpwriter.ranks_view import view
from hf_mpwriter.ranks_view.inputs import rank_of
from hf_mpwriter.ranks_view.output import Output
from hf_mpwriter.ranks_view.view import RanksView, is_of_another
from hf_mpwriter.snapshot.event_files import EventFileScan
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.workers.member_lines import Member, MemberName
from hf_mpwriter.spool.workers.members import OBSERVER, Members
from hf_mpwriter.system.process import Process, host_id, host_name


class Run:
    """A run of two ranks, and its view; the clock goes on by itself."""

    def __init__(self, root, nodes=Nodes()) -> None:  # noqa: B008 - it is frozen
        self.run_dir, self.spool, self.now = Path(root), Spool(str(root)), 1000.0
        self.spool.create()
        self.host = self.spool.host(host_id())
        os.makedirs(str(self.host.root))
        self.told: list[str] = []
        self.view = RanksView(self.spool, self.host, nodes, lambda: self.now, self.told.extend)
        self.files = RankFiles(self.run_dir, host_name())
        self.members = [member("main"), member("rank_00001")]
        for rank in (0, 1):
            self.files.start(rank)
        self.log(range(5))

    def log(self, steps):
        """Both ranks log these steps."""
        for step in steps:
            for rank in (0, 1):
                self.files.log(rank, step, {"loss": rank + step})

    def tick(self, seconds=100.0, *, is_wanted=True, elsewhere=()):
        """One tick of the uploader, after some time."""
        self.now += seconds
        self.view.keep_up(self.members, elsewhere, is_wanted=is_wanted)

    def derived(self, folder="_all_ranks"):
        """The derived run."""
        return shown(self.run_dir / folder)

    def growing(self):
        """The event files that count as growing."""
        scan = EventFileScan(self.spool.run).files(lambda _: True, Members(self.spool).growing)
        return [file.path for file in scan if file.growing]


def member(worker, host="", *, alive=True):
    """A member."""
    host = host or host_id()
    return Member(MemberName(worker, host, 1, 1, 1), alive, 1.0, Process.current(), Settings())


@pytest.fixture
def run(tmp_path):
    """See `Run`."""
    found = Run(tmp_path / "run")
    yield found
    found.view.close()


def test_the_view_is_kept_up_while_ranks_live_and_sealed_when_none_does(run):
    """Its file counts as growing until then, for all who scan the run."""
    run.tick()
    run.tick()
    assert len(run.derived()["loss/mean"]) == 5
    (path,) = run.growing()
    assert path.startswith("_all_ranks/")
    run.log(range(5, 7))
    run.members = [member("main", alive=False), member("rank_00001", alive=False)]
    run.tick(0.0)
    assert run.derived() == recomputed(run.run_dir, (0, 1))
    assert len(run.derived()["loss/mean"]) == 7
    assert run.growing() == []
    assert not run.view.is_behind


def test_without_being_asked_for_nothing_is_read_or_written(run):
    """The view is an option; one that is not wanted any more is sealed."""
    run.tick(is_wanted=False)
    assert not (run.run_dir / "_all_ranks").exists()
    run.tick()
    run.tick()
    assert run.growing()
    run.tick(is_wanted=False)
    assert run.growing() == []


def test_an_observer_keeps_no_view_open(run):
    """`sync` and `run` log nothing: once the ranks are gone, the view is complete."""
    run.tick()
    run.members = [member(OBSERVER)]
    run.tick()
    assert len(run.derived()["loss/mean"]) == 5
    assert run.growing() == []


def test_ranks_that_come_back_go_on_in_the_next_file(run):
    """A sealed file never grows."""
    run.members = []
    run.tick()
    (first,) = (run.run_dir / "_all_ranks").iterdir()
    size = first.stat().st_size
    run.members = [member("main"), member("rank_00001")]
    run.log(range(5, 8))
    run.tick()
    run.tick()
    assert len(run.derived()["loss/mean"]) == 8
    assert first.stat().st_size == size
    assert len(list((run.run_dir / "_all_ranks").iterdir())) == 2


def test_a_run_of_one_rank_has_no_view(tmp_path):
    """There is nothing to compare."""
    run = Run(tmp_path / "run")
    for path in (run.run_dir / "rank_00001").iterdir():
        path.unlink()
    (run.run_dir / "rank_00001").rmdir()
    run.tick()
    run.members = []
    run.tick()
    assert not (run.run_dir / "_all_ranks").exists()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("a fault")])
def test_a_view_that_fails_is_logged_and_begins_anew(run, monkeypatch, caplog, error):
    """Nothing is raised, the end of the uploader does not wait, and later the view is whole."""

    def refuse(*_):
        raise error

    with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
        patch.setattr(Output, "append", refuse)
        run.tick()
        run.tick()
        assert "the view of all ranks" in caplog.text
        run.members = []
        run.tick()
        assert not run.view.is_behind
    run.members = [member("main"), member("rank_00001")]
    for _ in range(3):
        run.tick()
    run.members = []
    run.tick()
    assert run.derived() == recomputed(run.run_dir, (0, 1))


def test_that_the_view_cannot_be_kept_is_told_if_it_lasts_or_nothing_more_comes(run):
    """With the path that is in its way. What a link leads to stays as it is."""
    elsewhere, link = run.run_dir.parent / "elsewhere", run.run_dir / "_all_ranks"
    elsewhere.mkdir()
    link.symlink_to(elsewhere)
    run.tick()
    assert run.told == [], "it may pass"
    run.tick()
    assert run.told == [f"the view of all ranks is not up to date: Not a directory: {link}"]
    link.unlink()
    run.tick()
    run.tick()
    assert len(run.derived()["loss/mean"]) == 5
    os.rename(link, run.run_dir / "moved")
    link.symlink_to(elsewhere)
    run.log(range(5, 7))
    run.members = []
    run.tick()
    assert len(run.told) == 2
    assert os.listdir(elsewhere) == []


@pytest.mark.parametrize("place", ["all_ranks_open.json", "all_ranks.json"])
def test_a_directory_in_the_place_of_a_record_keeps_no_view_from_its_work(run, place):
    """It is moved aside."""
    (Path(run.host.root) / place).mkdir()
    run.tick()
    run.tick()
    assert len(run.derived()["loss/mean"]) == 5
    for rank in (0, 1):
        run.files.start(rank, purge_step=3)
    run.log(range(3, 5))
    run.members = []
    run.tick()
    assert run.derived() == recomputed(run.run_dir, (0, 1))
    assert run.told == []


@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir])
def test_what_is_no_file_among_the_derived_ones_is_passed_over(run, put):
    """A pipe without a writer would hold whoever opens it."""
    (run.run_dir / "_all_ranks").mkdir()
    put(run.run_dir / "_all_ranks" / "events.out.tfevents.1700000000.other.1.abcdef01")
    run.tick()
    run.tick()
    (path,) = run.growing()
    assert os.path.getsize(run.run_dir / path) > 100
    assert run.told == []


def test_a_large_history_is_taken_in_by_parts(run, monkeypatch):
    """The uploader goes on between them, also when no worker lives; it leaves when all is derived."""
    run.log(range(5, 4000))
    monkeypatch.setattr(view, "LAST_PART", 0.0)
    run.members, parts = [], 0
    run.tick(0.0)
    while run.view.is_behind:
        parts += 1
        run.tick(0.001)
    assert parts > 1
    assert run.derived() == recomputed(run.run_dir, (0, 1))


def test_the_end_of_an_uploader_waits_for_no_view_without_end(run, monkeypatch):
    """What is missing then is derived by the next uploader."""
    run.log(range(5, 4000))
    monkeypatch.setattr(view, "LAST_PART", 0.0)
    run.members = []
    run.tick(0.0)
    run.tick(view.LONGEST)
    assert not run.view.is_behind
    assert run.growing() == []


def test_each_host_has_a_view_of_its_own_where_directories_are_its_own(tmp_path, monkeypatch):
    """By the disk, unless members of other hosts are here, or their uploaders have been."""
    monkeypatch.setattr(view, "mount_of_descriptor", lambda _: type("Local", (), {"is_local": True}))
    run = Run(tmp_path / "run", Nodes(2))
    for rank in (0, 1):
        run.files.log(rank, 5, {"loss": 1.0})
    run.tick()
    run.tick()
    folder = f"_all_ranks/{host_name()}"
    assert len(run.derived(folder)["loss/mean"]) == 6
    run.members = []
    run.tick()
    assert run.growing() == []

    shared = Run(tmp_path / "shared", Nodes(2))
    shared.members.append(member("rank_00002", "other-host"))
    shared.tick()
    shared.tick()
    shared.members = []
    shared.tick()
    assert len(shared.derived()["loss/mean"]) == 5


def test_each_uploader_has_a_view_where_several_hosts_have_one(run):
    """Of the event files that its own host has written; what was derived for all is sealed."""
    run.tick()
    run.tick()
    (shared,) = run.growing()
    files = RankFiles(run.run_dir, "other")
    files.start(2)
    files.log(2, 0, {"loss": 100.0})
    run.tick(elsewhere=("other-host",))
    run.tick(elsewhere=("other-host",))
    folder = f"_all_ranks/{host_name()}"
    assert os.path.dirname(run.growing()[0]) == folder
    assert not is_of_another(run.growing()[0])
    assert is_of_another("_all_ranks/other/events.out.tfevents.1700000000.other.1.00000000")
    assert shared not in run.growing()
    assert len(run.derived(folder)["loss/max"]) == 5
    assert max(step for step, _ in run.derived(folder)["loss/max"]) == 4


@pytest.mark.parametrize(
    ("worker", "rank"),
    [
        ("main", 0),
        ("rank_00003", 3),
        ("rank_00003~2", 3),
        ("rank_00003_Process-1", None),
        ("proc_00001", None),
        ("task_00001_rank_00003", None),
        ("~sync", None),
    ],
)
def test_only_ranks_count(worker, rank):
    """Children of a rank log what they like; array tasks are runs of their own."""
    assert rank_of(worker) == rank
