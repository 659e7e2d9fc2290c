"""The Hub: commit, head, sizes. What goes wrong is raised as the client raises it; `judge` tells what it means.

Facts behind this module (huggingface_hub 2.4.0):
- `create_commit` never retries its POST.
- `hf_hub_download` asks for a file that does not come for minutes, and its exception for "could not ask" is one of "is
  not there". The model card is asked for once instead, and believed only if it has the digest that the Hub tells: what
  a proxy or a portal answers must not be committed in its place.
- A file object among the operations would switch Xet off for the whole commit: bytes and paths only.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, RepoFile, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_mpwriter.base.files import LocalFile
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.base.verdicts import Sent
from hf_mpwriter.push.transport import Transport

PATHS_PER_REQUEST = 500
CHUNK = 1 << 20  # bytes hashed at once
CARD_TIMEOUT = 15.0  # seconds; the events do not wait longer for a model card
TAG = "hf-summary-writer"  # what huggingface_hub's HFSummaryWriter adds to the model card


@dataclass(frozen=True)
class Remote:
    """A file on the Hub: its size and the digests that the Hub tells.

    Attributes:
        size: bytes.
        sha256: of LFS and Xet files, None for small regular ones.
        oid: git's id: of the content of a regular file, else of the pointer to it.
    """

    size: int
    sha256: str | None
    oid: str


class Hub:
    """One destination on the Hub. The token comes from the environment, as huggingface_hub reads it."""

    def __init__(self, destination: Destination) -> None:
        self._transport = Transport()
        self._destination = destination
        self._api = HfApi(endpoint=destination.endpoint)
        self._where: dict[str, Any] = {"repo_id": destination.repo_id, "repo_type": destination.repo_type}

    @property
    def repo_id(self) -> str:
        """The full name, once `create` or `head` was called."""
        return str(self._where["repo_id"])

    @property
    def commits_sent(self) -> int:
        """Requests for a commit that have left: only such a one can have an unknown outcome."""
        return self._transport.commits_sent

    def create(self, *, private: bool | None) -> None:
        """Create the repository and the branch where they are missing.

        Raises:
            Exception: whatever the client raises; `judge` tells what it means.
        """
        sdk = "static" if self._destination.repo_type == "space" else None
        url = self._api.create_repo(**self._where, private=private, exist_ok=True, space_sdk=sdk)
        self._where["repo_id"] = url.repo_id
        if self._destination.revision != "main":
            self._api.create_branch(**self._where, branch=self._destination.revision, exist_ok=True)

    def is_private(self) -> bool | None:
        """Whether the repository is private, None if the Hub does not tell."""
        return self._api.repo_info(**self._where).private

    def head(self) -> str | None:
        """The commit at the head of the branch, None if the repository or the branch does not exist."""
        try:
            info = self._api.repo_info(**self._where, revision=self._destination.revision)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return None
        self._where["repo_id"] = info.id or self._where["repo_id"]
        return info.sha

    def sizes(self, paths: Iterable[str], revision: str) -> dict[str, Remote]:
        """What the Hub holds of paths of the run directory at one commit; missing ones are left out."""
        wanted = {self._destination.path(path): path for path in paths}
        found = {}
        for chunk in _chunks(list(wanted), PATHS_PER_REQUEST):
            for info in self._api.get_paths_info(**self._where, paths=chunk, revision=revision):
                if isinstance(info, RepoFile) and info.path in wanted:
                    found[wanted[info.path]] = _remote(info)
        return found

    def begins_with(self, path: str, local: str, revision: str) -> bool:
        """Whether the Hub's copy of a path of the run directory begins with the whole local file; it is fetched."""
        with tempfile.TemporaryDirectory() as folder:
            where: dict[str, Any] = {**self._where, "filename": self._destination.path(path), "revision": revision}
            copy = self._api.hf_hub_download(**where, local_dir=folder)
            size = os.stat(local).st_size
            return size <= os.stat(copy).st_size and digest(copy, size) == digest(local, size)

    def commit(
        self, sources: Sequence[tuple[LocalFile, str]], parent: str | None, *, tag_card: bool
    ) -> tuple[str, dict[str, Sent]]:
        """Commit these lengths of these files.

        Args:
            sources: files, and where the content of each is: a path that leads to one file, whatever becomes of names.
            parent: the head that the branch must have, None to commit whatever it is.
            tag_card: add the tag to the model card in the same commit, if that names a parent: else it could undo what
                somebody has just written there.

        Returns:
            The commit, and what it holds per path; not in it are paths that the repository's .gitignore leaves out.
        """
        additions = [_addition(file, source, self._destination.path(file.path)) for file, source in sources]
        operations = additions + (self._card_operation(parent) if tag_card and parent else [])
        what = "attachments" if all(file.sha256 for file, _ in sources) else "TensorBoard events"
        info = self._api.create_commit(
            **self._where,
            operations=operations,
            commit_message=f"Add {what} ({len(sources)} file{'s' if len(sources) > 1 else ''})",
            revision=self._destination.revision,
            parent_commit=parent,
        )
        sent = {}
        for (file, source), addition in zip(sources, additions, strict=True):
            _check_unchanged(file, source)
            if not getattr(addition, "_should_ignore", False):
                sent[file.path] = file.content if file.sha256 else Sent(file.length, _sha256_of(addition, file, source))
        return info.oid, sent

    def squash(self) -> None:
        """Squash the history of the branch."""
        self._api.super_squash_history(**self._where, branch=self._destination.revision)

    def _card_operation(self, revision: str) -> list[CommitOperationAdd]:
        """The model card with our tag; nothing if it is there, or if the card cannot be read for certain.

        Only on the main branch, and a Space without a card gets none: its card is its configuration.
        """
        if self._destination.revision != "main":
            return []
        try:
            text = self._read("README.md", revision)
            card = ModelCard(text or "", ignore_metadata_errors=False)
        except Exception:  # noqa: BLE001 - whatever is wrong with the user's card, it is left alone
            return []
        if text is None and self._destination.repo_type == "space":
            return []
        tags = card.data.get("tags") or []
        if not isinstance(tags, list) or TAG in tags:
            return []
        card.data["tags"] = [*tags, TAG]
        return [CommitOperationAdd(path_in_repo="README.md", path_or_fileobj=str(card).encode())]

    def _read(self, path: str, revision: str) -> str | None:
        """A small regular file as it surely is, None if it surely is not there."""
        found = self._api.get_paths_info(**self._where, paths=[path], revision=revision)
        if not found:
            return None
        url = hf_hub_url(**self._where, filename=path, revision=revision, endpoint=self._api.endpoint)
        data = self._transport.read(url, CARD_TIMEOUT)
        if not isinstance(found[0], RepoFile) or _git_id(data) != found[0].blob_id:
            raise ValueError(f"{path} cannot be read")
        return data.decode()

    # what the oracle asks

    def commits(self) -> list[str]:
        """The commits of the branch, newest first; none if there is no repository or branch."""
        try:
            commits = self._api.list_repo_commits(**self._where, revision=self._destination.revision)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return []
        return [commit.commit_id for commit in commits]

    def tree(self, revision: str) -> dict[str, Remote]:
        """All files below the destination's folder at one commit, by path relative to it."""
        folder = self._destination.path_in_repo
        try:
            entries = self._api.list_repo_tree(**self._where, path_in_repo=folder, recursive=True, revision=revision)
            found = [entry for entry in entries if isinstance(entry, RepoFile)]
        except EntryNotFoundError:
            return {}
        return {entry.path[len(folder) :].lstrip("/"): _remote(entry) for entry in found}


