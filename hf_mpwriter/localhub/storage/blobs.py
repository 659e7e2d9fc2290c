"""Content-addressed files on disk, published whole or not at all.

    ROOT/
      tmp/                       unfinished files; emptied when a server starts
      blobs/sha256/ab/ab12...    LFS content, name = sha256
      blobs/git/cd/cd34...       regular content, name = git's sha1 of the blob

Invariants, at any time:

1. A file under its final name must be complete and durable: write it under `tmp/`, fsync it, rename it, fsync its
   directory.
2. A published blob never changes, so readers need no lock and may keep it open.

There is no garbage collection: every version of a growing file stays, even after a squash. With `discard`, LFS blobs
are sparse files of the right size: the name keeps the digest, and downloads return zeros.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import secrets
import shutil

COPY_BYTES = 1 << 20  # one read of a copy or of a hash


def git_oid(data: bytes) -> str:
    """Return git's sha1 of a blob with this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """Return the pointer file that git stores in place of LFS content."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def file_sha256(path: str) -> str:
    """Return the sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_dir(path: str) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_dirs(path: str) -> None:
    """Create a directory and its parents, durably."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_dirs(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
    sync_dir(parent)


class Disk:
    """The only writer of files under the root of a Hub."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.tmp = os.path.join(root, "tmp")

    def scratch(self) -> str:
        """Return a new name under `tmp/`, for a file or a directory."""
        make_dirs(self.tmp)
        return os.path.join(self.tmp, secrets.token_hex(12))

    def empty_scratch(self) -> None:
        """Remove the unfinished files of a killed server."""
        shutil.rmtree(self.tmp, ignore_errors=True)

    def publish(self, temporary: str, path: str) -> None:
        """Move a finished file to its final name, durably."""
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        make_dirs(os.path.dirname(path))
        os.replace(temporary, path)
        sync_dir(os.path.dirname(path))

    def write(self, path: str, data: bytes, mode: int = 0o666) -> None:
        """Create or replace a file atomically and durably."""
        temporary = self.scratch()
        with open(temporary, "xb", opener=functools.partial(os.open, mode=mode)) as file:
            file.write(data)
        self.publish(temporary, path)

    def remove(self, path: str) -> None:
        """Remove a file, durably."""
        os.unlink(path)
        sync_dir(os.path.dirname(path))

    def discard(self, path: str) -> None:
        """Remove a directory: rename it away in one step, then free its space."""
        grave = self.scratch()
        os.rename(path, grave)
        sync_dir(os.path.dirname(path))
        shutil.rmtree(grave, ignore_errors=True)


class Blobs:
    """The content-addressed blobs of a Hub."""

    def __init__(self, disk: Disk, *, discard: bool = False) -> None:
        self.disk = disk
        self._discard = discard

    def lfs_path(self, sha256: str) -> str:
        """Return the path of LFS content, present or not."""
        return os.path.join(self.disk.root, "blobs", "sha256", sha256[:2], sha256)

    def git_path(self, oid: str) -> str:
        """Return the path of regular content, present or not."""
        return os.path.join(self.disk.root, "blobs", "git", oid[:2], oid)

    def lfs_size(self, sha256: str) -> int | None:
        """Return the size of LFS content, None if it is missing."""
        try:
            return os.stat(self.lfs_path(sha256)).st_size
        except FileNotFoundError:
            return None

    def adopt_lfs(self, temporary: str, sha256: str, size: int) -> bool:
        """Publish a file as LFS content if its size and sha256 match; otherwise remove it and return False."""
        if os.stat(temporary).st_size != size or file_sha256(temporary) != sha256:
            os.unlink(temporary)
            return False
        if self._discard:
            os.truncate(temporary, 0)
            os.truncate(temporary, size)
        self.disk.publish(temporary, self.lfs_path(sha256))
        return True

    def put_git(self, data: bytes) -> str:
        """Store regular content and return its oid."""
        oid = git_oid(data)
        if not os.path.exists(self.git_path(oid)):
            self.disk.write(self.git_path(oid), data)
        return oid
