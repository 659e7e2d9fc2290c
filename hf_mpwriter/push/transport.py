"""The transport: the one HTTP client that talks to a Hub, which bounds every request.

    huggingface_hub -> request hook: timeouts, count of commits, token -> `push/clock` -> the network
                    <- response hook: no long sleep or answer          <-

Where a person waits, it is impatient: shorter timeouts, and one more try instead of the five of the client, which take
half a minute.

Invariants:
- A token goes to the endpoint only, by its scheme, host and port: not to another page, redirect or action of LFS that
  an answer names, whatever the client builds.
- All requests of a push, a command or a pull end by one clock, see `push/clock`; what that does not reach ends with the
  push's own timer.
- No answer has more than ANSWER_LIMIT bytes, as it is sent and as it is unpacked, and all answers to a question of ours
  no more than QUESTION_LIMIT; a content that is asked for has no more than its size. A gzip of 1 MB can hold 1 GiB.
- What is said of the environment never has the value of a variable: a proxy has a password.

Facts behind this module (huggingface_hub 2.4.0):
- There is no timeout by default, and some calls pass `timeout=None`. The request hook fills in what is missing. hf_xet
  has network code of its own, which it does not reach.
- Within a call the client sleeps for as long as `Retry-After` says, be it a day, and it repeats a `create_repo` that
  meets another one at once and for ever. The response hook raises instead.
- Its client joins the whole of a body in memory, unpacked. The response hook can replace the stream of a response,
  before anything is read; one that is unpacked there must not have the header that says it is packed.
- It asks for a list of agents, unless telemetry is off, keeps for a day in HF_HOME whatever is answered, and fails at
  each request to any Hub if that is not as it should be. So telemetry is off.
- Nothing of a push is on the Hub before its request for a commit is sent: until then its outcome is known.
"""

from __future__ import annotations

import contextlib
import functools
import os
import ssl
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import httpx2
from huggingface_hub import constants, get_session, set_client_factory
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import hf_raise_for_status, hf_request_event_hook, parse_ratelimit_headers

from hf_mpwriter.push.classify import AnswerError, BusyError, ClientError, UnansweredError, wished_wait
from hf_mpwriter.push.clock import QUESTION, Clock, TimedNetwork
from hf_mpwriter.push.job import Quota

CONNECT_TIMEOUT = 15.0  # seconds
REQUEST_TIMEOUT = 120.0  # seconds; the Hub itself cuts a commit at 60 s
PATIENCE = 10.0  # seconds that the client may sleep within a call because the Hub asks for it
IMPATIENT_TIMEOUT = 20.0  # seconds, where a person waits
SECOND_TRY = 1.0  # seconds after the first
ANSWER_LIMIT = 32 << 20  # bytes of an answer; that on 500 paths, or a page of a tree, has less than one MiB
QUESTION_LIMIT = 128 << 20  # bytes of all answers to a question; a tree of 100,000 files has a fifth of it
LEAST_ANSWER = 1 << 10  # bytes that an answer counts for: a page may be empty, and name a next one
SENT_AT_ONCE = 1 << 16  # bytes of content
PIECE = 1 << 20  # bytes that are unpacked at once
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")  # variables, in lower or upper case

_LIMITS = {"connect": CONNECT_TIMEOUT, "read": REQUEST_TIMEOUT, "write": REQUEST_TIMEOUT, "pool": CONNECT_TIMEOUT}


Contact = Callable[[bool], object]  # takes False at the first request, True at the first answer of a Hub that works


