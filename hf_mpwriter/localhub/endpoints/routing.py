"""From a request to its handler: raw paths, whole bodies, the thread pool, refusals as responses.

Branch names arrive as `exp%2F1`, so routes match the raw path and decode its parts afterwards. A handler is a plain
function from `Call` to a response. It runs in the thread pool, so that hashing and fsync never block the event loop.

The whole body is read before any response is sent, refusals included: a client that is still sending would see a
reset instead of the response. Routes marked `spool` get the body as a file under `tmp/`, all others as bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
import traceback
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qs, unquote

from anyio import CapacityLimiter, to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from hf_mpwriter.localhub.errors import BadRequest, Forbidden, HiddenRepo, NotFound, Refusal, Stranger
from hf_mpwriter.localhub.server.accounts import bearer_of
from hf_mpwriter.localhub.server.faulting import answer_of, slow_receive
from hf_mpwriter.localhub.server.request_log import raw_path
from hf_mpwriter.localhub.server.state import CONTROL

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from starlette.types import ASGIApp, Receive, Scope, Send

    from hf_mpwriter.localhub.server.accounts import Role
    from hf_mpwriter.localhub.server.faults import Fault, When
    from hf_mpwriter.localhub.server.state import HubState

    Guard = Callable[["Call"], AbstractContextManager[None]]

SPOOL_BUFFER = 1 << 20  # bytes per write in the thread pool
API_THREADS = 32
CAS_THREADS = 8  # a separate pool: a commit that rebuilds content waits for the Hub's own CAS requests

Auth = Literal["read", "write", "view", "none", "xet-read", "xet-write"]
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f]")  # in no header
_LOOPBACK = re.compile(r"(127\.0\.0\.1|localhost)(:\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Route:
    """One row of the route table."""

    method: str  # The HTTP method; GET covers HEAD
    pattern: re.Pattern[str]  # The pattern of the raw path
    handler: Callable[[Call], Response]  # Returns the response
    auth: Auth  # What the request must be authorized for
    spool: bool  # Whether the body goes to a file
    guard: Guard | None  # Returns a context that is held while the handler runs
    refused: Callable[[Refusal], Response]  # Returns the response to a refused request

    @property
    def cas(self) -> bool:
        """Whether the Hub itself may be waiting for this route."""
        return self.pattern.pattern.startswith("/xet/")


@dataclass
class Call:
    """A request with its body, as handlers receive it."""

    hub: HubState
    request: Request
    params: dict[str, str]
    body: bytes = b""
    spooled: str = ""
    query: dict[str, list[str]] = field(default_factory=dict)

    @property
    def endpoint(self) -> str:
        """The Hub's address as the client wrote it."""
        return f"http://{self.request.headers.get('host', '127.0.0.1')}"

    @property
    def repo(self) -> tuple[str, str]:
        """The type and full id of the repository in the path."""
        repo_type = (self.params.get("type") or "models").removesuffix("s")
        repo_id = self.params["id"]
        return repo_type, repo_id if "/" in repo_id else f"{self.hub.user}/{repo_id}"

    @property
    def repo_url(self) -> str:
        """The URL of the repository in the path."""
        return repo_url(self.endpoint, *self.repo)

    @property
    def role(self) -> Role:
        """The role of the sender."""
        role: Role = self.request.scope["role"]
        return role

    def json(self) -> dict[str, Any]:
        """The body as a JSON object."""
        try:
            value = json.loads(self.body or b"{}")
        except ValueError as error:
            raise BadRequest(f"Invalid JSON: {error}") from None
        if not isinstance(value, dict):
            raise BadRequest("Invalid JSON: an object is expected")
        return value

    def arg(self, name: str, default: str = "") -> str:
        """Return a query argument."""
        return self.query.get(name, [default])[-1]

    def flag(self, name: str) -> bool:
        """Return a boolean query argument."""
        return self.arg(name).lower() in ("1", "true")


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


