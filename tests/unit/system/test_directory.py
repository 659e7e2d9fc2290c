"""Held directories: what a name leads to, whatever becomes of names and of descriptors."""

from __future__ import annotations

import errno
import gc
import os
import pickle
from pathlib import Path

import pytest
from programs import succeed
from support import open_descriptors

from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.system import disk, process
from hf_mpwriter.system.directory import Directory


@pytest.fixture
def held(tmp_path) -> Directory:
    """A directory with a file, opened."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").write_bytes(b"ours")
    directory = Directory(tmp_path / "run")
    assert directory.is_there()
    return directory


def swap(directory: Directory) -> None:
    """Put another directory, with other content, in its place."""
    os.rename(directory.path, f"{directory.path}-away")
    os.mkdir(directory.path)
    Path(directory.path, "file").write_bytes(b"theirs")


def test_a_name_is_reached_in_the_directory_that_was_opened(held):
    """After a swap, what is read and written is ours; the swap is noticed, and so is its end."""
    assert held.is_at_path()
    swap(held)
    assert not held.is_at_path()
    assert disk.read(held / "file") == b"ours"
    disk.replace(held / "other", b"new", "w")
    assert os.listdir(held.path) == ["file"]
    os.rename(held.path, f"{held.path}-theirs")
    os.rename(f"{held.path}-away", held.path)
    assert held.is_at_path()
    held.release()
    swap(held)
    assert disk.read(held / "file") == b"theirs", "after it was let go, the path counts again"


def test_a_descriptor_that_the_program_has_closed_is_opened_again(held):
    """Its number may be another file's by then, which is left alone; the same directory is required."""
    before = held.fd
    os.close(before)
    theirs = os.open(f"{held.path}/file", os.O_RDONLY)
    assert theirs == before, "the number is used again"
    assert disk.read(held / "file") == b"ours"
    assert held.fd != theirs
    held.release()
    assert os.read(theirs, 9) == b"ours"
    os.close(theirs)


def test_another_directory_at_the_path_is_not_taken_for_a_closed_one(held):
    """Then the held one counts as gone, as a deleted spool does."""
    os.close(held.fd)
    swap(held)
    with pytest.raises(FileNotFoundError, match="replaced by another"):
        held.fd  # noqa: B018 - the property opens it
    assert not held.is_at_path()
    assert disk.read(held / "file") is None


def test_the_check_is_made_on_what_was_opened_each_time_it_is(tmp_path):
    """Also when it is opened again; a refused one leaves no descriptor."""
    seen = []

    def check(path: str, fd: int) -> None:
        seen.append((path, os.fstat(fd).st_ino))
        if len(seen) > 1:
            raise OSError(errno.EPERM, "refused")

    directory, before = Directory(tmp_path, check=check), open_descriptors()
    os.close(directory.fd)
    with pytest.raises(OSError, match="refused"):
        disk.read(directory / "x")
    assert seen == 2 * [(str(tmp_path), tmp_path.stat().st_ino)]
    assert open_descriptors() == before


def test_a_step_in_a_directory_compares_once(held, monkeypatch):
    """It has a descriptor of its own: it goes on in that directory, whatever is released and swapped meanwhile."""
    disk.make_dirs(held / "sub")
    gc.collect()  # what other tests have left open
    before, status, compared = len(open_descriptors()), os.fstat, []
    with (held / "").entered() as top, (held / "sub").entered() as sub:
        monkeypatch.setattr(os, "fstat", lambda fd: compared.append(fd) or status(fd))
        for n in range(5):
            assert (top / "file").exists()
            (sub / f"{n}").make_directory(0o700)
        monkeypatch.undo()
        held.release()
        swap(held)
        assert disk.read(top / "file") == b"ours"
        disk.replace(sub / "file", b"new", "w")
        assert str(sub / "file") == f"{held.path}/sub/file"
        assert not (held / "sub").exists()
    assert compared == []
    assert sorted(os.listdir(f"{held.path}-away/sub")) == ["0", "1", "2", "3", "4", "file"]
    assert disk.read(held / "file") == b"theirs"
    held.release()
    assert len(open_descriptors()) == before - 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        (top / "file").stat()


def test_no_part_of_a_name_may_be_a_link(held, tmp_path):
    """Not to read, to write, to list, to make or to remove; the path of the directory itself may be one."""
    (tmp_path / "outside" / "sub").mkdir(parents=True)
    (tmp_path / "outside" / "file").write_bytes(b"theirs")
    os.symlink(tmp_path / "outside", f"{held.path}/way")
    os.symlink(tmp_path / "outside" / "file", f"{held.path}/link")
    refusals = (
        lambda: disk.read(held / "way" / "file"),
        lambda: disk.read(held / "link"),
        lambda: disk.replace(held / "way" / "file", b"", "w"),
        lambda: disk.make_dirs(held / "way" / "new"),
        lambda: disk.remove(held / "way" / "file", "w"),
        (held / "way").names,
        (held / "way" / "sub").scan,
        lambda: disk.open_beneath(held / "way" / "file"),
    )
    for refused in refusals:
        with pytest.raises(OSError, match=r"symbolic|Not a directory|in the place of a directory"):
            refused()
    disk.replace(held / "link", b"ours", "w")
    assert (tmp_path / "outside" / "file").read_bytes() == b"theirs"
    assert sorted(os.listdir(tmp_path / "outside")) == ["file", "sub"]
    assert disk.read(Directory(f"{held.path}/way") / "file") == b"theirs"
    assert (held / "").scan()[:2] == ([], ["file", "link"])


