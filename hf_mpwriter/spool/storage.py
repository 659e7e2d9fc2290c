"""Storage on this host: where the spool of a logdir is, for everything that reaches a run by its logdir.

    logdir --find--> Storage (see `base/storage`) --spool_of--> Spool

    <staging>/                  hf_mpwriter-<uid>: mode 0700, of this user, no link
      <hash>/<name>/            run directory of a staged run, or nothing but a spool
        .hf_mpwriter/           spool
      <hash>/<8 hex>.at         note: in which other directory that run stands; one for each of them
      of_others/<hash>/<name>/  nothing but the spool of a folder of another user

Invariants:
- All doors come through here: writers, commands, supervisor, search, demo, testing. Uploader and push get the spool by
  descriptors.
- A run that was staged stays so, also while its mount is not there: its logdir is an empty directory then. Only
  `never` overrides that, and what is staged is told.
- Without a word of the user, nothing is asked of a directory for staging that is not on a disk of this host: a home on
  the network may hang. Of a logdir nothing is asked but its status.
- No directory is made but the staging directory, and that one only where it is needed; a note may need a second one.
- A staging directory is used only if no other user may enter it, as it is found (`private` of `system/directory`):
  no other user can have put there what is in it. One that is refused is named, and the next place is taken.
- A run that stands in one of the places goes on there, whichever comes first by now. TMPDIR is another one in each job:
  so the first place that does not depend on the job has notes of where the run stands. No process writes or removes
  the note of another place, unless nothing stands there: two that start at the same time lose none.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from hf_mpwriter.base import state
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
    lasting_directories,
    near_directories,
    staged_name,
    staging_directories,
    staging_root,
    staging_setting,
    why_far,
)
from hf_mpwriter.base.words import as_path, typed
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.staging import MirrorRecord
from hf_mpwriter.system import disk
from hf_mpwriter.system.directory import Place, at, private
from hf_mpwriter.system.filesystem import Mount, find_mount, mount_at, nearest, reason_of, table
from hf_mpwriter.system.interrupts import ours, suppress

URL = "a URL is no directory"
NOTES_READ = 100  # of one run in one directory
_GONE = re.compile(r"[0-9a-f]{16}\.gone-[0-9a-f]{8}")  # of `clean`


def find(logdir: str, environ: Mapping[str, str] = os.environ) -> Storage:
    """Where a run is kept on this host."""
    if is_url(logdir):
        return _aside(logdir, logdir, Layout.STAGED, URL, environ)
    if is_staged_path(logdir, os.geteuid()):
        return direct(logdir)
    there = ""
    with suppress(OSError):  # a dead mount; or the creation of the spool has the better message
        there = nearest(logdir)[0]
    mount, known_as = mount_at(there or logdir), os.path.realpath(logdir)  # processes may come by different links
    layout, why = choose(mount, staging_setting(environ))
    if layout is Layout.STAGED:
        return _aside(logdir, known_as, layout, why, environ)
    stays, refused = _stays(known_as, mount, environ, is_there=bool(there))
    if stays:
        return _aside(logdir, known_as, Layout.STAGED, stays, environ)
    if layout is Layout.DIRECT:
        return replace(direct(logdir), refused=refused)
    return _aside(logdir, known_as, layout, why, environ)


def _aside(logdir: str, known_as: str, layout: Layout, why: str, environ: Mapping[str, str]) -> Storage:
    """A run that has something in the staging directory."""
    if layout is Layout.STAGED and staging_setting(environ) == NEVER:
        hint = f"Unset {STAGING_VARIABLE}, or give another logdir."
        raise LogdirError(f"{logdir} cannot hold a run: {why}.", hint=hint)
    name = staged_name(known_as)
    standing, lost = _places(name, environ)
    staging, refused = _staging(logdir, name, why, environ, standing)
    place = os.path.join(staging, name)
    run_dir = place if layout is Layout.STAGED else logdir
    return Storage(logdir, layout, run_dir, os.path.join(place, SPOOL_NAME), why, refused, " ".join(lost))


def spool_of(storage: Storage) -> Spool:
    """The spool of a run; nothing is created or opened."""
    return Spool.of(storage.run_dir, storage.spool, storage.logdir)


def is_staged_here(logdir: str) -> bool:
    """Whether this host has a spool for a logdir in a staging directory."""
    return bool(_places(staged_name(os.path.realpath(logdir)), os.environ)[0])


def other_places(spool: Spool) -> list[str]:
    """The other directories on this host in which a run stands, fit or not; what `clean` has set aside of it, too."""
    if is_staged_path(spool.run_dir, os.geteuid()):
        name = _split(spool.run_dir)[1]
    else:
        name = staged_name(os.path.realpath(spool.run_dir))
    above, last = os.path.split(name)
    above = above.partition(".removed-")[0]
    found = [os.path.join(_in(one), above, last) for one in _places(f"{above}/{last}", os.environ)[0]]
    near = near_directories(os.environ, table())
    aside = [folder / last for one in near for folder in _folders(one, f"{above}.removed-")]
    found += [str(place) for place in aside if (place / SPOOL_NAME).is_directory()]
    return [path for path in found if path not in (spool.run_dir, os.path.dirname(spool.root))]


def beside(folder: str) -> Storage:
    """The storage of a folder of another user, with a spool in the staging directory: nothing is written into it."""
    why = "it is another user's, or cannot be written"
    name = os.path.join(OF_OTHERS, staged_name(os.path.realpath(folder)))
    staging, refused = _staging(folder, name, why, os.environ, _places(name, os.environ)[0])
    return Storage(folder, Layout.LOCAL_SPOOL, folder, os.path.join(staging, name, SPOOL_NAME), why, refused)


def _stays(known_as: str, mount: Mount | None, environ: Mapping[str, str], *, is_there: bool) -> tuple[str, str]:
    """Why a run stays staged whose logdir could hold it, "" if it was not staged; else what is told of it.

    Its mount may not be there: the empty directory that it leaves is no logdir. Or its logdir was on another filesystem
    once, or HF_MPWRITER_STAGING was set: only what the run goes on with is brought to where it goes.
    """
    name, refused = staged_name(known_as), list[str]()
    for directory in _places(name, environ)[0]:
        staging = _in(directory)
        run_dir = os.path.join(staging, name)
        spool = Spool(run_dir)
        record = MirrorRecord.read(spool)
        spool.release()
        if record is None:
            continue
        if trouble := objection(staging):
            refused += [_refusal(staging, trouble), _left(run_dir)]
        elif staging_setting(environ) == NEVER:
            refused.append(_left(run_dir))
        elif record.mount and not (is_there and (mount is None or mount.is_instead_of(record.mount))):
            return f"{record.mount} is not mounted, or does not answer; mount it again", ""
        else:
            return "an earlier start has staged it", ""
    return "", " ".join(refused)


def _in(directory: str) -> str:
    """The staging directory of this user in a directory."""
    return os.path.join(directory, staging_root(os.geteuid()))


def _places(name: str, environ: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The directories that have the spool of a run in a staging directory, fit or not; and what is told of others."""
    mountinfo, above = table(), os.path.dirname(name)
    # where that is not, there is neither the run nor a note of it
    near = [one for one in near_directories(environ, mountinfo) if os.path.isdir(os.path.join(_in(one), above))]
    notes = [note for directory in near for note in Note.all(directory, above)]
    noted = [note.directory for note in notes if not why_far(note.directory, mountinfo)]
    found = [one for one in dict.fromkeys([*near, *noted]) if _stands(one, name)]
    lost = [note.lost for note in notes if not note.is_whole and note.directory not in found]
    return found, list(dict.fromkeys(lost))


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


