r"""Filesystems: which one a path is on, what its type tells, and whether it takes nothing more.

    /proc/self/mountinfo: one line a mount

    36 35 98:0 /mnt1 /mnt/my\040bucket rw,noatime master:1 - fuse.gcsfuse my-bucket rw,user_id=0
    id parent  root  point             options             - type         source    options of the filesystem

A descriptor stays on its mount whatever becomes of the path: /proc/self/fdinfo names the mount by its id.

What is in none of the lists below: of a program by FUSE nothing is known, as it may show a bucket. Any other type is
one of the kernel's, where files grow in place.

Invariants:
- A mount that lies hidden beneath a later one does not count: the mounts are walked from the root as a lookup does.
- Nothing is written, and no directory is listed. A mount that hangs hangs `os.stat` of its caller already; but
  `mount_unasked` asks nothing of a filesystem that is not of this host.
"""

from __future__ import annotations

import enum
import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from hf_mpwriter.system.interrupts import ours, suppress
from hf_mpwriter.system.process import open_above, read_all

# types where files grow in place, locks and modes work, and one host sees it all
_LOCAL = "bcachefs btrfs ext2 ext3 ext4 f2fs jfs nilfs2 overlay ramfs reiserfs rootfs tmpfs xfs zfs"
# types, and programs by FUSE, that keep files as a disk does, but no modes
_WITHOUT_MODES = (
    "cifs drvfs exfat fuseblk hfs msdos ntfs ntfs-3g ntfs3 prl_fs smb3 umsdos vboxsf vfat vmhgfs vmhgfs-fuse"
)
# programs that show an object store, by the type `fuse.<name>`, or by the source where the type is `fuse`
_OBJECT_STORES = (
    "alluxio-fuse blobfuse blobfuse2 cosfs curvefs dbfs gcsfuse geesefs goofys hf-mount juicefs mountpoint-s3 obsfs "
    "ossfs ossfs2 rclone riofs s3fs s3ql seaweedfs tigrisfs tosfs yas3fs"
)
_WITHOUT_RENAME = ("mountpoint-s3",)  # of these
# programs by FUSE that keep files as a disk does
_OF_FILES = (
    "bindfs ceph-fuse encfs fuse-overlayfs glusterfs gocryptfs grpcfuse lxcfs mergerfs osxfs sshfs unionfs virtiofs"
)
FULL = (errno.ENOSPC, errno.EDQUOT)  # what a disk says that takes nothing more
LEAST = 16 * 1024  # bytes; a few small files need as much
_MOUNTINFO, _FDINFO = "/proc/self/mountinfo", "/proc/self/fdinfo"
_LINKS = 40  # that the system follows in one path
_CURES = {  # what a mount answers when the program or the server behind it is gone
    errno.ENOTCONN: "the program behind the mount has ended",
    errno.ECONNABORTED: "the program behind the mount has ended",
    errno.ESTALE: "what was mounted there is not there any more",
}
_ESCAPE = re.compile(r"\\([0-7]{3})")


class Kind(enum.Enum):
    """What the type of a filesystem tells of it, in words for a person."""

    LOCAL = "a disk of this host"
    OF_FILES = "files grow in place"
    WITHOUT_LOCKS = "files grow in place, without file locks"
    WITHOUT_MODES = "files grow in place, without modes"
    OBJECT_STORE = "an object store"
    UNKNOWN = "a program that is not known by its name"


