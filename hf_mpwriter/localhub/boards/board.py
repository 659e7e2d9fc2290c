"""One TensorBoard: a child process on a loopback port that answers to this Hub only.

    SCRATCH/main/         the event files of the head, which it reads
    SCRATCH/board.log     its output

Every user of a machine reaches a port on loopback, so the child answers only requests that carry a key. The key is in
its environment, which other users cannot read. The socket listens before the child starts: the first request waits in
the socket until the child accepts it.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_mpwriter.localhub.boards.checkout import Checkout
from hf_mpwriter.localhub.storage.store import MAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hf_mpwriter.localhub.storage.store import TreeEntry

HOST = "127.0.0.1"
KEY_VARIABLE = "LOCALHUB_BOARD_KEY"  # between Hub and child only
KEY_HEADER = "X-Board-Key"
PATIENCE = 120.0  # seconds for an answer; the first one waits until TensorBoard has loaded
LOG_TAIL = 2000  # bytes of board.log in an error message


class BoardError(Exception):
    """TensorBoard does not answer."""


@dataclass(frozen=True)
class Answer:
    """A response of TensorBoard."""

    status: int
    headers: Mapping[str, str]
    content: bytes


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
        with socket.create_server((HOST, 0)) as sock, open(self._log, "ab") as log:
            self.port: int = sock.getsockname()[1]
            self._child = subprocess.Popen(
                self._command(prefix, sock.fileno()),
                env=os.environ | {KEY_VARIABLE: self._key},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[sock.fileno()],
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id of the child."""
        return self._child.pid

    @property
    def _log(self) -> str:
        return os.path.join(self._scratch, "board.log")

    def _command(self, prefix: str, descriptor: int) -> list[str]:
        """Return the command that starts the child."""
        command = [sys.executable, "-m", "hf_mpwriter.localhub.boards", "--logdir", self._checkout.directory]
        return [*command, "--prefix", prefix, "--socket", str(descriptor), "--parent", str(os.getpid())]

    def follow(self, tree: Mapping[str, TreeEntry]) -> bool:
        """Show another commit.

        Whether this board can. A new board is needed if it has ended, or if the commit lacks content that it has.
        """
        return self._child.poll() is None and self._checkout.follow(tree)

    def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send a request."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            try:
                connection.request(method, path, body or None, {**headers, KEY_HEADER: self._key})
                response = connection.getresponse()
                return Answer(response.status, dict(response.getheaders()), response.read())
            except (OSError, http.client.HTTPException) as error:
                raise BoardError(f"TensorBoard does not answer: {error}\n{self._log_tail()}") from error

    def _log_tail(self) -> str:
        """Return the end of the child's output."""
        with contextlib.suppress(FileNotFoundError), open(self._log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL))
            return file.read().decode("utf-8", "replace")
        return ""

    def stop(self) -> None:
        """End it; it has nothing to lose."""
        self._child.kill()
        self._child.wait()
        shutil.rmtree(self._scratch, ignore_errors=True)