def _staging(
    logdir: str, name: str, why: str, environ: Mapping[str, str], standing: Sequence[str], *, lasts: bool = True
) -> tuple[str, str]:
    """The first fit of the directories where the run stands, else the first fit staging directory, which is made; and
    what is told of the others.
    """
    mountinfo, setting = table(), staging_setting(environ)
    troubles, refused, taken = list[str](), list[str](), ""
    for directory in dict.fromkeys([*standing, *staging_directories(environ, lasts=lasts)]):
        path, is_named = _in(directory), directory == setting
        if taken:
            refused += [_left(os.path.join(path, name))] * (directory in standing)
            continue
        trouble = ""
        try:
            trouble = "" if is_named else why_far(directory, mountinfo)
            trouble = trouble or _unfit(directory, path, is_named=is_named)
            if not trouble and (trouble := objection(path)):
                refused.append(_refusal(path, trouble))
        except ours(OSError) as error:
            trouble = f"{path}: {reason_of(error)}"
        if not trouble:
            taken = path
            continue
        if directory in standing:
            refused.append(_left(os.path.join(path, name)))
        troubles.append(trouble)
    if taken:
        return taken, " ".join(refused)
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
    staging, _ = _staging(spool.run_dir, name, why, os.environ, _places(name, os.environ)[0], lasts=False)
    return Spool(spool.run_dir, spool.run, private(staging) / name)


# the notes by which processes with another environment find a staged run


