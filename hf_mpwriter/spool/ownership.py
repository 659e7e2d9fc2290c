"""Ownership: whether a spool may be used, and for which destination.

    run.json    {"destination": {...}, "inode": 131073}    of the spool

To use a spool is to send a token to the endpoint in its `run.json`, and to read and write at its names. So a run
directory has one user: its spool must be a directory of this user into which no other user may write.

It must be of this version, which its FORMAT tells. Where it was made, and for which destination, run.json tells; the
inode in it is that of the spool, so a copy, or what was unpacked from an archive, has another one. Either file counts
as not there while it is empty or ends too soon, as some filesystems leave it when the power fails.

It is checked on the descriptor by which the spool is used from then on, whatever becomes of its name.
"""

from __future__ import annotations

import json
import os
import pwd
import stat
from dataclasses import dataclass

from hf_mpwriter.base import state
from hf_mpwriter.base.errors import ForeignSpoolError, SpoolFormatError
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.storage import STAGING_VARIABLE
from hf_mpwriter.system import disk, locks
from hf_mpwriter.system.directory import Directory, Place
from hf_mpwriter.system.process import open_above

FORMAT = "hf-mpwriter 4"
FORMAT_NAME, RUN_JSON = "FORMAT", "run.json"
_WITHOUT_MODES = f" (where no mode can be changed: set {STAGING_VARIABLE} to a directory on a local disk)"


@dataclass(frozen=True)
class RunRecord:
    """What `run.json` holds."""

    destination: Destination  # of the run
    inode: int = 0  # of the spool in which it was written; a copy has another one


def check_descriptor(path: str, fd: int) -> None:
    """Refuse a spool that was opened and into which strangers may write."""
    _refuse(path, _objection(path, os.fstat(fd), fd))


def check_ownership(spool: Directory) -> None:
    """Refuse a spool into which strangers may write; one that is not there yet is fine."""
    try:
        check_descriptor(spool.path, spool.fd)
    except ForeignSpoolError:
        raise
    except OSError:  # it cannot be opened, or is no directory: its status is for the message
        try:
            status = os.lstat(spool.path)
        except OSError:
            return
        if not stat.S_ISREG(status.st_mode):  # `Spool.create` has the better message
            _refuse(spool.path, _objection(spool.path, status, -1))


def _refuse(path: str, trouble: tuple[str, str] | None) -> None:
    if trouble:
        raise ForeignSpoolError(f"{path} {trouble[0]}, so it is not used.", hint=trouble[1])


def _objection(root: str, status: os.stat_result, fd: int) -> tuple[str, str] | None:
    """What is wrong with a spool, and what helps."""
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link", "Remove the link; the next start makes a directory."
    if status.st_mode & stat.S_IWOTH:
        return "can be written by everybody", f"Run: chmod o-w {root}{_WITHOUT_MODES}"
    if status.st_uid != os.geteuid() and _made_by_us(fd) != status.st_uid:
        return f"belongs to {_name_of(status.st_uid)}", "A run directory is for one user: give another logdir."
    if status.st_mode & stat.S_IWGRP:
        return "can be written by its group", f"Run: chmod g-w {root}{_WITHOUT_MODES}"
    return None


def _made_by_us(directory: int) -> int:
    """The user id that this filesystem gives our files, which may know root by another number; -1 if it takes none."""
    name = f".owner-probe.{os.getpid()}.{os.urandom(4).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        fd = open_above(name, flags, disk.FILE_MODE, dir_fd=directory)
    except OSError:
        return -1
    try:
        return os.fstat(fd).st_uid
    finally:
        os.close(fd)
        os.unlink(name, dir_fd=directory)


def _name_of(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"


def others_may_write(directory: Directory) -> bool:
    """Whether other users may rename in a directory, and so put something in place of what is in it."""
    try:
        return bool(os.fstat(directory.fd).st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    except OSError:
        return False


def is_private(run: Directory, spool: Directory) -> bool:
    """Whether run directory and spool belong to this user, and no other user may write into the spool."""
    try:
        statuses = [os.fstat(directory.fd) for directory in (run, spool)]
    except OSError:
        return False
    owned = all(status.st_uid == os.geteuid() for status in statuses)
    return owned and not statuses[1].st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def check_format(spool: Directory) -> bool:
    """Refuse a spool that another version wrote.

    Whether FORMAT is there. Of one that was torn the rest is written by the next worker.
    """
    try:
        found = disk.read(spool / FORMAT_NAME)
    except ForeignSpoolError:
        raise
    except OSError:  # a file in the place of a directory: `Spool.create` has the better message
        return False
    if found is None or not _is_format(found):
        return False
    if found.decode(errors="replace").strip() != FORMAT:
        raise SpoolFormatError(
            f"{spool.path} has the format {found[:40].decode(errors='replace').strip()!r}, not {FORMAT!r}.",
            hint="Use the version of hf_mpwriter that wrote it, or another logdir.",
        )
    return True


def publish_format(spool: Place) -> bool:
    """Write FORMAT, which was missing, unless another is faster; whether this call did. OSError if the disk refuses."""
    return locks.publish(spool / FORMAT_NAME, f"{FORMAT}\n".encode(), "spool.format", _is_format)


def _is_format(found: bytes) -> bool:
    """Whether what was found is a FORMAT, of whatever version, and not the beginning of ours."""
    return found == FORMAT.encode() or not FORMAT.encode().startswith(found)


def _is_torn(found: bytes) -> bool:
    """Whether what was found in the place of run.json is empty, or ends too soon."""
    try:
        json.loads(found)
    except (ValueError, RecursionError):
        return not found or found.startswith(b"{")
    return False


def record_destination(spool: Directory, destination: Destination) -> None:
    """Write the destination into run.json, where none was seen, unless one is there by now."""
    with Place(spool).entered() as inside:
        record = RunRecord(destination, inside.stat().st_ino)
        whole = lambda found: not _is_torn(found)  # noqa: E731
        locks.publish(inside / RUN_JSON, state.dump(record), "spool.run", whole)


def recorded_destination(spool: Directory) -> Destination | None:
    """The destination in run.json, None if there is none; for the errors see `Spool.destination`."""
    record = _record(spool)
    return None if record is None else record.destination


def is_original(spool: Directory) -> bool:
    """Whether a spool is where its destination was recorded; for the errors see `Spool.is_original`."""
    record = _record(spool)
    return record is not None and record.inode == os.fstat(spool.fd).st_ino


def _record(spool: Directory) -> RunRecord | None:
    check_ownership(spool)
    try:
        data = disk.read(spool / RUN_JSON)
        return None if data is None or _is_torn(data) else state.load(RunRecord, data)
    except (state.DamagedError, OSError) as error:
        raise SpoolFormatError(
            f"{spool / RUN_JSON} is damaged: {error}.", hint="Remove that file; the next start writes it again."
        ) from error
