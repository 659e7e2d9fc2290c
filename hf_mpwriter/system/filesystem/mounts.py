r"""Mounts: which filesystem a path is on, and what its type alone tells.

    /proc/self/mountinfo: one line a mount

    36 35 98:0 /mnt1 /mnt/my\040bucket rw,noatime master:1 - fuse.gcsfuse my-bucket rw,user_id=0
    id parent  root  point             options             - type         source    options

    type or source       what is known without a probe
    ext4, tmpfs, ...     a disk of this host: everything works
    fuse.gcsfuse, ...    an object store: other hosts see a file when it is closed, which no probe finds out

Invariants:
- A mount that lies hidden beneath a later one does not count: the mounts are walked from the root as a lookup does.
- Nothing is written, and no directory is listed. A mount that hangs hangs `os.stat` of its caller already.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from hf_mpwriter.system.process import open_above

# files grow in place there, locks and modes work, and one host sees it all
_LOCAL = "bcachefs btrfs ext2 ext3 ext4 f2fs jfs nilfs2 overlay ramfs reiserfs rootfs tmpfs xfs zfs"
# programs that show an object store, by the type `fuse.<name>`, or by the source where the type is `fuse`
_OBJECT_STORES = (
    "alluxio-fuse blobfuse blobfuse2 cosfs curvefs dbfs gcsfuse geesefs goofys hf-mount juicefs mountpoint-s3 obsfs "
    "ossfs ossfs2 rclone riofs s3fs s3ql seaweedfs tigrisfs tosfs yas3fs"
)
# programs by FUSE that keep files as a disk does, even those that know no links
_OF_FILES = (
    "bindfs ceph-fuse encfs exfat fuse-overlayfs glusterfs gocryptfs grpcfuse lxcfs mergerfs ntfs-3g osxfs sshfs "
    "unionfs virtiofs vmhgfs-fuse"
)
_MOUNTINFO = "/proc/self/mountinfo"
_CHUNK = 1 << 16  # bytes
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """A mounted filesystem.

    Attributes:
        point: where it is mounted.
        fstype: its type, such as `ext4` or `fuse.gcsfuse`.
        source: what is mounted: a device, a bucket, the name of a program.
    """

    point: str
    fstype: str
    source: str

    @property
    def is_local(self) -> bool:
        """Whether it is of a type that is a disk, or the memory, of this host."""
        return self.fstype in _LOCAL.split()

    @property
    def program(self) -> str:
        """The name of the program behind a filesystem by FUSE: by its type, else by its source; "" if it is none."""
        kind, _, name = self.fstype.partition(".")
        if kind not in ("fuse", "macfuse"):
            return ""
        return (name or self.source.partition(":")[0].rpartition("/")[2]).lower()

    @property
    def is_object_store(self) -> bool:
        """Whether it is known to show an object store."""
        return self.program in _OBJECT_STORES.split()

    @property
    def may_be_object_store(self) -> bool:
        """Whether a program is behind it that is not known to keep files as a disk does."""
        return self.program != "" and self.program not in _OF_FILES.split()


def mount_of(path: str, mountinfo: str) -> Mount | None:
    """The mount that a path is on, None if the text does not tell.

    Args:
        path: absolute, without links.
        mountinfo: text of `/proc/self/mountinfo`.
    """
    below: dict[str, list[tuple[str, str, Mount]]] = {}  # parent -> id, point, mount
    known = set()
    for line in mountinfo.split("\n"):
        left, _, right = line.partition(" - ")
        fields, kind = left.split(" "), right.split(" ")
        if len(fields) < 6 or len(kind) < 2:
            continue
        known.add(fields[0])
        point = _unescaped(fields[4])
        if path == point or path.startswith(point.rstrip("/") + "/"):
            parent = "" if fields[1] == fields[0] else fields[1]
            below.setdefault(parent, []).append((fields[0], point, Mount(point, kind[0], _unescaped(kind[1]))))
    roots = [one for parent, all_there in below.items() if parent not in known for one in all_there]
    found = None
    while roots:  # the first one on the way; what is mounted on it comes next
        number, _, found = min(roots, key=lambda one: len(one[1]))
        roots = below.get(number, [])
    return found


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text) if "\\" in text else text


def nearest(path: str) -> tuple[str, os.stat_result]:
    """A path if something is there, else the nearest directory above it; with its status.

    Raises:
        OSError: it cannot be seen.
    """
    while True:
        try:
            return path, os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            if path == os.path.dirname(path):
                raise
            path = os.path.dirname(path)


def find_mount(path: str) -> Mount | None:
    """The mount that a path is, or will be, on; None if the system does not tell.

    Args:
        path: absolute.
    """
    try:
        return mount_at(nearest(path)[0])
    except OSError:
        return None


def mount_at(path: str) -> Mount | None:
    """As `find_mount`, for a path of which the status was just asked: that mounts what is mounted on demand."""
    try:
        return mount_of(os.path.realpath(path), _mountinfo())
    except OSError:
        return None


def _mountinfo() -> str:
    pieces, fd = [], open_above(_MOUNTINFO, os.O_RDONLY)
    try:
        while piece := os.read(fd, _CHUNK):
            pieces.append(piece)
    finally:
        os.close(fd)
    return os.fsdecode(b"".join(pieces))
