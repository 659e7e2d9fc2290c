"""Changes of repositories, made by the only server of a root under one lock per repository.

The invariants of `store` determine the order of writes: content, then the commit, then the ref.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import json
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hf_mpwriter.localhub.errors import BadRequest, EntryNotFound, Exists, Forbidden, RevisionNotFound, StaleParent
from hf_mpwriter.localhub.storage.blobs import Blobs, git_oid, lfs_pointer, make_dirs
from hf_mpwriter.localhub.storage.store import MAIN, Commit, Repo, Store, TreeEntry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FORMAT = "hf-mpwriter localhub 1\n"
MIN_OID_PREFIX = 7  # hex digits; a client may shorten the id of a parent commit to this


@dataclass(frozen=True, slots=True)
class Change:
    """One operation of a commit: put an entry at a path, or delete a file or a folder."""

    kind: Literal["put", "delete", "delete_folder"]
    path: str
    entry: TreeEntry | None = None


def now_iso() -> str:
    """Return the current time in the Hub's format."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def check_path(path: str) -> str:
    """Return a path in a repository, or refuse it if it is invalid."""
    if not path or "\0" in path or any(part in ("", ".", "..", ".git") for part in path.split("/")):
        raise BadRequest(f"Invalid path in repository: {path!r}")
    return path


class WritableStore(Store):
    """The repositories under one folder, writable by the server that owns it."""

    def __init__(self, root: str | os.PathLike[str], *, discard: bool = False, long_ids: bool = False) -> None:
        super().__init__(root)
        self._hash = hashlib.sha256 if long_ids else hashlib.sha1
        self.blobs = Blobs(self.disk, discard=discard)
        self._guard = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}

    def prepare(self) -> None:
        """Initialize an empty folder, or check the format of an existing store; remove unfinished files."""
        make_dirs(self.root)
        path = os.path.join(self.root, "FORMAT")
        try:
            with open(path, encoding="ascii") as file:
                found = file.read()
        except FileNotFoundError:
            self.disk.write(path, FORMAT.encode("ascii"))
        else:
            if found != FORMAT:
                raise ValueError(f"{path} says {found!r}, this version reads {FORMAT!r}")
        self.disk.empty_scratch()

    def create_repo(
        self, repo_type: str, repo_id: str, *, private: bool, author: str, files: Mapping[str, bytes]
    ) -> Repo:
        """Create a repository with an initial commit of some files."""
        home = self._home(repo_type, repo_id)
        with self._lock(home):
            if os.path.exists(os.path.join(home, "repo.json")):
                raise Exists(f"You already created this {repo_type} repo: {repo_id}")
            tree = {path: self.put_regular(data) for path, data in files.items()}
            first = self._new_commit(home, None, tree, title="initial commit", author=author)
            self._move(home, MAIN, first)
            repo = Repo(repo_type, repo_id, private, first.date)
            self.disk.write(os.path.join(home, "repo.json"), _json(dataclasses.asdict(repo)))
            return repo

    def delete_repo(self, repo_type: str, repo_id: str) -> None:
        """Delete a repository with its history; blobs stay."""
        home = self._home(repo_type, repo_id)
        with self._lock(home):
            self.repo_info(repo_type, repo_id)
            self.disk.discard(home)

    def put_regular(self, data: bytes) -> TreeEntry:
        """Store regular content and return its entry."""
        return TreeEntry(len(data), self.blobs.put_git(data), hashlib.sha256(data).hexdigest())

    def lfs_entry(self, sha256: str, size: int, xet_hash: str | None = None) -> TreeEntry:
        """Return the entry of LFS content that is stored already."""
        return TreeEntry(size, git_oid(lfs_pointer(sha256, size)), sha256, lfs=True, xet_hash=xet_hash)

    def apply(
        self,
        repo_type: str,
        repo_id: str,
        branch: str,
        changes: Iterable[Change],
        *,
        title: str,
        message: str = "",
        author: str,
        parent: str | None = None,
    ) -> Commit:
        """Add a commit to a branch."""
        home = self._home(repo_type, repo_id)
        with self._lock(home):
            head = self._branch_head(repo_type, repo_id, branch)
            if parent and not (len(parent) >= MIN_OID_PREFIX and head.oid.startswith(parent)):
                raise StaleParent
            tree = _changed(head.tree, changes)
            commit = self._new_commit(home, head.oid, tree, title=title, message=message, author=author)
            self._move(home, branch, commit)
            return commit

    def squash(self, repo_type: str, repo_id: str, branch: str, *, message: str, author: str) -> Commit:
        """Replace the history of a branch with one commit of the same tree."""
        home = self._home(repo_type, repo_id)
        with self._lock(home):
            head = self._branch_head(repo_type, repo_id, branch)
            commit = self._new_commit(home, None, head.tree, title=message, author=author)
            self._move(home, branch, commit)
            return commit

    def create_branch(self, repo_type: str, repo_id: str, branch: str, start: str = MAIN) -> None:
        """Create a branch that points at a revision."""
        home = self._home(repo_type, repo_id)
        with self._lock(home):
            if branch in self.branches(repo_type, repo_id):
                raise Exists(f"Reference already exists: refs/heads/{branch}")
            self._move(home, branch, self.commit(repo_type, repo_id, start))

    def delete_branch(self, repo_type: str, repo_id: str, branch: str) -> None:
        """Delete a branch."""
        home = self._home(repo_type, repo_id)
        with self._lock(home):
            self._branch_head(repo_type, repo_id, branch)
            if branch == MAIN:
                raise Forbidden("Cannot delete the main branch")
            self.disk.remove(self._ref_path(home, branch))

    def _lock(self, home: str) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(home, threading.Lock())

    def _branch_head(self, repo_type: str, repo_id: str, branch: str) -> Commit:
        if branch not in self.branches(repo_type, repo_id):
            raise RevisionNotFound(f"Invalid rev id: {branch}")
        return self.commit(repo_type, repo_id, branch)

    def _new_commit(
        self,
        home: str,
        parent: str | None,
        tree: Mapping[str, TreeEntry],
        *,
        title: str,
        message: str = "",
        author: str,
    ) -> Commit:
        """Write a commit to which no branch points yet."""
        commit = Commit("", parent, title, message, author, now_iso(), dict(sorted(tree.items())))
        oid = self._hash(_json(dataclasses.asdict(commit)), usedforsecurity=False).hexdigest()
        commit = dataclasses.replace(commit, oid=oid)
        self.disk.write(os.path.join(home, "commits", oid + ".json"), _json(dataclasses.asdict(commit)))
        return commit

    def _move(self, home: str, branch: str, commit: Commit) -> None:
        self.disk.write(self._ref_path(home, branch), commit.oid.encode("ascii"))


def _changed(tree: Mapping[str, TreeEntry], changes: Iterable[Change]) -> dict[str, TreeEntry]:
    new = dict(tree)
    for change in changes:
        if change.entry is not None:
            new[check_path(change.path)] = change.entry
        elif change.kind == "delete":
            if new.pop(change.path, None) is None:
                raise EntryNotFound(f"{change.path} does not exist")
        else:
            folder = change.path.strip("/") + "/"
            inside = [path for path in new if path.startswith(folder)]
            if not inside:
                raise EntryNotFound(f"{change.path} does not exist")
            for path in inside:
                del new[path]
    return new


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
