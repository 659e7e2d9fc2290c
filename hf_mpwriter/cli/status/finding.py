"""Runs below a folder: directories with a spool, and staged runs whose logdir is there. What to say where none is.

Links are not followed, names with a dot in front are passed over, and a folder is searched no deeper than DEEPEST.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from hf_mpwriter.base.home import is_url, normalised_logdir, staging_directories, staging_root
from hf_mpwriter.base.names import SPOOL_NAME, is_event_file
from hf_mpwriter.cli.words import as_argument, typed
from hf_mpwriter.snapshot.event_files import walk
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ownership import FORMAT_NAME
from hf_mpwriter.spool.staging.record import MirrorRecord
from hf_mpwriter.system.directory import Directory

DEEPEST = 8  # folders below the first one
NAMED = 5  # runs that a message names
MOST = 50_000  # entries that are looked at: a folder of data sets is no place for runs


def runs_below(folder: str) -> list[str]:
    """The logdirs of the runs below a folder, relative to it, in the order of their paths.

    Args:
        folder: absolute path.
    """
    direct = [os.path.relpath(found, folder) for found in _with_spool(folder)]
    return sorted({*direct, *(os.path.relpath(found, folder) for found in _staged(folder))})


def has_event_files(path: str) -> bool:
    """Whether there are event files in a folder or below it."""
    return any(is_event_file(os.path.basename(found)) for found in walk(Directory(path)))


def no_run(logdir: str, *, is_elsewhere: bool) -> str:
    """What to say of a place where there is no run.

    Args:
        logdir: as it was typed.
        is_elsewhere: whether a run there would be kept beside its logdir.
    """
    path = normalised_logdir(logdir)
    if not is_url(path) and not os.path.isdir(path):
        return f"{logdir} does not exist. Runs below this folder: hf-mpwriter status"
    if is_elsewhere or is_url(path):
        return (
            f"{logdir} has no run of this machine. A run that is kept beside its logdir is found on its machine only, "
            "with HF_MPWRITER_STAGING and TMPDIR as they were, or by the directory that was named at its start."
        )
    if below := runs_below(path):
        named = ", ".join(as_argument(os.path.normpath(os.path.join(logdir, run))) for run in below[:NAMED])
        more = f" and {len(below) - NAMED} more" if len(below) > NAMED else ""
        return f"{logdir} is no run. Below it there {'are' if len(below) > 1 else 'is'}: {named}{more}"
    if has_event_files(path):
        upload = typed("hf-mpwriter", "sync", as_argument(logdir), "--repo-id", "NAME")
        return f"{logdir} has event files of another writer, and is no run yet. To upload them: {upload}"
    return f"{logdir} has no event files, and no run below it."


def _with_spool(folder: str) -> Iterator[str]:
    pending, left = [(folder, 0)], MOST
    while pending and left > 0:
        path, depth = pending.pop()
        try:
            with os.scandir(path) as entries:
                found = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:  # of others, or gone
            continue
        left -= 1 + len(found)
        if any(entry.name == SPOOL_NAME for entry in found) and os.path.exists(
            os.path.join(path, SPOOL_NAME, FORMAT_NAME)
        ):
            yield path
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
