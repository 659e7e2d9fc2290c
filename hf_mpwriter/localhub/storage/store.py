"""Repositories on disk: branches and commits with real history.

    ROOT/
      FORMAT                                  "hf-mpwriter localhub 1"
      blobs/ ...                              content (blobs.py)
      xet/ ...                                xorbs and shards (xet.py)
      repos/<models|datasets|spaces>/<namespace>/<name>/
        repo.json                             {"type", "id", "private", "created"}
        commits/<40 or 64 hex>.json                 {"oid", "parent", "title", "message", "author", "date",
                                               "tree": {path: {"size", "oid", "sha256", "lfs", "xet_hash"}}}
        refs/<branch, percent-encoded>        the oid of its newest commit

Invariants, at any time:

1. A commit and all content that it names must be durable before a branch points at it.
2. A commit becomes visible only when its branch's ref is replaced atomically. What a killed server leaves behind is in
   `tmp/` or unreachable.
3. `repo.json` makes a directory a repository: it is written last. A repository is deleted by one rename.

One server process writes a store, under one lock per repository (`writing`). Any process may read it from disk at the
same time with a `Store`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import quote, unquote

from hf_mpwriter.localhub.errors import EntryNotFound, RepoNotFound, RevisionNotFound
from hf_mpwriter.localhub.storage.blobs import Blobs, Disk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

REPO_TYPES = ("model", "dataset", "space")
MAIN = "main"
CACHED_COMMITS = 256

_ID_PART = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_BRANCH = re.compile(r"(?![./])(?!.*(\.\.|//|[\x00-\x20~^:?*\\\[\x7f]))[^\x00]{1,150}(?<![./])")


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """A file of a commit."""

    size: int
    oid: str  #: git's sha1 of the content, or of the LFS pointer
    sha256: str  #: of the content, regular or LFS
    lfs: bool = False
    xet_hash: str | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit with its complete tree."""

    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    tree: Mapping[str, TreeEntry]


@dataclass(frozen=True, slots=True)
class Repo:
    """A repository without its content."""

    type: str
    id: str
    private: bool
    created: str


