"""Which filesystem a path is on, what its type tells, which layout of a run follows, and whether it is full."""

from __future__ import annotations

import errno
import os
import sys

import pytest

from hf_mpwriter.base.storage import Layout, choose
from hf_mpwriter.system import filesystem
from hf_mpwriter.system.filesystem import (
    LEAST,
    Kind,
    Mount,
    explained,
    find_mount,
    is_full,
    mount_of,
    mount_of_descriptor,
    mount_unasked,
)

TABLE = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:26 / /proc rw - proc proc rw
36 22 0:31 / /mnt/my\040bucket rw,noatime master:1 shared:2 - fuse.gcsfuse my-bucket rw,user_id=0
37 36 0:32 / /mnt/my\040bucket/tmp rw - tmpfs tmpfs rw
40 22 0:40 / /data rw - xfs /dev/sdb rw
41 40 0:41 / /data/deep rw - nfs4 server:/export rw,vers=4.2
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


def test_the_options_of_a_filesystem_are_read_and_do_not_tell_two_mounts_apart():
    """They may change when it is mounted again."""
    mount = mount_of("/m", "36 7 0:31 / /m rw,relatime - lustre s:/x rw,noflock\n")
    assert mount.options == "rw,noflock"
    assert mount == Mount("/m", "lustre", "s:/x")


@pytest.mark.skipif(sys.platform != "linux", reason="mountinfo is Linux's")
def test_the_mount_of_a_path_that_is_not_there_yet_is_found(tmp_path):
    """It is that of the nearest directory above; a link is followed."""
    (tmp_path / "link").symlink_to("/proc")
    assert find_mount(str(tmp_path / "a" / "b")) == find_mount(str(tmp_path))
    assert find_mount(str(tmp_path / "link" / "self")).fstype == "proc"


GCSFUSE, S3 = Mount("/m", "fuse.gcsfuse", "bucket"), Mount("/m", "fuse", "mountpoint-s3")
MYSTERY = Mount("/m", "fuse", "some-bucket")


@pytest.mark.parametrize(
    ("mount", "kind"),
    [
        (Mount("/", "ext4", "/dev/sda"), Kind.LOCAL),
        (Mount("/m", "nfs4", "s:/"), Kind.OF_FILES),
        (Mount("/m", "fuse.sshfs", "me@host:/x"), Kind.OF_FILES),
        (Mount("/m", "9p", "share", "rw,trans=virtio"), Kind.OF_FILES),
        (Mount("/m", "of-tomorrow", "none"), Kind.OF_FILES),  # the kernel's own: buckets come by FUSE
        (Mount("/m", "lustre", "s:/", "rw,flock,user_xattr"), Kind.OF_FILES),
        (Mount("/m", "lustre", "s:/", "rw,localflock"), Kind.OF_FILES),
        (Mount("/m", "lustre", "s:/"), Kind.OF_FILES),
        (Mount("/m", "lustre", "s:/", "rw,noflock,user_xattr"), Kind.WITHOUT_LOCKS),
        (Mount("/m", "vfat", "/dev/sdb"), Kind.WITHOUT_MODES),
        (Mount("/m", "fuseblk", "/dev/sdb"), Kind.WITHOUT_MODES),
        (Mount("/m", "fuse.exfat", "/dev/sdb"), Kind.WITHOUT_MODES),
        (Mount("/m", "cifs", "//server/x"), Kind.WITHOUT_MODES),
        (Mount("/mnt/c", "9p", "C:\\", "rw,aname=drvfs;path=C:\\;uid=1000"), Kind.WITHOUT_MODES),
        (Mount("/mnt/c", "9p", "C:\\", "rw,aname=drvfs;path=C:\\;metadata;uid=1000"), Kind.OF_FILES),
        (GCSFUSE, Kind.OBJECT_STORE),
        (S3, Kind.OBJECT_STORE),
        (Mount("/m", "fuse.rclone", "remote:bucket"), Kind.OBJECT_STORE),
        (Mount("/m", "fuse", "/usr/bin/s3fs:x"), Kind.OBJECT_STORE),
        (Mount("/m", "fuse", "rclone{abc}"), Kind.UNKNOWN),
        (Mount("/m", "fuse", ""), Kind.UNKNOWN),
        (Mount("/m", "fuse.ext4", "x"), Kind.UNKNOWN),  # a program of any name
        (MYSTERY, Kind.UNKNOWN),
    ],
)
def test_the_type_tells_the_kind(mount, kind):
    """By the list of types, the list of programs, and what some mounts say in their options."""
    assert mount.kind is kind


