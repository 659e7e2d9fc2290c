"""Homes on this host: where the spool of a logdir is, for everything that reaches a run by its logdir.

    logdir --find--> Home (see `base/home`) --spool_of--> Spool

    <staging>/                  hf_mpwriter-<uid>: mode 0700, of this user, no link
      <hash>/<name>/            run directory of a staged run, or nothing but a spool
        .hf_mpwriter/           spool
      of_others/<hash>/<name>/  nothing but the spool of a folder of another user

Invariants:
- All doors come through here: writers, commands, supervisor, search, demo, testing. Uploader and push get the spool by
  descriptors.
- A run that was staged for a mount stays so while that mount is not there: its logdir is an empty directory then.
- Without a word of the user, nothing is asked of a directory for staging that is not on a disk of this host: a home on
  the network may hang.
- To find a home makes no directory but the staging directory, and that one only where it is needed.
- The staging directory is one into which no other user may write, and which none could have put there.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import stat
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from hf_mpwriter.base.errors import LogdirError
from hf_mpwriter.base.home import (
    NEVER,
    OF_OTHERS,
    STAGING_VARIABLE,
    Home,
    Way,
    choose,
    direct,
    is_staged_path,
    is_url,
    needed,
    staged_name,
    staging_directories,
    staging_root,
    staging_setting,
)
from hf_mpwriter.base.names import SPOOL_NAME
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ownership import check_descriptor
from hf_mpwriter.spool.staging.probed import is_decided, is_private, recall, remember
from hf_mpwriter.spool.staging.record import MirrorRecord
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Directory, at
from hf_mpwriter.system.filesystem.mounts import Mount, find_mount, mount_at, mount_unasked, nearest, table
from hf_mpwriter.system.filesystem.probe import Abilities, probe
from hf_mpwriter.system.process import open_above

URL = "a URL is no directory"
_KEPT = 256  # homes that a process remembers
_homes: dict[tuple[str, int, str, tuple[str, ...]], Home] = {}
_probed: dict[tuple[Mount | None, int], Abilities] = {}  # per filesystem, by its device, too


def find(logdir: str, environ: Mapping[str, str] = os.environ) -> Home:
    """Where a run is kept on this host."""
    setting = staging_setting(environ)
    there, device = "", 0
    if not is_url(logdir):
        if is_staged_path(logdir, os.geteuid()):
            return direct(logdir)
        with contextlib.suppress(OSError):  # a dead mount; or whoever creates the spool has the better message
            there, status = nearest(logdir)
            device = status.st_dev
    directories = staging_directories(environ)
    key = (logdir, device, setting, tuple(directories))
    home = _homes.get(key)
    if home is None:
        if len(_homes) >= _KEPT:
            _homes.clear()
        home = _found(logdir, there, setting, directories)
        if there or is_url(logdir):  # what is dead now may answer later
            _homes[key] = home
    return home


def spool_of(home: Home) -> Spool:
    """The spool of a home; nothing is created or opened."""
    return Spool.of(home.run_dir, home.spool, home.logdir)


def is_staged_here(logdir: str) -> bool:
    """Whether this host has a spool for a logdir in a staging directory; nothing is probed."""
    name = os.path.join(staging_root(os.geteuid()), staged_name(os.path.realpath(logdir)), SPOOL_NAME)
    return any(os.path.isdir(os.path.join(directory, name)) for directory in staging_directories(os.environ))


def beside(folder: str) -> Home:
    """The home of a folder of another user, with a spool in the staging directory: nothing is written into the
    folder.
    """
    why = "it is another user's, or cannot be written"
    staging = _staging(folder, why, staging_directories(os.environ), staging_setting(os.environ))
    place = os.path.join(staging, OF_OTHERS, staged_name(os.path.realpath(folder)))
    return Home(folder, Way.LOCAL_SPOOL, folder, os.path.join(place, SPOOL_NAME), why)


def _found(logdir: str, there: str, setting: str, directories: list[str]) -> Home:
    mount = mount_at(there) if there else None if is_url(logdir) else find_mount(logdir)
    if not is_url(logdir) and setting == "" and (home := _left_by_mount(logdir, there, mount, directories)):
        return home
    way, why = (Way.STAGED, URL) if is_url(logdir) else _choice(there or logdir, mount, setting, directories)
    if way is Way.DIRECT:
        return direct(logdir)
    if way is Way.STAGED and setting == NEVER:
        hint = f"Unset {STAGING_VARIABLE}, or give another logdir."
        raise LogdirError(f"{logdir} cannot hold a run: {why}.", hint=hint)
    known_as = logdir if is_url(logdir) else os.path.realpath(logdir)  # processes may come by different links
    place = os.path.join(_staging(logdir, why, directories, setting), staged_name(known_as))
    return Home(logdir, way, place if way is Way.STAGED else logdir, os.path.join(place, SPOOL_NAME), why)


def _left_by_mount(logdir: str, there: str, mount: Mount | None, directories: Sequence[str]) -> Home | None:
    """The home of a staged run whose mount is not there: the empty directory that it leaves is no logdir."""
    if mount is None:  # the system does not tell
        return None
    name = staged_name(os.path.realpath(logdir))
    mountinfo = table()
    for directory in itertools.filterfalse(lambda one: _far(one, mountinfo), directories):
        staging = os.path.join(directory, staging_root(os.geteuid()))
        place = os.path.join(staging, name, SPOOL_NAME)
        if not os.path.isdir(place) or not is_private(staging):
            continue
        home = Home(logdir, Way.STAGED, os.path.dirname(place), place)
        spool = spool_of(home)
        record = MirrorRecord.read(spool)
        spool.release()
        if record and record.mount and not (there and mount.is_instead_of(record.mount)):
            return replace(home, why=f"{record.mount} is not mounted, or does not answer; mount it again")
    return None


def _choice(path: str, mount: Mount | None, setting: str, directories: Sequence[str] = ()) -> tuple[Way, str]:
    needs_probe = setting in ("", NEVER) and not (mount and mount.is_known)
    return choose(mount, abilities_at(path, mount, directories) if needs_probe else None, setting)


def abilities_at(path: str, mount: Mount | None, directories: Sequence[str] = ()) -> Abilities | None:
    """What the filesystem of a path can do, as far as that decides; None if nothing can be made there.

    It is tried out once per process, and once a day where there is a staging directory to remember it.
    """
    with contextlib.suppress(OSError):
        directory, status = nearest(path)
        key, wanted = (mount, status.st_dev), needed(mount)
        if key not in _probed:
            found = _recalled(mount, status.st_dev, wanted, directories) if mount else None
            _probed[key] = found or probe(directory, wanted)
            if not found:
                _keep(mount, status.st_dev, _probed[key], directories)
        return _probed[key]
    return None


def examine(path: str, mount: Mount | None, elsewhere: Callable[[str], bool]) -> Abilities:
    """All that the filesystem of a path can do, asked anew; the answer is remembered."""
    directory, status = nearest(path)
    found = probe(directory, elsewhere=elsewhere)
    _homes.clear()
    _probed[mount, status.st_dev] = found
    _keep(mount, status.st_dev, found, staging_directories(os.environ))
    return found


def _recalled(mount: Mount, device: int, wanted: Sequence[str], directories: Sequence[str]) -> Abilities | None:
    mountinfo = table()
    there = (os.path.join(one, staging_root(os.geteuid())) for one in directories if not _far(one, mountinfo))
    answers = (recall(staging, mount, device, wanted) for staging in there)
    return next((found for found in answers if found), None)


def _keep(mount: Mount | None, device: int, found: Abilities, directories: Sequence[str]) -> None:
    """Remember an answer that decides, where that is possible."""
    if mount and directories and is_decided(found, needed(mount)):
        with contextlib.suppress(OSError):  # LogdirError is one of these, too
            remember(_staging(mount.point, "", directories, ""), mount, device, found)


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
    if is_named:
        way, why = _choice(directory, mount, "")
        if way is not Way.DIRECT:
            return f"in {directory}, {why}"
    elif mount is not None and not mount.is_local:
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
