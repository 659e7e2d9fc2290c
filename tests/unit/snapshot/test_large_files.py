"""Large files: when they are sent, and what is sent of them."""

from __future__ import annotations

import os
import subprocess

import pytest
from support import open_descriptors

from hf_mpwriter.base.files import PAYLOAD_LIMIT, LocalFile
from hf_mpwriter.snapshot import attachments
from hf_mpwriter.snapshot.large_files import COPY_EVERY, LargeFiles, snapshot_of
from hf_mpwriter.system.directory import Directory, at

LENGTH = PAYLOAD_LIMIT + 5
FILE = LocalFile("a.tfevents", LENGTH, True)


class Run:
    """A run directory with one large sparse file."""

    def __init__(self, root) -> None:
        self.root, self.now = root, 1000.0
        self.scratch = root / "outbox"
        self.path = root / FILE.path
        with open(self.path, "wb") as file:
            file.write(b"begin")
            file.truncate(LENGTH + 10)
        self.large = LargeFiles(Directory(root), at(self.scratch), lambda: self.now)

    def left(self, *, everything: bool = False) -> dict[str, str]:
        """What is left for later."""
        return self.large.left_for_later([FILE], everything=everything)


@pytest.fixture
def run(tmp_path) -> Run:
    """A file that still grows, and room on the disk."""
    return Run(tmp_path)


@pytest.fixture
def full(monkeypatch):
    """A disk without room."""
    monkeypatch.setattr(attachments, "RESERVE", 1 << 60)


def test_a_file_that_grows_is_sent_once_an_hour(run):
    """Each time it is copied. Without a worker, or when `sync` asks, it does not wait."""
    assert run.left() == {}
    run.large.started([FILE])
    run.now += COPY_EVERY - 1
    assert run.left() == {FILE.path: ""}
    assert run.left(everything=True) == {}
    run.now += 1
    assert run.left() == {}


def test_a_disk_without_room_leaves_it_for_later_and_says_why(run, full, monkeypatch):
    """Until there is room. It costs no descriptor and leaves nothing behind."""
    run.left(everything=True)  # it holds the directories from now on
    before = open_descriptors()
    (reason,) = run.left(everything=True).values()
    assert "still grows" in reason
    assert "too little room" in reason
    assert open_descriptors() == before
    assert os.listdir(run.scratch) == []
    monkeypatch.undo()
    assert run.left() == {}


def test_small_files_are_not_looked_at(run, full):
    """Nor are those that are gone: the push finds out."""
    small = LocalFile("a.tfevents", PAYLOAD_LIMIT, True)
    gone = LocalFile("gone.tfevents", LENGTH, True)
    assert run.large.left_for_later([small, gone], everything=False) == {}


def test_a_snapshot_does_not_change_and_has_no_name(run):
    """The file goes on growing, and is rewritten: the copy stays what it was, cut at its length."""
    with open(run.path, "rb") as file, snapshot_of(file.fileno(), LENGTH, at(run.scratch)) as copy:
        with open(run.path, "r+b") as other:
            other.write(b"CHANGE")
        os.truncate(run.path, LENGTH + 100)
        assert os.stat(copy).st_size == LENGTH
        with open(copy, "rb") as content:
            assert content.read(6) == b"begin\0"
        assert os.listdir(run.scratch) == []


def test_a_snapshot_needs_room_and_the_whole_length(run, full, monkeypatch):
    """Otherwise it is an error, and nothing is left behind."""
    with (
        open(run.path, "rb") as file,
        pytest.raises(OSError, match="too little room"),
        snapshot_of(file.fileno(), LENGTH, at(run.scratch)),
    ):
        pass
    monkeypatch.undo()
    with (
        open(run.path, "rb") as file,
        pytest.raises(FileNotFoundError, match="shorter"),
        snapshot_of(file.fileno(), LENGTH + 11, at(run.scratch)),
    ):
        pass
    assert os.listdir(run.scratch) == []


def test_a_filesystem_that_can_clone_needs_no_room(tmp_path, full):
    """Blocks are shared, as by xfs: no copy is made, whatever room is left."""
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    with open(image, "wb") as file:
        file.truncate(400 << 20)
    for command in (["mkfs.xfs", "-q", image], ["mount", "-o", "loop", image, disk]):
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("no xfs can be mounted here")
    try:
        run = Run(disk)
        assert run.left() == {}
        with open(run.path, "rb") as file, snapshot_of(file.fileno(), LENGTH, at(run.scratch)) as copy:
            assert os.stat(copy).st_size == LENGTH
        del run  # it holds directories
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)  # directories in it may still be held
