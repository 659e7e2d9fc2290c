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
- A staging directory is used only if no other user may enter it, as it is found (`private` of `system/directory`):
  nobody else can have put there what is in it. One that is refused is named, and the next place is taken.
- A run that stands in one of the places goes on there, whichever comes first by now.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
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
from hf_mpwriter.base.words import as_path, typed
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging import MirrorRecord
from hf_mpwriter.system.directory import private
from hf_mpwriter.system.filesystem import Mount, find_mount, mount_at, mount_unasked, nearest, reason_of, table
from hf_mpwriter.system.interrupts import ours, suppress

URL = "a URL is no directory"


def find(logdir: str, environ: Mapping[str, str] = os.environ) -> Storage:
    """Where a run is kept on this host."""
    setting, directories = staging_setting(environ), staging_directories(environ)
    if is_url(logdir):
        return _aside(logdir, logdir, Layout.STAGED, URL, setting, directories)
    if is_staged_path(logdir, os.geteuid()):
        return direct(logdir)
    there = ""
    with suppress(OSError):  # a dead mount; or the creation of the spool has the better message
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
    name = staged_name(known_as)
    staging, refused = _staging(logdir, name, why, directories, setting)
    place = os.path.join(staging, name)
    run_dir = place if layout is Layout.STAGED else logdir
    return Storage(logdir, layout, run_dir, os.path.join(place, SPOOL_NAME), why, refused)


def spool_of(storage: Storage) -> Spool:
    """The spool of a run; nothing is created or opened."""
    return Spool.of(storage.run_dir, storage.spool, storage.logdir)


def is_staged_here(logdir: str) -> bool:
    """Whether this host has a spool for a logdir in a staging directory."""
    directories, setting = staging_directories(os.environ), staging_setting(os.environ)
    standing = _standing(staged_name(os.path.realpath(logdir)), directories, setting)
    return next(standing, None) is not None


def beside(folder: str) -> Storage:
    """The storage of a folder of another user, with a spool in the staging directory: nothing is written into it."""
    why = "it is another user's, or cannot be written"
    name = os.path.join(OF_OTHERS, staged_name(os.path.realpath(folder)))
    staging, refused = _staging(folder, name, why, staging_directories(os.environ), staging_setting(os.environ))
    return Storage(folder, Layout.LOCAL_SPOOL, folder, os.path.join(staging, name, SPOOL_NAME), why, refused)


def _left_by_mount(logdir: str, there: str, mount: Mount | None, directories: Sequence[str]) -> Storage | None:
    """The storage of a staged run whose mount is not there: the empty directory that it leaves is no logdir.

    One that is in a directory that is refused is only told.
    """
    if mount is None:  # the system does not tell
        return None
    told, name = None, staged_name(os.path.realpath(logdir))
    for staging in _standing(name, directories):
        place = os.path.join(staging, name, SPOOL_NAME)
        storage = Storage(logdir, Layout.STAGED, os.path.dirname(place), place)
        spool = spool_of(storage)
        record = MirrorRecord.read(spool)
        spool.release()
        if record and record.mount and not (there and mount.is_instead_of(record.mount)):
            if not (trouble := objection(staging)):
                return replace(storage, why=f"{record.mount} is not mounted, or does not answer; mount it again")
            told = told or replace(direct(logdir), refused=f"{_refusal(staging, trouble)} {_left(storage.run_dir)}")
    return told


def _standing(name: str, directories: Sequence[str], setting: str = "") -> Iterator[str]:
    """The staging directories that have the spool of a run, fit or not; of those that may hang only a named one."""
    mountinfo = table()
    for directory in directories:
        staging = os.path.join(directory, staging_root(os.geteuid()))
        is_near = directory == setting or not _far(directory, mountinfo)
        if is_near and os.path.isdir(os.path.join(staging, name, SPOOL_NAME)):
            yield staging


def objection(staging: str) -> str:
    """Why a staging directory that is found is not used, "" if it is fit, or not there."""
    directory = private(staging)
    try:
        directory.is_there()
    except ours(OSError) as error:
        return f"{staging}: {'It is a link' if os.path.islink(staging) else reason_of(error)}"
    finally:
        directory.release()
    return ""


def _staging(logdir: str, name: str, why: str, directories: Sequence[str], setting: str) -> tuple[str, str]:
    """Where the run stands, else the first fit staging directory, which is made; and what is told of those refused."""
    standing, mountinfo = list(_standing(name, directories, setting)), table()
    places = {os.path.join(directory, staging_root(os.geteuid())): directory for directory in directories}
    troubles, refused = list[str](), list[str]()
    for path in sorted(places, key=lambda one: one not in standing):
        is_named, trouble = places[path] == setting, ""
        try:
            trouble = "" if is_named else _far(places[path], mountinfo)
            trouble = trouble or _unfit(places[path], path, is_named=is_named)
            if not trouble and (trouble := objection(path)):
                refused.append(_refusal(path, trouble))
        except ours(OSError) as error:
            trouble = f"{path}: {reason_of(error)}"
        if not trouble:
            return path, " ".join(refused)
        if path in standing:
            refused.append(_left(os.path.join(path, name)))
        troubles.append(trouble)
    raise LogdirError(
        f"{logdir} needs a directory on this host, as {why}, and there is none: {'; '.join(troubles)}.",
        hint=" ".join([*refused, f"Set {STAGING_VARIABLE} to a directory on a local disk."]),
    )


def _refusal(path: str, trouble: str) -> str:
    """What the user is told of a staging directory that others may have filled: its mode is not ours to change."""
    is_own = not os.path.islink(path) and os.lstat(path).st_uid == os.geteuid()
    cure = f" If all in it is yours: {typed('chmod', 'go-rwx', as_path(path))}." if is_own else ""
    return f"Not used: {trouble}.{cure}"


def _left(place: str) -> str:
    return f"What an earlier start has left of this run is in {place}."


def _far(directory: str, mountinfo: str) -> str:
    """Why a directory is not on a disk of this host, "" if it is, as far as the system tells; nothing asks it."""
    mount = mount_unasked(directory, mountinfo)
    return "" if mount is None or mount.is_local else f"{directory} is on {mount.fstype}"


def _unfit(directory: str, path: str, *, is_named: bool) -> str:
    """What is wrong with a place for a staging directory, which is made; "" if it is fit."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    mount = find_mount(directory)
    if is_named and (why := choose(mount, NEVER)[1]):
        return f"in {directory}, {why}"
    if mount is not None and not is_named and not mount.is_local:
        return f"{directory} is on {mount.fstype}"
    mode = os.stat(directory).st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        return f"everybody may rename in {directory}"
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    return ""


def aside(spool: Spool) -> Spool:
    """A spool of this user's own for a run directory whose spool is foreign; it has no destination."""
    name, why = hashlib.sha256(os.fsencode(spool.run_dir)).hexdigest()[:16], "its spool is not used"
    directories = staging_directories(os.environ, lasts=False)
    staging, _ = _staging(spool.run_dir, name, why, directories, staging_setting(os.environ))
    return Spool(spool.run_dir, spool.run, private(staging) / name)
