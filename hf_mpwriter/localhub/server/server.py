"""A Hub in a child process: start, stop, kill, start again on the same port with the same data.

    ROOT/server.log       what the child prints

The child inherits its listening socket, so a port that was free stays ours, and it ends when its parent does, however
that ends (`serving.end_with`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Self

from hf_mpwriter.localhub.server.accounts import Tokens
from hf_mpwriter.localhub.server.faults import Fault, Standing, from_json, parse
from hf_mpwriter.localhub.server.limits import HubLimits
from hf_mpwriter.localhub.server.serving import FAULTS_PATH, HOST, READY_PATH, TOKENS_PATH, ServerError, listen, serve
from hf_mpwriter.localhub.server.state import DEFAULT_USER, MULTIPART_OVER
from hf_mpwriter.localhub.storage.store import Store

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["LocalHub", "ServerError", "serve"]

UNLIMITED = HubLimits()
START_DEADLINE = 20.0  # seconds
STOP_DEADLINE = 10.0  # seconds
RETRY_EVERY = 0.02  # seconds between looks at a server that is starting
LOG_TAIL = 2000  # bytes of server.log in an error message


class LocalHub:
    """A Hub in a child process.

    Args:
        root: The folder with all data; made if it is missing.
        token: What requests must carry; None believes everybody.
        read_token: A token that may only read.
        limits: What the Hub allows; everything without it.
        xet: Whether clients may upload by Xet.
        port: The port on 127.0.0.1; 0 picks a free one, kept for every later start.
        user: The name that whoami tells.
        multipart_over: Size in bytes above which LFS objects come in parts.
        discard: Whether LFS content is forgotten once its size and digest were checked.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        token: str | None = None,
        read_token: str | None = None,
        limits: HubLimits = UNLIMITED,
        xet: bool = True,
        port: int = 0,
        user: str = DEFAULT_USER,
        multipart_over: int = MULTIPART_OVER,
        discard: bool = False,
    ) -> None:
        self.store = Store(root)
        self.root = self.store.root
        self.tokens = Tokens(token, read_token)
        self.limits = limits
        self.xet = xet
        self.port = port
        self.user = user
        self.multipart_over = multipart_over
        self.discard = discard
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """The address of the Hub; it is known from the first start on."""
        if not self.port:
            raise ServerError("The local Hub was never started")
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process id of the server, None if it does not run."""
        return self._child.pid if self._child and self._child.poll() is None else None

    def start(self, deadline: float = START_DEADLINE) -> Self:
        """Start the server and wait until it answers."""
        if self.pid is not None:
            raise ServerError(f"The local Hub already runs (pid {self.pid})")
        os.makedirs(self.root, exist_ok=True)
        with listen(self.port) as sock, open(os.path.join(self.root, "server.log"), "ab") as log:
            self.port = sock.getsockname()[1]
            self._child = subprocess.Popen(
                self._command(sock.fileno()),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[sock.fileno()],
                start_new_session=True,
            )
        try:
            self._wait_for_answer(deadline)
        except BaseException:
            self.kill()
            raise
        return self

    def _command(self, descriptor: int) -> list[str]:
        """Return how the child is started."""
        command = [sys.executable, "-m", "hf_mpwriter.localhub", "--root", self.root, "--socket", str(descriptor)]
        command += ["--parent", str(os.getpid()), "--user", self.user, "--multipart-over", str(self.multipart_over)]
        command += ["--commits-per-hour", str(self.limits.commits_per_hour)]
        command += ["--requests-per-5min", str(self.limits.requests_per_5min)]
        command += ["--busy"] if self.limits.busy else []
        command += ["--discard"] if self.discard else []
        return command if self.xet else [*command, "--no-xet"]

    def _environment(self) -> dict[str, str]:
        """Return the child's environment: tokens travel there, and never in an argument."""
        environment = dict(os.environ)
        Tokens.take(environment)
        return environment | self.tokens.environ()

    def _wait_for_answer(self, deadline: float) -> None:
        """Wait until the server answers; it listens already, so one request waits for it."""
        ends = time.monotonic() + deadline
        while True:
            connection = http.client.HTTPConnection(HOST, self.port, timeout=max(0.1, ends - time.monotonic()))
            try:
                connection.request("GET", READY_PATH)
                connection.getresponse().read()
            except (OSError, http.client.HTTPException) as error:
                if self.pid is None or time.monotonic() > ends:
                    raise ServerError(f"The local Hub did not start: {error}\n{self._log_tail()}") from error
                time.sleep(RETRY_EVERY)
            else:
                return
            finally:
                connection.close()

    def _log_tail(self) -> str:
        """Return the end of what the child printed."""
        with open(os.path.join(self.root, "server.log"), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL))
            return file.read().decode("utf-8", "replace")

    def fault(self, fault: str | Fault) -> None:
        """Let something go wrong from now on, until `clear_faults` or the end of the server.

        Args:
            fault: A fault, or the line of text that means one (`faults.GRAMMAR`), such as "POST /commit/ 503 times=3".

        Raises:
            FaultError: if the text means no fault.
        """
        fault = parse(fault) if isinstance(fault, str) else fault
        self._control("POST", FAULTS_PATH, dataclasses.asdict(fault))

    def faults(self) -> list[Standing]:
        """Return all faults since the last clearing, in their order, and what they have done."""
        return [Standing(**item | {"fault": from_json(item["fault"])}) for item in self._control("GET", FAULTS_PATH)]

    def clear_faults(self) -> None:
        """Let nothing go wrong any more; requests that hang go on."""
        self._control("DELETE", FAULTS_PATH)

    def set_token(self, token: str | None, *, read_token: str | None = None) -> None:
        """Believe these tokens from now on, after a new start too; those of before have expired."""
        tokens = Tokens(token, read_token)
        self._control("PUT", TOKENS_PATH, dataclasses.asdict(tokens))
        self.tokens = tokens

    def _control(self, method: str, path: str, body: Any = None) -> Any:
        """Steer the server and return what it answers."""
        headers = {"Authorization": f"Bearer {self.tokens.write}"} if self.tokens.write else {}
        connection = http.client.HTTPConnection(HOST, self.port, timeout=START_DEADLINE)
        with contextlib.closing(connection):
            connection.request(method, path, json.dumps(body), headers)
            response = connection.getresponse()
            answer = response.read().decode()
        if response.status >= 400:
            raise ServerError(f"The local Hub refused {method} {path}: {answer}")
        return json.loads(answer or "null")

    def stop(self, deadline: float = STOP_DEADLINE) -> None:
        """Let the server finish its answers and end it."""
        if self._child is None:
            return
        self._child.terminate()
        try:
            self._child.wait(deadline)
        except subprocess.TimeoutExpired:
            self.kill()
        self._child = None

    def kill(self) -> None:
        """End the server as a crash would."""
        if self._child is None:
            return
        self._child.kill()
        self._child.wait()
        self._child = None

    def __enter__(self) -> Self:
        """Start the server."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Stop the server; its data stay."""
        self.stop()
