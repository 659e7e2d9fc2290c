"""The addresses of a repository's pages, those of the real Hub."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from hf_mpwriter.localhub.storage.store import MAIN


@dataclass(frozen=True)
class Links:
    """The addresses of a repository, without the Hub's own."""

    repo_type: str  # "model", "dataset" or "space"
    repo_id: str  # Namespace and name

    @property
    def home(self) -> str:
        """The model card."""
        return ("" if self.repo_type == "model" else f"/{self.repo_type}s") + "/" + quote(self.repo_id)

    @property
    def metrics(self) -> str:
        """The tab "Training metrics"."""
        return f"{self.home}/tensorboard"

    @property
    def board(self) -> str:
        """What TensorBoard has before its own paths."""
        return f"{self.metrics}/board"

    def tree(self, revision: str = MAIN, path: str = "") -> str:
        """A folder."""
        return self._at("tree", revision, path)

    def blob(self, revision: str, path: str) -> str:
        """A file."""
        return self._at("blob", revision, path)

    def resolve(self, revision: str, path: str) -> str:
        """The content of a file."""
        return self._at("resolve", revision, path)

    def commits(self, revision: str = MAIN, page: int = 0) -> str:
        """A page of the history."""
        return self._at("commits", revision) + (f"?p={page}" if page else "")

    def commit(self, oid: str) -> str:
        """What a commit changed."""
        return self._at("commit", oid)

    def _at(self, page: str, revision: str, path: str = "") -> str:
        """Return the address of something at a revision; `exp/1` is one part of a path, as the client sends it."""
        return f"{self.home}/{page}/{quote(revision, safe='')}" + (f"/{quote(path)}" if path else "")
