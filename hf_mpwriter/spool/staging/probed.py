"""What filesystems were found to do: answers of probes that this host remembers, so that a slow mount is asked once.

    <staging>/.probed-<16 hex>.json     {"mount": {"point": ..., "fstype": ..., "source": ...}, "device": 51,
                                         "at": 1795236610.0, "abilities": {"append": false, ...}}

The digits are those of mount point, type, source and device number. A mount that is made anew has another device as a
rule, and is asked anew.

Invariants:
- An answer is read and written only in a directory of this user that no other may enter: a wrong one would lead the
  event files of a run elsewhere.
- It counts for a day, and only if it decides.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass

from hf_mpwriter.base import state
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Directory
from hf_mpwriter.system.filesystem.mounts import Mount
from hf_mpwriter.system.filesystem.probe import Abilities

KEPT = 86_400.0  # seconds


@dataclass(frozen=True)
class ProbeRecord:
    """The answer of a probe."""

    mount: Mount  # that was asked
    device: int  # number of its filesystem
    at: float  # unix time
    abilities: Abilities  # what was found


def check_private(path: str, fd: int) -> None:
    """Refuse a directory that another user owns, or may enter."""
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise PermissionError(f"{path} is not private")


def is_private(staging: str) -> bool:
    """Whether a directory is there, is this user's, and no other user may enter it."""
    directory = Directory(staging, check=check_private)
    try:
        return directory.is_there()
    except OSError:
        return False
    finally:
        directory.release()


def is_decided(abilities: Abilities, needed: Sequence[str]) -> bool:
    """Whether abilities tell all that is needed, up to the first one that is missing."""
    for name in needed:
        if (answer := getattr(abilities, name)) is not True:
            return answer is False
    return True


def recall(staging: str, mount: Mount, device: int, needed: Sequence[str]) -> Abilities | None:
    """The answer that is remembered in a staging directory, None if there is none that counts."""
    directory = Directory(staging, check=check_private)
    try:
        record = state.load(ProbeRecord, disk.read(directory / _name(mount, device)) or b"")
    except (state.DamagedError, OSError):
        return None
    finally:
        directory.release()
    is_of_it = (record.mount, record.device) == (mount, device) and 0.0 <= time.time() - record.at < KEPT
    return record.abilities if is_of_it and is_decided(record.abilities, needed) else None


def remember(staging: str, mount: Mount, device: int, abilities: Abilities) -> None:
    """Write an answer into a staging directory."""
    directory = Directory(staging, check=check_private)
    try:
        data = state.dump(ProbeRecord(mount, device, time.time(), abilities))
        disk.replace(directory / _name(mount, device), data, "staging.probed", durable=False)
    finally:
        directory.release()


def _name(mount: Mount, device: int) -> str:
    key = "\0".join((mount.point, mount.fstype, mount.source, str(device)))
    return f".probed-{hashlib.sha256(os.fsencode(key)).hexdigest()[:16]}.json"