class Transport:
    """The HTTP client that huggingface_hub uses in this process, for one endpoint."""

    def __init__(
        self,
        endpoint: str,
        clock: Clock,
        *,
        is_impatient: bool = False,
        contact: Contact = lambda _: None,
        is_shared: bool = True,
    ) -> None:
        """`is_shared`: whether huggingface_hub goes by it, in this process."""
        self.commits_sent, self._is_impatient = 0, is_impatient
        self._origin, self._clock = _origin(httpx2.URL(endpoint)), clock
        self._contact, self._contacts = contact, set[bool]()
        self.pause = 0.0  # seconds between two such requests as the last one, for half of what the account has left
        # called before each of them; what it raises ends the call of the client, and nothing is sent
        self.before_commit: Callable[[], object] = lambda: None
        self._content_limit, self._left = 0, QUESTION_LIMIT
        self.quota: Quota | None = None  # what is left of the requests of the account, None if the Hub does not tell
        constants.HF_HUB_DISABLE_TELEMETRY = True
        if is_shared:
            set_client_factory(self._client)

    def _client(self) -> httpx2.Client:
        hooks: dict[str, list[Callable[..., object]]] = {
            "request": [hf_request_event_hook, self._before_request],
            "response": [self._note_answer, self._bound_answer, _after_response],
        }
        try:
            kind = _ImpatientClient if self._is_impatient else httpx2.Client
            client = kind(event_hooks=hooks, follow_redirects=True, timeout=None, verify=_certificates())
        except Exception as error:  # noqa: BLE001 - of many types: proxies and certificates come from the environment
            raise ClientError(_trouble(error)) from None
        for transport in (client._transport, *client._mounts.values()):  # noqa: SLF001 - the proxies of the environment
            if isinstance(transport, httpx2.HTTPTransport):
                transport._pool._network_backend = TimedNetwork(self._clock)  # noqa: SLF001 - there is no argument for it
        return client

    def read(self, url: str, timeout: float) -> bytes:
        """The content at a URL of the Hub, by one request."""
        response = get_session().get(url, headers=build_hf_headers(), timeout=timeout)
        hf_raise_for_status(response)
        return response.content

    def read_range(self, url: str, start: int, length: int) -> bytes:
        """A range of the content at a URL of the Hub, as far as it goes; a server may ignore that it is one."""
        headers = build_hf_headers() | {"range": f"bytes={start}-{start + length - 1}", "accept-encoding": "identity"}
        response = get_session().get(url, headers=headers)
        if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return b""
        hf_raise_for_status(response)
        first = 0 if response.status_code == HTTPStatus.PARTIAL_CONTENT else start
        return response.content[first : first + length]

    @contextlib.contextmanager
    def stream(self, url: str) -> Iterator[httpx2.Response]:
        """A block with an answer that need not end, over a connection of its own: only the clock bounds it."""
        headers = build_hf_headers() | {"accept": "text/event-stream"}
        with (
            self.expecting(sys.maxsize),
            self._client() as client,
            client.stream("GET", url, headers=headers) as opened,
        ):
            yield opened

    def question(self) -> None:
        """Begin a question: what follows answers it."""
        self._left = QUESTION_LIMIT
        self._clock.give(QUESTION)

    @contextlib.contextmanager
    def expecting(self, size: int) -> Iterator[None]:
        """Let answers have the size of a content that is asked for, in bytes."""
        self._content_limit = max(size, ANSWER_LIMIT)
        try:
            yield
        finally:
            self._content_limit = 0

    def _note(self, *, answered: bool) -> None:
        if not self._contacts & {answered, True}:
            self._contacts.add(answered)
            self._contact(answered)

    def _note_answer(self, response: httpx2.Response) -> None:
        if response.status_code in (408, 429) or response.status_code >= 500:
            self._clock.fail()
        if told := parse_ratelimit_headers(response.headers):
            self.pause = 2 * told.reset_in_seconds / max(1, told.remaining)
            is_of_account = told.resource_type == "api" and _origin(response.request.url) == self._origin
            if is_of_account and told.limit and told.window_seconds:
                seconds, window = float(told.reset_in_seconds), float(told.window_seconds)
                self.quota = Quota(told.remaining, seconds, told.limit, window, time.monotonic())
        if response.status_code < 500 and response.status_code != 429:
            self._note(answered=True)

    def _before_request(self, request: httpx2.Request) -> None:
        self._note(answered=False)
        given = request.extensions.get("timeout") or {}
        limits = dict.fromkeys(_LIMITS, IMPATIENT_TIMEOUT) if self._is_impatient else _LIMITS
        request.extensions["timeout"] = limits | {name: value for name, value in given.items() if value is not None}
        if request.headers.get("accept-encoding") != "identity":
            request.headers["accept-encoding"] = "gzip"  # what `_Answer` can unpack
        is_commit = request.method == "POST" and "/commit/" in request.url.path
        if is_commit or request.method == "PUT":
            request.stream = _Content.of(request.stream, self._clock)
        if is_commit:
            self.before_commit()
            self.commits_sent += 1
        if _origin(request.url) != self._origin:  # last: hooks see each request as it is sent, redirected ones too
            request.headers.pop("authorization", None)

    def _bound_answer(self, response: httpx2.Response) -> None:
        """Bound what is read of an answer; unpack it here, not in the client."""
        packing = response.headers.get("content-encoding", "identity").strip().lower()
        if packing not in ("identity", "gzip"):
            raise AnswerError(f"the answer is packed by {packing[:40]!r}, which was not asked for")
        if packing == "gzip" and response.request.method != "HEAD":
            del response.headers["content-encoding"]
            response.headers.pop("content-length", None)
        assert isinstance(response.stream, httpx2.SyncByteStream)  # noqa: S101 - for the type checker
        self._left -= LEAST_ANSWER
        is_content = self._content_limit and response.status_code in (200, 206)  # the client holds all else in memory
        took = self._clock.came if is_content else self._took_answer
        limit = self._content_limit if is_content else ANSWER_LIMIT
        response.stream = _Answer(response.stream, limit, took, is_packed=packing == "gzip")

    def _took_answer(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise AnswerError("the answers are longer than those of any Hub")


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    """The server that a URL addresses."""
    port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    return url.scheme, url.host, port


def _trouble(error: Exception) -> str:
    """Why no client can be made; a proxy that is no URL is named by its variable."""
    if isinstance(error, (OSError, ImportError)):
        return f"{type(error).__name__}: {error}"
    names = sorted(name for name, value in os.environ.items() if value and name.lower() in PROXIES)
    return f"no client can be made with {', '.join(names) or 'this environment'} ({type(error).__name__})"


@functools.cache
def _certificates() -> ssl.SSLContext:
    """What the environment trusts, read once: a client would read it anew for itself, and for each of its proxies."""
    return httpx2.create_ssl_context()


class _ImpatientClient(httpx2.Client):
    """Tries what is only read once more, soon, and then gives up: the client itself would go on for half a minute."""

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        for is_last in (request.method not in ("GET", "HEAD"), True):
            try:
                response = super().send(request, **options)
            except httpx2.TransportError as error:
                if is_last or isinstance(error, httpx2.TimeoutException):
                    raise UnansweredError(f"{type(error).__name__}: {error}") from error
            else:
                if response.status_code < 500:
                    return response
                if is_last:
                    response.read()
                    hf_raise_for_status(response)
                response.close()
            time.sleep(SECOND_TRY)
        raise UnansweredError("no answer")


class _Content(httpx2.SyncByteStream):
    """The body of a request with content, in pieces that the clock is told of."""

    def __init__(self, stream: httpx2.SyncByteStream, clock: Clock) -> None:
        self._stream, self._clock = stream, clock

    @classmethod
    def of(cls, stream: object, clock: Clock) -> _Content:
        """That of a request; one that was redirected has it already."""
        assert isinstance(stream, httpx2.SyncByteStream)  # noqa: S101 - for the type checker
        return stream if isinstance(stream, cls) else cls(stream, clock)

    def __iter__(self) -> Iterator[bytes]:
        for data in self._stream:
            for start in range(0, len(data), SENT_AT_ONCE):
                yield (piece := data[start : start + SENT_AT_ONCE])
                self._clock.went(len(piece))


class _Answer(httpx2.SyncByteStream):
    """The body of an answer, unpacked, of a bounded length."""

    def __init__(
        self, stream: httpx2.SyncByteStream, limit: int, took: Callable[[int], object], *, is_packed: bool
    ) -> None:
        self._stream, self._left, self._took = stream, limit, took
        self._unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16) if is_packed else None

    def __iter__(self) -> Iterator[bytes]:
        for data in self._stream:
            for piece in self._unpacked(data):
                self._left -= len(piece)
                if self._left < 0:
                    raise AnswerError("the answer is longer than any answer of a Hub")
                self._took(len(piece))
                yield piece

    def _unpacked(self, data: bytes) -> Iterator[bytes]:
        if self._unpacker is None:
            yield data
            return
        try:
            piece = b"first"
            while data or len(piece) == PIECE:
                piece = self._unpacker.decompress(data, PIECE)
                data = self._unpacker.unconsumed_tail
                yield piece
        except zlib.error as error:
            raise AnswerError(f"the answer is no gzip: {error}") from error

    def close(self) -> None:
        self._stream.close()


def _after_response(response: httpx2.Response) -> None:
    """Raise what the client would raise only after a long sleep, or never."""
    if response.status_code < 400:
        return
    if response.status_code == 409 and response.request.url.path == "/api/repos/create":
        response.read()
        if "conflicting operation" in response.text:
            raise BusyError("another repository is being created for this account")
    if (wished_wait(response.headers) or 0.0) > PATIENCE:
        response.read()
        hf_raise_for_status(response)
