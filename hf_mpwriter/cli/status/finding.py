"""Runs below a folder: directories with a spool, and staged runs whose logdir is there. What to say where none is.

Also folders with event files of others, which become runs when they are synced: of nested ones the topmost.

Links are not followed, names with a dot in front are passed over, and a folder is searched no deeper than DEEPEST.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from difflib import SequenceMatcher, get_close_matches
from typing import NamedTuple

from hf_mpwriter.base.names import SPOOL_NAME, is_event_file
from hf_mpwriter.base.storage import is_url, normalised_logdir, staging_directories, staging_root
from hf_mpwriter.base.words import as_argument, typed
from hf_mpwriter.snapshot.event_files import walk
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ownership import FORMAT_NAME
from hf_mpwriter.spool.staging import MirrorRecord
from hf_mpwriter.system.directory import Directory

DEEPEST = 8  # folders below the first one
NAMED = 5  # runs that a message names
CLOSE = 0.8  # of two paths that are nearly the same
MOST = 50_000  # entries that are looked at: a folder of data sets is no place for runs


def runs_below(folder: str) -> list[str]:
    """The logdirs of the runs below a folder, relative to it, in the order of their paths."""
    direct = [os.path.relpath(found.path, folder) for found in _folders(folder) if found.has_spool]
    return sorted({*direct, *(os.path.relpath(found, folder) for found in _staged(folder))})


def others_below(folder: str, runs: Collection[str]) -> list[str]:
    """The folders below a folder, or itself, with event files that belong to no run; as `runs_below` names them."""
    taken, found = set(runs), list[str]()
    for path in sorted(one.path for one in _folders(folder) if one.has_events):
        name = os.path.relpath(path, folder)
        if taken.isdisjoint(_with_parents(name)):
            found.append(name)
            if not has_one_of(name, runs):  # it can become a run, with what is below it
                taken.add(name)
    return found


def has_one_of(folder: str, runs: Collection[str]) -> bool:
    """Whether one of some runs is a folder or below it; all as `runs_below` names them."""
    return any(folder in _with_parents(run) for run in runs)


def named(names: Collection[str]) -> str:
    """The first names of some, and how many more there are."""
    shown = ", ".join(list(names)[:NAMED])
    return f"{shown} and {len(names) - NAMED} more" if len(names) > NAMED else shown


def nearest_first(name: str, names: Collection[str]) -> list[str]:
    """Names in the order in which a mistyped one may mean them."""
    return sorted(names, key=lambda one: (-SequenceMatcher(None, name, one).ratio(), one))


def _with_parents(name: str) -> Iterator[str]:
    """A relative path, the folders above it, and the first one."""
    while name not in ("", "."):
        yield name
        name = os.path.dirname(name)
    yield "."


def run_above(path: str) -> str:
    """The run directory that a folder lies in, "" if there is none."""
    above = os.path.dirname(path)
    while above != path:
        if os.path.exists(os.path.join(above, SPOOL_NAME, FORMAT_NAME)):
            return above
        path, above = above, os.path.dirname(above)
    return ""


def has_event_files(path: str) -> bool:
    """Whether there are event files in a folder or below it."""
    return any(is_event_file(os.path.basename(found)) for found in walk(Directory(path)))


def no_run(logdir: str, *, is_elsewhere: bool) -> str:
    """What to say of a place where there is no run."""
    path = normalised_logdir(logdir)
    if not is_url(path) and not os.path.isdir(path):
        return f"{logdir} does not exist. {_meant(logdir)}Runs below this folder: hf-mpwriter status"
    if is_elsewhere or is_url(path):
        return (
            f"{logdir} has no run of this machine. A run that is kept beside its logdir is found on its machine only, "
            "with HF_MPWRITER_STAGING and TMPDIR as they were, or by the directory that was named at its start."
        )
    if below := runs_below(path):
        runs = named([as_argument(os.path.normpath(os.path.join(logdir, run))) for run in below])
        return f"{logdir} is no run. Below it there {'are' if len(below) > 1 else 'is'}: {runs}"
    if has_event_files(path):
        upload = typed("hf-mpwriter", "sync", as_argument(logdir), "--repo-id", "NAME")
        return f"{logdir} has event files of another writer, and is no run yet. To upload them: {upload}"
    return f"{logdir} has no event files, and no run below it."


def _meant(logdir: str) -> str:
    """The run below this folder whose path is nearly the same, as a question; "" if there is none."""
    runs = [as_argument(run) for run in runs_below(os.getcwd())]
    close = get_close_matches(as_argument(os.path.normpath(logdir)), runs, 1, CLOSE)
    return f"Did you mean {close[0]}? " if close else ""


class _Folder(NamedTuple):
    """A folder that was met."""

    path: str  # absolute
    has_spool: bool  # whether it has the spool of a run
    has_events: bool  # whether event files are in it


def _folders(folder: str) -> Iterator[_Folder]:
    pending, left = [(folder, 0)], MOST
    while pending and left > 0:
        path, depth = pending.pop()
        found, has_events = list[os.DirEntry[str]](), False
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        found.append(entry)
                    elif not has_events and is_event_file(entry.name):
                        has_events = entry.is_file(follow_symlinks=False)
        except OSError:  # of others, or gone
            continue
        left -= 1 + len(found)
        has_spool = any(entry.name == SPOOL_NAME for entry in found)
        has_spool = has_spool and os.path.exists(os.path.join(path, SPOOL_NAME, FORMAT_NAME))
        yield _Folder(path, has_spool, has_events)
        if depth < DEEPEST:
            pending += [(entry.path, depth + 1) for entry in found if not entry.name.startswith(".")]


def _staged(folder: str) -> Iterator[str]:
    """The logdirs, below a folder, of runs that are kept beside them on this host."""
    for directory in staging_directories(os.environ):
        root = os.path.join(directory, staging_root(os.geteuid()))
        for group in _names(root):
            for name in _names(os.path.join(root, group)):
                record = MirrorRecord.read(Spool(os.path.join(root, group, name)))
                if record is not None and _is_below(record.to, folder):
                    yield record.to


def _is_below(logdir: str, folder: str) -> bool:
    """Whether a logdir, which may be a URL, is a folder or below it."""
    return os.path.isabs(logdir) and os.path.commonpath([folder, logdir]) == folder


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []
