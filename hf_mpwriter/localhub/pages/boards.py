"""TensorBoard on the head of a repository, started by the first visit of its page and ended with the Hub.

    SCRATCH/main/         the event files of the head, which it reads
    SCRATCH/board.log     its output

Every user of a machine reaches a port on loopback, so a board answers only requests that carry a key. The key is in
its environment, which other users cannot read.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import shutil
import socket
import threading
from collections.abc import Callable, Mapping
from typing import BinaryIO

from starlette.responses import Response

from hf_mpwriter.localhub.child import ChildServer
from hf_mpwriter.localhub.config import HOST
from hf_mpwriter.localhub.errors import Refusal
from hf_mpwriter.localhub.store import MAIN, Store, TreeEntry

MOST_BOARDS = 4  # each is a process of about 200 MB
KEY_VARIABLE = "LOCALHUB_BOARD_KEY"  # between Hub and child only
KEY_HEADER = "X-Board-Key"
PATIENCE = 120.0  # seconds for an answer; the first one waits until TensorBoard has loaded
COMPARE_BYTES = 1 << 20
ANSWERED = (  # headers that reach the browser
    "cache-control",
    "content-encoding",
    "content-security-policy",
    "content-type",
    "etag",
    "expires",
    "vary",
    "x-content-type-options",
)

Name = tuple[str, str]  # type and id of a repository


class BoardError(Refusal):
    """TensorBoard does not answer."""

    status = 502


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


class Board:
    """A TensorBoard that runs until `stop`."""

    def __init__(
        self, scratch: str, prefix: str, tree: Mapping[str, TreeEntry], blob_path: Callable[[TreeEntry], str]
    ) -> None:
        self._scratch = scratch
        self._checkout = Checkout(os.path.join(scratch, MAIN), blob_path)
        os.makedirs(self._checkout.directory)
        self._checkout.follow(tree)
        self._key = secrets.token_hex(16)
        with socket.create_server((HOST, 0)) as sock:
            self.port: int = sock.getsockname()[1]
            self._child = ChildServer(
                "hf_mpwriter.localhub.pages.board_process",
                sock,
                self._checkout.directory,
                prefix,
                log=os.path.join(scratch, "board.log"),
                env=os.environ | {KEY_VARIABLE: self._key},
            )
        self.pid = self._child.pid

    def follow(self, tree: Mapping[str, TreeEntry]) -> bool:
        """Show another commit, if this board can: it lives, and the commit has all content that it shows."""
        return self._child.lives and self._checkout.follow(tree)

    def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Response:
        """Send a request."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            try:
                connection.request(method, path, body or None, {**headers, KEY_HEADER: self._key})
                response = connection.getresponse()
                passed = {name: value for name, value in response.getheaders() if name.lower() in ANSWERED}
                return Response(response.read(), response.status, passed)
            except (OSError, http.client.HTTPException) as error:
                raise BoardError(f"TensorBoard does not answer: {error}\n{self._child.log_tail()}") from error

    def stop(self) -> None:
        """End it; it has nothing to lose."""
        self._child.kill()
        shutil.rmtree(self._scratch, ignore_errors=True)


def is_event_file(path: str) -> bool:
    """Return whether TensorBoard reads a file of this name."""
    return "tfevents" in path.rpartition("/")[2]


class Checkout:
    """The event files of a commit in a directory, for a TensorBoard that is reading it.

    A reader keeps its place in an open file. It never looks again at what it has read, and misses a file that is
    replaced. Invariant: a file of a checkout is neither replaced nor cut nor removed, it only grows.
    """

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
