"""Quiet files: which go by their paths, and how a file that grows after all is found."""

from __future__ import annotations

import os

import pytest
from support import event_file

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.snapshot.event_files import UNCHANGED, EventFileScan
from hf_mpwriter.snapshot.quiet_files import NotQuietError, QuietFiles, Source, Unchanged
from hf_mpwriter.system.directory import Directory

THEIRS = "events.out.tfevents.1700000000.theirs"
OURS = "events.out.tfevents.1700000000.host.1.aabbccdd"
NOW = 1_800_000_000.0  # of the filesystem's clock


class Folder:
    """A folder that is scanned again and again."""

    def __init__(self, root) -> None:
        self.root, self.now, self.asked = root, NOW, 0
        self._scan, self._quiet = EventFileScan(Directory(root)), QuietFiles(self._time)

    def _time(self) -> float:
        self.asked += 1
        return self.now

    def quiet(self, *, covered: bool = False, growing=()) -> set[str]:
        """The paths of a scan that go by their paths."""
        files = self._scan.files(lambda _: True, lambda: growing)
        marked = self._quiet.marked(files, self._scan.stamps, lambda _: covered)
        assert [(file.path, file.length) for file in marked] == [(file.path, file.length) for file in files]
        return {file.path for file in marked if not file.growing}

    def write(self, path: str, records: int, age: float = UNCHANGED) -> int:
        """Write a file that has not changed for some seconds; its length."""
        length = event_file(self.root / path, records)
        os.utime(self.root / path, (NOW - age,) * 2)
        return length


@pytest.fixture
def folder(tmp_path) -> Folder:
    """An empty folder."""
    return Folder(tmp_path)


@pytest.mark.parametrize(
    ("age", "is_quiet"), [(UNCHANGED, True), (9 * UNCHANGED, True), (UNCHANGED - 1, False), (0, False), (-5, False)]
)
def test_a_file_of_others_is_quiet_after_ten_minutes_without_a_change(folder, age, is_quiet):
    """By the clock of the filesystem; a time in the future is no age, and without the clock none is quiet."""
    folder.write(THEIRS, 2, age)
    assert folder.quiet() == ({THEIRS} if is_quiet else set())
    folder.now = 0.0
    assert folder.quiet() == set()


def test_a_file_with_a_torn_tail_is_never_quiet(folder):
    """What is behind the last whole record is not sent, however old it is."""
    folder.write(THEIRS, 2)
    with open(folder.root / THEIRS, "ab") as file:
        file.write(b"half")
    os.utime(folder.root / THEIRS, (NOW - 9 * UNCHANGED,) * 2)
    assert folder.quiet() == set()


def test_a_file_of_ours_that_a_living_writer_has_open_is_never_quiet(folder):
    """It may pause for hours; when it is sealed, that is known."""
    folder.write(OURS, 2)
    assert folder.quiet(growing=[OURS]) == set()
    assert folder.quiet() == {OURS}


def test_a_file_that_was_seen_to_change_is_not_quiet_again(folder):
    """Its clock is wrong, as it looks old while it grows; others are as quiet as before."""
    other = f"other/{THEIRS}"
    folder.write(THEIRS, 2)
    folder.write(other, 2)
    assert folder.quiet() == {THEIRS, other}
    folder.write(THEIRS, 3)
    assert folder.quiet() == {other}
    assert folder.quiet() == {other}
    os.remove(folder.root / THEIRS)
    assert folder.quiet() == {other}
    folder.write(THEIRS, 2)
    assert folder.quiet() == {THEIRS, other}, "a new one"


def test_the_clock_is_asked_only_if_a_file_may_go_by_its_path(folder):
    """To ask it costs a file on the disk: not in runs of ours, and not for what the Hub has."""
    folder.write(OURS, 2)
    folder.quiet(growing=[OURS])
    folder.write(THEIRS, 2)
    folder.quiet(covered=True)
    assert folder.asked == 0


@pytest.mark.parametrize("change", ["grown", "shorter", "rewritten", "nothing"])
def test_a_file_that_changes_while_it_is_sent_is_found(tmp_path, change):
    """By its size, or by its time of change where that is the same."""
    path, other = tmp_path / THEIRS, tmp_path / "other.tfevents"
    path.write_bytes(b"content")
    other.write_bytes(b"content")
    os.utime(path, (NOW,) * 2)
    unchanged = Unchanged()
    for one in (path, other):
        unchanged.add(Source(LocalFile(one.name, 7, False), str(one)), one.stat())
    unchanged.check()
    if change != "nothing":
        path.write_bytes({"grown": b"content, more", "shorter": b"con", "rewritten": b"another"}[change])
        with pytest.raises(NotQuietError, match="changed") as error:
            unchanged.check()
        assert error.value.paths == {THEIRS}
    unchanged = Unchanged()
    unchanged.check()
