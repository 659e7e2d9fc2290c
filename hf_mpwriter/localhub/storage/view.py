"""A run on the local Hub as the oracle wants to see it, straight from the folder of the store."""

from __future__ import annotations

from collections.abc import Mapping

from hf_mpwriter.localhub.errors import RepoNotFound
from hf_mpwriter.localhub.storage.store import MAIN, Store, TreeEntry


class View:
    """What `hf_mpwriter.testing.check` asks of the Hub.

    Args:
        store: of the Hub, `LocalHub(...).store`.
        repo_id: repository.
        folder: of the run in it, such as "tensorboard/exp1"; "" for its root.
        repo_type: model, dataset or space.
        revision: branch.
    """

    def __init__(self, store: Store, repo_id: str, folder: str, repo_type: str = "model", revision: str = MAIN) -> None:
        self._store, self._repo, self._revision = store, (repo_type, repo_id), revision
        self._prefix = f"{folder}/" if folder else ""

    def commits(self) -> list[str]:
        """The commits of the branch, newest first; none before there is a repository."""
        try:
            return [commit.oid for commit in self._store.commits(*self._repo, self._revision)]
        except RepoNotFound:
            return []

    def tree(self, revision: str) -> Mapping[str, TreeEntry]:
        """All files of the run's folder at one commit."""
        tree = self._store.tree(*self._repo, revision)
        return {path.removeprefix(self._prefix): entry for path, entry in tree.items() if path.startswith(self._prefix)}
