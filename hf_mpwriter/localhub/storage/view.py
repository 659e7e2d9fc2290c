"""A run on the local Hub, read from the store on disk for the oracle."""

from __future__ import annotations

from collections.abc import Mapping

from hf_mpwriter.localhub.errors import RepoNotFound
from hf_mpwriter.localhub.storage.store import MAIN, Store, TreeEntry


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
