"""Files of ours: whole or none at any kill, durable at return, an error for each fault."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import stat

import pytest
from forks import KILLED, fork, in_child, reap
from programs import succeed
from support import failing, limit_files, open_descriptors

from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Directory, Place, at
from hf_mpwriter.system.filesystem import Mount, mount_of_descriptor

REPLACE = ("open", "write", "fsync", "rename", "dirsync")
PUBLISH = ("open", "write", "fsync", "link", "dirsync")
REMOVE = ("unlink", "dirsync")
OLD, NEW = b"old" * 1000, b"new" * 2000


CHANGES = {
    "publish": (lambda path: disk.publish(path, NEW, "w"), None, NEW, PUBLISH),
    "replace": (lambda path: disk.replace(path, NEW, "w"), OLD, NEW, REPLACE),
    "remove": (lambda path: disk.remove(path, "w"), OLD, None, REMOVE),
}


@pytest.mark.parametrize(("change", "step"), [(name, step) for name, row in CHANGES.items() for step in row[-1]])
def test_a_kill_leaves_the_whole_file_of_before_or_after(tmp_path, change, step):
    """Killed at any step, a reader sees one of the two whole states, and the same call goes through afterwards."""
    path = at(tmp_path / "file")
    act, before, after, _ = CHANGES[change]
    if before:
        disk.replace(path, before, "w")
    assert in_child(lambda: act(path), f"w.{step}=kill") == KILLED
    assert disk.read(path) == (after if step == "dirsync" else before)
    act(path)
    assert disk.read(path) == after


@pytest.mark.parametrize("step", REPLACE)
def test_a_fault_is_raised_and_leaves_neither_half_a_file_nor_a_temporary(tmp_path, step):
    """What the disk refuses is an OSError of that kind; no temporary and no descriptor is left."""
    path = at(tmp_path / "file")
    assert path.directory.is_there()
    gc.collect()  # what other tests have left open
    before = open_descriptors()
    for make, number in itertools.product((disk.publish, disk.replace), (errno.ENOSPC, errno.EIO)):
        disk.remove(path, "x")
        named = "link" if make is disk.publish and step == "rename" else step
        point = f"w.{named}={errno.errorcode[number].lower()}"
        with failing(point), pytest.raises(OSError, match="failpoint") as caught:
            make(path, NEW, "w")
        assert caught.value.errno == number
        assert disk.read(path) in (None, NEW)
        assert set(os.listdir(tmp_path)) <= {"file"}
    assert open_descriptors() == before


@pytest.mark.parametrize(
    "number", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EACCES, errno.EXDEV, errno.EINVAL]
)
def test_a_file_is_published_where_there_are_no_links(tmp_path, monkeypatch, number):
    """As on some mounts, or by AppArmor: it is there, whole, under its one name, and is not made again."""
    monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(OSError(number, "refused")))
    path = at(tmp_path / "file")
    assert disk.publish(path, NEW, "w")
    assert not disk.publish(path, OLD, "w")
    assert (disk.read(path), os.listdir(tmp_path)) == (NEW, ["file"])


def test_of_many_racing_publishers_exactly_one_wins(tmp_path):
    """One process learns that it created the file, and all read its data."""
    path = at(tmp_path / "file")
    start, go = os.pipe()

    def race(n: int) -> None:
        os.close(go)
        os.read(start, 1)
        won = disk.publish(path, b"%d" % n * 5000, "w")
        os._exit(10 if won else 0)

    children = [fork(lambda n=n: race(n)) for n in range(8)]
    os.close(go)
    codes = [reap(pid) for pid in children]
    os.close(start)
    assert sorted(codes) == [0] * 7 + [10]
    assert disk.read(path) == b"%d" % codes.index(10) * 5000
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("make", [disk.replace, disk.publish])
def test_the_file_is_durable_before_its_name_and_the_name_before_the_return(tmp_path, monkeypatch, make):
    """The order is fsync of the file, rename, fsync of the directory (else power cuts lose content)."""
    calls = []
    for name, real in {"write": os.write, "fsync": os.fsync, "rename": os.rename, "link": os.link}.items():

        def record(*args, name=name, real=real, **kwargs):
            directory = name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode)
            calls.append("dirsync" if directory else name)
            return real(*args, **kwargs)

        monkeypatch.setattr(disk.os, name, record)
    make(at(tmp_path / "file"), NEW, "w")
    assert calls == ["write", "fsync", "link" if make is disk.publish else "rename", "dirsync"]


@pytest.mark.parametrize("fault", ["", "w.fsync=enospc"])
def test_a_file_is_moved_to_another_filesystem_whole_or_not_at_all(tmp_path, monkeypatch, fault):
    """As from a spool on the local disk into a logdir: a copy under a temporary name, which no reader takes up."""
    monkeypatch.setattr(disk, "CHUNK", 1000)
    real = os.rename

    def rename(old, new, **where):
        if where["src_dir_fd"] != where["dst_dir_fd"]:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        assert "tfevents" not in os.fspath(old)
        real(old, new, **where)

    monkeypatch.setattr(disk.os, "rename", rename)
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    old, new = at(tmp_path / "here" / "x"), at(tmp_path / "there" / "events.out.tfevents.1.h")
    (tmp_path / "here" / "x").write_bytes(NEW)
    with failing(fault), pytest.raises(OSError, match="failpoint") if fault else contextlib.nullcontext():
        disk.move(old, new, "w")
    assert disk.read(old) == (NEW if fault else None)
    assert disk.read(new) == (None if fault else NEW)
    assert len(os.listdir(tmp_path / "there")) == (not fault)


def test_a_removal_is_durable_at_return(tmp_path, monkeypatch):
    """The directory is synced after the unlink."""
    path = at(tmp_path / "file")
    disk.replace(path, OLD, "w")
    synced = []
    monkeypatch.setattr(disk.os, "fsync", lambda fd: synced.append((os.path.exists(path), os.fstat(fd).st_ino)))
    disk.remove(path, "w")
    assert synced == [(False, os.stat(tmp_path).st_ino)]


def test_a_file_that_cannot_grow_is_refused_as_a_whole(tmp_path):
    """A short write is not taken for success: the old content stays."""
    path = at(tmp_path / "file")
    disk.replace(path, OLD, "w")

    def limited() -> None:
        limit_files(4096)
        with pytest.raises(OSError, match="File too large"):
            disk.replace(path, NEW, "w")

    assert in_child(limited) == 0
    assert disk.read(path) == OLD
    assert os.listdir(tmp_path) == ["file"]


def test_files_of_ours_are_for_their_owner_only(tmp_path):
    """Mode 0600 for files and 0700 for directories, whatever the umask allows."""
    before = os.umask(0)
    try:
        disk.make_dirs(at(tmp_path / "spool"))
        disk.replace(at(tmp_path / "spool" / "a"), b"", "w")
        disk.publish(at(tmp_path / "spool" / "b"), b"", "w")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(os.stat(tmp_path / "spool" / name).st_mode) for name in (".", "a", "b")]
    assert modes == [0o700, 0o600, 0o600]


def test_racing_makers_of_a_directory_all_succeed(tmp_path):
    """No process fails because another was faster."""
    path = at(tmp_path / "a" / "b" / "c")
    children = [fork(lambda: disk.make_dirs(path)) for _ in range(8)]
    assert [reap(pid) for pid in children] == [0] * 8


def test_a_failed_read_leaves_no_descriptor_open(tmp_path):
    """Reading what is no file, again and again as pollers do, does not use up descriptors."""
    gc.collect()  # what other tests have left open
    before = open_descriptors()
    for _ in range(3):
        with pytest.raises(OSError, match="directory"):
            disk.read(at(tmp_path))
    assert open_descriptors() == before


def test_a_deleted_or_replaced_path_is_another_file(tmp_path):
    """`same_file` is true for the file at the path and for nothing else."""
    path = at(tmp_path / "file")
    disk.replace(path, OLD, "w")
    fd = os.open(path, os.O_RDONLY)
    try:
        assert disk.same_file(fd, path)
        os.rename(path, f"{path}.away")
        assert not disk.same_file(fd, path)
        os.symlink(f"{path}.away", path)
        assert not disk.same_file(fd, path)
        disk.replace(path, OLD, "w")
        assert not disk.same_file(fd, path)
        os.rename(f"{path}.away", path)
        assert disk.same_file(fd, path)
    finally:
        os.close(fd)


def test_a_file_that_cannot_be_opened_as_ours_leaves_nothing(tmp_path, monkeypatch):
    """Neither a file nor a descriptor, even if the disk does not let go of the file."""
    held = Directory(tmp_path)
    assert held.is_there()
    tmp_path.chmod(0o770)
    before = open_descriptors()
    for name in ("check_names", "unlink"):
        of = disk if name == "check_names" else os
        monkeypatch.setattr(of, name, lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EIO, "refused")))
        with pytest.raises(OSError, match="refused"):
            disk.open_ours(held / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    assert open_descriptors() == before
    assert os.listdir(tmp_path) == ["unlink"]


@pytest.mark.parametrize(("call", "number", "same"), [("fstat", errno.ESTALE, False), ("stat", errno.EIO, True)])
def test_only_what_the_disk_calls_gone_is_gone(tmp_path, monkeypatch, call, number, same):
    """A network filesystem says so of the descriptor; a disk that refuses to tell has deleted nothing."""
    path = at(tmp_path / "lock")
    fd = disk.open_ours(path, os.O_RDWR | os.O_CREAT)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, lambda *_, **__: (_ for _ in ()).throw(OSError(number, "refused")))
        assert disk.same_file(fd, path) is same
    os.close(fd)


@pytest.mark.parametrize("where", ["the directory", "the way to it", "in it"])
def test_a_tree_is_removed_without_following_a_link(tmp_path, where):
    """Others may have put one there: what it leads to stays, and the link itself goes where it is in the way."""
    precious, top = tmp_path / "precious", tmp_path / "top"
    (precious / "tree" / "deep").mkdir(parents=True)
    (precious / "tree" / "deep" / "file").touch()
    top.mkdir()
    if where == "the directory":
        (top / "cache").mkdir()
        (top / "cache" / "tree").symlink_to(precious / "tree")
    elif where == "the way to it":
        (top / "cache").symlink_to(precious)
    else:
        (top / "cache" / "tree" / "more").mkdir(parents=True)
        (top / "cache" / "tree" / "more" / "file").touch()
        (top / "cache" / "tree" / "link").symlink_to(precious / "tree")
    disk.remove_tree(Directory(top) / "cache/tree")
    assert (precious / "tree" / "deep" / "file").exists()
    if where != "the way to it":
        assert os.listdir(top / "cache") == []
    disk.remove_tree(Directory(top) / "nothing")


class Libc:
    """A C library whose `syncfs` ends as it is told."""

    def __init__(self, result: int) -> None:
        self.result, self.synced = result, []

    def syncfs(self, fd: int) -> int:
        """Note the call."""
        self.synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        return self.result


def sync_on(monkeypatch, tmp_path, libc: object, fstype: str = "ext4") -> bool:
    """Sync a directory on a filesystem of this type."""
    monkeypatch.setattr(disk, "mount_of_descriptor", lambda _: Mount("/", fstype, "/dev/disk"))
    monkeypatch.setattr(disk, "_libc", lambda: libc)
    return disk.sync_filesystem(at(tmp_path).parent / at(tmp_path).basename, "w")


def test_a_filesystem_is_synced_by_one_call(tmp_path, monkeypatch):
    """On the directory that was given, so that errors are those since it was opened."""
    libc, before = Libc(0), open_descriptors()
    assert sync_on(monkeypatch, tmp_path, libc)
    assert libc.synced == [str(tmp_path)]
    held = Directory(tmp_path)
    assert disk.sync_filesystem(Place(held), "w")
    assert libc.synced == 2 * [str(tmp_path)]
    held.release()
    assert open_descriptors() <= before


@pytest.mark.parametrize("fstype", ["nfs4", "fuse.sshfs", "overlay", "tmpfs"])
def test_a_filesystem_of_which_nothing_is_known_is_not_synced_so(tmp_path, monkeypatch, fstype):
    """FUSE answers `syncfs` without asking its program; there each file is synced."""
    libc = Libc(0)
    assert not sync_on(monkeypatch, tmp_path, libc, fstype)
    assert not libc.synced


def test_a_sync_that_the_disk_refuses_is_none(tmp_path, monkeypatch):
    """EIO, a system without the call, a directory that is gone, a Linux that tells of no errors."""
    assert not sync_on(monkeypatch, tmp_path, Libc(-1))
    assert not sync_on(monkeypatch, tmp_path, object())
    assert not sync_on(monkeypatch, tmp_path / "gone", Libc(0))
    with failing("w.syncfs=eio"):
        assert not sync_on(monkeypatch, tmp_path, Libc(0))
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "", "5.16.9-generic", "", "")))
    assert not sync_on(monkeypatch, tmp_path, Libc(0))


def test_the_real_call_ends(tmp_path):
    """Where the filesystem of the tests is known it is synced, elsewhere not."""
    directory = Directory(tmp_path)
    mount = mount_of_descriptor(directory.fd)
    assert disk.sync_filesystem(Place(directory), "w") == (mount is not None and mount.fstype in disk.SYNCED_AT_ONCE)


def test_a_python_without_ctypes_logs_all_the_same(tmp_path):
    """One that was built without libffi; there each file is synced."""
    program = "import sys; sys.modules['_ctypes'] = None\n"
    program += "from hf_mpwriter import SummaryWriter\nfrom hf_mpwriter.system import disk\n"
    program += "from hf_mpwriter.system.directory import at\n"
    program += "with SummaryWriter(sys.argv[1]) as writer:\n    writer.add_scalar('loss', 0.5, 0)\n"
    program += "place = at(sys.argv[1])\ndisk.SYNCED_AT_ONCE = [disk.mount_of_descriptor(place.directory.fd).fstype]\n"
    program += "print(disk.sync_filesystem(place, 'w'))"
    assert succeed(program, tmp_path / "run", fresh=True).strip() == "False"


def test_what_is_in_the_place_of_a_tree_is_removed_itself(tmp_path):
    """A pipe is not opened, which would wait for its writer, and a link is not followed."""
    (tmp_path / "elsewhere").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("elsewhere")
    for name in ("pipe", "link"):
        disk.remove_tree(at(tmp_path / name))
    assert os.listdir(tmp_path) == ["elsewhere"]
