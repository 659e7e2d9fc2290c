"""The restore: what is in the logdir and not here comes back whole, and nothing else changes, on either side."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from support import event_file

from hf_mpwriter.base.names import CONFIG_NAME
from hf_mpwriter.mirror import posix
from hf_mpwriter.mirror.job import Item
from hf_mpwriter.mirror.restore import arrivals
from hf_mpwriter.mirror.restore import process as restore
from hf_mpwriter.mirror.targets import ConflictError, CopySource, bring
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging.record import Mirrored, mirror_lock
from hf_mpwriter.spool.staging.restoration import Restoration, Unrestored
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.process import host_id

OLD, NEW = "events.out.tfevents.1795233002.h.1.00000001", "events.out.tfevents.1795236610.h.1.00000002"
RANK = f"rank_00001/{OLD}"
TORCH = "events.out.tfevents.1795240000.h.1.0"


@pytest.fixture
def logdir(tmp_path) -> Path:
    """A logdir with two event files of an earlier attempt, and what is not to come."""
    top = tmp_path / "mount" / "exp1"
    for number, path in enumerate((OLD, NEW, RANK)):
        event_file(top / path, number + 3)
    event_file(top / TORCH, 1)
    event_file(top / ".hf_mpwriter" / NEW, 1)
    (top / "notes.txt").write_text("of the user")
    (top / "events.out.tfevents.1795236611.h.1.00000003").touch()
    (top / "events.out.tfevents.1795236612.h.1.00000004").symlink_to(top / OLD)
    return top


@pytest.fixture
def staged(logdir, tmp_path) -> Spool:
    """The spool of a run that is staged for that logdir."""
    run_dir = str(tmp_path / "local" / "exp1")
    spool = Spool.of(run_dir, logdir=str(logdir))
    spool.create()
    return spool


def restored(spool: Spool) -> list[Restoration]:
    """Do a restore in this process."""
    told: list[Restoration] = []
    restore.do(spool, told.append)
    return told


def here(spool: Spool) -> dict[str, bytes]:
    """The event files of the run directory."""
    top = Path(spool.run_dir)
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*tfevents*")}


def test_what_is_there_comes_back_whole_and_as_old_as_its_name(staged, logdir):
    """Event files with names of ours, the newest first; all of them are recorded as mirrored."""
    told = restored(staged)
    wanted = {path: (logdir / path).read_bytes() for path in (OLD, NEW, RANK)}
    assert here(staged) == wanted
    size = sum(map(len, wanted.values()))
    assert told[0] == Restoration(files=3, size=size, first=1795233002, last=1795240000)
    assert told[-1] == Restoration(3, size, size, 1795233002, 1795240000, is_over=True)
    assert Mirrored.read(staged.host(host_id())).files == {path: len(data) for path, data in wanted.items()}
    for path in (OLD, NEW, RANK):
        second = int(os.path.basename(path).split(".")[3])
        assert os.stat(staged.run / path).st_mtime <= min(second, time.time() - 60)
    assert not (staged.directory / arrivals.RESTORING).exists()
    assert Unrestored.read(staged) == Unrestored()
    assert restored(staged)[0].files == 0


def test_what_is_here_stays_unless_it_is_a_beginning(staged, logdir):
    """A power cut may leave less of a file here than its mirror has; anything else is left to the mirror."""
    content = (logdir / NEW).read_bytes()
    for found, wanted in ((content[:50], content), (content + b"more", content + b"more"), (b"other", b"other")):
        Path(staged.run_dir, NEW).write_bytes(found)
        assert restored(staged)[-1].is_over
        assert here(staged)[NEW] == wanted
    assert Mirrored.read(staged.host(host_id())).files[NEW] == len(content)


def test_a_file_that_does_not_come_whole_does_not_come(staged, monkeypatch):
    """What the listing says and what is read differ: nothing stands at the path, and it is known to be missing."""
    pieces = posix.PosixTarget.pieces
    monkeypatch.setattr(posix.PosixTarget, "pieces", lambda target, path: [next(iter(pieces(target, path)))[:-1]])
    told = restored(staged)
    assert (told[-1].unread, told[-1].failure) == (3, "")
    assert "bytes came" in told[-1].reason
    assert told[-1].last == 1795240000, "names sort behind what did not come"
    assert here(staged) == {}
    assert Unrestored.read(staged).files.keys() == {OLD, NEW, RANK}


def refuses(monkeypatch, *paths: str) -> None:
    """Let the logdir refuse to have these files read."""
    pieces = posix.PosixTarget.pieces

    def read(target, path: str):
        if path in paths:
            raise PermissionError(13, "Permission denied", path)
        return pieces(target, path)

    monkeypatch.setattr(posix.PosixTarget, "pieces", read)


def test_a_file_that_cannot_be_read_holds_up_no_other(staged, logdir, monkeypatch):
    """It is named, known to be missing, and comes with the next restore; then nothing is missing."""
    with monkeypatch.context() as once:
        refuses(once, NEW)
        told = restored(staged)[-1]
    assert (told.unread, told.reason, told.is_over) == (1, f"{NEW}: Permission denied", True)
    assert here(staged).keys() == {OLD, RANK}
    size = len((logdir / NEW).read_bytes())
    assert Unrestored.read(staged).files == Unrestored.read(staged).still_missing(staged) == {NEW: size}
    told = restored(staged)[-1]
    assert (told.files, told.unread) == (1, 0)
    assert here(staged).keys() == {OLD, NEW, RANK}
    assert Unrestored.read(staged) == Unrestored()


def test_a_logdir_of_which_nothing_can_be_read_is_given_up(staged, logdir, monkeypatch):
    """It may take a minute for each of thousands of files."""
    paths = [f"events.out.tfevents.17952330{number:02d}.h.1.00000001" for number in range(10, 50)]
    for path in paths:
        event_file(logdir / path, 1)
    monkeypatch.setattr(arrivals, "GIVE_UP_AFTER", 5)
    monkeypatch.setattr(arrivals, "SMALL_AT_ONCE", 1)
    refuses(monkeypatch, *paths)
    told = restored(staged)[-1]
    assert "5 files in a row cannot be read: Permission denied" in told.failure
    assert not told.is_over


def test_files_are_read_side_by_side(staged, monkeypatch):
    """Each of them waits for the others, as a mount may take long for each call."""
    pieces, meeting = posix.PosixTarget.pieces, threading.Barrier(3)

    def read(target, path: str):
        meeting.wait(60)
        return pieces(target, path)

    monkeypatch.setattr(posix.PosixTarget, "pieces", read)
    assert restored(staged)[-1].is_over
    assert here(staged).keys() == {OLD, NEW, RANK}


def test_what_was_cut_short_is_known_to_be_missing(staged, monkeypatch):
    """Also after a SIGKILL, as it is recorded before anything is brought."""
    seen = []
    monkeypatch.setattr(arrivals.Arrivals, "bring", lambda *_: seen.append(Unrestored.read(staged).files) or ())
    restored(staged)
    assert seen[0].keys() == {OLD, NEW, RANK}


def test_an_empty_or_missing_logdir_is_no_failure(staged, tmp_path):
    """The first attempt finds none."""
    staged.logdir = str(tmp_path / "none")
    assert restored(staged)[-1] == Restoration(is_over=True)


def test_a_mirror_that_lives_writes_its_record_itself(staged):
    """Every file on disk has one writing process."""
    lock = locks.try_exclusive(mirror_lock(staged))
    assert restored(staged)[-1].is_over
    assert Mirrored.read(staged.host(host_id())) == Mirrored()
    locks.release(lock)


def test_a_url_that_cannot_be_reached_from_here_is_for_the_user(staged):
    """The package that is missing is named."""
    staged.logdir = "oss://bucket/exp1"
    (told,) = restored(staged)
    assert told.is_setting
    assert "ossfs" in told.failure


def test_a_disk_that_is_full_ends_it_with_a_reason(staged, monkeypatch):
    """What has come until then stays."""
    monkeypatch.setattr(arrivals, "SMALL_AT_ONCE", 1)
    moved = []
    move = disk.move

    def move_once(*arguments) -> None:
        if moved:
            raise OSError(28, "No space left on device")
        moved.append(move(*arguments))

    monkeypatch.setattr(disk, "move", move_once)
    assert "No space" in restored(staged)[-1].failure
    assert list(here(staged)) == [NEW]
    assert Unrestored.read(staged).files.keys() == {OLD, RANK}


def test_the_list_of_embeddings_comes_back_and_is_never_replaced_by_a_shorter_one(staged, logdir):
    """`add_embedding` appends to it; elsewhere it would begin anew, and take the place of all others."""
    (logdir / CONFIG_NAME).write_text("embeddings { a }\n")
    assert restored(staged)[-1].is_over
    here = Path(staged.run_dir, CONFIG_NAME)
    assert here.read_text() == "embeddings { a }\n"
    with here.open("a") as file:
        file.write("embeddings { b }\n")
    target = posix.PosixTarget(str(logdir), "mark", "rename")
    assert bring(target, CopySource(staged.run, Item(CONFIG_NAME, here.stat().st_size)))
    assert (logdir / CONFIG_NAME).read_text() == here.read_text()
    for other in ("embeddings { c }\n", here.read_text().replace("b", "c")):  # a restore that failed; the same length
        here.write_text(other)
        with pytest.raises(ConflictError):
            bring(target, CopySource(staged.run, Item(CONFIG_NAME, len(other))))
    assert "{ b }" in (logdir / CONFIG_NAME).read_text()


def test_what_a_killed_restore_has_left_goes_first(staged, logdir, monkeypatch):
    """It may be many gigabytes, each time."""
    disk.make_dirs(staged.directory / arrivals.RESTORING)
    Path(staged.directory.path, arrivals.RESTORING, "0" * 32).write_bytes(b"old")
    seen = []
    monkeypatch.setattr(
        posix.PosixTarget, "files", lambda *_: seen.append((staged.directory / arrivals.RESTORING).exists()) or {}
    )
    restored(staged)
    assert seen == [False]
