r"""Mounts: which filesystem a path is on, and what its type alone tells.

    /proc/self/mountinfo: one line a mount

    36 35 98:0 /mnt1 /mnt/my\040bucket rw,noatime master:1 - fuse.gcsfuse my-bucket rw,user_id=0
    id parent  root  point             options             - type         source    options

    type or source       what is known without a probe
    ext4, tmpfs, ...     a disk of this host: everything works
    fuse.gcsfuse, ...    an object store: other hosts see a file when it is closed, which no probe finds out

A descriptor stays on its mount whatever becomes of the path: /proc/self/fdinfo names the mount by its id.

Invariants:
- A mount that lies hidden beneath a later one does not count: the mounts are walked from the root as a lookup does.
- Nothing is written, and no directory is listed. A mount that hangs hangs `os.stat` of its caller already; but
  `mount_unasked` asks nothing of a filesystem that is not of this host.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
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
_MOUNTINFO, _FDINFO = "/proc/self/mountinfo", "/proc/self/fdinfo"
_CHUNK = 1 << 16  # bytes
_LINKS = 40  # that the system follows in one path
_CURES = {  # what a mount answers when the program or the server behind it is gone
    errno.ENOTCONN: "the program behind the mount has ended",
    errno.ECONNABORTED: "the program behind the mount has ended",
    errno.ESTALE: "what was mounted there is not there any more",
}
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """A mounted filesystem."""

    point: str  # where it is mounted
    fstype: str  # its type, such as `ext4` or `fuse.gcsfuse`
    source: str  # what is mounted: a device, a bucket, the name of a program

    def __str__(self) -> str:
        """Say it in messages."""
        return f"{self.program or self.fstype} ({self.source}) at {self.point}"

    def is_again(self, other: Mount) -> bool:
        """Whether another mount shows the same files: same point, type and source; the device of a disk may change."""
        return self == other or (self.point == other.point and self.is_local and other.is_local)

    def is_instead_of(self, other: Mount) -> bool:
        """Whether this one, found at a path, was put in place of another or over it, and not laid bare beneath it."""
        return len(self.point) >= len(other.point)

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
    def is_known(self) -> bool:
        """Whether its type tells all that is needed."""
        return self.is_local or self.is_object_store

    @property
    def may_be_object_store(self) -> bool:
        """Whether a program is behind it that is not known to keep files as a disk does."""
        return self.program != "" and self.program not in _OF_FILES.split()


def mount_of(path: str, mountinfo: str) -> Mount | None:
    """The mount that a path is on, None if the text does not tell."""
    below: dict[str, list[tuple[str, Mount]]] = {}  # parent -> id, mount
    known = set()
    for number, parent, mount in _mounts(mountinfo):
        known.add(number)
        if path == mount.point or path.startswith(mount.point.rstrip("/") + "/"):
            below.setdefault("" if parent == number else parent, []).append((number, mount))
    roots = [one for parent, all_there in below.items() if parent not in known for one in all_there]
    found = None
    while roots:  # the first one on the way; what is mounted on it comes next
        number, found = min(roots, key=lambda one: len(one[1].point))
        roots = below.get(number, [])
    return found


def _mounts(mountinfo: str) -> Iterator[tuple[str, str, Mount]]:
    """The mounts of a table: id, id of the parent, mount."""
    for line in mountinfo.split("\n"):
        left, _, right = line.partition(" - ")
        fields, kind = left.split(" "), right.split(" ")
        if len(fields) >= 6 and len(kind) >= 2:
            yield fields[0], fields[1], Mount(_unescaped(fields[4]), kind[0], _unescaped(kind[1]))


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text) if "\\" in text else text


def nearest(path: str) -> tuple[str, os.stat_result]:
    """A path if something is there, else the nearest directory above it; with its status."""
    while True:
        try:
            return path, os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            if path == os.path.dirname(path):
                raise
            path = os.path.dirname(path)


def find_mount(path: str) -> Mount | None:
    """The mount that a path is, or will be, on; None if the system does not tell.

    A mount whose program has ended is still in the table.
    """
    try:
        there = nearest(path)[0]  # first: it mounts what is mounted on demand
    except OSError:
        there = path
    return mount_at(there)


def mount_at(path: str) -> Mount | None:
    """As `find_mount`, for a path of which the status was just asked: that mounts what is mounted on demand."""
    try:
        return mount_of(os.path.realpath(path), _text(_MOUNTINFO))
    except OSError:
        return None


def table() -> str:
    """The table of mounts, "" if the system does not tell."""
    try:
        return _text(_MOUNTINFO)
    except OSError:
        return ""


def mount_unasked(path: str, mountinfo: str) -> Mount | None:
    """The mount that a path leads to, or the first one on its way that is not local; it cannot hang there.

    The table of mounts tells it, and links that are on local filesystems: the others are not followed.
    None if the system does not tell.
    """
    mount = None
    for _ in range(_LINKS):
        mount = mount_of(path, mountinfo)
        if mount is None or not mount.is_local or (further := _behind_link(path, mount.point)) is None:
            return mount
        path = further
    return mount


def _behind_link(path: str, point: str) -> str | None:
    """The path without the first link below a mount point, None if there is none."""
    place, below = point, os.path.relpath(path, point).split(os.sep)
    for number, name in enumerate(below, 1):
        with contextlib.suppress(OSError):  # no link, or nothing is there
            return os.path.normpath(os.path.join(place, os.readlink(os.path.join(place, name)), *below[number:]))
        place = os.path.join(place, name)
    return None


def mount_of_descriptor(fd: int) -> Mount | None:
    """The mount that an open file or directory is on; None if it is not mounted any more, or the system does not
    tell.
    """
    try:
        lines = dict(line.split(":\t", 1) for line in _text(f"{_FDINFO}/{fd}").splitlines() if ":\t" in line)
        wanted = lines.get("mnt_id", "").strip()
        if not wanted:  # gVisor tells no more than flags; the path of the descriptor is the next best
            return mount_of(os.readlink(f"/proc/self/fd/{fd}"), _text(_MOUNTINFO))
        return next((mount for number, _, mount in _mounts(_text(_MOUNTINFO)) if number == wanted), None)
    except OSError:
        return None


def _text(path: str) -> str:
    pieces, fd = [], open_above(path, os.O_RDONLY)
    try:
        while piece := os.read(fd, _CHUNK):
            pieces.append(piece)
    finally:
        os.close(fd)
    return os.fsdecode(b"".join(pieces))


class UnmountedError(OSError):
    """A directory is on another mount than it should be."""

    def __init__(self, wanted: Mount, found: Mount | None) -> None:
        if found is None or not found.is_instead_of(wanted):
            text = f"{wanted} is not mounted; mount it again"
        else:
            text = f"it was on {wanted}, and is on {found} now; the next start of training takes that"
        super().__init__(errno.ENODEV, text)


def is_gone(error: BaseException) -> bool:
    """Whether an error says that what was mounted is not there any more, and nothing of the files."""
    return isinstance(error, UnmountedError) or (isinstance(error, OSError) and error.errno in _CURES)


def reason_of(error: OSError) -> str:
    """An error of the system in words; of a dead mount with what helps."""
    text = error.strerror or str(error)
    return f"{_CURES[error.errno]} ({text}); mount it again" if error.errno in _CURES else text
