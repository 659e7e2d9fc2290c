"""TensorBoard on the head of a repository, started by the first visit of its page and ended with the Hub.

    SCRATCH/main/         the event files of the head, or what a live bucket has of them if that is more
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
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from starlette.responses import Response

from hf_mpwriter.localhub import buckets
from hf_mpwriter.localhub.child import ChildServer
from hf_mpwriter.localhub.config import HOST
from hf_mpwriter.localhub.errors import Refusal, RepoNotFound
from hf_mpwriter.localhub.store import BUCKET, MAIN, Disk, Store
from hf_mpwriter.localhub.xet import XetStore

LIVE = "-live"  # at the end of the name of a bucket, behind that of the repository
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


@dataclass(frozen=True)
class Content:
    """An event file."""

    size: int
    name: str  # of no other content
    open: Callable[[], BinaryIO]


Tree = Mapping[str, Content]  # by path


def event_files(store: Store, xet: XetStore | None, repo: Name) -> Tree:
    """Return the event files of a head, of each the longer of repository and live bucket."""
    found = {
        path: Content(entry.size, entry.sha256, partial(_opened, store.blob_path(entry)))
        for path, entry in store.tree(*repo).items()
    }
    bucket_id = repo[1] + LIVE
    with contextlib.suppress(RepoNotFound):
        if xet is not None and store.repo_info(BUCKET, bucket_id).private <= store.repo_info(*repo).private:
            for path, file in buckets.read(store, bucket_id).files.items():
                if path not in found or file.size > found[path].size:
                    found[path] = Content(file.size, file.xet_hash, partial(_rebuilt, xet, file.xet_hash))
    return {path: content for path, content in found.items() if "tfevents" in path.rpartition("/")[2]}


def _opened(path: str) -> BinaryIO:
    return open(path, "rb")


def _rebuilt(xet: XetStore, xet_hash: str) -> BinaryIO:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    if record := xet.file(xet_hash):
        file.writelines(xet.read(record, 0, record.size))
    file.seek(0)
    return file


class Boards:
    """The boards of a Hub. Their directories are under `tmp/`, which is emptied when a server starts."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._lock = threading.Lock()
        self._boards: dict[Name, Board] = {}  # the one that was used last is the last one
        self._has_ended = False

    def open(self, repo: Name, prefix: str, read: Callable[[], Tree]) -> Board:
        """Return the board of a repository, which shows what is read."""
        with self._lock:
            if self._has_ended:
                raise BoardError("The Hub is stopping.")
            tree = read()  # no other request has shown a newer one meanwhile
            board = self._boards.pop(repo, None)
            if board and not board.follow(tree):
                board.stop()
                board = None
            self._boards[repo] = board or Board(self._disk.scratch(), prefix, tree)
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

    def __init__(self, scratch: str, prefix: str, tree: Tree) -> None:
        self._scratch = scratch
        self._checkout = Checkout(os.path.join(scratch, MAIN))
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

    def follow(self, tree: Tree) -> bool:
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


class Checkout:
    """The event files of a commit in a directory, for a TensorBoard that is reading it.

    A reader keeps its place in an open file. It never looks again at what it has read, and misses a file that is
    replaced. Invariant: a file of a checkout is neither replaced nor cut nor removed, it only grows.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._held: dict[str, str] = {}  # path -> name of the content

    def follow(self, tree: Tree) -> bool:
        """Append what a commit has in addition.

        Whether the directory has what the commit has. If not, it needs a new directory: the commit lacks a
        file, or content of one, that an earlier commit had.
        """
        if not self._held.keys() <= tree.keys():
            return False
        for path, content in sorted(tree.items()):  # within a run, older files come first
            if self._held.get(path) != content.name:
                if not self._append(path, content):
                    return False
                self._held[path] = content.name
        return True

    def _append(self, path: str, content: Content) -> bool:
        target = os.path.join(self.directory, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with content.open() as source, open(target, "a+b") as copy:
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
