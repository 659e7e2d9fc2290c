"""The search of a run directory: bounded, whatever others put there, and what is named is always found."""

from __future__ import annotations

import os
import time

import pytest
from support import event_file

from hf_mpwriter.base.names import SPOOL_NAME
from hf_mpwriter.events import framing
from hf_mpwriter.snapshot import search as module
from hf_mpwriter.snapshot.attachments import Attachments
from hf_mpwriter.snapshot.event_files import EventFileScan
from hf_mpwriter.snapshot.search import LEVELS, Named, RunSearch
from hf_mpwriter.system.directory import Directory

OURS = "events.out.tfevents.1700000000.host.1.0123abcd"


@pytest.fixture
def few(monkeypatch):
    """A search that stops at 50 paths."""
    monkeypatch.setattr(module, "PATHS", 50)


def flood(root, count: int = 200, prefix: str = "a") -> None:
    """Put many small files into a folder."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (root / f"{prefix}{number:05d}.txt").touch()


def found(
    root, *files: str, folders: tuple[str, ...] = ("",), until: float | None = None
) -> tuple[set[str], list[str]]:
    """What a search finds, and what it has left out."""
    search = RunSearch(Directory(root), Named(frozenset(files), frozenset(folders)), until)
    paths = list(search)
    assert len(paths) == len(set(paths)), "each comes once"
    return set(paths), search.left_out


@pytest.mark.usefixtures("few")
def test_a_search_stops_at_its_number_of_paths_and_finds_what_is_named(tmp_path):
    """Files of members and of the ledger, and those with a name of ours in the folders of workers; nearest first."""
    deep = f"rank_00001/loss/deep/{OURS}"
    for path in (deep, f"rank_00002/{OURS}", f"rank_00002/sub/{OURS}"):
        event_file(tmp_path / path, 1)
    flood(tmp_path)
    for folder in ("b", "rank_00001"):
        flood(tmp_path / folder)
    flood(tmp_path / "rank_00002", prefix="events.out.tfevents.17000001")
    paths, left_out = found(tmp_path, deep, folders=("", "rank_00002"))
    assert paths >= {deep, f"rank_00002/{OURS}"}
    assert f"rank_00002/sub/{OURS}" not in paths
    assert len(paths) < 60
    assert left_out == [module.TOO_MANY]


@pytest.mark.usefixtures("few")
def test_what_is_named_counts_for_no_limit(tmp_path):
    """A run with more files than a search looks for is found whole, without a word."""
    flood(tmp_path / "rank_00001")
    names = [f"rank_00001/{name}" for name in os.listdir(tmp_path / "rank_00001")]
    assert found(tmp_path, *names) == (set(names), [])


@pytest.mark.usefixtures("few")
def test_another_run_is_not_entered_although_its_names_are_not_all_read(tmp_path):
    """Its spool may be the last of a million names; what the ledger says of it from before counts as little."""
    flood(tmp_path / "other", 300)
    (tmp_path / "other" / SPOOL_NAME).mkdir()
    inside = f"other/{OURS}"
    event_file(tmp_path / inside, 1)
    flood(tmp_path / "z", 300)
    paths, left_out = found(tmp_path, inside, folders=("", "other"))
    assert left_out
    assert not [path for path in paths if path.startswith("other/")]


def test_a_search_goes_so_many_levels_deep(tmp_path):
    """A folder chain of thousands took minutes: each is reached through all that are above it."""
    folder, fd = [], os.open(tmp_path, os.O_RDONLY)
    for _ in range(500):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(os.open("f.txt", os.O_CREAT | os.O_WRONLY, dir_fd=below))
        os.close(fd)
        fd, folder = below, [*folder, "d"]
    os.close(fd)
    started = time.thread_time()
    paths, left_out = found(tmp_path)
    assert time.thread_time() - started < 0.5
    assert max(path.count("/") for path in paths) == LEVELS
    assert left_out == [f"folders more than {LEVELS} deep, such as {'/'.join(folder[: LEVELS + 1])}"]
    scan = EventFileScan(Directory(tmp_path))
    assert scan.files(lambda _: True, set) == []
    assert scan.left_out == left_out == Attachments(Directory(tmp_path)).scan(lambda _: True).left_out


def test_a_path_that_no_run_directory_has_is_left_out(tmp_path):
    """One whole record below more than 4,096 characters of folders ended uploaders, commands and trainings."""
    record, fd = framing.frame(framing.version_event(1.0)), os.open(tmp_path, os.O_RDONLY)
    for _ in range(25):
        file = os.open(OURS, os.O_CREAT | os.O_WRONLY, dir_fd=fd)
        os.write(file, record)
        os.close(file)
        os.mkdir("d" * 200, dir_fd=fd)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    scan = EventFileScan(Directory(tmp_path))
    paths = [file.path for file in scan.files(lambda _: True, set)]
    assert 15 < len(paths) < 25
    (left_out,) = scan.left_out
    assert left_out.startswith("paths of more than 4,096 bytes, such as dddd")


def test_a_search_ends_in_time_and_finds_what_is_named(tmp_path):
    """The seconds are those that its caller has."""
    event_file(tmp_path / OURS, 1)
    event_file(tmp_path / "rank_00001" / OURS, 1)
    event_file(tmp_path / "other.tfevents", 1)
    named = f"rank_00001/{OURS}"
    assert found(tmp_path, named, until=time.monotonic()) == ({named, OURS}, ["what could not be looked at in time"])
    scan = EventFileScan(Directory(tmp_path), seconds=0)
    assert scan.files(lambda _: True, set, named=Named(frozenset({named}))) == []
    assert [file.path for file in scan.unread] == [named], "named, but there was no time to read it"
    assert scan.left_out


@pytest.mark.usefixtures("few")
def test_the_nearest_folders_come_first(tmp_path):
    """Many folders with few files each count as well as one with many; those further away are left out."""
    for number in range(9):
        flood(tmp_path / f"near{number}", 2)
        flood(tmp_path / f"near{number}" / "far", 5)
    paths, left_out = found(tmp_path)
    assert {path for path in paths if "far" not in path} == {
        f"near{n}/a0000{m}.txt" for n in range(9) for m in range(2)
    }
    assert len(paths) < 9 * 2 + 9 * 5
    assert left_out == [module.TOO_MANY]
