"""The wire: a relay before the local Hub that garbles answers, and the questions that are asked through it.

client  -->  relay  -->  Hub
        <-- garbled --

<control>    "<seed> <probability>": answers are garbled from now on; no file: none is
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from lib.prctl import die_with_parent

from fuzzing.mutate import Mutator
from hf_mpwriter.base.settings import Destination
from hf_mpwriter.push.classify import plain
from hf_mpwriter.push.client import Account, Hub

STATUSES = (200, 204, 301, 302, 307, 400, 401, 403, 404, 409, 412, 413, 416, 418, 422, 429, 500, 502, 503, 599)
HEADERS = (
    ("content-length", "99999999999"),
    ("content-length", "-1"),
    ("content-encoding", "gzip"),
    ("content-encoding", "br, \xff"),
    ("content-type", "text/html; charset=nonsense"),
    ("content-range", "bytes 9-1/x"),
    ("etag", '"../../x"'),
    ("etag", "x" * 5000),
    ("link", '<http://127.0.0.1:1/api/models/fuzz/run/tree/main?cursor=x>; rel="next"'),
    ("link", '<//[::1>; rel="next"'),
    ("link", "<" * 4000),
    ("location", "/"),
    ("location", "http://127.0.0.1:1/x"),
    ("location", "file:///etc/hostname"),
    ("location", "http://[::1"),
    ("retry-after", "9" * 400),
    ("retry-after", "Mon, 99 Foo 99999 99:99:99 GMT"),
    ("ratelimit", '"api";r=0;t=' + "9" * 400),
    ("x-error-code", "RepoNotFound"),
    ("x-error-message", "\x1b[2J" + "x" * 5000),
    ("x-repo-commit", "../../x"),
    ("x-linked-size", "-1"),
    ("x-linked-etag", "9" * 5000),
    ("x-request-id", "\xff"),
)
OURS = ("content-length", "transfer-encoding", "connection", "date", "server")  # headers that the relay makes itself
FOLDER = "tensorboard/exp1"


class Relay:
    """The relay, in a process of its own."""

    def __init__(self, control: Path) -> None:
        self._control, self._pid = control, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def start(self, endpoint: str) -> None:
        """Pass requests on to a Hub."""
        self._pid = os.fork()
        if self._pid == 0:
            try:
                die_with_parent()
                Handler.hub, Handler.chance = endpoint.removeprefix("http://"), Chance(self._control)
                serve(self._listener)
            finally:
                os._exit(1)
        self._listener.close()

    def stop(self) -> None:
        """End it."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def garble(self, seed: str, probability: float) -> None:
        """Garble answers from now on."""
        self._control.write_text(f"{probability} {seed}")

    def calm(self) -> None:
        """Garble none any more."""
        self._control.unlink(missing_ok=True)


class Chance:
    """Decides about each answer."""

    def __init__(self, control: Path) -> None:
        self._control, self._seed, self._requests = control, "", 0

    def __call__(self) -> random.Random | None:
        """Return the chance of this answer, None if it goes through."""
        try:
            probability, seed = self._control.read_text().split(" ", 1)
        except (OSError, ValueError):
            return None
        self._requests = self._requests + 1 if self._seed == seed else 0
        self._seed = seed
        rng = random.Random(f"{seed} {self._requests}")
        return rng if rng.random() < float(probability) else None


def serve(listener: socket.socket) -> None:
    """Answer requests for ever."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket, server.daemon_threads = listener, True
    server.serve_forever()


def garbled(
    rng: random.Random, status: int, headers: dict[str, str], data: bytes
) -> tuple[int, dict[str, str], bytes] | None:
    """Return what has become of an answer, None if it does not come."""
    kind = rng.randrange(10)
    if kind < 5:
        data = Mutator(rng).data(data)
        return status, headers | {"content-length": str(len(data))}, data
    if kind == 5:
        return rng.choice(STATUSES), headers, data
    if kind < 8:
        return status, headers | dict([rng.choice(HEADERS)]), data
    return None if kind == 8 else (status, headers, data[: len(data) // 2])


class Handler(BaseHTTPRequestHandler):
    """Passes a request on, and garbles its answer by chance."""

    protocol_version = "HTTP/1.1"
    hub: str  # host and port
    chance: Chance

    def pass_on(self) -> None:
        """Answer a request."""
        self.close_connection = True
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):  # one of the two has gone
            hub = http.client.HTTPConnection(self.hub, timeout=60)
            body = self._body()
            hub.request(self.command, self.path, body, dict(self.headers))  # Host included: its links lead here
            answer = hub.getresponse()
            data, headers = answer.read(), {name.lower(): value for name, value in answer.getheaders()}
            hub.close()
            length = headers.get("content-length", "0") if self.command == "HEAD" else str(len(data))
            kept = {name: value for name, value in headers.items() if name not in OURS}
            self._answer(answer.status, {"content-length": length} | kept, data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        del self.headers["Transfer-Encoding"]
        return found

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        rng = self.chance()
        answer = (status, headers, data) if rng is None else garbled(rng, status, headers, data)
        if answer is None:
            return
        lines = [f"HTTP/1.1 {answer[0]} x", *(f"{name}: {value}" for name, value in answer[1].items())]
        self.wfile.write("\r\n".join([*lines, "connection: close", "", ""]).encode("latin-1"))
        if self.command != "HEAD":
            self.wfile.write(answer[2])

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = pass_on  # noqa: N815 - names of the base class

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def hurry() -> None:
    """Keep no pause in this process, which ends soon."""
    pause, time.sleep = time.sleep, lambda seconds: pause(min(seconds, 0.01))


def ask(scratch: Path, rng: random.Random) -> None:
    """Ask what pushes, pulls and `doctor` ask; each error must have a verdict, in one line that may be shown."""
    hurry()
    destination = Destination(os.environ["HF_ENDPOINT"], "fuzz/run", path_in_repo=FOLDER)
    hub, account = Hub(destination, is_impatient=True), Account(destination.endpoint)
    known = {"head": "main", "path": "events"}

    def copy() -> None:
        with hub.copy(known["path"], known["head"], 1 << 20, str(scratch / "copy")) as path:
            Path(path).read_bytes()

    def tree() -> None:
        found = hub.tree(known["head"])
        known["path"] = next((path for path in found if "\0" not in path), "events")
        for remote in found.values():
            remote.is_beginning_of(os.devnull)

    questions: list[Callable[[], object]] = [
        lambda: known.update(head=str(hub.head() or "main")),
        tree,
        lambda: hub.folders("tensorboard", known["head"]),
        lambda: hub.sizes([known["path"], "notes.txt"], known["head"]),
        lambda: hub.pushed(["notes.txt"], known["head"]),
        hub.commits,
        copy,
        account.whoami,
        lambda: account.repository(destination),
        lambda: hub.create(private=None),
    ]
    for question in [*questions[:2], *rng.sample(questions, 4)]:
        try:
            question()
        except Exception as error:
            verdict = plain(error, destination, os.environ)
            text = getattr(verdict, "reason", "") + getattr(verdict, "hint", "")
            if not text.isprintable() or len(text) > 2000:
                raise ValueError(f"a verdict that cannot be shown: {text!r:.300}") from error