class Router:
    """The ASGI application: find the route, authorize, run the handler."""

    def __init__(self, hub: HubState, routes: Sequence[Route]) -> None:
        self.hub = hub
        self.routes = routes
        # Filled on first use: anyio wants limiters created inside the event loop.
        self._limits: dict[bool, CapacityLimiter] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        fault = await self._strike("arrive", scope)
        if fault and fault.kind == "slow":
            receive, fault = slow_receive(fault, scope, receive), None
        try:
            answer = answer_of(fault) if fault else await self._answer(Request(scope, receive))
        except ClientDisconnect:
            return
        await answer(scope, receive, send)

    async def _strike(self, when: When, scope: Scope) -> Fault | None:
        """Return the fault that strikes a request at this moment, if any."""
        path = raw_path(scope)
        if path.startswith(CONTROL) or self.hub.is_own(scope["headers"]):
            return None
        return await self.hub.faults.strike(when, scope["method"], path)

    async def _answer(self, request: Request) -> ASGIApp:
        """Return the response to a request; errors become responses, too."""
        route: Route | None = None
        call: Call | None = None
        try:
            try:
                route, call = self._find(request)
                self._admit(route, call)
            except Refusal:
                async for _ in request.stream():
                    pass
                raise
            await self._read_body(route, call)
            return await self._handle(route, call)
        except Refusal as refusal:
            return _marked((route.refused if route else refusal_answer)(refusal), request)
        except ClientDisconnect:
            raise
        except Exception:  # noqa: BLE001  # a bug in one handler must not stop the Hub
            traceback.print_exc(file=sys.stderr)
            return JSONResponse({"error": "Internal Error - we're working hard to fix this as soon as possible!"}, 500)
        finally:
            if call and call.spooled:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(call.spooled)

    async def _handle(self, route: Route, call: Call) -> ASGIApp:
        """Run the handler, and the faults before and after it."""
        scope = call.request.scope
        with route.guard(call) if route.guard else contextlib.nullcontext():
            if fault := await self._strike("before", scope):
                return answer_of(fault)
            answer = await to_thread.run_sync(route.handler, call, limiter=self._limit(cas=route.cas))
        _marked(answer, call.request)
        if fault := await self._strike("after", scope):
            return answer_of(fault, answer)
        return answer

    def _find(self, request: Request) -> tuple[Route, Call]:
        """Return the route and the call of a request."""
        if not _LOOPBACK.fullmatch(request.headers.get("host", "")):
            # DNS rebinding: a page in the user's browser may resolve its own host name to 127.0.0.1.
            raise Forbidden("This Hub answers to 127.0.0.1 and localhost only")
        path = raw_path(request.scope)
        method = "GET" if request.method == "HEAD" else request.method
        for route in self.routes:
            if route.method == method and (match := route.pattern.fullmatch(path)):
                params = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                query = parse_qs(request.scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
                return route, Call(self.hub, request, params, query=query)
        raise NotFound("Sorry, we can't find the page you are looking for.")

    def _admit(self, route: Route, call: Call) -> None:
        """Authorize a request; record in the scope its role for handlers and log, and its quota for the response."""
        scope, authorization = call.request.scope, call.request.headers.get("authorization")
        if route.auth == "none":
            return
        if route.auth in ("read", "write", "view"):
            if route.method == "GET" or route.auth == "view":
                # Not where something changes: a browser adds its user's token to requests of other pages, too.
                authorization = bearer_of(authorization)
            scope["role"] = role = self.hub.tokens.role(authorization)
            if role == "stranger":
                raise HiddenRepo if "id" in call.params else Stranger
            if route.auth == "write" and role != "write":
                raise Forbidden("You must use a write token to upload to a repository.")
        else:
            self.hub.check_xet_token(authorization, route.auth.removeprefix("xet-"))
        scope["authenticated"] = authorization is not None
        if raw_path(scope).startswith("/api/"):
            scope["usage"] = self.hub.usage.request(time.monotonic())

    async def _read_body(self, route: Route, call: Call) -> None:
        """Read the body into memory or into a file."""
        if not route.spool:
            call.body = await call.request.body()
            return
        call.spooled = await to_thread.run_sync(self.hub.store.disk.scratch)
        with open(call.spooled, "xb") as file:  # noqa: ASYNC230  # opening is quick, writing goes to a thread
            buffer = bytearray()
            async for chunk in call.request.stream():
                buffer += chunk
                if len(buffer) >= SPOOL_BUFFER:
                    await to_thread.run_sync(file.write, bytes(buffer))
                    buffer.clear()
            await to_thread.run_sync(file.write, bytes(buffer))

    def _limit(self, *, cas: bool) -> CapacityLimiter:
        """Return the thread limiter for CAS routes or for all others."""
        if cas not in self._limits:
            self._limits[cas] = CapacityLimiter(CAS_THREADS if cas else API_THREADS)
        return self._limits[cas]


def _marked(answer: Response, request: Request) -> Response:
    """Return a response with the headers that all responses carry."""
    answer.headers.setdefault("X-Request-Id", request.headers.get("x-amzn-trace-id") or str(uuid.uuid4()))
    answer.headers.update(request.scope.get("usage", {}))
    return answer
