"""Power cuts: a disk whose power can be cut, and what a power cut may take.

    <directory>/disk.img     an image with a filesystem of its own
    <directory>/disk/        where a loop device mounts it

The kernel makes the cut: FS_IOC_SHUTDOWN without a flush of the log. What was not synced is lost, and each open file
gives EIO. End all processes that use the disk, then restart it: the filesystem replays its log as after a real cut.

Linux, root and `mkfs.ext4` or `mkfs.xfs` are needed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import sys
import time
from types import TracebackType
from typing import Self

from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import at

SHUTDOWN = 0x8004587D  # ioctl FS_IOC_SHUTDOWN, the same for ext4 and xfs
NO_LOG_FLUSH = 2
SYS_ADMIN = 1 << 21  # CAP_SYS_ADMIN
SIZES = {"ext4": 64 << 20, "xfs": 320 << 20}  # bytes of an image, sparse; mkfs.xfs refuses less than 300 MB
TOOLS = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"  # mkfs may be outside the PATH of a service
POLL = 0.02  # seconds between two tries
PATIENCE = 20.0  # seconds that a disk may stay busy: killed processes may still be ending


def _run(tool: str, *arguments: str) -> None:
    command = [shutil.which(tool, path=TOOLS) or tool, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


def _may_mount() -> bool:
    """Whether this process has CAP_SYS_ADMIN."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        capabilities = next(line.split()[1] for line in file if line.startswith("CapEff:"))
    return bool(int(capabilities, 16) & SYS_ADMIN)


def why_not(kind: str) -> str:
    """Why no disk of this kind can be made here; "" if it can."""
    if sys.platform != "linux":
        return "loop devices need Linux"
    if os.geteuid() != 0 or not _may_mount():
        return "mounting a disk needs root, outside of an unprivileged container"
    for tool in (f"mkfs.{kind}", "mount", "umount"):
        if shutil.which(tool, path=TOOLS) is None:
            return f"{tool} is not installed"
    return "" if os.path.exists("/dev/loop-control") else "the kernel has no loop devices"


def has_power(path: str) -> bool:
    """Whether the disk with this file or directory has power. If so, what returned before this call was before the cut.

    The call syncs the file: ext4 opens a directory even without power.
    """
    try:
        disk.fsync_path(at(path), "power")
    except OSError:
        return False
    return True


class LoopDisk:
    """A disk in a file. A context manager, which unmounts and removes it."""

    def __init__(self, directory: str, kind: str = "ext4", size: int = 0) -> None:
        if reason := why_not(kind):
            raise OSError(reason)
        self._image, self.path = os.path.join(directory, "disk.img"), os.path.join(directory, "disk")
        os.makedirs(self.path)
        with open(self._image, "wb") as file:
            file.truncate(size or SIZES[kind])
        _run(f"mkfs.{kind}", "-q", self._image)
        self.start()

    def start(self) -> None:
        """Mount the disk."""
        _run("mount", "-o", "loop", self._image, self.path)

    def cut(self) -> None:
        """Cut the power. All that is done on the disk fails until `restart`."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def stop(self) -> None:
        """Unmount the disk."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return _run("umount", self.path)
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(POLL)

    def restart(self) -> None:
        """Turn the power on again.

        A mount namespace that was made meanwhile (`unshare`, a container) keeps the disk without power until it ends.
        """
        end = time.monotonic() + PATIENCE
        self._turn_on()
        while not has_power(self.path):
            if time.monotonic() > end:
                raise OSError(f"{self._image} is still mounted in another mount namespace")
            time.sleep(POLL)
            self._turn_on()

    def _turn_on(self) -> None:
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        """The disk, mounted."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unmount and remove the disk; after an error even if files are open there."""
        try:
            self.stop()
        except OSError:
            if error is None:
                raise
            _run("umount", "--lazy", self.path)
        os.unlink(self._image)
