"""Repositories on disk: branches and commits with real history, and content-addressed files.

    ROOT/
      FORMAT                                  "hf-mpwriter localhub 1"
      tmp/                                    unfinished files; emptied when a server starts
      blobs/sha256/ab/ab12...                 LFS content, name = sha256
      blobs/git/cd/cd34...                    regular content, name = git's sha1 of the blob
      xet/ ...                                xorbs and shards (xet.py)
      repos/<models|datasets|spaces|buckets>/<namespace>/<name>/       of buckets see buckets.py
        repo.json                             {"type", "id", "private", "created"}
        commits/<40 or 64 hex>.json           {"oid", "parent", "title", "message", "author", "date",
                                               "tree": {path: {"size", "oid", "sha256", "lfs", "xet_hash"}}}
        refs/<branch, percent-encoded>        the oid of its newest commit

Invariants, at any time:

1. A file under its final name is complete: it is written under `tmp/` and renamed. A published blob never changes, so
   readers need no lock and may keep it open.
2. A commit and all content that it names are there before a branch points at it: content, then the commit, then the
   ref.
3. `repo.json` makes a directory a repository: it is written last. A repository is deleted by one rename.

One server process writes a store, under one lock per repository. Any process may read it from disk at the same time
with a `Store`. A store survives the end of its server at any moment, but no power cut: nothing is synced. There is no
garbage collection: every version of a growing file stays, even after a squash. With `discard`, LFS blobs are sparse
files of the right size: the name keeps the digest, and downloads return zeros.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Literal
from urllib.parse import quote, unquote

from hf_mpwriter.localhub.errors import (
    BadRequest,
    EntryNotFound,
    Exists,
    Forbidden,
    RepoNotFound,
    RevisionNotFound,
    StaleParent,
)

FORMAT = "hf-mpwriter localhub 1\n"
REPO_TYPES = ("model", "dataset", "space")
BUCKET = "bucket"  # stands beside those types: it has a name and is private or not, but has no commits
MAIN = "main"
CACHED_COMMITS = 256
MIN_OID_PREFIX = 7  # hex digits; a client may shorten the id of a parent commit to this

_ID_PART = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_BRANCH = re.compile(r"(?![./])(?!.*(\.\.|//|[\x00-\x20~^:?*\\\[\x7f]))[^\x00]{1,150}(?<![./])")


def git_oid(data: bytes) -> str:
    """Return git's sha1 of a blob with this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """Return the pointer file that git stores in place of LFS content."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def file_sha256(path: str) -> str:
    """Return the sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Disk:
    """The only writer of files under the root of a Hub."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.tmp = os.path.join(root, "tmp")

    def scratch(self) -> str:
        """Return a new name under `tmp/`, for a file or a directory."""
        os.makedirs(self.tmp, exist_ok=True)
        return os.path.join(self.tmp, secrets.token_hex(12))

    def publish(self, temporary: str, path: str) -> None:
        """Move a finished file to its final name."""
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.replace(temporary, path)

    def write(self, path: str, data: bytes) -> None:
        """Create or replace a file in one step."""
        temporary = self.scratch()
        with open(temporary, "xb") as file:
            file.write(data)
        self.publish(temporary, path)

    def discard(self, path: str) -> None:
        """Remove a directory: rename it away in one step, then free its space."""
        grave = self.scratch()
        os.rename(path, grave)
        shutil.rmtree(grave, ignore_errors=True)