@pytest.mark.parametrize(
    ("mount", "staging", "layout", "why"),
    [
        (None, "", Layout.DIRECT, ""),
        (Mount("/", "ext4", "/dev/sda"), "", Layout.DIRECT, ""),
        (Mount("/m", "nfs4", "s:/"), "", Layout.DIRECT, ""),
        (Mount("/m", "lustre", "s:/", "rw,noflock"), "", Layout.LOCAL_SPOOL, "lustre has no file locks"),
        (Mount("/m", "vfat", "/dev/sdb"), "never", Layout.LOCAL_SPOOL, "vfat does not keep the mode"),
        (GCSFUSE, "", Layout.STAGED, "gcsfuse shows an object store"),
        (GCSFUSE, "never", Layout.STAGED, "gcsfuse"),  # such a run is refused
        (MYSTERY, "", Layout.STAGED, "some-bucket may show an object store; HF_MPWRITER_STAGING=never"),
        (MYSTERY, "never", Layout.DIRECT, ""),
        (None, "/scratch", Layout.STAGED, "HF_MPWRITER_STAGING is /scratch"),
    ],
)
def test_the_layout_follows_from_kind_and_variable(mount, staging, layout, why):
    """And the reason names what is missing."""
    chosen, reason = choose(mount, staging)
    assert chosen is layout
    assert why in reason
    assert bool(why) == bool(reason)


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


def test_the_mount_of_a_descriptor_is_found_where_fdinfo_names_none(tmp_path, monkeypatch):
    """As in gVisor."""
    (tmp_path / "fdinfo").mkdir()
    monkeypatch.setattr(filesystem, "_FDINFO", str(tmp_path / "fdinfo"))
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


BLOCK = 4096
PLENTY, FEW = 10 * LEAST // BLOCK, LEAST // BLOCK - 1


@pytest.mark.parametrize(
    ("blocks", "free", "names", "free_names", "expected"),
    [
        pytest.param(1000, PLENTY, 100, 100, False, id="room"),
        pytest.param(1000, FEW, 100, 100, True, id="no block"),
        pytest.param(1000, PLENTY, 100, 0, True, id="no inode"),
        pytest.param(1000, PLENTY, 0, 0, False, id="btrfs counts no inodes"),
        pytest.param(0, 0, 0, 0, False, id="a mount that tells nothing"),
    ],
)
def test_a_disk_without_blocks_or_names_is_full(tmp_path, monkeypatch, blocks, free, names, free_names, expected):
    """A mount that tells nothing is not."""
    found = os.statvfs_result((BLOCK, BLOCK, blocks, free, free, names, free_names, free_names, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: found)
    assert is_full(tmp_path) is expected


def test_a_directory_that_is_gone_is_not_full(tmp_path):
    """Nor is one with room."""
    assert not is_full(tmp_path)
    assert not is_full(tmp_path / "gone")


def test_a_full_disk_has_a_sentence():
    """Another error has its own."""
    full, other = (OSError(number, os.strerror(number)) for number in (errno.ENOSPC, errno.EIO))
    assert explained(full, "cannot start") == "the disk is full: free some space"
    assert explained(other, "cannot start") == f"cannot start: {other}"