@dataclass(frozen=True)
class Mount:
    """A mounted filesystem."""

    point: str  # where it is mounted
    fstype: str  # its type, such as `ext4` or `fuse.gcsfuse`
    source: str  # what is mounted: a device, a bucket, the name of a program
    options: str = field(default="", compare=False)  # of the filesystem, separated by commas

    def __str__(self) -> str:
        """Say it in messages."""
        return f"{self.name} ({self.source}) at {self.point}"

    def is_again(self, other: Mount) -> bool:
        """Whether another mount shows the same files: same point, type and source; the device of a disk may change."""
        return self == other or (self.point == other.point and self.is_local and other.is_local)

    def is_instead_of(self, other: Mount) -> bool:
        """Whether this one, found at a path, was put in place of another or over it, and not laid bare beneath it."""
        return len(self.point) >= len(other.point)

    @property
    def is_local(self) -> bool:
        """Whether it is of a type that is a disk, or the memory, of this host."""
        return self.kind is Kind.LOCAL

    @property
    def can_rename(self) -> bool:
        """Whether a file there can get another name, as far as the type tells."""
        return self.name not in _WITHOUT_RENAME

    @property
    def is_by_program(self) -> bool:
        """Whether a program shows it, by FUSE."""
        return self.fstype.partition(".")[0] in ("fuse", "macfuse")

    @property
    def name(self) -> str:
        """The name of the program by its type, else by its source, if it is by FUSE; else the type."""
        if not self.is_by_program:
            return self.fstype
        named = self.fstype.partition(".")[2] or self.source.partition(":")[0].rpartition("/")[2]
        return named.lower() or self.fstype

    @property
    def kind(self) -> Kind:
        """What the type tells."""
        if self.fstype in _LOCAL.split():
            return Kind.LOCAL
        if self.name in _WITHOUT_MODES.split() or self._is_of_windows:
            return Kind.WITHOUT_MODES
        if self.is_by_program and self.name not in _OF_FILES.split():
            return Kind.OBJECT_STORE if self.name in _OBJECT_STORES.split() else Kind.UNKNOWN
        return Kind.WITHOUT_LOCKS if self._is_lustre_without_locks else Kind.OF_FILES

    @property
    def _is_lustre_without_locks(self) -> bool:
        """Whether it is Lustre without `-o flock`; its options name one of flock, localflock and noflock."""
        options = self.options.split(",")
        return self.fstype == "lustre" and not {"", "flock", "localflock"}.intersection(options)

    @property
    def _is_of_windows(self) -> bool:
        """Whether it is a drive of Windows in WSL 2, which keeps modes only if it is mounted with `metadata`."""
        names = self.options.replace(";", ",").split(",")
        return self.fstype == "9p" and "aname=drvfs" in names and "metadata" not in names


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
            yield fields[0], fields[1], Mount(_unescaped(fields[4]), kind[0], _unescaped(kind[1]), "".join(kind[2:3]))


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text) if "\\" in text else text


def nearest(path: str) -> tuple[str, os.stat_result]:
    """A path if something is there, else the nearest directory above it; with its status."""
    while True:
        try:
            return path, os.stat(path)
        except ours(FileNotFoundError, NotADirectoryError):
            if path == os.path.dirname(path):
                raise
            path = os.path.dirname(path)


def find_mount(path: str) -> Mount | None:
    """The mount that a path is, or will be, on; None if the system does not tell.

    A mount whose program has ended is still in the table.
    """
    try:
        there = nearest(path)[0]  # first: it mounts what is mounted on demand
    except ours(OSError):
        there = path
    return mount_at(there)


def mount_at(path: str) -> Mount | None:
    """As `find_mount`, for a path of which the status was just asked: that mounts what is mounted on demand."""
    try:
        return mount_of(os.path.realpath(path), _text(_MOUNTINFO))
    except ours(OSError):
        return None


def table() -> str:
    """The table of mounts, "" if the system does not tell."""
    try:
        return _text(_MOUNTINFO)
    except ours(OSError):
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
        with suppress(OSError):  # no link, or nothing is there
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
    except ours(OSError):
        return None


def _text(path: str) -> str:
    fd = open_above(path, os.O_RDONLY)
    try:
        return os.fsdecode(read_all(fd))
    finally:
        os.close(fd)


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


def is_full(directory: int | str | os.PathLike[str]) -> bool:
    """Whether the disk of a directory, by descriptor or path, takes not even a few small files; False if unknown."""
    try:
        status = os.statvfs(directory)
    except ours(OSError):
        return False
    free = status.f_bavail if os.geteuid() else status.f_bfree
    has_no_name = bool(status.f_files) and not status.f_ffree
    return bool(status.f_blocks) and (free * status.f_frsize < LEAST or has_no_name)


def explained(error: OSError, what: str) -> str:
    """Why something could not be done on this disk."""
    return "the disk is full: free some space" if error.errno in FULL else f"{what}: {error}"
