"""The Hub as one ASGI application: the route table, the request log, and the endpoints that control a running Hub.

Order matters, because an id has one part or two: `/api/models/<id>` comes after all routes with a longer path.

    ROOT/requests.jsonl       {"t": 12.5, "method": "POST", "path": "/api/...", "status": 200, "in": 512, "out": 96,
                               "auth": true}

The log has one line of JSON per request, for tests that count requests and bytes; the line is there before the end of
the answer leaves, so a client that has its answer finds it. `t` is the monotonic clock at the start of the request.
`in` and `out` count bytes of bodies. `status` is null if the Hub sent no response. The path is the raw path without its
query, which may hold a signature; the token is never logged. The Hub's requests to itself and those that control it are
not logged; the latter are also exempt from faults.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from anyio import from_thread
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hf_mpwriter.localhub.config import CONTROL, FAULTS_PATH, READY_PATH, TOKEN_PATH
from hf_mpwriter.localhub.endpoints import api, buckets, cas, lfs
from hf_mpwriter.localhub.endpoints.routing import Auth, Call, Endpoint, raw_path
from hf_mpwriter.localhub.errors import BadRequest, NotFound
from hf_mpwriter.localhub.faults import from_json, parse
from hf_mpwriter.localhub.pages import handlers
from hf_mpwriter.localhub.pages.handlers import STYLE_PATH, refusal_page, style

if TYPE_CHECKING:
    from hf_mpwriter.localhub.serving import HubState

_API = "/api/{repo:hub_api}"
_BUCKET = "/{repo:hub_bucket}"
_PAGE = "/{repo:hub_repo}"
_VIEW = "/{repo:hub_view}"
_CAS = "/xet/{store:hub_cas}"
_REV = "{rev:hub_part}"
_HASH = "{hash:hub_hash}"


def _route(method: str, path: str, handler: Callable[[Call], Response], auth: Auth = "read", **options: Any) -> Route:
    """Return one row of the route table; GET covers HEAD."""
    return Route(path, Endpoint(handler, auth, **options), methods=[method])


def _view(path: str, handler: Callable[[Call], Response], method: str = "GET") -> Route:
    """Return the row of a page, which a browser shows."""
    return _route(method, path, handler, "view", refused=refusal_page, forms=True)


def _missing(_: Call) -> Response:
    raise NotFound("Sorry, we can't find the page you are looking for.")


def ready(_: Call) -> Response:
    """GET /-/ready: the server is up."""
    return Response(status_code=204)


def list_faults(call: Call) -> Response:
    """GET /-/faults: all faults since the last clear, with their counts."""
    return JSONResponse([dataclasses.asdict(standing) for standing in call.hub.faults.list()])


def add_fault(call: Call) -> Response:
    """POST /-/faults: add a fault, given as a line of text or as JSON."""
    text = call.content.decode("utf-8", "replace").strip()
    try:
        fault = from_json(json.loads(text)) if text.startswith("{") else parse(text)
    except ValueError as error:
        raise BadRequest(str(error)) from None
    from_thread.run_sync(call.hub.faults.add, fault)
    return Response(status_code=204)


def set_token(call: Call) -> Response:
    """PUT /-/token: replace the accepted token; the earlier one expires."""
    call.hub.token = call.fields().get("token")
    return Response(status_code=204)


def clear_faults(call: Call) -> Response:
    """DELETE /-/faults: remove all faults and resume the requests that they hold."""
    from_thread.run_sync(call.hub.faults.clear)
    return Response(status_code=204)


ROUTES = (
    _route("GET", READY_PATH, ready, "none"),
    _route("GET", FAULTS_PATH, list_faults, "control"),
    _route("POST", FAULTS_PATH, add_fault, "control", forms=True),  # as curl sends it
    _route("DELETE", FAULTS_PATH, clear_faults, "control"),
    _route("PUT", TOKEN_PATH, set_token, "control"),
    _route("GET", "/api/whoami-v2", api.whoami),
    _route("POST", "/api/validate-yaml", api.validate_yaml, "none"),
    _route("POST", "/v1/telemetry", api.telemetry, "none"),
    _route("POST", "/api/repos/create", api.create_repo),
    _route("DELETE", "/api/repos/delete", api.delete_repo, "write"),
    _route("POST", "/api/repos/move", buckets.move, "write"),
    _route("GET", "/api/buckets/{namespace:hub_part}", buckets.list_all),
    _route("GET", f"/api{_BUCKET}", buckets.info),
    _route("POST", f"/api{_BUCKET}", buckets.create, "write"),
    _route("DELETE", f"/api{_BUCKET}", buckets.delete, "write"),
    _route("PUT", f"/api{_BUCKET}/settings", buckets.settings, "write"),
    _route("GET", f"/api{_BUCKET}/tree{{path:hub_tail}}", buckets.tree),
    _route("POST", f"/api{_BUCKET}/paths-info", buckets.paths_info),
    _route("GET", f"/api{_BUCKET}/xet-read-token", partial(cas.token, scope="read")),
    _route("GET", f"/api{_BUCKET}/xet-write-token", partial(cas.token, scope="write"), "write"),
    _route("POST", f"/api{_BUCKET}/batch", buckets.batch, "write"),
    _route("GET", f"/api{_BUCKET}/events", buckets.events),
    _route("GET", f"{_BUCKET}/resolve/{{path:hub_path}}", buckets.resolve),
    _route("POST", f"{_API}/preupload/{_REV}", api.preupload, "write"),
    _route("POST", f"{_API}/commit/{_REV}", api.commit, "write"),
    _route("GET", f"{_API}/xet-read-token/{_REV}", partial(cas.token, scope="read")),
    _route("GET", f"{_API}/xet-write-token/{_REV}", partial(cas.token, scope="write"), "write"),
    _route("GET", f"{_API}/tree/{_REV}{{path:hub_tail}}", api.tree),
    _route("POST", f"{_API}/paths-info/{_REV}", api.paths_info, forms=True),
    _route("GET", f"{_API}/commits/{_REV}", api.commits),
    _route("GET", f"{_API}/refs", api.refs),
    _route("POST", f"{_API}/branch/{_REV}", api.create_branch, "write"),
    _route("DELETE", f"{_API}/branch/{_REV}", api.delete_branch, "write"),
    _route("POST", f"{_API}/super-squash/{_REV}", api.super_squash, "write"),
    _route("GET", f"{_API}/revision/{_REV}", api.repo_info),
    _route("GET", _API, api.repo_info),
    _route("POST", f"{_CAS}/v1/xorbs/{{prefix:hub_part}}/{_HASH}", cas.post_xorb, "xet-write", spool=True),
    _route("POST", f"{_CAS}/v2/shards", cas.post_shard, "xet-write"),
    _route("GET", f"{_CAS}/v1/chunks/{{prefix:hub_part}}/{_HASH}", cas.find_chunk, "xet-read"),
    _route("GET", f"{_CAS}/v2/reconstructions/{_HASH}", cas.reconstruction, "xet-read"),
    _route("GET", f"{_CAS}/fetch/{_HASH}", cas.fetch_xorb, "none"),
    _route("PUT", "/lfs/{oid:hub_hash}", lfs.put_blob, "none", spool=True),
    _route("POST", f"{_PAGE}.git/info/lfs/objects/batch", lfs.batch, "write"),
    _route("POST", f"{_PAGE}.git/info/lfs/objects/verify", lfs.verify, "write"),
    _route("GET", f"{_PAGE}/resolve/{_REV}/{{path:hub_path}}", api.resolve),
    _route("GET", STYLE_PATH, style, "none"),
    _view("/", handlers.home),
    _view(_BUCKET, handlers.bucket),
    _view(f"{_VIEW}/tree/{_REV}{{path:hub_tail}}", handlers.tree),
    _view(f"{_VIEW}/blob/{_REV}/{{path:hub_path}}", handlers.blob),
    _view(f"{_VIEW}/commits/{_REV}", handlers.commits),
    _view(f"{_VIEW}/commit/{_REV}", handlers.commit),
    _view(f"{_VIEW}/tensorboard", handlers.metrics),
    _view(f"{_VIEW}/tensorboard/board/{{path:path}}", handlers.board),
    _view(f"{_VIEW}/tensorboard/board/{{path:path}}", handlers.board, "POST"),
    _view(_VIEW, handlers.card),
    Route("/{path:path}", Endpoint(_missing, "none")),
)


class RequestLog:
    """ASGI middleware that logs requests."""

    def __init__(self, app: ASGIApp, hub: HubState) -> None:
        self.app = app
        self.hub = hub
        path = os.path.join(hub.store.root, "requests.jsonl")
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  # open for the life of the server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request and log it."""
        if scope["type"] != "http" or scope["path"].startswith(CONTROL) or self.hub.is_own(scope["headers"]):
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        seen: dict[str, int | None] = {"status": None, "in": 0, "out": 0}
        is_written = False

        def write() -> None:
            nonlocal is_written
            if not is_written:
                is_written = True
                self._write(started, scope, seen)

        async def counting_receive() -> Message:
            message = await receive()
            seen["in"] = (seen["in"] or 0) + len(message.get("body", b""))
            return message

        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
            seen["out"] = (seen["out"] or 0) + len(message.get("body", b""))
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                write()
            await send(message)

        try:
            await self.app(scope, counting_receive, counting_send)
        finally:
            write()

    def _write(self, started: float, scope: Scope, seen: dict[str, int | None]) -> None:
        """Append one line; on a full disk the line is lost, the request succeeds."""
        line = {"t": round(started, 4), "method": scope["method"], "path": raw_path(scope), **seen}
        line["auth"] = bool(scope.get("authenticated"))
        with contextlib.suppress(OSError):
            self._file.write(json.dumps(line).encode() + b"\n")


def create_app(hub: HubState) -> ASGIApp:
    """Return the application of a Hub: the routes for raw paths, below the request log."""
    router = Router(ROUTES, redirect_slashes=False)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope.update(hub=hub, path=raw_path(scope), root_path="")
        await router(scope, receive, send)

    return RequestLog(app, hub)
