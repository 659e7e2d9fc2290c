"""The event files of a commit in a directory, for a TensorBoard that is reading it.

A reader keeps its place in an open file. It never looks again at what it has read, and misses a file that is replaced.
Invariant: a file of a checkout is neither replaced nor cut nor removed, it only grows.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hf_mpwriter.localhub.storage.store import TreeEntry

COMPARE_BYTES = 1 << 20


def is_event_file(path: str) -> bool:
    """Return whether TensorBoard reads a file of this name."""
    return "tfevents" in path.rpartition("/")[2]


class Checkout:
    """The event files of a commit."""

    def __init__(self, directory: str, blob_path: Callable[[TreeEntry], str]) -> None:
        self.directory = directory
        self._blob_path = blob_path
        self._held: dict[str, str] = {}  # path -> sha256

    def follow(self, tree: Mapping[str, TreeEntry]) -> bool:
        """Append what a commit has in addition.

        Whether the directory has what the commit has. If not, it needs a new directory: the commit lacks a
        file, or content of one, that an earlier commit had.
        """
        wanted = {path: entry for path, entry in tree.items() if is_event_file(path)}
        if not self._held.keys() <= wanted.keys():
            return False
        for path, entry in sorted(wanted.items()):  # within a run, older files come first
            if self._held.get(path) != entry.sha256:
                if not self._append(path, entry):
                    return False
                self._held[path] = entry.sha256
        return True

    def _append(self, path: str, entry: TreeEntry) -> bool:
        """Bring one file up to date; whether this was possible."""
        target = os.path.join(self.directory, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(self._blob_path(entry), "rb") as source, open(target, "a+b") as copy:
            copy.seek(0)
            if not _begins_with(source, copy):
                return False
            shutil.copyfileobj(source, copy)
        return True


def _begins_with(source: BinaryIO, copy: BinaryIO) -> bool:
    """Return whether a file begins with the content of another; it is then read up to there."""
    while ours := copy.read(COMPARE_BYTES):
        if source.read(len(ours)) != ours:
            return False
    return True
