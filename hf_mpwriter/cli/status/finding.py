"""Runs below a folder: directories with a spool, and staged runs whose logdir is there.

Links are not followed, names with a dot in front are passed over, and a folder is searched no deeper than DEEPEST.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from hf_mpwriter.base.home import staging_directories, staging_root
from hf_mpwriter.base.names import SPOOL_NAME
from hf_mpwriter.spool.layout import Spool
from hf_mpwriter.spool.ownership import FORMAT_NAME
from hf_mpwriter.spool.staging.record import MirrorRecord

DEEPEST = 8  # folders below the first one
MOST = 50_000  # entries that are looked at: a folder of data sets is no place for runs


def runs_below(folder: str) -> list[str]:
    """The logdirs of the runs below a folder, relative to it, in the order of their paths.

    Args:
        folder: absolute path.
    """
    direct = [os.path.relpath(found, folder) for found in _with_spool(folder)]
    return sorted({*direct, *(os.path.relpath(found, folder) for found in _staged(folder))})


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
