"""What comes back from a logdir: whole or not at all, and nothing else changes, on either side."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from support import event_file

from hf_mpwriter.base.names import CONFIG_NAME
from hf_mpwriter.mirror import copy, fetch, posix
from hf_mpwriter.mirror.returning import RELIST_AFTER, Returning
from hf_mpwriter.mirror.targets import ConflictError, CopySource, bring
from hf_mpwriter.spool.copies import Arrived, Conflict, CopyJob, Failure, Finished, Item, Listed, Message, Task, Unread
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging import ARRIVING, Listing
from hf_mpwriter.system import disk

OLD, NEW = "events.out.tfevents.1795233002.h.1.00000001", "events.out.tfevents.1795236610.h.1.00000002"
RANK = f"rank_00001/{OLD}"
TORCH = "events.out.tfevents.1795240000.h.1.0"


@pytest.fixture
def logdir(tmp_path) -> Path:
    """A logdir with three event files of an earlier attempt, and what is not to come."""
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


def told(spool: Spool, *items: Item) -> list[Message]:
    """What a copy in this process says: that fetches these files, or lists where there are none."""
    job = CopyJob(Task.FETCH if items else Task.LIST, spool.run_dir, spool.logdir, items)
    return list(copy.do(job, spool.run))


def brought(spool: Spool) -> list[Message]:
    """List, fetch all that is missing; what the copies say but for the list."""
    returning = Returning(spool.run, time.monotonic)
    first = told(spool)
    for message in first:
        returning.note(message)
    items = returning.next_items(())
    return [*first[1:-1], *(told(spool, *items) if items else [])]


def here(spool: Spool) -> dict[str, bytes]:
    """The event files of the run directory."""
    top = Path(spool.run_dir)
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*tfevents*")}


def test_what_is_there_comes_back_whole_and_as_old_as_its_name(staged, logdir):
    """Event files with names of ours: first the newest of each directory."""
    wanted = {path: (logdir / path).read_bytes() for path in (OLD, NEW, RANK)}
    assert brought(staged) == [*(Arrived(path, len(wanted[path])) for path in (NEW, RANK, OLD)), Finished()]
    assert here(staged) == wanted
    for path in wanted:
        second = int(os.path.basename(path).split(".")[3])
        assert os.stat(staged.run / path).st_mtime <= min(second, time.time() - 60)
    assert (staged.directory / ARRIVING).names() == []
    assert brought(staged) == []


def test_what_names_tell_is_known_without_the_content(staged, logdir):
    """Also of files that do not come back: what is made next sorts behind them."""
    (files,) = [message.files for message in told(staged) if isinstance(message, Listed)]
    sizes = {path: (logdir / path).stat().st_size for path in (OLD, NEW, RANK)}
    found = Listing.of(staged, files, 5.0)
    assert found == Listing(sizes, 1795233002, 1795240000, 5.0)
    found.save(staged)
    brought(staged)
    assert Listing.read(staged).still_missing(staged) == {}


def test_what_is_here_stays_unless_it_is_a_beginning(staged, logdir):
    """A power cut may leave less of a file here than its mirror has; anything else is left to the mirror."""
    content = (logdir / NEW).read_bytes()
    cut, longer = content[:50] + bytes(len(content) - 51), content + b"more"
    for found, wanted in ((content[:50], content), (cut, content), (longer, longer), (b"other", b"other")):
        Path(staged.run_dir, NEW).write_bytes(found)
        conflicts = [message.path for message in brought(staged) if isinstance(message, Conflict)]
        assert conflicts == [NEW] * (found == b"other")
        assert here(staged)[NEW] == wanted


def test_a_file_that_does_not_come_whole_does_not_come(staged, monkeypatch):
    """What the listing says and what is read differ: nothing stands at the path."""
    pieces = posix.PosixTarget.pieces
    monkeypatch.setattr(posix.PosixTarget, "pieces", lambda target, path: [next(iter(pieces(target, path)))[:-1]])
    found = brought(staged)
    assert [type(message) for message in found] == [Unread, Unread, Unread, Finished]
    assert "bytes came" in found[0].reason
    assert here(staged) == {}
    assert (staged.directory / ARRIVING).names() == []


def refuses(monkeypatch, *paths: str) -> None:
    """Let the logdir refuse to have these files read."""
    pieces = posix.PosixTarget.pieces

    def read(target, path: str):
        if path in paths:
            raise PermissionError(13, "Permission denied", path)
        return pieces(target, path)

    monkeypatch.setattr(posix.PosixTarget, "pieces", read)


def test_a_file_that_cannot_be_read_holds_up_no_other(staged, monkeypatch):
    """It is named, and comes when it can."""
    with monkeypatch.context() as once:
        refuses(once, NEW)
        assert Unread(NEW, "Permission denied") in brought(staged)
    assert here(staged).keys() == {OLD, RANK}
    brought(staged)
    assert here(staged).keys() == {OLD, NEW, RANK}


def test_a_logdir_of_which_nothing_can_be_read_is_given_up(staged, logdir, monkeypatch):
    """It may take a minute for each of thousands of files."""
    paths = [f"events.out.tfevents.17952330{number:02d}.h.1.00000001" for number in range(10, 50)]
    for path in paths:
        event_file(logdir / path, 1)
    monkeypatch.setattr(fetch, "GIVE_UP_AFTER", 5)
    refuses(monkeypatch, *paths)
    end = brought(staged)[-1]
    assert isinstance(end, Failure)
    assert end.reason == "5 files in a row cannot be read: Permission denied"


def test_files_are_read_side_by_side(staged, monkeypatch):
    """Each of them waits for the others, as a mount may take long for each call."""
    pieces, meeting = posix.PosixTarget.pieces, threading.Barrier(3)

    def read(target, path: str):
        meeting.wait(60)
        return pieces(target, path)

    monkeypatch.setattr(posix.PosixTarget, "pieces", read)
    assert brought(staged)[-1] == Finished()
    assert here(staged).keys() == {OLD, NEW, RANK}


def test_a_disk_that_is_full_ends_it_with_a_reason(staged, monkeypatch):
    """What has come until then stays."""
    monkeypatch.setattr(fetch, "AT_ONCE", 1)
    moved = []
    move = disk.move

    def move_once(*arguments) -> None:
        if moved:
            raise OSError(28, "No space left on device")
        moved.append(move(*arguments))

    monkeypatch.setattr(disk, "move", move_once)
    assert "No space" in brought(staged)[-1].reason
    assert list(here(staged)) == [NEW]


def test_the_list_of_embeddings_comes_with_the_names_and_is_never_replaced_by_a_shorter_one(staged, logdir):
    """`add_embedding` appends to it; elsewhere it would begin anew, and take the place of all others."""
    (logdir / CONFIG_NAME).write_text("embeddings { a }\n")
    told(staged)
    here = Path(staged.run_dir, CONFIG_NAME)
    assert here.read_text() == "embeddings { a }\n"
    with here.open("a") as file:
        file.write("embeddings { b }\n")
    target = posix.PosixTarget(str(logdir), "mark")
    assert bring(target, CopySource(staged.run, Item(CONFIG_NAME, here.stat().st_size))) is None
    assert (logdir / CONFIG_NAME).read_text() == here.read_text()
    for other in ("embeddings { c }\n", here.read_text().replace("b", "c")):  # it did not come; the same length
        here.write_text(other)
        with pytest.raises(ConflictError):
            bring(target, CopySource(staged.run, Item(CONFIG_NAME, len(other))))
    assert "{ b }" in (logdir / CONFIG_NAME).read_text()


def test_what_could_not_be_read_is_asked_for_again_later(staged):
    """And at once where a copy as a whole has failed."""
    now = [1000.0]
    returning = Returning(staged.run, lambda: now[0])
    assert returning.is_unlisted
    returning.note(Listed({NEW: 5, OLD: 6}))
    assert not returning.is_unlisted
    returning.note(Unread(NEW, "why"))
    returning.note(Arrived(OLD, 6))
    assert not returning.missing
    assert returning.unread == {NEW: "why"}
    now[0] += RELIST_AFTER
    assert returning.is_unlisted
    returning.failed([Item(NEW, 5)])
    assert returning.next_items(()) == (Item(NEW, 5),)
    assert returning.next_items({NEW}) == (), "a living worker has it open"
