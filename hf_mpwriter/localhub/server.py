"""A Hub in a child process: start, stop, kill, and restart on the same port with the same data.

ROOT/server.log       output of the child
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
from types import TracebackType
from typing import Any, Self

from hf_mpwriter.localhub.child import ChildServer, listen
from hf_mpwriter.localhub.config import (
    FAULTS_PATH,
    HOST,
    READY_PATH,
    TOKEN_PATH,
    TOKEN_VARIABLE,
    HubConfig,
    ServerError,
    make_private,
    take_token,
)
from hf_mpwriter.localhub.faults import Fault, Standing, from_json, parse
from hf_mpwriter.localhub.store import Store

START_DEADLINE = 60.0  # seconds
STOP_DEADLINE = 60.0  # seconds until it is killed


class LocalHub:
    """A Hub in a child process, which ends with this one, even by SIGKILL.

    Args:
        root: The folder for all data, readable by this user only; created if it is missing.
        token: The token that requests must carry, `<token>-read` to read only; None accepts every request.
        port: The port on 127.0.0.1; 0 picks a free port and keeps it for later starts.
        options: Fields of `config.HubConfig`, such as `xet=False` or `commits_per_hour=2`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        token: str | None = None,
        port: int = 0,
        **options: Any,
    ) -> None:
        self.store = Store(root)
        self.root = self.store.root
        self.token = token
        self.port = port
        self.config = HubConfig(**options)
        self._child: ChildServer | None = None

    @property
    def endpoint(self) -> str:
        """The URL of the Hub; known after the first start.

        Raises:
            ServerError: if the Hub was never started.
        """
        if not self.port:
            raise ServerError("The local Hub was never started")
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process id of the server, None if it is not running."""
        return self._child.pid if self._child and self._child.lives else None

    def start(self) -> Self:
        """Start the server and wait until it responds.

        Raises:
            ServerError: if it is running already or does not respond in time.
        """
        if self.pid is not None:
            raise ServerError(f"The local Hub is already running (pid {self.pid})")
        make_private(self.root)
        environment = dict(os.environ)
        take_token(environment)
        with listen(self.port) as sock:
            self.port = sock.getsockname()[1]
            self._child = ChildServer(
                "hf_mpwriter.localhub",
                sock,
                self.root,
                json.dumps(dataclasses.asdict(self.config)),
                log=os.path.join(self.root, "server.log"),
                env=environment | ({TOKEN_VARIABLE: self.token} if self.token else {}),
            )
        try:
            self._wait_for_answer()
        except BaseException:
            self.kill()
            raise
        return self

    def _wait_for_answer(self) -> None:
        """Wait until the server responds; the socket listens already, so one request suffices."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=START_DEADLINE)
        with contextlib.closing(connection):
            try:
                connection.request("GET", READY_PATH)
                connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                output = self._child.log_tail() if self._child else ""
                raise ServerError(f"The local Hub did not start: {error}\n{output}") from error

    def fault(self, fault: str | Fault) -> None:
        """Add a fault; it applies until `clear_faults` or the end of the server.

        Args:
            fault: A fault, or a line of text such as "POST /commit/ 503 times=3" (see `faults.GRAMMAR`).

        Raises:
            FaultError: if the text is not a valid fault.
        """
        fault = parse(fault) if isinstance(fault, str) else fault
        self._control("POST", FAULTS_PATH, dataclasses.asdict(fault))

    def faults(self) -> list[Standing]:
        """Return all faults since the last clear, in order, with their counts."""
        return [Standing(**item | {"fault": from_json(item["fault"])}) for item in self._control("GET", FAULTS_PATH)]

    def clear_faults(self) -> None:
        """Remove all faults; requests that hang resume."""
        self._control("DELETE", FAULTS_PATH)

    def set_token(self, token: str | None) -> None:
        """Replace the accepted token, also for later starts; the earlier one expires."""
        self._control("PUT", TOKEN_PATH, {"token": token})
        self.token = token

    def _control(self, method: str, path: str, body: Any = None) -> Any:
        with open(os.path.join(self.root, "secret"), encoding="ascii") as file:
            headers = {"Authorization": f"Bearer {file.read()}"}
        connection = http.client.HTTPConnection(HOST, self.port, timeout=START_DEADLINE)
        with contextlib.closing(connection):
            connection.request(method, path, json.dumps(body), headers)
            response = connection.getresponse()
            answer = response.read().decode()
        if response.status >= 400:
            raise ServerError(f"The local Hub refused {method} {path}: {answer}")
        return json.loads(answer or "null")

    def stop(self) -> None:
        """Let the server finish its responses, then end it."""
        if self._child:
            self._child.stop(STOP_DEADLINE)
            self._child = None

    def kill(self) -> None:
        """Kill the server with SIGKILL, like a crash."""
        if self._child:
            self._child.kill()
            self._child = None

    def __enter__(self) -> Self:
        """Start the server."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Stop the server; its data stays."""
        self.stop()