def test_a_second_name_counts_where_others_may_write(held, tmp_path):
    """It may be that of a file elsewhere. In a directory of this user only, it is his own affair."""
    os.link(f"{held.path}/file", tmp_path / "elsewhere")
    assert disk.read(held / "file") == b"ours"
    os.chmod(held.path, 0o2770)  # noqa: S103 - that is what is tested
    for flags in (os.O_RDONLY, os.O_WRONLY | os.O_APPEND | os.O_CREAT):
        with pytest.raises(OSError, match="another name"):
            disk.open_ours(held / "file", flags)
    os.unlink(tmp_path / "elsewhere")
    assert disk.read(held / "file") == b"ours"


@pytest.mark.parametrize("protected", [True, False])
def test_a_users_file_with_a_second_name_is_read_where_strangers_cannot_have_made_it(held, monkeypatch, protected):
    """Linux lets nobody link what he may not read and write, unless it was told to."""
    os.link(f"{held.path}/file", f"{held.path}/again")
    monkeypatch.setattr(disk, "links_are_protected", lambda: protected)
    for mode in (0o755, 0o2775):
        os.chmod(held.path, mode)
        if protected or mode == 0o755:
            os.close(disk.open_beneath(held / "file"))
        else:
            with pytest.raises(OSError, match="another name"):
                disk.open_beneath(held / "file")


def test_directories_are_closed_at_exec_and_with_their_owner(tmp_path):
    """No program that is started has them, and none is left when the last place is gone."""
    before = open_descriptors()
    spool = Spool(str(tmp_path / "run"))
    spool.create()
    assert not any(map(os.get_inheritable, (spool.run.fd, spool.directory.fd)))
    place = spool.uploader_lock
    del spool
    assert open_descriptors() > before, "a place keeps its directory"
    del place
    assert open_descriptors() == before


def test_a_spool_travels_as_its_path_and_is_handed_on_by_descriptors(tmp_path):
    """A pickle opens anew; a process that inherits the descriptors reaches the same spool after a swap."""
    spool = Spool(str(tmp_path / "run"))
    spool.create()
    assert pickle.loads(pickle.dumps(spool)).exists()  # noqa: S301 - our own
    run, own = os.dup(spool.run.fd), os.dup(spool.directory.fd)
    os.rename(spool.root, tmp_path / "away")
    adopted = Spool.adopt(spool.paths, run, own)
    assert adopted.exists()
    assert not adopted.directory.is_at_path()
    with pytest.raises(OSError, match="Not a directory"):
        Directory(tmp_path).adopt(os.open(tmp_path / "away" / "FORMAT", os.O_RDONLY))


LANDS = """
import os, sys, threading
from hf_mpwriter.system import process
from hf_mpwriter.system.directory import Directory
path, closed = sys.argv[1], [int(n) for n in sys.argv[2]]
report = os.dup(2)
for fd in closed:
    os.close(fd)
stop = threading.Event()
def chatter():
    while not stop.is_set():
        for fd in (1, 2):
            try: os.write(fd, b"x" if fd in closed else b"")
            except OSError: pass
threads = [threading.Thread(target=chatter) for _ in range(2)]
for thread in threads: thread.start()
held, low = Directory(path), []
for n in range(300):
    fd = (held / f"{n}").open(os.O_RDWR | os.O_CREAT | os.O_APPEND)
    low += [fd] * (fd < 3) + [held.fd] * (held.fd < 3)
    os.write(fd, b"ours")
    os.close(fd)
    held.release()
stop.set()
for thread in threads: thread.join()
for fd in closed:
    try: os.write(fd, b"x")
    except OSError: continue
    low.append(fd)
assert not low, low
assert {open(f"{path}/{n}", "rb").read() for n in range(300)} == {b"ours"}
"""


@pytest.mark.parametrize("closed", ["1", "012"])
def test_no_descriptor_is_below_three_while_others_print(tmp_path, closed):
    """The numbers are taken before we open, by what cannot be written."""
    succeed(LANDS, tmp_path, closed)


def test_a_descriptor_that_was_low_for_a_moment_is_moved(tmp_path):
    """Another thread has closed a stream between the look and the opening."""
    fd = os.open(tmp_path, os.O_RDONLY)
    assert process.above_standard(fd) == fd
    source = """
import os
from hf_mpwriter.system import process
os.close(0); os.close(2)
fd = process.above_standard(os.open("/", os.O_RDONLY))
assert fd > 2
for low in (0, 2):
    try: os.fstat(low)
    except OSError: continue
    raise SystemExit(1)
"""
    succeed(source)
    os.close(fd)
