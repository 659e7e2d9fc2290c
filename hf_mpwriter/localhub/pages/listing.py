"""A folder of a commit, each entry with the commit that changed it last, and what a commit changed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_mpwriter.localhub.storage.store import last_changes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from hf_mpwriter.localhub.storage.store import Commit, TreeEntry

DEEPEST = 200  # commits that a page reads to find who changed an entry; older changes are shown without a commit


@dataclass(frozen=True)
class FolderEntry:
    """An entry of a folder."""

    name: str  # In the folder
    path: str  # In the repository
    is_folder: bool  # Whether it is a folder
    size: int  # Bytes; of all files of a folder
    lfs: bool  # Whether a file is stored as LFS
    commit: Commit | None  # The commit that changed it last; None if it is older than DEEPEST commits


@dataclass(frozen=True)
class Difference:
    """A file that a commit changed, with its sizes before and after; None where it was not."""

    path: str
    before: int | None
    after: int | None


def listing(tree: Mapping[str, TreeEntry], folder: str, history: Iterable[Commit]) -> list[FolderEntry]:
    """Return the entries of a folder, folders first."""
    prefix = f"{folder}/" if folder else ""
    inside = {path: entry for path, entry in tree.items() if path.startswith(prefix)}
    names: dict[str, list[str]] = {}
    for path in inside:
        names.setdefault(path.removeprefix(prefix).split("/")[0], []).append(path)
    last = last_changes({prefix + name for name in names}, itertools.islice(history, DEEPEST))
    entries = [
        FolderEntry(
            name=name,
            path=prefix + name,
            is_folder=paths != [prefix + name],
            size=sum(inside[path].size for path in paths),
            lfs=any(inside[path].lfs for path in paths),
            commit=last.get(prefix + name),
        )
        for name, paths in names.items()
    ]
    return sorted(entries, key=lambda entry: (not entry.is_folder, entry.name))


def differences(commit: Commit, parent: Commit | None) -> list[Difference]:
    """Return what a commit changed, by path."""
    before: Mapping[str, TreeEntry] = parent.tree if parent else {}
    changed = [path for path in {**before, **commit.tree} if before.get(path) != commit.tree.get(path)]
    return [Difference(path, _size(before, path), _size(commit.tree, path)) for path in sorted(changed)]


def _size(tree: Mapping[str, TreeEntry], path: str) -> int | None:
    return tree[path].size if path in tree else None
