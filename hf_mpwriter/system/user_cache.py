"""Folders of ours in the user's cache, in which the processes of a user on this host meet.

    <cache>/hf_mpwriter/<name>/              mode 0700, made at the first use
      lock                                   held while a file beside it is read and changed
      <24 hex>.json                          one for each key
      ...                                    of `uploaders`: sockets, see `uploader/meeting`

Invariants:
- A folder is used only if it and the one above are this user's alone, see `private` of `system/directory`.
- Without it all goes on: where it cannot be made, is a stranger's or is damaged, OSError says so.
- No process waits for the lock; its holder has it for some milliseconds, unless it was stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping

from hf_mpwriter.system import disk, hf_home
from hf_mpwriter.system.directory import Place, private
from hf_mpwriter.system.interrupts import suppress

LOCK = "lock"


def folder_of(name: str, environ: Mapping[str, str]) -> Place:
    """A folder of ours; it is neither made nor opened yet."""
    ours = private(os.path.join(hf_home.cache_folder(environ), "hf_mpwriter"))
    return Place(private(os.path.join(ours.path, name), ours))


def name_of(*key: str) -> str:
    """The file of a key."""
    return f"{hashlib.sha256(' '.join(key).encode(errors='surrogateescape')).hexdigest()[:24]}.json"


@contextlib.contextmanager
def locked(folder: Place) -> Iterator[bool]:
    """Make a folder and hold its lock; False if another process does."""
    from hf_mpwriter.system import locks  # here: a process that only looks for another one loads little

    disk.make_dirs(folder, durable=False)
    lock = locks.try_exclusive(folder / LOCK)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            locks.release(lock)


def forget(folder: Place, before: float) -> None:
    """Remove the files that were not written since a unix time; call it with the lock.

    A temporary file is that of a killed process: the holder of the lock is alone.
    """
    for name in folder.names():
        with suppress(OSError):
            is_old = name.endswith(".json") and (folder / name).stat().st_mtime < before
            if is_old or name.endswith(".tmp"):
                (folder / name).unlink()
