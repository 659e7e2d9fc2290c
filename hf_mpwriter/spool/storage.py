"""Storage on this host: where the spool of a logdir is, for everything that reaches a run by its logdir.

    logdir --find--> Storage (see `base/storage`) --spool_of--> Spool

    <staging>/                  hf_mpwriter-<uid>: mode 0700, of this user, no link
      <hash>/<name>/            run directory of a staged run, or nothing but a spool
        .hf_mpwriter/           spool
      of_others/<hash>/<name>/  nothing but the spool of a folder of another user

Invariants:
- All doors come through here: writers, commands, supervisor, search, demo, testing. Uploader and push get the spool by
  descriptors.
- A run that was staged for a mount stays so while that mount is not there: its logdir is an empty directory then.
- Without a word of the user, nothing is asked of a directory for staging that is not on a disk of this host: a home on
  the network may hang. Of a logdir nothing is asked but its status.
- No directory is made but the staging directory, and that one only where it is needed.
- The staging directory is one into which no other user may write, and which none could have put there.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hf_mpwriter.base.errors import LogdirError
from hf_mpwriter.base.names import SPOOL_NAME
from hf_mpwriter.base.storage import (
    NEVER,
    OF_OTHERS,
    STAGING_VARIABLE,
    Layout,
    Storage,
    choose,
    direct,
    is_staged_path,
    is_url,
    staged_name,
    staging_directories,
    staging_root,
    staging_setting,
)
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ownership import check_descriptor
from hf_mpwriter.spool.staging import MirrorRecord
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Directory, at
from hf_mpwriter.system.filesystem import Mount, find_mount, mount_at, mount_unasked, nearest, table
from hf_mpwriter.system.process import open_above

URL = "a URL is no directory"


def find(logdir: str, environ: Mapping[str, str] = os.environ) -> Storage:
    """Where a run is kept on this host."""
    setting, directories = staging_setting(environ), staging_directories(environ)
    if is_url(logdir):
        return _aside(logdir, logdir, Layout.STAGED, URL, setting, directories)
    if is_staged_path(logdir, os.geteuid()):
        return direct(logdir)
    there = ""
    with contextlib.suppress(OSError):  # a dead mount; or the creation of the spool has the better message
        there = nearest(logdir)[0]
    mount = mount_at(there or logdir)
    if setting == "" and (left := _left_by_mount(logdir, there, mount, directories)):
        return left
    layout, why = choose(mount, setting)
    if layout is Layout.DIRECT:
        return direct(logdir)
    known_as = os.path.realpath(logdir)  # processes may come by different links
    return _aside(logdir, known_as, layout, why, setting, directories)


def _aside(logdir: str, known_as: str, layout: Layout, why: str, setting: str, directories: list[str]) -> Storage:
    """A run that has something in the staging directory."""
    if layout is Layout.STAGED and setting == NEVER:
        hint = f"Unset {STAGING_VARIABLE}, or give another logdir."
        raise LogdirError(f"{logdir} cannot hold a run: {why}.", hint=hint)
    place = os.path.join(_staging(logdir, why, directories, setting), staged_name(known_as))
    run_dir = place if layout is Layout.STAGED else logdir
    return Storage(logdir, layout, run_dir, os.path.join(place, SPOOL_NAME), why)


def spool_of(storage: Storage) -> Spool:
    """The spool of a run; nothing is created or opened."""
    return Spool.of(storage.run_dir, storage.spool, storage.logdir)


def is_staged_here(logdir: str) -> bool:
    """Whether this host has a spool for a logdir in a staging directory."""
    name = os.path.join(staging_root(os.geteuid()), staged_name(os.path.realpath(logdir)), SPOOL_NAME)
    return any(os.path.isdir(os.path.join(directory, name)) for directory in staging_directories(os.environ))


def beside(folder: str) -> Storage:
    """The storage of a folder of another user, with a spool in the staging directory: nothing is written into it."""
    why = "it is another user's, or cannot be written"
    staging = _staging(folder, why, staging_directories(os.environ), staging_setting(os.environ))
    place = os.path.join(staging, OF_OTHERS, staged_name(os.path.realpath(folder)))
    return Storage(folder, Layout.LOCAL_SPOOL, folder, os.path.join(place, SPOOL_NAME), why)


def _left_by_mount(logdir: str, there: str, mount: Mount | None, directories: Sequence[str]) -> Storage | None:
    """The storage of a staged run whose mount is not there: the empty directory that it leaves is no logdir."""
    if mount is None:  # the system does not tell
        return None
    name = staged_name(os.path.realpath(logdir))
    mountinfo = table()
    for directory in itertools.filterfalse(lambda one: _far(one, mountinfo), directories):
        staging = os.path.join(directory, staging_root(os.geteuid()))
        place = os.path.join(staging, name, SPOOL_NAME)
        if not os.path.isdir(place) or not _is_private(staging):
            continue
        storage = Storage(logdir, Layout.STAGED, os.path.dirname(place), place)
        spool = spool_of(storage)
        record = MirrorRecord.read(spool)
        spool.release()
        if record and record.mount and not (there and mount.is_instead_of(record.mount)):
            return replace(storage, why=f"{record.mount} is not mounted, or does not answer; mount it again")
    return None


def _is_private(staging: str) -> bool:
    """Whether a directory is there, no link, and this user's, and no other user may enter it."""
    try:
        status = os.lstat(staging)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077


def _staging(logdir: str, why: str, directories: Sequence[str], setting: str) -> str:
    """The staging directory of this user; it is made."""
    troubles = []
    for directory in directories:
        path = os.path.join(directory, staging_root(os.geteuid()))
        try:
            is_named = directory == setting
            if trouble := ("" if is_named else _far(directory, table())) or _unfit(directory, path, is_named=is_named):
                troubles.append(trouble)
            else:
                return path
        except OSError as error:
            troubles.append(f"{path}: {error.strerror}")
    raise LogdirError(
        f"{logdir} needs a directory on this host, as {why}, and there is none: {'; '.join(troubles)}.",
        hint=f"Set {STAGING_VARIABLE} to a directory on a local disk.",
    )


def _far(directory: str, mountinfo: str) -> str:
    """Why a directory is not on a disk of this host, "" if it is, as far as the system tells; nothing asks it."""
    mount = mount_unasked(directory, mountinfo)
    return "" if mount is None or mount.is_local else f"{directory} is on {mount.fstype}"


def _unfit(directory: str, path: str, *, is_named: bool) -> str:
    """What is wrong with a staging directory, which is made; "" if it is fit."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    mount = find_mount(directory)
    if is_named and (why := choose(mount, NEVER)[1]):
        return f"in {directory}, {why}"
    if mount is not None and not is_named and not mount.is_local:
        return f"{directory} is on {mount.fstype}"
    mode = os.stat(directory).st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        return f"everybody may rename in {directory}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    fd = open_above(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid():
            return f"{path} belongs to another user"
        if status.st_mode & 0o077:
            os.fchmod(fd, 0o700)
            if os.fstat(fd).st_mode & 0o077:
                return f"{path} can be read by others"
    finally:
        os.close(fd)
    return ""


def aside(spool: Spool) -> Spool:
    """A spool of this user's own for a run directory whose spool is foreign; it has no destination."""
    path = os.path.join(tempfile.gettempdir(), staging_root(os.geteuid()))
    own = at(path)
    disk.make_dirs(own)
    private = Directory(path, above=own.directory, check=check_descriptor)
    return Spool(spool.run_dir, spool.run, private / hashlib.sha256(os.fsencode(spool.run_dir)).hexdigest()[:16])