@dataclass(frozen=True)
class Note:
    """Where a run stands, if not where the note is."""

    run_dir: str
    is_whole: bool = False  # whether all that was logged there is elsewhere, too

    def __post_init__(self) -> None:
        if not (os.path.isabs(self.run_dir) and is_staged_path(self.run_dir, os.geteuid())):
            raise ValueError("not the path of a staged run")

    @property
    def directory(self) -> str:
        """The directory in which it is staged."""
        return _split(self.run_dir)[0]

    @property
    def lost(self) -> str:
        """What is told of a run that is not there any more."""
        return f"What an earlier start has left of this run was in {self.run_dir}, which is gone, or cannot be reached."

    def place(self, directory: str) -> Place:
        """Where it is in the staging directory of this user in a directory, which is opened only if it is his alone."""
        above, mark = os.path.dirname(_split(self.run_dir)[1]), hashlib.sha256(os.fsencode(self.run_dir)).hexdigest()
        return Place(private(_in(directory)), f"{above}/{mark[:8]}.at")

    def put(self, directory: str) -> None:
        """Write it there; OSError if the disk refuses."""
        place = self.place(directory)
        disk.make_dirs(place.parent)
        disk.replace(place, state.dump(self), "staged.note")

    @classmethod
    def all(cls, directory: str, above: str) -> list[Self]:
        """What a directory has of a run, by the <hash> of it, without what cannot be read or believed."""
        found, place = list[Self](), Place(private(_in(directory)), above)
        with suppress(OSError):
            for name in sorted(place.scan(NOTES_READ, lambda name: name.endswith(".at"))[1]):
                with suppress(OSError, state.DamagedError):
                    found.append(state.load(cls, disk.read(place / name) or b""))
        return found


def leave_note(spool: Spool) -> str:
    """Have a staged run found by processes with another environment; what is to be told of where it stood before.

    Of processes that start together the one that has removed a note is to tell it. Where no directory is fit, there is
    no note.
    """
    if not is_staged_path(spool.run_dir, os.geteuid()):
        return ""
    (directory, name), own = _split(spool.run_dir), Note(spool.run_dir)
    above, mountinfo = os.path.dirname(name), table()
    near = near_directories(os.environ, mountinfo)
    home = next(filter(_is_fit, filter(near.__contains__, lasting_directories(os.environ))), "")
    if home not in ("", directory) and own not in Note.all(home, above):
        with suppress(OSError):
            own.put(home)
    told = list[str]()
    for one in near:
        for note in Note.all(one, above):
            if why_far(note.directory, mountinfo) or not _stands(note.directory, name):
                with suppress(OSError):
                    note.place(one).unlink()
                    told += [] if note.is_whole else [note.lost]
    return " ".join(dict.fromkeys(told))


def mark_note(spool: Spool, *, is_whole: bool) -> None:
    """Record whether all of a staged run is elsewhere, too; OSError if the disk refuses."""
    if not is_staged_path(spool.run_dir, os.geteuid()):
        return
    wanted, above = Note(spool.run_dir, is_whole), os.path.dirname(_split(spool.run_dir)[1])
    for one in near_directories(os.environ, table()):
        if Note(spool.run_dir, not is_whole) in Note.all(one, above):
            disk.replace(wanted.place(one), state.dump(wanted), "staged.note", durable=False)


def forget_note(spool: Spool) -> None:
    """Remove what names a place where nothing is any more, as far as the disk allows it."""
    for one in near_directories(os.environ, table()):
        disk.discard(Note(spool.run_dir).place(one))


def notes_beside(spool: Spool) -> list[Note]:
    """The notes of other places that lie where a staged run stands, and leave with it."""
    directory, name = _split(spool.run_dir)
    return Note.all(directory, os.path.dirname(name))


def _stands(directory: str, name: str) -> bool:
    """Whether the spool of a run is in the staging directory in a directory."""
    return os.path.isdir(os.path.join(_in(directory), name, SPOOL_NAME))


def _split(run_dir: str) -> tuple[str, str]:
    """The directory in which a run is staged, and its name in the staging directory there."""
    staging, digits, name = run_dir.rsplit("/", 2)
    return os.path.dirname(staging), f"{digits}/{name}"


def _is_fit(directory: str) -> bool:
    """Whether a directory can have a staging directory of this user, which is made."""
    with suppress(OSError):
        return not (_unfit(directory, _in(directory), is_named=False) or objection(_in(directory)))
    return False


def staged_places() -> Iterator[str]:
    """The places in all staging directories of this user in which a run may stand."""
    found, mountinfo = dict[str, None](), table()
    for directory in near_directories(os.environ, mountinfo):
        for folder in _folders(directory):
            with suppress(OSError):
                found |= dict.fromkeys(os.path.join(folder, name) for name in sorted(folder.scan()[0]))
                notes = Note.all(directory, folder.basename)
                found |= {note.run_dir: None for note in notes if not why_far(note.directory, mountinfo)}
    yield from found


def staged_leftovers() -> list[str]:
    """The directories there that `clean` has not removed in whole."""
    found = [one for directory in near_directories(os.environ, table()) for one in _folders(directory)]
    return [str(one) for one in found if _GONE.fullmatch(one.basename) and not objection(os.path.dirname(one))]


def _folders(directory: str, start: str = "") -> list[Place]:
    """The directories in the staging directory of this user in a directory, by how their names start."""
    staging = at(_in(directory))
    with suppress(OSError):
        if staging.stat().st_uid == os.geteuid():
            return [staging / name for name in sorted(staging.scan()[0]) if name.startswith(start)]
    return []
