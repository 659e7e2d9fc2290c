"""Targets: what is written, what is left alone, and in which way."""

from __future__ import annotations

import dataclasses
import errno
import os
import sys
import time

import fsspec
import pytest
from staged import leftovers

from hf_mpwriter.mirror import posix
from hf_mpwriter.mirror.copy import do
from hf_mpwriter.mirror.posix import mark_of
from hf_mpwriter.mirror.targets import CopySource
from hf_mpwriter.spool.copies import (
    Absent,
    Arrived,
    Conflict,
    CopyJob,
    Failure,
    Finished,
    Item,
    Listed,
    Task,
    Withheld,
)
from hf_mpwriter.system.directory import Directory
from hf_mpwriter.system.filesystem import Mount, find_mount
from hf_mpwriter.system.process import host_id

ONE, TWO = (f"events.out.tfevents.100000000{n}.h.1.0123abcd" for n in (1, 2))
LATER = ONE.replace("1000000001", "1000000009")


@pytest.fixture
def run(tmp_path):
    """A run directory with two files, the second one in a directory."""
    (tmp_path / "run" / "rank_00001").mkdir(parents=True)
    (tmp_path / "run" / ONE).write_bytes(b"0123456789torn")
    (tmp_path / "run" / "rank_00001" / TWO).write_bytes(b"abc" * (posix.CHUNK // 2))
    (tmp_path / "run" / LATER).write_bytes(b"end")
    (tmp_path / "run" / ONE).chmod(0o640)
    return Directory(str(tmp_path / "run"))


def items(run) -> tuple[Item, ...]:
    """Both files; of the first, what is before its torn end."""
    return Item(ONE, 10), Item(f"rank_00001/{TWO}", 3 * (posix.CHUNK // 2))


def copied(run, to, *, task=Task.BRING, wanted=None, **more) -> list:
    """What a copy tells."""
    return list(do(CopyJob(task, run.path, str(to), wanted or items(run), **more), run))


@pytest.fixture(params=["posix", "url"])
def to(request, tmp_path):
    """A logdir, as a path and as a URL."""
    if request.param == "posix":
        return str(tmp_path / "there" / "exp1")
    fsspec.filesystem("memory").store.clear()
    return "memory://bucket/exp1"


def content(to: str, name: str) -> bytes:
    """What is in the logdir."""
    with fsspec.open(f"{to}/{name}", "rb") as file:
        return file.read()


def put(to: str, name: str, data: bytes) -> None:
    """Put something there."""
    filesystem, path = fsspec.core.url_to_fs(f"{to}/{name}")
    filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
    filesystem.pipe_file(path, data)


def test_files_arrive_up_to_their_lengths_and_are_not_written_again(run, to, monkeypatch):
    """A second copy finds them there and writes nothing."""
    told = copied(run, to)
    assert told == [*(Arrived(item.path, item.length) for item in items(run)), Finished()]
    assert content(to, ONE) == b"0123456789"
    assert content(to, f"rank_00001/{TWO}") == b"abc" * (posix.CHUNK // 2)
    monkeypatch.setattr(posix.PosixTarget, "put", None)
    monkeypatch.setattr("hf_mpwriter.mirror.remote.RemoteTarget.put", None)
    assert copied(run, to)[-1] == Finished()


def test_a_beginning_that_may_not_be_replaced_is_named(run, to, monkeypatch):
    """Another user has left it there: a person has to remove it. Where nothing is there, the logdir is at fault."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    put(to, ONE, b"01234")
    for target in ("posix.PosixTarget.put", "remote.RemoteTarget.put"):
        monkeypatch.setattr(f"hf_mpwriter.mirror.{target}", refuse)
    conflict, failure = copied(run, to)
    assert isinstance(conflict, Conflict)
    assert "5 bytes" in conflict.reason
    assert "remove that file" in conflict.reason
    assert isinstance(failure, Failure)
    assert failure.is_refused


@pytest.mark.parametrize(
    ("there", "outcome"),
    [
        (b"01234", "written again"),
        (b"", "written again"),
        (b"0123456789", "taken"),
        (b"0123456789torn", "taken"),
        (b"012345678xtorn", "conflict"),
        (b"012x", "conflict"),
    ],
)
def test_what_a_killed_copy_has_left_is_written_again_and_nothing_else(run, to, there, outcome):
    """More of the same file is left; what begins differently, too, and then no later file of its writer is brought."""
    put(to, ONE, there)
    told = copied(run, to, wanted=(*items(run)[:1], Item(LATER, 3), *items(run)[1:]))
    if outcome == "conflict":
        assert isinstance(told[0], Conflict)
        assert [message.path for message in told if isinstance(message, Arrived)] == [items(run)[1].path]
        assert content(to, ONE) == there
    else:
        assert told[-1] == Finished()
        assert told[0] == Arrived(ONE, len(there) if outcome == "taken" else 10)
        assert content(to, ONE) == (there if outcome == "taken" else b"0123456789")


def test_a_file_of_another_machine_keeps_no_file_back(run, to):
    """Something else has its place: only that one does not come."""
    put(to, ONE, b"other")
    told = copied(run, to, wanted=(Item(ONE, 10, theirs=True), Item(LATER, 3)))
    assert [type(message) for message in told] == [Conflict, Arrived, Finished]
    assert content(to, ONE) == b"other"


def test_the_beginning_of_a_file_of_another_machine_replaces_no_more_of_it(run, tmp_path, monkeypatch):
    """That machine comes back while the beginning is written: the next try finds what it has brought."""
    write, to = posix._write, tmp_path / "there"

    def overtaken(*arguments) -> None:
        write(*arguments)
        (to / ONE).write_bytes(b"0123456789more")

    monkeypatch.setattr(posix, "_write", overtaken)
    wanted = (Item(ONE, 10, theirs=True),)
    (failure,) = copied(run, to, wanted=wanted)
    assert (failure.is_refused, failure.is_of_files) == (False, True)
    assert copied(run, to, wanted=wanted) == [Arrived(ONE, 14), Finished()]
    assert content(str(to), ONE) == b"0123456789more"
    assert leftovers(to) == []


def test_what_another_machine_brings_while_a_beginning_is_compared_is_not_replaced(run, to, monkeypatch):
    """What was seen before the comparison counts, not what is there when the copy is written."""
    agrees = CopySource.agrees_with

    def overtaken(*arguments) -> bool:
        is_same = agrees(*arguments)
        put(to, ONE, b"0123456789more")
        return is_same

    put(to, ONE, b"01234")
    monkeypatch.setattr(CopySource, "agrees_with", overtaken)
    wanted = (Item(ONE, 10, theirs=True),)
    told = copied(run, to, wanted=wanted)
    assert not any(isinstance(message, Arrived) for message in told)
    assert content(to, ONE) == b"0123456789more"
    assert copied(run, to, wanted=wanted) == [Arrived(ONE, 14), Finished()]


def test_a_file_of_another_machine_replaces_nothing_where_no_name_changes(run, to, tmp_path, monkeypatch):
    """That machine may put more there while it is written; where nothing is, it comes."""

    def refuse(*_: str, **__: int) -> None:
        raise OSError(errno.ENOSYS, "no names change here")

    monkeypatch.setattr(posix.os, "rename", refuse)
    put(to, ONE, b"0123")
    (conflict, arrived, end) = copied(run, to, wanted=(Item(ONE, 10, theirs=True), Item(LATER, 3, theirs=True)))
    assert (arrived, end) == (Arrived(LATER, 3), Finished())
    assert isinstance(conflict, Conflict)
    assert "4 bytes of it are there" in conflict.reason
    assert "remove that file" in conflict.reason
    assert (content(to, ONE), content(to, LATER)) == (b"0123", b"end")
    assert leftovers(tmp_path / "there") == []


def test_a_comparison_writes_nothing(run, to):
    """It tells what is there by its content, what is not there, and what differs."""
    put(to, ONE, b"0123456780")
    put(to, LATER, b"end")
    told = copied(run, to, task=Task.COMPARE, wanted=(*items(run), Item(LATER, 3)))
    assert [type(message) for message in told] == [Conflict, Absent, Arrived, Finished]
    put(to, LATER, b"end, and more")
    assert copied(run, to, task=Task.COMPARE, wanted=(Item(LATER, 3),)) == [Arrived(LATER, 13), Finished()]


def test_where_names_cannot_change_a_file_is_written_in_place(run, tmp_path, monkeypatch):
    """A copy that meets it goes on without a second try; of a type that is known for it, it does not even try."""
    to, renamed = tmp_path / "there", []

    def refuse(old: str, new: str, **_: int) -> None:
        renamed.append(new)
        raise OSError(errno.ENOSYS, "no names change here")

    monkeypatch.setattr(posix.os, "rename", refuse)
    put(str(to), ONE, b"0123")
    assert copied(run, to)[-1] == Finished()
    assert set(renamed) == {ONE}
    assert leftovers(to) == []
    assert content(str(to), ONE) == b"0123456789"
    known = Mount(str(tmp_path), "fuse", "mountpoint-s3")
    monkeypatch.setattr(posix, "mount_of_descriptor", lambda _: known)
    renamed.clear()
    assert copied(run, tmp_path / "other", mount=known)[-1] == Finished()
    assert renamed == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ETIMEDOUT])
@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_what_is_refused_leaves_no_part_behind(run, tmp_path, monkeypatch, number, call):
    """The error is told, and whether it comes again until a person does something."""
    monkeypatch.setattr(posix.os, call, lambda *_, **__: (_ for _ in ()).throw(OSError(number, os.strerror(number))))
    told = copied(run, tmp_path / "there")
    refused = number not in (errno.EIO, errno.ETIMEDOUT)
    if (call, number) == ("rename", errno.EIO):  # some mounts say so where names cannot change
        assert told[-1] == Finished()
    else:
        assert told == [Failure(os.strerror(number), refused, is_of_files=number != errno.ETIMEDOUT)]
    assert leftovers(tmp_path / "there") == []


def test_what_a_killed_copy_has_left_is_replaced_where_rename_replaces_nothing(run, tmp_path, monkeypatch):
    """As with sshfs: it is removed first. Only the beginning of our own file comes so far."""
    rename, to = os.rename, tmp_path / "there"

    def never_replaces(old: str, new: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        if os.path.exists(to / new):
            raise OSError(errno.EPERM, "something is there")
        rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(posix.os, "rename", never_replaces)
    put(str(to), ONE, b"0123")
    assert copied(run, to)[-1] == Finished()
    assert content(str(to), ONE) == b"0123456789"
    assert leftovers(to) == []


def test_parts_of_killed_copies_are_removed(run, tmp_path):
    """Those of this mirror at once, those of another one after a day; what is no part of a mirror stays."""
    to = tmp_path / "there"
    to.mkdir()
    other, mark = mark_of("other", "/run"), mark_of(host_id(), run.path)
    old, new, own, foreign = f".{other}.0.part", f".{other}.1.part", f".{mark}.2.part", ".rsync.part"
    for name in (old, new, own, foreign):
        (to / name).write_text("")
    for name in (old, foreign):
        os.utime(to / name, (0, time.time() - 2 * posix.STALE))
    copied(run, to)
    assert sorted(leftovers(to)) == sorted([new, foreign])


def test_modes_are_those_of_the_run_directory(run, tmp_path):
    """Who may read a file here may read it there, and pass the directory that it is in."""
    before = os.umask(0)
    try:
        copied(run, tmp_path / "there")
    finally:
        os.umask(before)
    assert (tmp_path / "there" / ONE).stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "there").stat().st_mode & 0o777 == 0o750


def test_a_file_that_was_removed_here_keeps_its_writer_back(run, tmp_path):
    """No later file of its writer is brought, and those of others are; the next scan knows what there is."""
    gone = ONE.replace("1000000001", "1000000000")
    told = copied(run, tmp_path / "there", wanted=(Item(gone, 5), *items(run)))
    assert told == [Absent(gone), Arrived(*arguments(items(run)[1])), Finished()]


def arguments(item: Item) -> tuple[str, int]:
    """Path and length."""
    return item.path, item.length


def test_a_file_that_cannot_be_read_here_keeps_no_other_back(run, to):
    """It is told with its path, and neither the logdir nor the other writer is at fault."""
    os.unlink(os.path.join(run.path, ONE))
    os.mkdir(os.path.join(run.path, ONE))
    told = copied(run, to, wanted=(*items(run)[:1], Item(LATER, 3), *items(run)[1:]))
    assert told[0] == Arrived(*arguments(items(run)[1]))
    assert told[1].path == ONE
    assert told[1].reason.startswith("it cannot be read here: ")
    assert told[2:] == [Finished()]
    with pytest.raises(FileNotFoundError):
        content(to, LATER)


def refusing(monkeypatch, number: int, path: str) -> None:
    """Let the logdir refuse to make one file."""
    opened = os.open

    def refuse(name, flags, *arguments, **more):
        if flags & os.O_CREAT and str(name) == path:
            raise OSError(number, os.strerror(number))
        return opened(name, flags, *arguments, **more)

    monkeypatch.setattr(posix.os, "open", refuse)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENAMETOOLONG, errno.EFBIG, errno.ENOSPC, errno.EIO])
def test_a_file_that_the_logdir_refuses_keeps_no_other_back(run, tmp_path, monkeypatch, number):
    """The others are written; only what may pass, as EIO, fails the copy, and is tried again with all pauses."""
    refusing(monkeypatch, number, ONE)
    mount = Mount(str(tmp_path), "fuse", "mountpoint-s3")
    monkeypatch.setattr(posix, "mount_of_descriptor", lambda _: mount)
    told, reason = copied(run, tmp_path / "there", mount=mount), os.strerror(number)
    passes = [Failure(reason, is_refused=False, is_of_files=True)]
    others = Arrived(*arguments(items(run)[1]))
    assert told == [others, *(passes if number == errno.EIO else [Withheld(ONE, reason), Finished()])]


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ESTALE])
def test_a_dead_mount_ends_the_copy_with_what_helps(run, tmp_path, monkeypatch, number):
    """No other file is tried: each would take its time."""
    monkeypatch.setattr(posix, "_write", lambda *_: (_ for _ in ()).throw(OSError(number, os.strerror(number))))
    (told,) = copied(run, tmp_path / "there")
    assert (told.is_gone, told.is_refused) == (True, False)
    assert told.reason.endswith("mount it again")
    assert os.strerror(number) in told.reason


def test_nothing_is_made_where_the_mount_of_the_run_is_not(run, tmp_path):
    """An empty directory on the local disk is no logdir."""
    mount = Mount(str(tmp_path), "fuse.gcsfuse", "bucket")
    for task in (Task.BRING, Task.COMPARE):
        (told,) = copied(run, tmp_path / "mount" / "exp1", mount=mount, task=task)
        assert (told.is_gone, told.is_refused) == (True, False)
        assert told.reason == f"gcsfuse (bucket) at {tmp_path} is not mounted; mount it again"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.skipif(sys.platform != "linux", reason="mountinfo is Linux's")
def test_a_directory_on_the_mount_of_the_run_is_a_logdir(run, tmp_path):
    """Also if the logdir has to be made, and if the device of a disk has another name since the last boot."""
    mount = find_mount(str(tmp_path))
    assert copied(run, tmp_path / "a" / "exp1", mount=mount)[-1] == Finished()
    if mount.is_local:
        other = dataclasses.replace(mount, source="/dev/other")
        assert copied(run, tmp_path / "b" / "exp1", mount=other)[-1] == Finished()


def test_a_logdir_that_is_replaced_in_the_middle_is_not_written_to(run, tmp_path):
    """It is opened once: what stands at its path later is another directory."""
    to = tmp_path / "there"
    to.mkdir()
    target = posix.PosixTarget(str(to), "mark")
    first, second = (CopySource(run, item) for item in items(run))
    target.put(first, None)
    to.rename(tmp_path / "moved")
    to.mkdir()
    target.put(second, None)
    assert target.length(second.path) == second.length
    assert list(to.iterdir()) == []


def test_what_another_run_has_in_the_logdir_is_not_listed(run, to):
    """Each run leaves the name of a spool there with its first file: so no other one takes its files for its own."""
    inner = f"{to}/sweep/secret"
    copied(run, inner)
    copied(run, to)
    (listed,) = (message.files for message in copied(run, to, task=Task.LIST) if isinstance(message, Listed))
    assert listed == {item.path: item.length for item in items(run)}
    (inside,) = (message.files for message in copied(run, inner, task=Task.LIST) if isinstance(message, Listed))
    assert inside == listed
