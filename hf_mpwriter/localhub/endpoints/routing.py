"""From a request to its handler: raw paths, whole bodies, the thread pool, refusals as responses.

Branch names arrive as `exp%2F1`, so starlette's Router matches the raw path, and convertors decode the parts of it. A
handler is a plain function from `Call` to a response. It runs in the thread pool, so that hashing and fsync never block
the event loop.

The whole body is read before any response is sent, refusals included: a client that is still sending would see a
reset instead of the response. Endpoints marked `spool` get the body as a file under `tmp/`, all others as bytes.

Accounts: there is one, identified by a token, or by the token with `-read` behind it, which may only read. A Hub
without a token accepts every request. A Hub with one hides all repositories from requests without a token, as the real
Hub hides private ones: a private repository and a missing one look the same. What controls the Hub itself asks for its
secret.

Invariant: no page of another address changes anything. A browser sends what such a page asks for, with the user's
token if it has one, and says in `Origin` and `Sec-Fetch-Site` whose page it is; another port of this host is the same
site, but not the same origin.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hmac
import json
import os
import re
import sys
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

from anyio import CapacityLimiter, to_thread
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from hf_mpwriter.localhub.config import CONTROL, USER
from hf_mpwriter.localhub.errors import (
    BadRequest,
    Forbidden,
    HiddenRepo,
    Refusal,
    Stranger,
    TooLarge,
    Unauthorized,
    UnsupportedMedia,
)
from hf_mpwriter.localhub.faulting import answer_of, slow_receive
from hf_mpwriter.localhub.faults import Fault, When

if TYPE_CHECKING:
    from hf_mpwriter.localhub.serving import HubState

BODY_LIMIT = 256 << 20  # bytes of a body that is held; a commit of a full batch has less than half of that
SPOOL_BUFFER = 1 << 20  # bytes per write in the thread pool
API_THREADS = 32
CAS_THREADS = 8  # a separate pool: a commit that rebuilds content waits for the Hub's own CAS requests

READS = "-read"  # what stands behind the token in the one that may only read
SHA256 = re.compile(r"[0-9a-f]{64}")

Auth = Literal["read", "write", "view", "control", "none", "xet-read", "xet-write"]
Role = Literal["stranger", "read", "write"]
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f]")  # in no header
_OWN_PAGES = {"same-origin", "none"}  # Sec-Fetch-Site of the Hub's own pages, and of what a person types
_FORMS = {"text/plain", "application/x-www-form-urlencoded", "multipart/form-data"}  # any page may post them anywhere
_LOOPBACK = re.compile(r"(127\.0\.0\.1|localhost)(:\d+)?", re.IGNORECASE)


def role_of(authorization: str | None, token: str | None) -> Role:
    """Return the role that an Authorization header grants on a Hub with this token."""
    if token is None or _carries(authorization, token):
        return "write"
    if _carries(authorization, token + READS):
        return "read"
    if authorization is None:
        return "stranger"
    raise Unauthorized


def bearer_of(authorization: str | None) -> str | None:
    """Return an Authorization header with the token that a browser sends as the password of Basic authentication."""
    scheme, _, credentials = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return authorization
    try:
        password = base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except ValueError:
        return authorization
    return f"Bearer {password}"


def _carries(authorization: str | None, token: str) -> bool:
    return hmac.compare_digest((authorization or "").encode(), f"Bearer {token}".encode())


class Call(Request):
    """A request with its Hub and its whole body, as handlers receive it."""

    content = b""  # the body, unless it is spooled
    spooled = ""  # the path of the file with the body, if it is

    @property
    def hub(self) -> HubState:
        """The Hub that serves the request."""
        hub: HubState = self.scope["hub"]
        return hub

    @property
    def endpoint(self) -> str:
        """The Hub's address as the client wrote it."""
        return f"http://{self.headers.get('host', '127.0.0.1')}"

    @property
    def repo(self) -> tuple[str, str]:
        """The type and full id of the repository in the path."""
        repo_type, repo_id = self.path_params["repo"]
        return repo_type, repo_id if "/" in repo_id else f"{USER}/{repo_id}"

    @property
    def repo_url(self) -> str:
        """The URL of the repository in the path."""
        return repo_url(self.endpoint, *self.repo)

    @property
    def role(self) -> Role:
        """The role of the sender."""
        role: Role = self.scope["role"]
        return role

    def fields(self) -> dict[str, Any]:
        """The body as a JSON object."""
        try:
            value = json.loads(self.content or b"{}")
        except ValueError as error:
            raise BadRequest(f"Invalid JSON: {error}") from None
        if not isinstance(value, dict):
            raise BadRequest("Invalid JSON: an object is expected")
        return value

    def flag(self, name: str) -> bool:
        """Return a boolean query argument."""
        return self.query_params.get(name, "").lower() in ("1", "true")


