"""Which filesystem a path is on, what it can do, and which way to keep a run follows."""

from __future__ import annotations

import dataclasses
import errno
import os
import sys
import threading
import time

import pytest

from hf_mpwriter.base.home import Way, choose, needed
from hf_mpwriter.system.directory import Place
from hf_mpwriter.system.filesystem import mounts
from hf_mpwriter.system.filesystem import probe as probe_module
from hf_mpwriter.system.filesystem.mounts import Mount, find_mount, mount_of, mount_of_descriptor, mount_unasked
from hf_mpwriter.system.filesystem.probe import REMAINS, Abilities, probe

TABLE = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:26 / /proc rw - proc proc rw
36 22 0:31 / /mnt/my\040bucket rw,noatime master:1 shared:2 - fuse.gcsfuse my-bucket rw,user_id=0
37 36 0:32 / /mnt/my\040bucket/tmp rw - tmpfs tmpfs rw
40 22 0:40 / /data rw - xfs /dev/sdb rw
41 40 0:41 / /data/deep rw - nfs4 server:/export rw
42 40 0:42 / /data rw - fuse mountpoint-s3 rw
50 22 0:50 / /twice rw - ext4 /dev/sdc rw
51 50 0:51 / /twice rw - fuse.rclone remote:bucket rw
60 22 0:60 / /odd\134name\011 rw - tmpfs none rw
no mount at all
"""


@pytest.mark.parametrize(
    ("path", "fstype", "point"),
    [
        ("/home/me", "ext4", "/"),
        ("/", "ext4", "/"),
        ("/mnt", "ext4", "/"),
        ("/mnt/my bucket", "fuse.gcsfuse", "/mnt/my bucket"),
        ("/mnt/my bucket/runs/exp1", "fuse.gcsfuse", "/mnt/my bucket"),
        ("/mnt/my bucket/tmp/exp1", "tmpfs", "/mnt/my bucket/tmp"),
        ("/mnt/my bucket2", "ext4", "/"),
        ("/data/exp1", "fuse", "/data"),
        ("/data/deep/exp1", "fuse", "/data"),
        ("/twice/exp1", "fuse.rclone", "/twice"),
        ("/odd\\name\t/exp1", "tmpfs", "/odd\\name\t"),
    ],
)
def test_a_path_is_on_the_mount_that_a_lookup_reaches(path, fstype, point):
    """Escapes are undone, the longest point wins, then the last one; what lies beneath a later mount is hidden."""
    assert mount_of(path, TABLE) == Mount(point, fstype, mount_of(path, TABLE).source)
    assert mount_of(path, TABLE).fstype == fstype


def test_a_table_without_its_root_is_read():
    """As in a chroot: the mount of the root is not in it."""
    table = "36 7 0:31 / /mnt rw - nfs server:/x rw\n37 36 0:32 / /mnt/in rw - tmpfs tmpfs rw\n"
    assert mount_of("/mnt/in/exp1", table).fstype == "tmpfs"
    assert mount_of("/home", table) is None
    assert mount_of("/home", "") is None


@pytest.mark.skipif(sys.platform != "linux", reason="mountinfo is Linux's")
def test_the_mount_of_a_path_that_is_not_there_yet_is_found(tmp_path):
    """It is that of the nearest directory above; a link is followed."""
    (tmp_path / "link").symlink_to("/proc")
    assert find_mount(str(tmp_path / "a" / "b")) == find_mount(str(tmp_path))
    assert find_mount(str(tmp_path / "link" / "self")).fstype == "proc"


GCSFUSE, S3 = Mount("/m", "fuse.gcsfuse", "bucket"), Mount("/m", "fuse", "mountpoint-s3")
MYSTERY, SSHFS, NFS = (
    Mount("/m", "fuse", "some-bucket"),
    Mount("/m", "fuse.sshfs", "me@host:/x"),
    Mount("/m", "nfs4", "s:/"),
)
ALL = Abilities(*(True for _ in dataclasses.fields(Abilities)))


def without(*names: str) -> Abilities:
    """All abilities but these."""
    return dataclasses.replace(ALL, **dict.fromkeys(names, False))


@pytest.mark.parametrize(
    ("mount", "abilities", "staging", "way", "why"),
    [
        (Mount("/", "ext4", "/dev/sda"), None, "", Way.DIRECT, ""),
        (None, ALL, "", Way.DIRECT, ""),
        (NFS, ALL, "", Way.DIRECT, ""),
        (NFS, without("link"), "", Way.DIRECT, ""),
        (NFS, without("lock"), "", Way.LOCAL_SPOOL, "nfs4 has no file locks"),
        (NFS, without("private"), "never", Way.LOCAL_SPOOL, "mode"),
        (NFS, without("rename"), "", Way.LOCAL_SPOOL, "in place of"),
        (NFS, without("append", "lock"), "", Way.STAGED, "append"),
        (NFS, without("read_open"), "", Way.STAGED, "before it is closed"),
        (NFS, Abilities(), "", Way.DIRECT, ""),  # nothing could be told: the disk is full
        (GCSFUSE, None, "", Way.STAGED, "gcsfuse"),
        (S3, None, "", Way.STAGED, "mountpoint-s3"),
        (Mount("/m", "fuse.rclone", "remote:bucket"), None, "", Way.STAGED, "rclone"),
        (Mount("/m", "fuse", "rclone{abc}"), ALL, "", Way.DIRECT, ""),
        (MYSTERY, ALL, "", Way.DIRECT, ""),
        (MYSTERY, without("link"), "", Way.STAGED, "no links"),  # as a bucket that a container gets by descriptor
        (SSHFS, without("link"), "", Way.DIRECT, ""),
        (None, ALL, "/scratch", Way.STAGED, "HF_MPWRITER_STAGING is /scratch"),
    ],
)
def test_the_way_follows_from_mount_and_abilities(mount, abilities, staging, way, why):
    """And the reason names what is missing."""
    chosen, reason = choose(mount, abilities, staging)
    assert chosen is way
    assert why in reason
    assert bool(why) == bool(reason)


def test_a_local_disk_can_do_everything(tmp_path):
    """And the probe leaves nothing."""
    found = probe(str(tmp_path), elsewhere=lambda path: os.path.getsize(path) == 1)
    assert found == ALL
    assert list(tmp_path.iterdir()) == []


def test_many_probes_at_once_do_not_disturb_each_other(tmp_path):
    """One removes neither the directory nor the files of another."""
    found: list[Abilities] = []

    def probe_often() -> None:
        found.extend(probe(str(tmp_path)) for _ in range(5))

    threads = [threading.Thread(target=probe_often) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [dataclasses.replace(ALL, elsewhere_sees=None)] * 30
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_probe_has_left_is_removed(tmp_path):
    """What is younger may belong to a probe that runs."""
    place = tmp_path / f".hf_mpwriter-probe-{os.geteuid()}"
    (place / "1-old.dir").mkdir(parents=True)
    (place / "1-old").touch()
    (place / "2-young").touch()
    for name in ("1-old", "1-old.dir"):
        os.utime(place / name, (0, time.time() - REMAINS - 60))
    probe(str(tmp_path))
    assert [left.name for left in place.iterdir()] == ["2-young"]


def test_where_nothing_can_be_made_nothing_is_told(tmp_path):
    """It is an error, not a lack of abilities."""
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        probe(str(tmp_path / "file"))
    with pytest.raises(FileNotFoundError):
        probe(str(tmp_path / "missing"))


@pytest.mark.skipif(sys.platform != "linux", reason="mountinfo is Linux's")
def test_the_mount_of_a_descriptor_is_that_of_its_path(tmp_path):
    """Whatever becomes of the path later."""
    for path in ("/proc", str(tmp_path)):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        assert mount_of_descriptor(fd) == find_mount(path)
        os.close(fd)
    assert mount_of_descriptor(fd) is None


@pytest.mark.parametrize(
    ("other", "is_again"),
    [
        (Mount("/m", "fuse.gcsfuse", "bucket"), True),
        (Mount("/m", "fuse.gcsfuse", "other"), False),
        (Mount("/m", "fuse.s3fs", "bucket"), False),
        (Mount("/n", "fuse.gcsfuse", "bucket"), False),
        (Mount("/m", "ext4", "/dev/sda"), False),
    ],
)
def test_a_mount_is_there_again_if_point_type_and_source_are(other, is_again):
    """Of a local disk only the point and that it is one: devices are numbered anew at each boot."""
    assert GCSFUSE.is_again(other) is is_again
    assert Mount("/m", "ext4", "/dev/sda").is_again(Mount("/m", "ext4", "/dev/sdb"))


def tried(directory, monkeypatch, *needed: str, **faults: list) -> tuple[list[str], Abilities]:
    """The steps of a probe in which these calls of its own raise in turn, and what it has found."""
    steps = []
    for name in (field.name for field in dataclasses.fields(Abilities)):
        real, errors = getattr(probe_module._Trial, f"_{name}"), faults.get(name, [])

        def step(trial, name=name, real=real, errors=errors):
            steps.append(name)
            if errors:
                raise OSError(errors.pop(0), "fault")
            return real(trial)

        monkeypatch.setattr(probe_module._Trial, f"_{name}", step)
    return steps, probe(str(directory), needed)


def test_a_probe_ends_when_it_has_decided(tmp_path, monkeypatch):
    """The first ability that is missing decides; what comes behind it leaves files and takes time."""
    steps, found = tried(tmp_path, monkeypatch, "append", "read_open", "lock", read_open=[errno.EPERM])
    assert steps == ["append", "read_open"]
    assert found == Abilities(append=True, read_open=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_probe_is_repeated_after_an_error_of_the_moment(tmp_path, monkeypatch, number):
    """Once: what comes again is the answer."""
    steps, found = tried(tmp_path, monkeypatch, "append", "lock", append=[number])
    assert steps[-2:] == ["append", "lock"]
    assert found == Abilities(append=True, lock=True)
    monkeypatch.undo()
    steps, found = tried(tmp_path, monkeypatch, "append", append=[number, number])
    assert steps == ["append", "append"]
    assert found.append is (False if number == errno.EIO else None)


def test_where_the_first_file_fails_for_a_moment_the_probe_is_repeated(tmp_path, monkeypatch):
    """An error while the file is made is no answer either."""
    make, failed = Place.open, []

    def fail_once(place, flags, mode=0o600):
        if flags & os.O_APPEND and not failed:
            failed.append(place)
            raise OSError(errno.EIO, "fault")
        return make(place, flags, mode)

    monkeypatch.setattr(Place, "open", fail_once)
    assert probe(str(tmp_path), ("append",)).append is True
    assert failed


@pytest.mark.parametrize(("mount", "has_link"), [(MYSTERY, True), (SSHFS, False), (NFS, False), (None, False)])
def test_what_is_needed_is_tried_in_the_order_in_which_it_decides(mount, has_link):
    """What stages a run comes first; of links only where an object store may be behind it."""
    ways = [choose(mount, without(name), "")[0] for name in needed(mount)]
    assert ways == sorted(ways, key=[Way.STAGED, Way.LOCAL_SPOOL].index)
    assert Way.DIRECT not in ways
    assert ("link" in needed(mount)) is has_link


def test_the_mount_of_a_descriptor_is_found_where_fdinfo_names_none(tmp_path, monkeypatch):
    """As in gVisor."""
    (tmp_path / "fdinfo").mkdir()
    monkeypatch.setattr(mounts, "_FDINFO", str(tmp_path / "fdinfo"))
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        (tmp_path / "fdinfo" / str(fd)).write_text("flags:\t0100000\n")
        assert mount_of_descriptor(fd) == find_mount(str(tmp_path))
    finally:
        os.close(fd)


def test_a_mount_is_told_without_a_look_at_it(tmp_path, monkeypatch):
    """Links on a local disk are followed; what is on another mount is never asked, not even about a link."""
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far/home")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "far" / "elsewhere").symlink_to("/")
    table = f"1 0 8:1 / / rw - ext4 disk rw\n2 1 0:9 / {tmp_path}/far rw - nfs4 server:/home rw\n"
    asked, readlink = [], os.readlink
    monkeypatch.setattr(os, "readlink", lambda path: asked.append(path) or readlink(path))
    for name in ("far", "far/elsewhere/x", "link", "link/.local/state"):
        assert mount_unasked(str(tmp_path / name), table).fstype == "nfs4"
    assert not [path for path in asked if path.startswith(f"{tmp_path}/far")]
    for name in ("near/x", "self/x"):
        assert mount_unasked(str(tmp_path / name), table).fstype == "ext4"
    assert mount_unasked(str(tmp_path), "") is None
