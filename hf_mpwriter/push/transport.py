"""The transport: the HTTP client of a push, which bounds every request.

    huggingface_hub -> request hook: timeouts, count of commits -> network -> response hook: no long sleep or answer

Where a person waits, it is impatient: shorter timeouts, and one more try instead of the five of the client, which take
half a minute.

Invariants:
- No call of the client takes longer than its timeouts and PATIENCE say; what they do not reach ends with the push's own
  timer.
- No answer has more than ANSWER_LIMIT bytes, as it is sent and as it is unpacked; a content that is asked for has no
  more than its size. A gzip of 1 MB can hold 1 GiB.

Facts behind this module (huggingface_hub 2.4.0):
- There is no timeout by default, and some calls pass `timeout=None`. The request hook fills in what is missing. hf_xet
  has network code of its own, which it does not reach.
- Within a call the client sleeps for as long as `Retry-After` says, be it a day, and it repeats a `create_repo` that
  meets another one at once and for ever. The response hook raises instead.
- Its client joins the whole of a body in memory, unpacked. The response hook can replace the stream of a response,
  before anything is read; one that is unpacked there must not have the header that says it is packed.
- Nothing of a push is on the Hub before its request for a commit is sent: until then its outcome is known.
"""

from __future__ import annotations

import contextlib
import functools
import ssl
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
from huggingface_hub import get_session, set_client_factory
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import hf_raise_for_status, hf_request_event_hook

from hf_mpwriter.push.classify import AnswerError, BusyError, ClientError, UnansweredError, wished_wait

CONNECT_TIMEOUT = 15.0  # seconds
REQUEST_TIMEOUT = 120.0  # seconds; the Hub itself cuts a commit at 60 s
PATIENCE = 10.0  # seconds that the client may sleep within a call because the Hub asks for it
IMPATIENT_TIMEOUT = 20.0  # seconds, where a person waits
SECOND_TRY = 1.0  # seconds after the first
ANSWER_LIMIT = 32 << 20  # bytes of an answer; that on 500 paths, or a page of a tree, has less than one MiB
PIECE = 1 << 20  # bytes that are unpacked at once

_LIMITS = {"connect": CONNECT_TIMEOUT, "read": REQUEST_TIMEOUT, "write": REQUEST_TIMEOUT, "pool": CONNECT_TIMEOUT}


Contact = Callable[[bool], object]  # takes False at the first request, True at the first answer of a Hub that works


class Transport:
    """The HTTP client that huggingface_hub uses in this process."""

    def __init__(self, *, is_impatient: bool = False, contact: Contact = lambda _: None) -> None:
        self.commits_sent, self._is_impatient = 0, is_impatient
        self._contact, self._contacts = contact, set[bool]()
        # called before each of them; what it raises ends the call of the client, and nothing is sent
        self.before_commit: Callable[[], object] = lambda: None
        self._answer_limit = ANSWER_LIMIT
        set_client_factory(self._client)

    def _client(self) -> httpx2.Client:
        hooks: dict[str, list[Callable[..., object]]] = {
            "request": [hf_request_event_hook, self._before_request],
            "response": [self._note_answer, self._bound_answer, _after_response],
        }
        try:
            kind = _ImpatientClient if self._is_impatient else httpx2.Client
            return kind(event_hooks=hooks, follow_redirects=True, timeout=None, verify=_certificates())
        except Exception as error:  # of many types: proxies and certificates come from the environment
            raise ClientError(f"{type(error).__name__}: {error}") from error

    def read(self, url: str, timeout: float) -> bytes:
        """The content at a URL of the Hub, by one request."""
        response = get_session().get(url, headers=build_hf_headers(), timeout=timeout)
        hf_raise_for_status(response)
        return response.content

    @contextlib.contextmanager
    def expecting(self, size: int) -> Iterator[None]:
        """Let answers have the size of a content that is asked for, in bytes."""
        before, self._answer_limit = self._answer_limit, max(size, ANSWER_LIMIT)
        try:
            yield
        finally:
            self._answer_limit = before

    def _note(self, *, answered: bool) -> None:
        if not self._contacts & {answered, True}:
            self._contacts.add(answered)
            self._contact(answered)

    def _note_answer(self, response: httpx2.Response) -> None:
        if response.status_code < 500 and response.status_code != 429:
            self._note(answered=True)

    def _before_request(self, request: httpx2.Request) -> None:
        self._note(answered=False)
        given = request.extensions.get("timeout") or {}
        limits = dict.fromkeys(_LIMITS, IMPATIENT_TIMEOUT) if self._is_impatient else _LIMITS
        request.extensions["timeout"] = limits | {name: value for name, value in given.items() if value is not None}
        if request.headers.get("accept-encoding") != "identity":
            request.headers["accept-encoding"] = "gzip"  # what `_Answer` can unpack
        if request.method == "POST" and "/commit/" in request.url.path:
            self.before_commit()
            self.commits_sent += 1

    def _bound_answer(self, response: httpx2.Response) -> None:
        """Bound what is read of an answer; unpack it here, not in the client."""
        packing = response.headers.get("content-encoding", "identity").strip().lower()
        if packing not in ("identity", "gzip"):
            raise AnswerError(f"the answer is packed by {packing[:40]!r}, which was not asked for")
        if packing == "gzip" and response.request.method != "HEAD":
            del response.headers["content-encoding"]
            response.headers.pop("content-length", None)
        assert isinstance(response.stream, httpx2.SyncByteStream)  # noqa: S101 - for the type checker
        response.stream = _Answer(response.stream, self._answer_limit, is_packed=packing == "gzip")


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


class _Answer(httpx2.SyncByteStream):
    """The body of an answer, unpacked, of a bounded length."""

    def __init__(self, stream: httpx2.SyncByteStream, limit: int, *, is_packed: bool) -> None:
        self._stream, self._left = stream, limit
        self._unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16) if is_packed else None

    def __iter__(self) -> Iterator[bytes]:
        for data in self._stream:
            for piece in self._unpacked(data):
                self._left -= len(piece)
                if self._left < 0:
                    raise AnswerError("the answer is longer than any answer of a Hub")
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