class _Text(Convertor[str]):
    def __init__(self, regex: str) -> None:
        self.regex = regex  # type: ignore[misc]  # of the instance: one class serves several

    def convert(self, value: str) -> str:
        """Return the text."""
        return unquote(value)


class _Repo(Convertor[tuple[str, str]]):
    """Type and id of a repository; an id of one part belongs to the Hub's user."""

    def __init__(self, regex: str) -> None:
        self.regex = regex  # type: ignore[misc]  # see above

    def convert(self, value: str) -> tuple[str, str]:
        """Return the type and the id."""
        kind, _, rest = value.partition("/")
        if rest and kind in ("models", "datasets", "spaces", "buckets"):
            return kind.removesuffix("s"), unquote(rest).removeprefix("me/" if kind == "buckets" else "")
        return "model", unquote(value)


_CONVERTORS: dict[str, Convertor[Any]] = {
    "part": _Text(r"[^/]+"),
    "path": _Text(r".+"),
    "tail": _Text(r"(?:/.*)?"),
    "hash": _Text(r"[0-9a-f]{64}"),
    "cas": _Text(r"[0-9a-f]{12}"),
    "api": _Repo(r"(?:models|datasets|spaces)/[^/]+(?:/[^/]+)?"),
    "bucket": _Repo(r"buckets/[^/]+/[^/]+"),
    "repo": _Repo(r"(?:(?:datasets|spaces)/)?[^/]+(?:/[^/]+)?"),
    "view": _Repo(r"(?:(?:datasets|spaces)/)?(?!(?:api|buckets|datasets|lfs|spaces|v1|xet|-)/)[^/]+/[^/]+"),
}
for _name, _convertor in _CONVERTORS.items():
    register_url_convertor(f"hub_{_name}", _convertor)