def _remote(info: RepoFile) -> Remote:
    return Remote(info.size, info.lfs.sha256 if info.lfs else None, oid=info.blob_id)


def _chunks(items: Sequence[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _addition(file: LocalFile, source: str, path_in_repo: str) -> CommitOperationAdd:
    """A file that may still grow goes as bytes cut at the snapshot's length, a finished one or a copy as a path."""
    size = os.stat(source).st_size
    if file.sha256 and (size != file.length or digest(source, size) != file.sha256):
        raise OSError(f"the copy of {file.path} is damaged")
    if not file.growing and size == file.length:
        return CommitOperationAdd(path_in_repo=path_in_repo, path_or_fileobj=source)
    with open(source, "rb") as opened:
        data = opened.read(file.length)
    if len(data) != file.length:
        raise FileNotFoundError(f"{file.path} is shorter than its snapshot")
    return CommitOperationAdd(path_in_repo=path_in_repo, path_or_fileobj=data)


def _check_unchanged(file: LocalFile, source: str) -> None:
    if os.stat(source).st_size < file.length:
        raise FileNotFoundError(f"{file.path} became shorter while it was sent")


def _sha256_of(addition: CommitOperationAdd, file: LocalFile, source: str) -> str:
    known = addition.upload_info.sha256
    return known.hex() if known else digest(source, file.length)


def digest(path: str, length: int) -> str:
    """sha256 of the first `length` bytes of a file, hex; of fewer if it is shorter."""
    return _digest(path, length, b"", "sha256")


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324 - git's own digest


def _digest(path: str, length: int, start: bytes, algorithm: str) -> str:
    hasher = hashlib.new(algorithm, start)
    with open(path, "rb") as file:
        while length > 0 and (chunk := file.read(min(CHUNK, length))):
            hasher.update(chunk)
            length -= len(chunk)
    return hasher.hexdigest()


def same_content(path: str, remote: Remote) -> bool:
    """Whether the Hub's copy is the local file's prefix of that size."""
    if remote.sha256 is not None:
        return digest(path, remote.size) == remote.sha256
    return _digest(path, remote.size, b"blob %d\0" % remote.size, "sha1") == remote.oid