class Blobs:
    """The content-addressed blobs of a Hub."""

    def __init__(self, disk: Disk, *, discard: bool = False) -> None:
        self.disk = disk
        self._discard = discard

    def lfs_path(self, sha256: str) -> str:
        """Return the path of LFS content, present or not."""
        return os.path.join(self.disk.root, "blobs", "sha256", sha256[:2], sha256)

    def git_path(self, oid: str) -> str:
        """Return the path of regular content, present or not."""
        return os.path.join(self.disk.root, "blobs", "git", oid[:2], oid)

    def lfs_size(self, sha256: str) -> int | None:
        """Return the size of LFS content, None if it is missing."""
        try:
            return os.stat(self.lfs_path(sha256)).st_size
        except FileNotFoundError:
            return None

    def adopt_lfs(self, temporary: str, sha256: str, size: int) -> bool:
        """Publish a file as LFS content if its size and sha256 match; otherwise remove it and return False."""
        if os.stat(temporary).st_size != size or file_sha256(temporary) != sha256:
            os.unlink(temporary)
            return False
        if self._discard:
            os.truncate(temporary, 0)
            os.truncate(temporary, size)
        self.disk.publish(temporary, self.lfs_path(sha256))
        return True

    def put_git(self, data: bytes) -> str:
        """Store regular content and return its oid."""
        oid = git_oid(data)
        if not os.path.exists(self.git_path(oid)):
            self.disk.write(self.git_path(oid), data)
        return oid


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

    def repos(self, types: Iterable[str] = REPO_TYPES) -> list[Repo]:
        """Return all repositories of some types."""
        return sorted(self._repos(types), key=lambda repo: (repo.type, repo.id))

    def repo_info(self, repo_type: str, repo_id: str) -> Repo:
        """Return a repository.

        Raises:
            RepoNotFound: if there is none.
        """
        try:
            with open(os.path.join(self.home(repo_type, repo_id), "repo.json"), encoding="utf-8") as file:
                return Repo(**json.load(file) | {"id": repo_id})  # in a repository that has moved, the old id stands
        except FileNotFoundError:
            raise RepoNotFound(f"Repository Not Found: {repo_type} {repo_id}") from None

    def branches(self, repo_type: str, repo_id: str) -> dict[str, str]:
        """Return the branches, each with the id of its newest commit."""
        self.repo_info(repo_type, repo_id)
        folder = os.path.join(self.home(repo_type, repo_id), "refs")
        with contextlib.suppress(FileNotFoundError):
            return {unquote(name): self._ref(os.path.join(folder, name)) for name in sorted(os.listdir(folder))}
        return {}

    def resolve(self, repo_type: str, repo_id: str, revision: str = MAIN) -> str:
        """Return the commit id of a branch or a commit id.

        Raises:
            RevisionNotFound: if it is neither.
        """
        self.repo_info(repo_type, repo_id)
        home = self.home(repo_type, repo_id)
        with contextlib.suppress(FileNotFoundError):
            return self._ref(self._ref_path(home, revision.removeprefix("refs/heads/")))
        if _OID.fullmatch(revision) and os.path.exists(os.path.join(home, "commits", revision + ".json")):
            return revision
        raise RevisionNotFound(f"Invalid rev id: {revision}")

    def commit(self, repo_type: str, repo_id: str, revision: str = MAIN) -> Commit:
        """Return the commit of a branch or a commit id."""
        oid = self.resolve(repo_type, repo_id, revision)
        return _load_commit(os.path.join(self.home(repo_type, repo_id), "commits", oid + ".json"))

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

    def _repos(self, types: Iterable[str]) -> Iterator[Repo]:
        for repo_type in types:
            for namespace in _listdir(os.path.join(self.root, "repos", repo_type + "s")):
                for name in _listdir(os.path.join(self.root, "repos", repo_type + "s", namespace)):
                    with contextlib.suppress(RepoNotFound):
                        yield self.repo_info(repo_type, f"{namespace}/{name}")

    def home(self, repo_type: str, repo_id: str) -> str:
        """Return the directory of a repository; the id is checked so that it cannot escape the store."""
        parts = repo_id.split("/")
        is_id = len(parts) == 2 and all(map(_ID_PART.fullmatch, parts))  # namespace and name
        if repo_type not in (*REPO_TYPES, BUCKET) or not is_id:
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
        os.makedirs(self.root, exist_ok=True)
        path = os.path.join(self.root, "FORMAT")
        try:
            with open(path, encoding="ascii") as file:
                found = file.read()
        except FileNotFoundError:
            self.disk.write(path, FORMAT.encode("ascii"))
        else:
            if found != FORMAT:
                raise ValueError(f"{path} says {found!r}, this version reads {FORMAT!r}")
        shutil.rmtree(self.disk.tmp, ignore_errors=True)  # the unfinished files of a killed server

    def create_repo(
        self, repo_type: str, repo_id: str, *, private: bool, author: str, files: Mapping[str, bytes]
    ) -> None:
        """Create a repository with an initial commit of some files."""
        home = self.home(repo_type, repo_id)
        with self.new_repo(repo_type, repo_id, private=private):
            tree = {path: self.put_regular(data) for path, data in files.items()}
            self._move(home, MAIN, self._new_commit(home, None, tree, title="initial commit", author=author))

    @contextlib.contextmanager
    def new_repo(self, repo_type: str, repo_id: str, *, private: bool) -> Iterator[None]:
        """Create a repository, whose content the caller writes meanwhile."""
        with self.lock(repo_type, repo_id):
            self._refuse_present(repo_type, repo_id)
            yield
            self._describe(Repo(repo_type, repo_id, private, now_iso()))

    def set_private(self, repo_type: str, repo_id: str, *, private: bool) -> None:
        """Make a repository private or public."""
        with self.lock(repo_type, repo_id):
            self._describe(dataclasses.replace(self.repo_info(repo_type, repo_id), private=private))

    def move_repo(self, repo_type: str, repo_id: str, new_id: str) -> None:
        """Give a repository another id."""
        with contextlib.ExitStack() as locks:
            for name in sorted({repo_id, new_id}):
                locks.enter_context(self.lock(repo_type, name))
            self.repo_info(repo_type, repo_id)
            self._refuse_present(repo_type, new_id)
            self.disk.publish(self.home(repo_type, repo_id), self.home(repo_type, new_id))

    def _refuse_present(self, repo_type: str, repo_id: str) -> None:
        if os.path.exists(os.path.join(self.home(repo_type, repo_id), "repo.json")):
            raise Exists(f"You already created this {repo_type} repo: {repo_id}")

    def _describe(self, repo: Repo) -> None:
        path = os.path.join(self.home(repo.type, repo.id), "repo.json")
        self.disk.write(path, to_json(dataclasses.asdict(repo)))

    def delete_repo(self, repo_type: str, repo_id: str) -> None:
        """Delete a repository with its history; blobs stay."""
        home = self.home(repo_type, repo_id)
        with self.lock(repo_type, repo_id):
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
        home = self.home(repo_type, repo_id)
        with self.lock(repo_type, repo_id):
            head = self._branch_head(repo_type, repo_id, branch)
            if parent and not (len(parent) >= MIN_OID_PREFIX and head.oid.startswith(parent)):
                raise StaleParent
            tree = _changed(head.tree, changes)
            commit = self._new_commit(home, head.oid, tree, title=title, message=message, author=author)
            self._move(home, branch, commit)
            return commit

    def squash(self, repo_type: str, repo_id: str, branch: str, *, message: str, author: str) -> Commit:
        """Replace the history of a branch with one commit of the same tree."""
        home = self.home(repo_type, repo_id)
        with self.lock(repo_type, repo_id):
            head = self._branch_head(repo_type, repo_id, branch)
            commit = self._new_commit(home, None, head.tree, title=message, author=author)
            self._move(home, branch, commit)
            return commit

    def create_branch(self, repo_type: str, repo_id: str, branch: str, start: str = MAIN) -> None:
        """Create a branch that points at a revision."""
        home = self.home(repo_type, repo_id)
        with self.lock(repo_type, repo_id):
            if branch in self.branches(repo_type, repo_id):
                raise Exists(f"Reference already exists: refs/heads/{branch}")
            self._move(home, branch, self.commit(repo_type, repo_id, start))

    def delete_branch(self, repo_type: str, repo_id: str, branch: str) -> None:
        """Delete a branch."""
        home = self.home(repo_type, repo_id)
        with self.lock(repo_type, repo_id):
            self._branch_head(repo_type, repo_id, branch)
            if branch == MAIN:
                raise Forbidden("Cannot delete the main branch")
            os.unlink(self._ref_path(home, branch))

    def lock(self, repo_type: str, repo_id: str) -> threading.Lock:
        """Return the lock of a repository, for its changes."""
        with self._guard:
            return self._locks.setdefault(self.home(repo_type, repo_id), threading.Lock())

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
        oid = self._hash(to_json(dataclasses.asdict(commit)), usedforsecurity=False).hexdigest()
        commit = dataclasses.replace(commit, oid=oid)
        self.disk.write(os.path.join(home, "commits", oid + ".json"), to_json(dataclasses.asdict(commit)))
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


def to_json(value: object) -> bytes:
    """Return a value as one line of JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