def raw_path(scope: Scope) -> str:
    """Return the path of a request as it was sent, without its query."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return raw.split(b"?")[0].decode("latin-1")


def repo_url(endpoint: str, repo_type: str, repo_id: str) -> str:
    """Return the URL of a repository."""
    prefix = "" if repo_type == "model" else repo_type + "s/"
    return f"{endpoint}/{prefix}{repo_id}"


def get_field(fields: dict[str, Any], name: str, kind: type[Any]) -> Any:
    """Return a field of a JSON object, or refuse if its type differs."""
    value = fields.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BadRequest(f'"{name}" must be {kind.__name__}')
    return value


def refusal_answer(refusal: Refusal) -> Response:
    """Return the response to a refused request."""
    message = _CONTROL_CHARACTERS.sub(" ", refusal.message.encode("ascii", "replace").decode("ascii"))
    headers = {"X-Error-Message": message, **refusal.headers}
    if refusal.code:
        headers["X-Error-Code"] = refusal.code
    return JSONResponse({"error": refusal.message, **refusal.extra}, refusal.status, headers)


@dataclass(frozen=True)
class Endpoint:
    """A handler as an ASGI application: authorize, read the body, run the handler between the faults."""

    handler: Callable[[Call], Response]  # Returns the response
    auth: Auth = "read"  # What the request must be authorized for
    spool: bool = False  # Whether the body goes to a file
    forms: bool = False  # Whether its body may be that of a form: it changes nothing, or asks for the secret
    refused: Callable[[Refusal], Response] = refusal_answer  # Returns the response to a refused request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        fault = await _strike("arrive", scope)
        if fault and fault.kind == "slow":
            receive, fault = slow_receive(fault, scope, receive), None
        try:
            answer = answer_of(fault) if fault else await self._answer(Call(scope, receive))
        except ClientDisconnect:
            return
        await answer(scope, receive, send)

    async def _answer(self, call: Call) -> ASGIApp:
        try:
            if raw_path(call.scope).startswith("/api/"):
                call.scope["limit"] = call.hub.quota.request(time.monotonic())
            try:
                self._admit(call)
            except Refusal:
                async for _ in call.stream():
                    pass
                raise
            await self._read_body(call)
            return await self._handle(call)
        except Refusal as refusal:
            return _marked(self.refused(refusal), call)
        except ClientDisconnect:
            raise
        except Exception:  # noqa: BLE001  # a bug in one handler must not stop the Hub
            traceback.print_exc(file=sys.stderr)
            return JSONResponse({"error": "Internal Error - we're working hard to fix this as soon as possible!"}, 500)
        finally:
            if call.spooled:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(call.spooled)

    def _admit(self, call: Call) -> None:
        """Authorize a request; record in the scope its role for handlers and log."""
        if not _LOOPBACK.fullmatch(call.headers.get("host", "")):
            # DNS rebinding: a page in the user's browser may resolve its own host name to 127.0.0.1.
            raise Forbidden("This Hub answers to 127.0.0.1 and localhost only")
        if call.method not in ("GET", "HEAD"):
            self._refuse_other_pages(call)
        authorization = call.headers.get("authorization")
        if self.auth == "none":
            return
        if self.auth in ("read", "write", "view"):
            if call.method in ("GET", "HEAD") or self.auth == "view":
                # Not where something changes: a browser adds its user's token to requests of other pages, too.
                authorization = bearer_of(authorization)
            call.scope["role"] = role = role_of(authorization, call.hub.token)
            if role == "stranger":
                raise HiddenRepo if "repo" in call.path_params else Stranger
            if self.auth == "write" and role != "write":
                raise Forbidden("You must use a write token to upload to a repository.")
        elif self.auth == "control":
            if not _carries(authorization, call.hub.secret.decode()):
                raise Unauthorized("This asks for the content of the file `secret` in the Hub's folder as the token")
        else:
            call.hub.check_xet_token(authorization, self.auth.removeprefix("xet-"))
        call.scope["authenticated"] = authorization is not None

    def _refuse_other_pages(self, call: Call) -> None:
        """Refuse what a page of another address has its browser send."""
        told = call.headers
        if not (set(told.getlist("sec-fetch-site")) <= _OWN_PAGES and set(told.getlist("origin")) <= {call.endpoint}):
            raise Forbidden("Only pages of this Hub may send this")
        kind = told.get("content-type", "").partition(";")[0].strip().lower()
        if call.method == "POST" and kind in _FORMS and not self.forms:
            raise UnsupportedMedia(f"This is not taken as {kind}; JSON is")

    async def _read_body(self, call: Call) -> None:
        if not self.spool:
            body = bytearray()
            async for chunk in call.stream():
                body += chunk
                if len(body) > BODY_LIMIT:
                    raise TooLarge
            call.content = bytes(body)
            return
        call.spooled = await to_thread.run_sync(call.hub.store.disk.scratch)
        with open(call.spooled, "xb") as file:  # noqa: ASYNC230  # opening is quick, writing goes to a thread
            buffer = bytearray()
            async for chunk in call.stream():
                buffer += chunk
                if len(buffer) >= SPOOL_BUFFER:
                    await to_thread.run_sync(file.write, bytes(buffer))
                    buffer.clear()
            await to_thread.run_sync(file.write, bytes(buffer))

    async def _handle(self, call: Call) -> ASGIApp:
        if fault := await _strike("before", call.scope):
            return answer_of(fault)
        limiter = _threads(cas=raw_path(call.scope).startswith("/xet/"))
        answer = _marked(await to_thread.run_sync(self.handler, call, limiter=limiter), call)
        if fault := await _strike("after", call.scope):
            return answer_of(fault, answer)
        return answer


async def _strike(when: When, scope: Scope) -> Fault | None:
    hub: HubState = scope["hub"]
    path = raw_path(scope)
    if path.startswith(CONTROL) or hub.is_own(scope["headers"]):
        return None
    return await hub.faults.strike(when, scope["method"], path)


@functools.cache
def _threads(*, cas: bool) -> CapacityLimiter:
    """Return the thread limiter for CAS endpoints or for all others; anyio wants it created inside the event loop."""
    return CapacityLimiter(CAS_THREADS if cas else API_THREADS)


async def in_threads(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield what an iterator yields that waits for the Hub's own CAS requests; starlette's threads serve those."""
    while piece := await to_thread.run_sync(next, pieces, b"", limiter=_threads(cas=False)):
        yield piece


def _marked(answer: Response, call: Call) -> Response:
    answer.headers.update(call.scope.get("limit", {}))
    answer.headers.setdefault("X-Request-Id", call.headers.get("x-amzn-trace-id") or str(uuid.uuid4()))
    return answer
