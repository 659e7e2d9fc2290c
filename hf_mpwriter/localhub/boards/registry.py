"""The boards of a Hub: one per repository, started on demand, at most MOST_BOARDS at a time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from hf_mpwriter.localhub.boards.board import Board, BoardError

if TYPE_CHECKING:
    from hf_mpwriter.localhub.storage.store import Store

MOST_BOARDS = 4  # each is a process of about 200 MB

Name = tuple[str, str]  # type and id of a repository


class Boards:
    """The boards of a Hub. Their directories are under `tmp/`, which is emptied when a server starts."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._boards: dict[Name, Board] = {}  # the one that was used last is the last one
        self._has_ended = False

    def open(self, repo: Name, prefix: str) -> Board:
        """Return the board of a repository, which shows its head."""
        with self._lock:
            if self._has_ended:
                raise BoardError("The Hub is stopping.")
            tree = self._store.tree(*repo)  # no other request has shown a newer one meanwhile
            board = self._boards.pop(repo, None)
            if board and not board.follow(tree):
                board.stop()
                board = None
            self._boards[repo] = board or Board(self._store.disk.scratch(), prefix, tree, self._store.blob_path)
            while len(self._boards) > MOST_BOARDS:
                self._boards.pop(next(iter(self._boards))).stop()
            return self._boards[repo]

    def end(self) -> None:
        """End all boards, and start no more."""
        with self._lock:
            self._has_ended = True
            while self._boards:
                self._boards.popitem()[1].stop()