class Store:
    """The repositories under one folder, read-only.

    Args:
        root: The folder.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.path.abspath(root)
        self.disk = Disk(self.root)
        self.blobs = Blobs(self.disk)

    def repos(self) -> list[Repo]:
        """Return all repositories."""
        return sorted(self._repos(), key=lambda repo: (repo.type, repo.id))

    def repo_info(self, repo_type: str, repo_id: str) -> Repo:
        """Return a repository.

        Raises:
            RepoNotFound: if there is none.
        """
        try:
            with open(os.path.join(self._home(repo_type, repo_id), "repo.json"), encoding="utf-8") as file:
                return Repo(**json.load(file))
        except FileNotFoundError:
            raise RepoNotFound(f"Repository Not Found: {repo_type} {repo_id}") from None

    def branches(self, repo_type: str, repo_id: str) -> dict[str, str]:
        """Return the branches, each with the id of its newest commit."""
        self.repo_info(repo_type, repo_id)
        folder = os.path.join(self._home(repo_type, repo_id), "refs")
        with contextlib.suppress(FileNotFoundError):
            return {unquote(name): self._ref(os.path.join(folder, name)) for name in sorted(os.listdir(folder))}
        return {}

    def resolve(self, repo_type: str, repo_id: str, revision: str = MAIN) -> str:
        """Return the commit id of a branch or a commit id.

        Raises:
            RevisionNotFound: if it is neither.
        """
        self.repo_info(repo_type, repo_id)
        home = self._home(repo_type, repo_id)
        with contextlib.suppress(FileNotFoundError):
            return self._ref(self._ref_path(home, revision.removeprefix("refs/heads/")))
        if _OID.fullmatch(revision) and os.path.exists(os.path.join(home, "commits", revision + ".json")):
            return revision
        raise RevisionNotFound(f"Invalid rev id: {revision}")

    def commit(self, repo_type: str, repo_id: str, revision: str = MAIN) -> Commit:
        """Return the commit of a branch or a commit id."""
        oid = self.resolve(repo_type, repo_id, revision)
        return _load_commit(os.path.join(self._home(repo_type, repo_id), "commits", oid + ".json"))

    def commits(self, repo_type: str, repo_id: str, revision: str = MAIN) -> list[Commit]:
        """Return the history of a revision, newest first."""
        return list(self.history(repo_type, repo_id, revision))

    def history(self, repo_type: str, repo_id: str, revision: str = MAIN) -> Iterator[Commit]:
        """Yield the history of a revision, newest first."""
        commit: Commit | None = self.commit(repo_type, repo_id, revision)
        while commit:
            yield commit
            commit = self.commit(repo_type, repo_id, commit.parent) if commit.parent else None

    def tree(self, repo_type: str, repo_id: str, revision: str = MAIN) -> Mapping[str, TreeEntry]:
        """Return the files of a revision."""
        return self.commit(repo_type, repo_id, revision).tree

    def entry(self, repo_type: str, repo_id: str, path: str, revision: str = MAIN) -> TreeEntry:
        """Return one file of a revision.

        Raises:
            EntryNotFound: if there is no file at this path.
        """
        try:
            return self.tree(repo_type, repo_id, revision)[path]
        except KeyError:
            raise EntryNotFound(f"{path} does not exist in {repo_id} at {revision}") from None

    def blob_path(self, entry: TreeEntry) -> str:
        """Return the path on disk of an entry's content."""
        return self.blobs.lfs_path(entry.sha256) if entry.lfs else self.blobs.git_path(entry.oid)

    def open(self, repo_type: str, repo_id: str, path: str, revision: str = MAIN) -> BinaryIO:
        """Open the content of one file of a revision."""
        return open(self.blob_path(self.entry(repo_type, repo_id, path, revision)), "rb")

    def read_blob(self, repo_type: str, repo_id: str, path: str, revision: str = MAIN) -> bytes:
        """Return the content of one file of a revision."""
        with self.open(repo_type, repo_id, path, revision) as file:
            return file.read()

    def _repos(self) -> Iterator[Repo]:
        for repo_type in REPO_TYPES:
            for namespace in _listdir(os.path.join(self.root, "repos", repo_type + "s")):
                for name in _listdir(os.path.join(self.root, "repos", repo_type + "s", namespace)):
                    with contextlib.suppress(RepoNotFound):
                        yield self.repo_info(repo_type, f"{namespace}/{name}")

    def _home(self, repo_type: str, repo_id: str) -> str:
        """Return the directory of a repository; the id is checked so that it cannot escape the store."""
        parts = repo_id.split("/")
        is_id = len(parts) == 2 and all(map(_ID_PART.fullmatch, parts))  # namespace and name
        if repo_type not in REPO_TYPES or not is_id:
            raise RepoNotFound(f"Repository Not Found: {repo_type} {repo_id}")
        return os.path.join(self.root, "repos", repo_type + "s", *parts)

    def _ref_path(self, home: str, branch: str) -> str:
        if not _BRANCH.fullmatch(branch):
            raise RevisionNotFound(f"Invalid rev id: {branch}")
        return os.path.join(home, "refs", quote(branch, safe=""))

    def _ref(self, path: str) -> str:
        with open(path, encoding="ascii") as file:
            return file.read().strip()


class View:
    """One run of a Hub, in the form that `hf_mpwriter.testing.check` reads."""

    def __init__(self, store: Store, repo_id: str, folder: str, repo_type: str = "model", revision: str = MAIN) -> None:
        self._store, self._repo, self._revision = store, (repo_type, repo_id), revision
        self._prefix = f"{folder}/" if folder else ""

    def commits(self) -> list[str]:
        """Return the commits of the branch, newest first; empty if there is no repository yet."""
        try:
            return [commit.oid for commit in self._store.commits(*self._repo, self._revision)]
        except RepoNotFound:
            return []

    def tree(self, revision: str) -> Mapping[str, TreeEntry]:
        """Return the files of the run's folder at one commit, by their path in the folder."""
        tree = self._store.tree(*self._repo, revision)
        return {path.removeprefix(self._prefix): entry for path, entry in tree.items() if path.startswith(self._prefix)}


def last_changes(paths: Iterable[str], history: Iterable[Commit]) -> dict[str, Commit]:
    """Return the commit that changed each file or folder last, where this part of a history shows it."""
    found: dict[str, Commit] = {}
    left, newer = set(paths), None
    for commit in history:
        if newer:
            changed = {path for path in left if _part(newer, path) != _part(commit, path)}
            found |= dict.fromkeys(changed, newer)
            left -= changed
        if not left:
            return found
        newer = commit
    if newer and newer.parent is None:
        found |= dict.fromkeys(left, newer)
    return found


def _part(commit: Commit, path: str) -> object:
    if path in commit.tree:
        return commit.tree[path]
    return {name: entry for name, entry in commit.tree.items() if name.startswith(path + "/")}


def _listdir(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []


@functools.lru_cache(maxsize=CACHED_COMMITS)
def _load_commit(path: str) -> Commit:
    """Read a commit; its name is a digest of its content, so the cache never goes stale."""
    with open(path, encoding="utf-8") as file:
        fields = json.load(file)
    fields["tree"] = {name: TreeEntry(**entry) for name, entry in fields["tree"].items()}
    return Commit(**fields)
