"""Listing: what is in a logdir, for a restore. Of all files, with their lengths.

Nothing is written, no link is followed, and nothing of a spool is listed.
"""

from __future__ import annotations

import os

from hf_mpwriter.base.logdir import is_url
from hf_mpwriter.base.names import SPOOL_NAME


def files(to: str) -> dict[str, int]:
    """Bytes of all files in a logdir, per path relative to it; none if there is no such directory.

    Args:
        to: an absolute path, or a URL.

    Raises:
        Exception: a filesystem of fsspec may raise anything.
    """
    return _below_url(to) if is_url(to) else _below(to)


def _below(top: str) -> dict[str, int]:
    found, pending = {}, [""]
    while pending:
        directory = pending.pop()
        try:
            entries = os.scandir(os.path.join(top, directory))
        except FileNotFoundError:
            continue
        with entries:
            for entry in entries:
                path = os.path.join(directory, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    pending += [path] * (entry.name != SPOOL_NAME)
                elif entry.is_file(follow_symlinks=False):
                    found[path] = entry.stat(follow_symlinks=False).st_size
    return found


def _below_url(to: str) -> dict[str, int]:
    import fsspec.core  # here: training never calls this

    filesystem, root = fsspec.core.url_to_fs(to)
    start = root.rstrip("/") + "/"
    try:
        details = filesystem.find(root, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    found = {name.removeprefix(start): entry for name, entry in details.items() if name.startswith(start)}
    return {path: int(entry["size"] or 0) for path, entry in found.items() if SPOOL_NAME not in path.split("/")}
